"""The boot epoch: however a command tells that it is over, the node hears of it."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from raftmft.core import features
from raftmft.core.commands import Envelope, MemberBoot, NoOp
from raftmft.core.errors import OutcomeUnknown
from raftmft.core.outcome import Code, Outcome, Rejection
from raftmft.node.epoch import Epoch
from tests.next_level import FEATURES, NEXT, MarkedMkdir

STALE = Outcome(9, rejection=Rejection(Code.STALE_EPOCH, "the member's epoch is 8"))


class FakeDriver:
    """Boots at once; then answers by script."""

    def __init__(self, *answers: Outcome | OutcomeUnknown) -> None:
        self._answers = list(answers)

    async def propose(self, envelope: Envelope, *, timeout_s: float) -> Outcome:
        await trio.lowlevel.checkpoint()
        if isinstance(envelope.command, MemberBoot):
            return Outcome(3, {"epoch": 7})
        answer = self._answers.pop(0)
        if isinstance(answer, OutcomeUnknown):
            raise answer
        return answer


async def test_a_stale_epoch_is_over() -> None:
    epoch = Epoch(FakeDriver(STALE), "m")  # type: ignore[arg-type]
    await epoch.begin()
    assert await epoch.execute(NoOp()) == STALE and epoch.over.is_set()


async def test_a_command_of_a_level_that_is_not_in_force_is_not_even_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "CURRENT", FEATURES)
    level = NEXT - 1
    done = Outcome(4)
    epoch = Epoch(FakeDriver(done), "m", lambda: level)  # type: ignore[arg-type]
    await epoch.begin()
    outcome = await epoch.execute(MarkedMkdir(1, (b"d",), None, "m"))
    assert outcome.rejection is not None and f"this needs feature level {NEXT}" in outcome.rejection.text
    level = NEXT
    assert await epoch.execute(MarkedMkdir(1, (b"d",), None, "m")) == done


async def test_an_epoch_is_over_also_when_the_outcome_is_unknown(autojump_clock: trio.testing.MockClock) -> None:
    epoch = Epoch(FakeDriver(OutcomeUnknown("?"), STALE), "m")  # type: ignore[arg-type]
    await epoch.begin()
    with pytest.raises(OutcomeUnknown):
        await epoch.execute(NoOp())
    assert epoch.over.is_set()
