"""Members come by tokens, become voters, change, and go; what is listed decides who may link."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from raftmft.core import commands as c
from raftmft.core.admission import MAX_TTL_MS
from raftmft.core.members import STORELESS
from raftmft.core.outcome import Code
from tests.core.machine_world import BOOTSTRAP, HOUR_MS, MEMBERS, World

TOKEN = "ab" * 32
NEW = c.MemberSpec("id-n4", "n4", "10.0.0.4", 7400, 7400, 2222, "4" * 64)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "state.db")


def joined(world: World, spec: c.MemberSpec = NEW, token: str = TOKEN, mode: str = "active") -> None:
    world.ok(c.TokenCreate(token, mode, HOUR_MS))
    world.ok(c.MemberAdmit(token, "host key", spec, 5))


def test_a_token_admits_one_host_once_as_a_learner(world: World) -> None:
    before = world.machine.settings.placement
    joined(world, mode="standby")
    member = world.machine.members.get("id-n4")
    assert member is not None and (member.joined, member.mode, member.stores) == (0, "standby", False)
    assert world.machine.certificates.listed()["4" * 64] == "id-n4"
    assert world.machine.settings.placement == before, "a learner owns nothing yet"
    other = replace(NEW, id="id-n5", name="n5", fingerprint="5" * 64)
    assert world.refused(c.MemberAdmit(TOKEN, "another host's key", other, 5)) == Code.PERMISSION


def test_a_host_whose_answer_was_lost_is_admitted_once(world: World) -> None:
    joined(world)
    again = replace(NEW, id="id-other", fingerprint="6" * 64, host="10.0.0.44")
    assert world.ok(c.MemberAdmit(TOKEN, "host key", again, 6))["member"] == "id-n4"
    listed = world.machine.certificates.listed()
    assert "4" * 64 not in listed and listed["6" * 64] == "id-n4"
    member = world.machine.members.get("id-n4")
    assert member is not None and member.host == "10.0.0.44"
    world.ok(c.MemberBoot("id-n4", b"nonce", "1"))
    assert world.refused(c.MemberAdmit(TOKEN, "host key", again, 6)) == Code.PERMISSION, "it runs already"


def test_a_host_takes_a_dead_members_place_in_one_entry(world: World) -> None:
    world.ok(c.MemberSet("id-n2", weight=250))
    epoch = world.boot("id-n2")
    world.ok(c.UserAdd("ann"))
    session = world.login(member="id-n2")
    new = replace(NEW, name="n2")
    world.ok(c.TokenCreate(TOKEN, "active", HOUR_MS))
    assert world.refused(c.MemberAdmit(TOKEN, "host key", new, 5)) == Code.EXISTS
    assert world.refused(c.MemberAdmit(TOKEN, "host key", new, 5, replaces="id-n3")) == Code.CONFLICT, "of another name"
    before = world.machine.settings.placement
    world.ok(c.MemberAdmit(TOKEN, "host key", new, 5, replaces="id-n2"))
    machine = world.machine
    member = machine.members.get("id-n4")
    assert member is not None and (member.name, member.weight, member.joined) == ("n2", 250, 0)
    assert machine.members.get("id-n2") is None and machine.sessions.get(session) is None
    assert "id-n2" not in machine.certificates.listed().values() and machine.settings.owes_rotation
    assert machine.settings.placement > before
    late = world.apply(c.UserAdd("bob"), identity=c.CommandId("id-n2", epoch, 1))
    assert late.rejection is not None and late.rejection.code == Code.STALE_EPOCH
    assert world.ok(c.MemberAdmit(TOKEN, "host key", new, 5, replaces="id-n2"))["member"] == "id-n4", "asked again"


def test_expired_unknown_and_malformed_tokens_admit_nobody(world: World) -> None:
    world.ok(c.TokenCreate(TOKEN, "active", 1000))
    world.now_ms += 1000
    assert world.refused(c.MemberAdmit(TOKEN, "k", NEW, 5)) == Code.PERMISSION
    assert world.refused(c.MemberAdmit("cd" * 32, "k", NEW, 5)) == Code.PERMISSION
    for bad in (c.TokenCreate(TOKEN, "draining", 1), c.TokenCreate(TOKEN, "active", 0),
                c.TokenCreate(TOKEN, "active", MAX_TTL_MS + 1), c.TokenCreate("short", "active", 1)):
        assert world.refused(bad) == Code.INVALID


def test_names_and_hosts_are_checked_before_a_token_is_used(world: World) -> None:
    world.ok(c.TokenCreate(TOKEN, "active", HOUR_MS))
    assert world.refused(c.MemberAdmit(TOKEN, "k", replace(NEW, name="n2"), 5)) == Code.EXISTS
    for bad in (replace(NEW, name=""), replace(NEW, name="a/b"), replace(NEW, host=""), replace(NEW, host="a b"),
                replace(NEW, peer_port=70000), replace(NEW, weight=-1), replace(NEW, id="")):
        assert world.refused(c.MemberAdmit(TOKEN, "k", bad, 5)) == Code.INVALID
    world.ok(c.MemberAdmit(TOKEN, "k", NEW, 5))


def test_a_member_counts_in_the_placement_once_it_is_ready(world: World) -> None:
    joined(world)
    before = world.machine.settings.placement
    world.ok(c.MemberReady("id-n4"))
    assert world.machine.settings.placement > before
    now = world.machine.settings.placement
    world.ok(c.MemberReady("id-n4"))
    assert world.machine.settings.placement == now, "twice is once"


@pytest.mark.parametrize("mode", STORELESS)
def test_who_stops_storing_moves_the_placement(world: World, mode: str) -> None:
    before = world.machine.settings.placement
    world.ok(c.MemberSet("id-n1", mode="draining"))
    assert world.machine.settings.placement == before, "a draining member keeps its chunks"
    world.ok(c.MemberSet("id-n1", mode=mode))
    assert world.machine.settings.placement > before
    world.ok(c.MemberSet("id-n2", mode=mode))
    assert world.refused(c.MemberSet("id-n3", mode=mode)) == Code.INVALID, "the last one that stores"
    assert world.refused(c.MemberRemove("id-n3")) == Code.INVALID


def test_undrain_goes_back_to_the_mode_before(world: World) -> None:
    world.ok(c.MemberSet("id-n1", mode="standby"))
    world.ok(c.MemberSet("id-n1", mode="draining"))
    world.ok(c.MemberSet("id-n1", mode="undrain"))
    member = world.machine.members.get("id-n1")
    assert member is not None and member.mode == "standby"


def test_an_address_may_change_and_the_id_stays(world: World) -> None:
    before = world.machine.settings.placement
    world.ok(c.MemberSet("id-n1", host="pod-1.example", peer_port=9, gossip_port=8, sftp_port=7))
    member = world.machine.members.get("id-n1")
    assert member is not None and (member.host, member.peer_port, member.gossip_port, member.sftp_port) == (
        "pod-1.example", 9, 8, 7)
    assert world.machine.settings.placement == before
    assert world.refused(c.MemberSet("id-n9", host="x")) == Code.NOT_FOUND
    assert world.refused(c.MemberSet("id-n1", host="a\nb")) == Code.INVALID


def test_a_removed_member_is_gone_with_sessions_and_certificates(world: World) -> None:
    world.ok(c.UserAdd("ann"))
    world.ok(c.MemberBoot("id-n1", b"nonce", "1"))
    session = world.ok(c.Login("id-n1", 1, "ann", "127.0.0.1:1", "password", 1))["session"]
    world.ok(c.MemberRemove("id-n1", "ops"))
    machine = world.machine
    assert machine.members.get("id-n1") is None and machine.sessions.get(session) is None
    assert MEMBERS[0].fingerprint not in machine.certificates.listed()
    assert machine.settings.owes_rotation
    late = world.apply(c.UserAdd("bob"), identity=c.CommandId("id-n1", 1, 1))
    assert late.rejection is not None and late.rejection.code == Code.STALE_EPOCH
    assert world.refused(c.CertAdd("id-n1", "9" * 64, 5)) == Code.NOT_FOUND
    kinds = [(r["kind"], r["outcome"]) for r in machine.audit.query()]
    assert ("session_expired", "member removed") in kinds


def test_certificates_are_renewed_retired_and_revoked(world: World) -> None:
    certificates, old = world.machine.certificates, MEMBERS[0].fingerprint
    assert world.refused(c.CertRetire("id-n1", old)) == Code.INVALID, "its only one"
    world.ok(c.CertAdd("id-n1", "7" * 64, 99))
    world.ok(c.CertAdd("id-n1", "7" * 64, 99))
    assert {certificates.listed()[f] for f in (old, "7" * 64)} == {"id-n1"}
    world.ok(c.CertRetire("id-n1", old))
    assert old not in certificates.listed() and not world.machine.settings.owes_rotation
    assert world.refused(c.CertAdd("id-n1", old, 99)) == Code.PERMISSION, "a retired one never comes back"
    assert world.ok(c.CertRevoke("7" * 64))["member"] == "id-n1"
    assert "7" * 64 not in certificates.listed() and world.machine.settings.owes_rotation
    assert world.refused(c.CertAdd("id-n1", "7" * 64, 99)) == Code.PERMISSION
    assert world.refused(c.CertAdd("id-n1", MEMBERS[1].fingerprint, 99)) == Code.PERMISSION
    assert world.refused(c.CertRevoke("8" * 64)) == Code.NOT_FOUND
    world.ok(c.CertRevoke(MEMBERS[1].fingerprint))
    assert world.refused(c.CertRevoke(MEMBERS[2].fingerprint)) == Code.INVALID, "nobody would be left"


def test_a_rotation_takes_the_place_of_the_present_key_only(world: World) -> None:
    settings = world.machine.settings
    world.ok(c.MemberRemove("id-n1"))
    first = settings.owes_rotation
    world.ok(c.MemberRemove("id-n2"))
    assert settings.owes_rotation > first > 0
    assert world.refused(c.KeyRotate("", "k1", b"x", b"y", first)) == Code.CONFLICT, "the second may have been given k1"
    world.ok(c.KeyRotate("", "k1", b"host sealed anew", b"ca sealed anew", settings.owes_rotation))
    assert (settings.key, settings.owes_rotation) == ("k1", False)
    assert (settings.sealed_host_key, settings.sealed_ca_key) == (b"host sealed anew", b"ca sealed anew")
    assert world.refused(c.KeyRotate("", "k2", b"x", b"y", 0)) == Code.CONFLICT
    assert world.refused(c.KeyRotate("k1", "k1", b"x", b"y", 0)) == Code.INVALID


def test_tokens_are_forgotten_an_hour_after_their_end(world: World) -> None:
    world.ok(c.TokenCreate(TOKEN, "active", 1000))
    world.now_ms += 2 * HOUR_MS
    world.ok(c.UserAdd("ann"))
    assert world.refused(c.MemberAdmit(TOKEN, "k", NEW, 5)) == Code.PERMISSION
    assert BOOTSTRAP.cluster == world.machine.settings.cluster
