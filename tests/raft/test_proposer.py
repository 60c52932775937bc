"""The proposer: one id an operation, retried until one deadline, and an honest word at its end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
import trio.testing

from raftmft.core.commands import Envelope, NoOp
from raftmft.core.errors import NoQuorum, NotApplied, OutcomeUnknown, RaftmftError
from raftmft.core.outcome import Code, Outcome, Rejection
from raftmft.raft import proposer
from raftmft.raft.proposer import EpochOver, Proposer


class FakeDriver:
    """Answers by script: an Outcome, an error, or None to let the attempt time out as unknown."""

    def __init__(self, answer: Callable[[int], Outcome | RaftmftError | None]) -> None:
        self.seen: list[Envelope] = []
        self.attempts: list[float] = []
        self._answer = answer

    async def propose(self, envelope: Envelope, *, timeout_s: float) -> Outcome:
        self.seen.append(envelope)
        self.attempts.append(timeout_s)
        answer = self._answer(len(self.seen))
        await trio.lowlevel.checkpoint()
        if answer is None:
            await trio.sleep(timeout_s)
            raise OutcomeUnknown("timeout")
        if isinstance(answer, RaftmftError):
            raise answer
        return answer


async def test_retries_keep_the_id(autojump_clock: trio.testing.MockClock) -> None:
    script = {1: NotApplied("no"), 2: None, 3: OutcomeUnknown("?"), 4: Outcome(9)}
    driver = FakeDriver(script.__getitem__)
    outcome = await Proposer(driver, "m", 7).execute(NoOp())
    assert outcome == Outcome(9) and len(driver.seen) == 4
    assert len({envelope.id for envelope in driver.seen}) == 1
    command_id = driver.seen[0].id
    assert command_id is not None and (command_id.member, command_id.epoch, command_id.seq) == ("m", 7, 1)


async def test_never_possibly_applied_is_no_quorum_at_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    driver = FakeDriver(lambda n: NotApplied("no leader"))
    started = trio.current_time()
    with pytest.raises(NoQuorum, match="no quorum"):
        await Proposer(driver, "m", 1).execute(NoOp(), timeout_s=5)
    assert trio.current_time() - started == pytest.approx(5)
    assert len(driver.seen) < 60, "it waits between attempts"


async def test_once_possibly_applied_is_unknown_at_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    driver = FakeDriver(lambda n: OutcomeUnknown("?") if n == 1 else NotApplied("no leader"))
    with pytest.raises(OutcomeUnknown, match="outcome unknown"):
        await Proposer(driver, "m", 1).execute(NoOp(), timeout_s=2)
    seen = len(driver.seen)
    await trio.sleep(10)
    assert len(driver.seen) == seen, "never proposed again after its caller was told"


async def test_a_lost_attempt_is_repeated_well_before_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    driver = FakeDriver(lambda n: None if n < 3 else Outcome(1))
    await Proposer(driver, "m", 1).execute(NoOp(), timeout_s=5)
    assert len(driver.attempts) == 3 and max(driver.attempts) <= proposer.ATTEMPT_S


async def test_acked_below_follows_the_oldest_open_command(autojump_clock: trio.testing.MockClock) -> None:
    gates = {seq: trio.Event() for seq in (1, 2, 3)}

    class Gated:
        async def propose(self, envelope: Envelope, *, timeout_s: float) -> Outcome:
            assert envelope.id is not None
            marks.append((envelope.id.seq, envelope.acked_below))
            if envelope.id.seq in gates:
                await gates[envelope.id.seq].wait()
            return Outcome(1)

    marks: list[tuple[int, int]] = []
    it = Proposer(Gated(), "m", 1)
    assert it.acked_below == 1
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(it.execute, NoOp())
            await trio.testing.wait_all_tasks_blocked()
        gates[2].set()
        await trio.testing.wait_all_tasks_blocked()
        await it.execute(NoOp())
        gates[1].set()
        await trio.testing.wait_all_tasks_blocked()
        await it.execute(NoOp())
        gates[3].set()
    assert marks == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 3)] and it.acked_below == 6


async def test_a_cancelled_command_does_not_hold_the_mark(autojump_clock: trio.testing.MockClock) -> None:
    it = Proposer(FakeDriver(lambda n: None), "m", 1)
    with trio.move_on_after(0.5):
        await it.execute(NoOp())
    assert it.acked_below == 2 and not it._numbers._ended and not it._numbers._open


async def test_the_number_in_flight_is_bounded(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposer, "MAX_IN_FLIGHT", 2)
    driver = FakeDriver(lambda n: None)
    it = Proposer(driver, "m", 1)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(it.execute, NoOp())
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(NoQuorum, match="was not proposed"):
            await it.execute(NoOp(), timeout_s=1)
        assert len({envelope.id for envelope in driver.seen}) == 2
        nursery.cancel_scope.cancel()


async def test_a_command_whose_outcome_is_forgotten_is_unknown_not_refused() -> None:
    class Forgetful:
        async def propose(self, envelope: Envelope, *, timeout_s: float) -> Outcome:
            return Outcome(9, rejection=Rejection(Code.STALE_COMMAND, "its outcome was forgotten"))

    with pytest.raises(OutcomeUnknown):
        await Proposer(Forgetful(), "m", 1).execute(NoOp(), timeout_s=1)


async def test_an_epoch_that_ends_between_two_attempts_leaves_the_outcome_unknown(
        autojump_clock: trio.testing.MockClock) -> None:
    """The first attempt was applied and its answer lost; then the member was held for dead. Found by the simulation."""
    stale = Outcome(9, rejection=Rejection(Code.STALE_EPOCH, "the member's epoch is 8"))
    with pytest.raises(EpochOver, match="outcome unknown"):
        await Proposer(FakeDriver(lambda n: OutcomeUnknown("?") if n == 1 else stale), "m", 7).execute(NoOp())
    refused = await Proposer(FakeDriver(lambda n: NotApplied("no leader") if n == 1 else stale), "m", 7).execute(NoOp())
    assert refused == stale, "what certainly never left is refused"
