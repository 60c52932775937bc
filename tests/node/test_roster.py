"""Who may link: the replicated list, and for contact alone what peers tell while the own state is old."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgpack
import pytest

from raftmft.core import commands as c
from raftmft.core.machine import Entry
from raftmft.node.datadir import Seed
from raftmft.node.roster import Roster
from raftmft.node.state import ReplicatedState
from raftmft.wire.frames import FrameError
from tests.core.machine_world import BOOTSTRAP, HOUR_MS, MEMBERS, open_machine

ME = MEMBERS[0]
NEW = c.MemberSpec("id-n4", "n4", "10.0.0.4", 7404, 7405, 2222, "4" * 64)


class World:
    def __init__(self, folder: Path, seed_members: tuple[c.MemberSpec, ...] = MEMBERS, me: str = ME.id) -> None:
        self.state = ReplicatedState(open_machine(folder / "state.db"))
        self.gone: list[set[str]] = []
        seed = Seed("test", "c0ffee", me, seed_members, 3, "ssh-ed25519 AAAA", "00", "00", founder=me == ME.id)
        self.roster = Roster(seed, self.state, self.gone.append)
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


@pytest.mark.parametrize("body", [b"", b"\xc0", msgpack.packb([2, 1, []]), msgpack.packb([1, "x", []]),
                                  msgpack.packb([1, 9, [["f", "m", "h", 1, 1]]]),
                                  msgpack.packb([1, 9, [["4" * 64, "m", "h", 0, 1]]]),
                                  msgpack.packb([1, 9, [["4" * 64, "m", "h", 1, 1]] * 1000])])
def test_a_malformed_introduction_drops_the_link(world: World, body: bytes) -> None:
    with pytest.raises(FrameError):
        world.roster.introduced("id-n2", body)


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
