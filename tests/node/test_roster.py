"""Who may link: the replicated list, and for contact alone what peers tell while the own state is old."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import msgpack
import pytest

from raftmft.cluster import certificates as certs
from raftmft.cluster.succession import WAS_REMOVED, chain_of, succeed
from raftmft.core import commands as c
from raftmft.core.machine import Entry
from raftmft.node.datadir import Seed
from raftmft.node.roster import Roster
from raftmft.node.state import ReplicatedState
from raftmft.wire.frames import FrameError
from tests.core.machine_world import BOOTSTRAP, HOUR_MS, MEMBERS, open_machine

ME = MEMBERS[0]
NOW = datetime(2026, 3, 1, tzinfo=timezone.utc)
AUTHORITY = certs.make_authority("test", now=NOW)
NEW = c.MemberSpec("id-n4", "n4", "10.0.0.4", 7404, 7405, 2222, "4" * 64)


class World:
    def __init__(self, folder: Path, seed_members: tuple[c.MemberSpec, ...] = MEMBERS, me: str = ME.id) -> None:
        self.state = ReplicatedState(open_machine(folder / "state.db"))
        self.gone: list[set[str]] = []
        seed = Seed("test", "c0ffee", me, seed_members, 3, "ssh-ed25519 AAAA", "00", "00", founder=me == ME.id)
        self.now_ms = int(NOW.timestamp() * 1000)
        self.roster = Roster(seed, self.state, self.gone.append, lambda: self.now_ms)
        self.index = 0

    def ok(self, command: c.Command) -> None:
        self.index += 1
        (outcome,) = self.state.apply_batch([Entry(self.index, 1_700_000_000_000, c.Envelope(command))])
        assert outcome.ok, outcome

    def join(self, spec: c.MemberSpec = NEW) -> None:
        self.ok(c.TokenCreate("ab" * 32, "active", HOUR_MS))
        self.ok(c.MemberAdmit("ab" * 32, "key", spec, 5))


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.ok(BOOTSTRAP)
    return made


def test_a_change_of_the_list_is_told_with_who_went(world: World) -> None:
    world.gone.clear()
    world.join()
    assert world.roster.directory()["4" * 64] == "id-n4"
    assert world.roster.peer_addresses()["id-n4"] == ("10.0.0.4", 7404)
    assert world.roster.gossip_addresses()["id-n4"] == ("10.0.0.4", 7405)
    world.ok(c.MemberRemove("id-n4"))
    assert "4" * 64 not in world.roster.directory() and world.gone[-1] == {"id-n4"}
    assert not world.roster.is_removed


def test_who_was_removed_is_told_so_by_whatever_certificate_and_nobody_else_is(world: World) -> None:
    line = Line(world, 2)
    assert line.show() == ""
    stranger = certs.issue_member(AUTHORITY, "id-n9", now=NOW)
    world.ok(c.CertRevoke(line.fingerprints[0]))
    assert line.show() not in ("", WAS_REMOVED), "revoked is not removed"
    world.ok(c.MemberRemove(line.member))
    assert line.show(0) == line.show(1) == WAS_REMOVED
    assert "none that is listed" in world.roster.endorsed("id-n9", certs.der_of_pem(stranger.certificate), ())


def test_a_revoked_certificate_is_gone_though_its_member_stays(world: World) -> None:
    world.ok(c.CertRevoke(MEMBERS[1].fingerprint))
    assert MEMBERS[1].fingerprint not in world.roster.directory() and world.gone[-1] == {MEMBERS[1].id}
    assert len(world.roster.rows()) == 3


def test_introductions_add_until_the_own_state_is_as_new(world: World, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = World(tmp_path / "other")
    other.ok(BOOTSTRAP)
    other.join()
    other.ok(c.MemberRemove(MEMBERS[2].id))
    world.roster.introduced("id-n2", other.roster.introduction())
    assert world.roster.directory()["4" * 64] == "id-n4"
    assert MEMBERS[2].fingerprint in world.roster.directory(), "nobody is cut off by hearsay"
    assert len(world.roster.rows()) == 3, "what must be agreed does not go by hearsay"
    for _ in range(3):
        world.ok(c.UserAdd(f"u{world.index}"))
    assert "4" * 64 not in world.roster.directory(), "the own state is as new now and does not list it"


def test_an_introduction_older_than_the_own_state_is_passed_over(world: World, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = World(tmp_path / "other")
    other.ok(BOOTSTRAP)
    other.join()
    told = other.roster.introduction()
    for _ in range(5):
        world.ok(c.UserAdd(f"u{world.index}"))
    world.roster.introduced("id-n2", told)
    assert "4" * 64 not in world.roster.directory()


@pytest.mark.parametrize("body", [b"", b"\xc0", msgpack.packb([0, 1, []]), msgpack.packb([1, "x", []]),
                                  msgpack.packb([1, 9, [["f", "m", "h", 1, 1]]]),
                                  msgpack.packb([1, 9, [["4" * 64, "m", "h", 0, 1]]]),
                                  msgpack.packb([1, 9, [["4" * 64, "m", "h", 1, 1]] * 1000])])
def test_a_malformed_introduction_drops_the_link(world: World, body: bytes) -> None:
    with pytest.raises(FrameError):
        world.roster.introduced("id-n2", body)


def test_an_introduction_of_a_later_format_is_passed_over(world: World) -> None:
    before = world.roster.directory()
    world.roster.introduced("id-n2", msgpack.packb([2, {"index": 99}, "anything", 4]))
    assert world.roster.directory() == before


def test_what_a_member_runs_is_as_of_its_last_boot(world: World) -> None:
    assert {row.version for row in world.roster.rows()} == {""}
    world.ok(c.MemberBoot(ME.id, b"nonce", "7.1", 3))
    row = next(row for row in world.roster.rows() if row.id == ME.id)
    assert (row.version, row.supports, row.epoch) == ("7.1", 3, 1)


def test_a_joined_host_believes_its_seed_until_it_is_listed(tmp_path: Path) -> None:
    world = World(tmp_path, (*MEMBERS, NEW), NEW.id)
    assert set(world.roster.directory().values()) == {*(m.id for m in MEMBERS), NEW.id}
    world.ok(replace(BOOTSTRAP, members=MEMBERS[:1]))
    assert MEMBERS[2].fingerprint in world.roster.directory(), "the leader may be one that is listed later"
    assert not world.roster.is_removed, "not listed yet is not removed"
    world.join()
    assert set(world.roster.directory().values()) == {MEMBERS[0].id, NEW.id}
    world.ok(c.MemberRemove(NEW.id))
    assert world.roster.is_removed


class Line:
    """The certificates of one member, each vouched for by the one before; the first one is listed."""

    def __init__(self, world: World, count: int, member: str = MEMBERS[1].id) -> None:
        self.world, self.member, self.held = world, member, [certs.issue_member(AUTHORITY, member, now=NOW)]
        world.ok(c.CertAdd(member, self.held[0].fingerprint, 5))
        while len(self.held) < count:
            new = certs.issue_member(AUTHORITY, member, now=NOW)
            self.held.append(certs.Issued(succeed(self.held[-1], new.certificate, "c0ffee", member, NOW), new.key))
        self.fingerprints = [issued.fingerprint for issued in self.held]

    def show(self, number: int = -1, member: str = "") -> str:
        certificate = self.held[number].certificate
        return self.world.roster.endorsed(member or self.member, certs.der_of_pem(certificate), chain_of(certificate))


def test_an_endorsed_certificate_counts_for_contact_until_the_own_state_lists_it(world: World) -> None:
    line = Line(world, 3)
    first, second, third = line.fingerprints
    world.gone.clear()
    assert line.show() == "" and world.gone[-1] == set(), "told, so that links are looked at again"
    assert world.roster.directory()[third] == MEMBERS[1].id and third not in world.state.machine.certificates.listed()
    assert third.encode() not in world.roster.introduction(), "it is not passed on: who hears it may know better"
    assert world.roster.peer_addresses()[MEMBERS[1].id] == ("127.0.0.1", MEMBERS[1].peer_port)
    for command in (c.CertAdd(MEMBERS[1].id, second, 6), c.CertRetire(MEMBERS[1].id, first),
                    c.CertAdd(MEMBERS[1].id, third, 7), c.CertRetire(MEMBERS[1].id, second)):
        world.ok(command)  # as it happened while this member was away
        assert world.roster.directory().get(third) == MEMBERS[1].id, command
    world.ok(c.CertRevoke(third))
    assert third not in world.roster.directory()


@pytest.mark.parametrize("how", ["revoked", "retired", "removed", "one between revoked", "itself revoked"])
def test_who_is_known_to_be_gone_vouches_for_nobody_before_or_after(tmp_path: Path, how: str) -> None:
    for before in (True, False):
        folder = tmp_path / str(before)
        folder.mkdir()
        world = World(folder)
        world.ok(BOOTSTRAP)
        line = Line(world, 3)
        first, second, third = line.fingerprints
        if not before:
            assert line.show() == ""
        world.gone.clear()
        if how == "revoked":
            world.ok(c.CertRevoke(first))
        elif how == "retired":
            world.ok(c.CertRetire(MEMBERS[1].id, first))
        elif how == "removed":
            world.ok(c.MemberRemove(MEMBERS[1].id))
        else:
            revoked = second if how == "one between revoked" else third
            world.ok(c.CertAdd(MEMBERS[1].id, revoked, 5))
            world.ok(c.CertRevoke(revoked))
        assert third not in world.roster.directory()
        if before:
            assert line.show() != ""
        else:
            assert any(MEMBERS[1].id in gone for gone in world.gone), "its link is cut"
        assert third not in world.roster.directory()


def test_a_member_vouches_for_itself_alone(world: World) -> None:
    line = Line(world, 2)
    assert "another member" in line.show(member=MEMBERS[2].id) and "another member" in line.show(member="id-n9")
    thief = Line(world, 1, MEMBERS[2].id).held[0]
    forged = certs.issue_member(AUTHORITY, MEMBERS[1].id, now=NOW)
    chained = succeed(thief, forged.certificate, "c0ffee", MEMBERS[1].id, NOW)
    assert "another member" in world.roster.endorsed(MEMBERS[1].id, certs.der_of_pem(chained), chain_of(chained))
    assert set(world.roster.directory()) & {line.fingerprints[1], forged.fingerprint} == set()


def test_a_newer_endorsed_certificate_takes_the_place_of_the_one_before(world: World) -> None:
    line = Line(world, 3)
    assert line.show(1) == "" and line.show(2) == ""
    assert set(line.fingerprints) & set(world.roster.directory()) == {line.fingerprints[0], line.fingerprints[2]}
    assert world.gone[-1] == {MEMBERS[1].id}, "its older link is closed"


def test_a_certificate_that_has_expired_vouches_for_nobody(world: World) -> None:
    line = Line(world, 2)
    world.now_ms += int(timedelta(days=90).total_seconds() * 1000)
    assert line.show() == ""
    world.now_ms += 1000
    assert "has expired" in line.show()


def test_a_joined_host_that_started_late_believes_who_its_seed_vouches_for(tmp_path: Path) -> None:
    first = certs.issue_member(AUTHORITY, MEMBERS[1].id, now=NOW)
    world = World(tmp_path, (MEMBERS[0], replace(MEMBERS[1], fingerprint=first.fingerprint), NEW), NEW.id)
    new = certs.issue_member(AUTHORITY, MEMBERS[1].id, now=NOW)
    chained = succeed(first, new.certificate, "c0ffee", MEMBERS[1].id, NOW)
    assert world.roster.endorsed(MEMBERS[1].id, certs.der_of_pem(chained), chain_of(chained)) == ""
    assert world.roster.directory()[new.fingerprint] == MEMBERS[1].id
