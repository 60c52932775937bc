"""Sessions that the cluster ended are ended where they are served, also when this node hears of them late."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from raftmft.core.commands import BanAdd, Command, Envelope, SessionKill, UserRemove, UserSet
from raftmft.core.machine import Entry
from raftmft.core.outcome import Code, Outcome, Rejection
from raftmft.node.evictions import LOOK_AGAIN_S, LOOKS, Evictions


class FakeWorkers:
    """One worker with sessions; remembers whom it was told to end."""

    def __init__(self) -> None:
        self.worker = SimpleNamespace(sessions={1: "ann", 2: "bob", 3: "ann"}, half_open={}, about=self.about)
        self.live = {0: self.worker}
        self.killed: list[int] = []

    def about(self, session: int) -> dict[str, Any]:
        return {"session": session, "user": self.worker.sessions.get(session, ""), "address": ""}

    async def kill_session(self, session: int, reason: str) -> bool:
        await trio.lowlevel.checkpoint()
        assert reason
        if self.worker.sessions.pop(session, None) is None:
            return False
        self.killed.append(session)
        return True


def apply(evictions: Evictions, command: Command, outcome: Outcome | None = None) -> None:
    evictions.applied([Entry(9, 0, Envelope(command))], [outcome or Outcome(9)])


@pytest.mark.parametrize(("command", "ends"), [
    (UserRemove("ann"), [1, 3]), (UserSet("ann", enabled=False), [1, 3]), (UserSet("ann", enabled=True), []),
    (UserSet("ann", quota_bytes=1), []), (SessionKill(2), [2]), (SessionKill(7), [])])
async def test_who_is_ended(command: Command, ends: list[int], autojump_clock: Any, caplog: Any) -> None:
    caplog.set_level("INFO")
    workers = FakeWorkers()
    users = dict(workers.worker.sessions)
    evictions = Evictions(workers, lambda network: None)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(evictions.run)
        apply(evictions, command)
        await trio.testing.wait_all_tasks_blocked()
        assert workers.killed == ends
        assert [(r.fields["session"], r.fields["user"]) for r in caplog.records] == [(s, users[s]) for s in ends]
        apply(evictions, command, Outcome(9, {}, Rejection(Code.NO_SESSION, "no")))
        await trio.testing.wait_all_tasks_blocked()
        assert workers.killed == ends, "a refused command ends nobody"
        nursery.cancel_scope.cancel()


async def test_a_session_that_is_not_here_yet_is_looked_for_again_and_not_for_ever(autojump_clock: Any) -> None:
    workers = FakeWorkers()
    evictions = Evictions(workers, lambda network: None)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(evictions.run)
        apply(evictions, SessionKill(8))
        await trio.testing.wait_all_tasks_blocked()
        workers.worker.sessions[8] = "ann"
        await trio.sleep(2 * LOOK_AGAIN_S)
        assert workers.killed == [8]
        apply(evictions, SessionKill(9))
        await trio.sleep((LOOKS + 1) * LOOK_AGAIN_S)
        assert evictions._sessions == {}, "what belongs to other members is forgotten"
        nursery.cancel_scope.cancel()


async def test_a_ban_ends_the_sessions_that_the_state_ended_and_what_has_not_logged_in(autojump_clock: Any) -> None:
    workers, cut, killed = FakeWorkers(), [], []
    workers.worker.half_open = {5: ("192.0.2.7:1", 0.0), 6: ("192.0.3.7:1", 0.0), 7: ("[::ffff:192.0.2.8]:1", 0.0)}

    async def kill_half_open(numbers: list[int], reason: str) -> None:
        killed.extend(numbers)

    workers.worker.kill_half_open = kill_half_open
    evictions = Evictions(workers, cut.append)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(evictions.run)
        apply(evictions, BanAdd("192.0.2.0/24"), Outcome(9, {"network": "192.0.2.0/24", "sessions": [2, 9]}))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert workers.killed == [2] and killed == [5, 7] and list(map(str, cut)) == ["192.0.2.0/24"]
