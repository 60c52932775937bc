"""One member goes on alone: what belongs to the old hosts ends, what belongs to the users stays, and it is audited."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from raftmft.core import commands as c
from raftmft.core.outcome import Code
from tests.core.machine_world import HOUR_MS, MEMBERS, World, content, path

RECOVER = c.Refound("recover", MEMBERS[0], 5, "new id", "", "key2", b"host 2", b"ca 2")
FRESH = c.MemberSpec("id-new", "new", "10.0.0.9", 7400, 7400, 2222, "9" * 64)
RESTORE = c.Refound("restore", FRESH, 5, "new id", "", "key2", b"host 2", b"ca 2", "ssh-ed25519 BBBB")


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path / "state.db")
    world.user()
    session = world.login(member="id-n1")
    upload = world.begin(session, "whole", truncate=True, create=True)["upload"]
    world.ok(c.Publish(session, upload, content(10), world.machine.settings.placement, "d"))
    world.begin(session, "under way", truncate=True, create=True)
    world.login(member="id-n2")
    world.ok(c.TokenCreate("ab" * 32, "active", HOUR_MS))
    return world


@pytest.mark.parametrize("command", [RECOVER, RESTORE], ids=["recover", "restore"])
def test_members_sessions_uploads_and_tokens_end_and_files_stay(world: World, command: c.Refound) -> None:
    machine, before = world.machine, world.machine.settings.placement
    gone = world.ok(command)["gone"]
    assert gone == [m.name for m in MEMBERS if m.id != command.member.id]
    (only,) = machine.members.list()
    assert only.id == command.member.id and only.stores
    assert set(machine.certificates.listed()) == {command.member.fingerprint}
    assert machine.sessions.count() == 0 and machine.uploads.count() == 0
    assert world.refused(c.MemberAdmit("ab" * 32, "k", replace(FRESH, id="x", name="x"), 5)) == Code.PERMISSION
    assert machine.settings.cluster_id == "new id" and machine.settings.placement > before
    session = world.login(member=command.member.id)
    assert world.ok(c.OpenRead(session, path("whole")))
    records = machine.audit.query(kind="admin")
    assert any("cluster " + command.how in r["target"] and "n2" in r["target"] for r in records)
    assert machine.audit.verify() is None


@pytest.mark.parametrize(("command", "line"), [(RECOVER, "ssh-ed25519 AAAA host"), (RESTORE, "ssh-ed25519 BBBB")])
def test_the_secrets_are_under_another_key_from_there_on(world: World, command: c.Refound, line: str) -> None:
    world.ok(c.MemberRemove("id-n2"))
    world.ok(command)
    settings = world.machine.settings
    assert not settings.owes_rotation, "who was cut off does not know this key"
    assert (settings.key, settings.sealed_host_key, settings.sealed_ca_key) == ("key2", b"host 2", b"ca 2")
    assert settings.host_public_key == line


def test_nothing_that_was_under_way_in_the_old_cluster_is_applied(world: World) -> None:
    machine = world.machine
    old = {m.id: machine.members.epoch(m.id) for m in MEMBERS}
    assert world.apply(c.UserAdd("kept"), identity=c.CommandId("id-n1", old["id-n1"], 1)).rejection is None
    world.ok(RECOVER)
    for member, epoch in old.items():
        late = world.apply(c.UserAdd("late"), identity=c.CommandId(member, epoch, 2))
        assert late.rejection is not None and late.rejection.code == Code.STALE_EPOCH, member


def test_a_witness_that_survives_stores_and_serves(world: World) -> None:
    world.ok(c.MemberSet("id-n1", mode="witness"))
    world.ok(RECOVER)
    (only,) = world.machine.members.list()
    assert (only.mode, only.stores) == ("active", True)


def test_malformed_ones_change_nothing(world: World, tmp_path: Path) -> None:
    for bad in (replace(RECOVER, how="else"), replace(RECOVER, cluster_id=""), replace(RECOVER, cluster_id="c0ffee"),
                replace(RECOVER, key=""), replace(RESTORE, sealed_ca_key=b""), replace(RECOVER, not_after_ms=-1),
                replace(RESTORE, member=replace(FRESH, host="a b"))):
        assert world.refused(bad) == Code.INVALID, bad
    assert World(tmp_path / "none.db", bootstrap=False).refused(RECOVER) == Code.INVALID
