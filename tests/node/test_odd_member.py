"""Members whose states differ find out while they serve: the odd one stops and says so, the others go on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from raftmft.core import commands as c
from raftmft.core import machine
from raftmft.core.machine import Entry, Machine
from raftmft.node.divergence import DIGESTS, Diverged, Divergence
from raftmft.node.state import ReplicatedState
from raftmft.raft.configuration import Configuration
from raftmft.raft.replica import RaftStatus
from raftmft.wire.commands import decode_outcome, encode_outcome

EVERY = 50


class Host:
    def __init__(self, group: Group, name: str) -> None:
        self.name = name
        self.state = ReplicatedState(Machine(str(group.directory / name), encode_outcome=encode_outcome,
                                             decode_outcome=decode_outcome))
        self.group = group
        self.divergence = Divergence(name, self.state, self, self)
        self.error: Diverged | None = None
        self.committed = 1
        self.ended = trio.Event()

    def status(self) -> RaftStatus:
        """As the driver's."""
        return RaftStatus(self.name, "follower", None, 1, self.committed, 1, 1, True,
                          configuration=Configuration(tuple(self.group.names)))

    def on_message(self, kind: str, callback: Callable[[str, bytes], None]) -> None:
        """As the control links'."""
        assert kind == DIGESTS

    def send(self, member: str, kind: str, body: bytes) -> bool:
        """As the control links'."""
        return self.group.send(self.name, member, kind, body)

    async def run(self) -> None:
        try:
            await self.divergence.run()
        except* Diverged as group:
            (self.error,) = group.exceptions  # type: ignore[assignment]
        finally:
            self.ended.set()


class Group:
    """Members that apply the same entries, and links between them."""

    def __init__(self, directory: Path, size: int) -> None:
        self.directory, self.names = directory, [f"m{number}" for number in range(size)]
        self.hosts = {name: Host(self, name) for name in self.names}
        self.index, self.cut = 1, set[str]()

    def send(self, source: str, to: str, kind: str, body: bytes) -> bool:
        assert kind == DIGESTS
        if not {source, to} & self.cut and not self.hosts[to].ended.is_set():
            self.hosts[to].divergence.heard(source, body)
        return True

    def apply(self, count: int) -> None:
        """`count` entries, everywhere."""
        entries = []
        for _ in range(count):
            self.index += 1
            entries.append(Entry(self.index, self.index, c.Envelope(c.BanAdd(
                f"10.{self.index // 250}.{self.index % 250}.0/24", 10**9, "reason", "me"))))
        for host in self.hosts.values():
            host.state.apply_batch(entries)

    def damage_rows(self, name: str) -> None:
        """A row is another one than it was, which no outcome shows."""
        self.hosts[name].state.machine._db.execute("UPDATE bans SET reason = 'other' WHERE network = '10.0.7.0/24'")

    def damage_apply(self, name: str) -> None:
        """From here on its handler gives another outcome."""
        made: Any = self.hosts[name].state.machine
        handler = made._handlers[c.BanAdd]
        made._handlers[c.BanAdd] = lambda command: {**handler(command), "odd": 1}


@pytest.fixture
async def group(request: pytest.FixtureRequest, tmp_path: Path, nursery: trio.Nursery,
                monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setattr(machine, "POINT_EVERY", EVERY)
    monkeypatch.setattr("raftmft.core.divergence.POINT_EVERY", EVERY)
    group = Group(tmp_path, getattr(request, "param", 3))
    with trio.fail_after(20):
        for host in group.hosts.values():
            nursery.start_soon(host.run)
        yield group
        nursery.cancel_scope.cancel()


async def until_all_know(group: Group, point: int, *, rows: bool) -> None:
    """Each that runs has every other's claim about `point`."""
    def known(host: Host) -> bool:
        claims = [host.divergence._jury._claims.get(name, {}).get(point) for name in group.names
                  if name not in group.cut]
        return all(claim is not None and (claim.rows or not rows) for claim in claims)

    while not all(known(host) for host in group.hosts.values() if not host.ended.is_set()):
        await trio.sleep(0.01)


async def test_equal_members_go_on(group: Group, caplog: pytest.LogCaptureFixture) -> None:
    for at in range(1, 5):
        group.apply(EVERY)
        await until_all_know(group, at * EVERY, rows=at == 1)
    assert not caplog.records and not any(host.ended.is_set() for host in group.hosts.values())
    claims = group.hosts["m0"].divergence._jury.own()
    assert [claim.point for claim in claims] == [EVERY, 2 * EVERY, 3 * EVERY, 4 * EVERY]


async def test_who_catches_up_looks_at_its_rows_only_at_the_end(group: Group) -> None:
    """Digests would take half of the interpreter from the replay after a crash."""
    late = group.hosts["m2"]
    late.committed = 2 * EVERY
    group.apply(EVERY)
    await until_all_know(group, EVERY, rows=False)
    assert late.divergence._pinned is None
    group.apply(EVERY)
    claims = late.divergence._jury._claims["m2"]
    while not claims[2 * EVERY].rows:
        await trio.sleep(0.01)
    assert not claims[EVERY].rows


async def test_the_one_whose_apply_differs_stops_and_says_so(group: Group, caplog: pytest.LogCaptureFixture) -> None:
    group.apply(EVERY)
    group.damage_apply("m1")
    group.apply(EVERY)
    odd = group.hosts["m1"]
    await odd.ended.wait()
    assert odd.error is not None
    text = str(odd.error)
    assert f"at entry {2 * EVERY} the outcomes of commands here differ from those of m0, m2, a majority" in text
    assert "\n" not in text and "this member stops" in text and "let it join anew" in text
    group.apply(EVERY)
    assert not group.hosts["m0"].ended.is_set() and not group.hosts["m2"].ended.is_set()
    while not [r for r in caplog.records if "differ from those of m1; m" in r.getMessage()]:
        await trio.sleep(0.01)
    assert all(record.levelno == logging.CRITICAL for record in caplog.records)


async def test_a_damaged_row_that_no_outcome_shows_is_found(group: Group) -> None:
    group.apply(EVERY - 10)
    group.damage_rows("m2")
    group.apply(10)
    odd = group.hosts["m2"]
    await odd.ended.wait()
    assert "the rows of the state here differ from those of m0, m1" in str(odd.error)
    assert not group.hosts["m0"].ended.is_set() and not group.hosts["m1"].ended.is_set()


@pytest.mark.parametrize("group", [4], indirect=True)
async def test_of_two_against_two_all_go_on_and_all_say_so(group: Group, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("m0", "m3"):
        group.damage_apply(name)
    group.apply(EVERY)

    def told() -> set[str]:
        return {record.getMessage().split(" differ from those of ")[1].split(";")[0] for record in caplog.records
                if "Who is right is not known" in record.getMessage() and ", " in record.getMessage().split(";")[0]}

    while told() != {"m1, m2", "m0, m3"}:
        await trio.sleep(0.01)
    assert not any(host.ended.is_set() for host in group.hosts.values())


async def test_who_was_cut_off_hears_of_it_when_its_link_is_up(group: Group) -> None:
    group.cut = {"m1"}
    group.damage_apply("m1")
    group.apply(EVERY)
    group.cut = set()
    for name in ("m0", "m2"):
        group.hosts[name].divergence.link_up("m1")
    await group.hosts["m1"].ended.wait()
