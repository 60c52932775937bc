"""Opens to read: strict ones are recorded before their answer, relaxed ones within a second, each of them once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from raftmft.core import commands as c
from raftmft.core.errors import NoQuorum, OutcomeUnknown, RaftmftError
from raftmft.core.outcome import Code, Outcome
from raftmft.node import reads as module
from raftmft.node.link import Rejected, value_of
from raftmft.node.reads import Reads
from tests.core.machine_world import World, path

ME = "id-n1"


class Log:
    """A cluster of one for Reads: its state and its epoch. `trouble` is raised instead of, or after, applying."""

    def __init__(self, world: World) -> None:
        self.world, self.machine = world, world.machine
        self.trouble: RaftmftError | None = None
        self.applies = True
        self.commands: list[c.Command] = []
        self.at_barrier = lambda: None
        self.barriers = 0

    @property
    def applied(self) -> int:
        return self.machine.applied

    async def barrier(self) -> None:
        await trio.lowlevel.checkpoint()
        self.barriers += 1
        self.at_barrier()

    async def execute(self, command: c.Command) -> Outcome:
        await trio.sleep(0.01)
        if self.applies:
            self.commands.append(command)
            outcome = self.world.apply(command)
        if self.trouble is not None:
            raise self.trouble
        return outcome

    async def value(self, command: c.Command) -> dict[str, Any]:
        return value_of(await self.execute(command))

    def batches(self) -> list[int]:
        """How many opens each RecordOpens had."""
        return [len(command.opens) for command in self.commands if isinstance(command, c.RecordOpens)]

    def records(self, kind: str = "open") -> list[dict[str, Any]]:
        return [r for r in self.machine.audit.query(kind=kind) if r["outcome"] != "ok, to write"]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    world = World(tmp_path / "state")
    world.user()
    world.put(world.login(), "f")
    yield Log(world)
    world.machine.close()


@pytest.fixture
def reads(log: Log) -> Reads:
    return Reads(log, log, ME)  # type: ignore[arg-type]


def relax(log: Log, value: str = "relaxed") -> None:
    log.world.ok(c.ConfigSet("audit.opens", value))


def until(condition: Any, within_s: float) -> Any:
    """Waits in the loop's own time."""
    async def wait() -> None:
        with trio.fail_after(within_s):
            while not condition():
                await trio.sleep(0.005)
    return wait()


async def test_a_strict_open_is_in_the_log_before_its_answer(log: Log, reads: Reads) -> None:
    session = log.world.login()
    value = await reads.open(session, path("f"))
    (record,) = log.records()
    assert (record["index"], record["session"], record["outcome"]) == (value["open"], session, "ok")
    assert log.barriers == 0 and log.batches() == []


async def test_a_relaxed_open_is_answered_behind_a_barrier_and_recorded_within_a_second(
        log: Log, reads: Reads, autojump_clock: trio.testing.MockClock) -> None:
    relax(log)
    session = log.world.login()
    strict = log.world.ok(c.OpenRead(session, path("f")))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reads.run)
        first, second = [await reads.open(session, path("f")) for _ in range(2)]
        assert (first["open"], second["open"], log.barriers) == (-1, -2, 2)
        assert {**first, "open": strict["open"]} == strict, "but for its id, what the command would give"
        assert len(log.records()) == 1
        await until(lambda: len(log.records()) == 3, 1.0)
        assert log.batches() == [2], "both in one entry"
        nursery.cancel_scope.cancel()


async def test_the_end_of_a_read_comes_after_its_open(log: Log, reads: Reads,
                                                      autojump_clock: trio.testing.MockClock) -> None:
    relax(log)
    session = log.world.login()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reads.run)
        value = await reads.open(session, path("f"))
        reads.ended(session, value["open"], 10, True)
        await until(lambda: log.records("read_end"), 1.0)
        nursery.cancel_scope.cancel()
    (end,) = log.records("read_end")
    assert (end["size"], end["outcome"]) == (10, "ok") and log.machine.opens.count() == 0


@pytest.mark.parametrize(("trouble", "applies"), [
    (NoQuorum("no quorum"), False), (OutcomeUnknown("outcome unknown"), False), (OutcomeUnknown("unknown"), True)])
async def test_what_cannot_be_recorded_waits_and_is_recorded_once(
        log: Log, reads: Reads, autojump_clock: trio.testing.MockClock, trouble: RaftmftError, applies: bool) -> None:
    relax(log)
    session = log.world.login()
    log.trouble, log.applies = trouble, applies
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reads.run)
        for _ in range(3):
            value = await reads.open(session, path("f"))
            reads.ended(session, value["open"], 1, True)
        await trio.sleep(5)  # of the clock that jumps: many attempts
        assert len(log.records()) == (3 if applies else 0) and not log.records("read_end")
        log.trouble, log.applies = None, True
        await until(lambda: len(log.records("read_end")) == 3, 3.0)
        nursery.cancel_scope.cancel()
    assert len(log.records()) == 3 and log.machine.opens.count() == 0
    if applies:
        assert len([size for size in log.batches() if size == 3]) > 2, "proposed again and again, recorded once"


async def test_beyond_the_bound_opens_are_strict_and_none_is_dropped(log: Log, reads: Reads,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 2)
    relax(log)
    session = log.world.login()
    ids = [(await reads.open(session, path("f")))["open"] for _ in range(3)]
    assert ids[:2] == [-1, -2] and ids[2] > 0
    assert [r["outcome"] for r in log.records()] == ["ok"]
    await reads.finish()
    assert len(log.records()) == 3


async def test_many_go_at_once_in_batches_of_a_bounded_size(
        log: Log, reads: Reads, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock) -> None:
    monkeypatch.setattr(module, "RECORDS_AT_ONCE", 4)
    relax(log)
    session = log.world.login()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reads.run)
        for _ in range(10):
            await reads.open(session, path("f"))
        await until(lambda: len(log.records()) >= 8, module.RECORD_DELAY_S / 2)  # not after the delay
        await until(lambda: len(log.records()) == 10, 1.0)
        nursery.cancel_scope.cancel()
    assert log.batches() == [4, 4, 2] and [c.reads_from for c in log.commands] == [
        log.commands[1].opens[0][-1], log.commands[2].opens[0][-1], log.world.index - 1]
    monkeypatch.setattr(module, "RECORD_BYTES_AT_ONCE", 1)
    for _ in range(2):
        await reads.open(session, path("f"))
    await reads.record()
    assert log.batches()[3:] == [1, 1]


async def test_a_switch_while_an_open_waits_for_its_barrier(log: Log, reads: Reads) -> None:
    relax(log)
    session = log.world.login()
    log.at_barrier = lambda: relax(log, "strict")
    assert (await reads.open(session, path("f")))["open"] > 0, "the state that it would read is strict already"
    log.at_barrier = lambda: None
    relax(log)
    assert (await reads.open(session, path("f")))["open"] == -1


async def test_what_a_session_has_open_is_settled_before_a_command_that_refers_to_it(log: Log, reads: Reads) -> None:
    relax(log)
    one, two = log.world.login(), log.world.login()
    value = await reads.open(one, path("f"))
    await reads.settle(two)
    assert not log.records()
    await reads.settle(one)
    assert len(log.records()) == 1
    log.world.ok(c.SetStat(one, (), c.Attrs(mode=0o600), file=value["file"]))


async def test_refusals_are_as_the_command_gives_them_and_nothing_waits(log: Log, reads: Reads) -> None:
    relax(log)
    session = log.world.login()
    for name, code in (("none", Code.NOT_FOUND), ("", Code.IS_A_DIRECTORY)):
        with pytest.raises(Rejected) as refusal:
            await reads.open(session, path(name))
        assert refusal.value.code == code
    log.world.ok(c.Logout(session))
    with pytest.raises(Rejected) as refusal:
        await reads.open(session, path("f"))
    assert refusal.value.code == Code.NO_SESSION
    await reads.record()
    assert log.batches() == []


async def test_numbers_go_on_where_the_process_before_left_them(log: Log, reads: Reads) -> None:
    relax(log)
    await reads.open(log.world.login(), path("f"))
    await reads.finish()
    log.world.boot(ME)
    again = Reads(log, log, ME)  # type: ignore[arg-type]
    assert (await again.open(log.world.login(), path("f")))["open"] == -2
    await again.finish()
    assert len(log.records()) == 2


async def test_the_state_is_told_how_far_reads_have_got_and_when_there_are_none(
        log: Log, reads: Reads, autojump_clock: trio.testing.MockClock) -> None:
    log.world.boot(ME)
    relax(log)
    oldest, since = log.machine.opens.oldest, log.world.index
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reads.run)
        await trio.sleep(module.SAY_EVERY_S / 2)
        assert oldest(ME) == since
        log.world.ok(c.NoOp())
        await until(lambda: oldest(ME) == since + 1, module.SAY_EVERY_S)
        relax(log, "strict")
        await until(lambda: oldest(ME) is None, 2 * module.LOOK_EVERY_S)
        count = len(log.commands)
        await trio.sleep(10 * module.SAY_EVERY_S)
        assert len(log.commands) == count, "strict members say nothing"
        nursery.cancel_scope.cancel()
