"""What this member proposed and does not know the outcome of yet. Says at every moment what giving up would mean.

A proposal is *queued* (nobody has it: giving up is NotApplied), *forwarded* (the leader may have it), or *placed* (it
stands in a log at an index and term). Once it left the queue, giving up is OutcomeUnknown. Each proposal ends exactly
once: by its entry's outcome, by an error, by its deadline, or by its proposer's withdrawal; then no table holds it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from enum import IntEnum

from raftmft.core.commands import Envelope
from raftmft.core.errors import NoQuorum, NotApplied, OutcomeUnknown, RaftmftError
from raftmft.core.outcome import Outcome

MAX_PENDING = 16384
MAX_PENDING_BYTES = 64 << 20
MAX_FORWARDED_QUEUE = 16384
"""Commands of other members that wait in this member's queue while it leads."""


class Stage(IntEnum):
    """Where a proposal is."""

    QUEUED = 0
    FORWARDED = 1
    PLACED = 2
    DONE = 3


class Proposal:
    """An encoded envelope, a deadline on the engine's clock in seconds, and in the end an outcome or an error."""

    __slots__ = ("payload", "deadline", "stage", "outcome", "error", "request", "index", "envelope", "_notify")

    def __init__(self, payload: bytes, deadline: float, notify: Callable[[], None],
                 envelope: Envelope | None = None) -> None:
        self.payload, self.deadline, self.envelope = payload, deadline, envelope
        self.stage = Stage.QUEUED
        self.outcome: Outcome | None = None
        self.error: RaftmftError | None = None
        self.request = self.index = 0
        self._notify = notify

    def _end(self, outcome: Outcome | None, error: RaftmftError | None) -> None:
        self.stage, self.outcome, self.error = Stage.DONE, outcome, error
        self._notify()


Remote = tuple[str, int, bytes]
"""A forwarded command: (member, its request id, payload)."""


class ProposalTable:
    """All proposals of this member, and the queue that the leader's tick empties."""

    def __init__(self) -> None:
        self._queue: deque[Proposal | Remote] = deque()
        self._live: dict[Proposal, None] = {}
        self._live_bytes = 0
        self._remote = 0
        self._forwarded: dict[int, Proposal] = {}
        self._placed: dict[int, list[tuple[int, Proposal]]] = {}
        self._last_request = 0

    def __len__(self) -> int:
        """Proposals without an end."""
        return len(self._live)

    def has_queued(self) -> bool:
        """Whether a tick would find something to add or forward."""
        return bool(self._queue)

    # --- into the queue and out of it --------------------------------------------------------------------------------
    def add(self, proposal: Proposal) -> None:
        """Queues. Raises NotApplied when MAX_PENDING or MAX_PENDING_BYTES would be exceeded."""
        size = len(proposal.payload)
        if len(self._live) >= MAX_PENDING or self._live_bytes + size > MAX_PENDING_BYTES:
            raise NotApplied(f"{len(self._live)} commands are waiting already: try again later")
        self._live[proposal] = None
        self._live_bytes += size
        self._queue.append(proposal)

    def add_remote(self, member: str, request: int, payload: bytes) -> bool:
        """Queues a forwarded command; False when there is no room."""
        if self._remote >= MAX_FORWARDED_QUEUE:
            return False
        self._remote += 1
        self._queue.append((member, request, payload))
        return True

    def drain(self, max_count: int, max_bytes: int) -> Iterator[Proposal | Remote]:
        """Takes from the queue within the bounds; at least one if there is one. Ended proposals are skipped."""
        while self._queue and max_count > 0 and max_bytes > 0:
            item = self._queue.popleft()
            if type(item) is tuple:
                self._remote -= 1
                max_bytes -= len(item[2])
            else:
                assert isinstance(item, Proposal)
                if item.stage == Stage.DONE:
                    continue
                max_bytes -= len(item.payload)
            max_count -= 1
            yield item

    def drain_remote(self) -> list[Remote]:
        """Takes out every forwarded command: this member does not lead (any more)."""
        if not self._remote:
            return []
        remote = [item for item in self._queue if type(item) is tuple]
        self._queue = deque(item for item in self._queue if type(item) is not tuple)
        self._remote = 0
        return remote

    # --- on its way --------------------------------------------------------------------------------------------------
    def forward(self, proposal: Proposal) -> int:
        """It leaves for the leader; returns its request id."""
        self._last_request += 1
        proposal.stage, proposal.request = Stage.FORWARDED, self._last_request
        self._forwarded[self._last_request] = proposal
        return self._last_request

    def place(self, proposal: Proposal, index: int, term: int) -> None:
        """It stands in the log of the leader of `term` at `index`."""
        proposal.stage, proposal.index = Stage.PLACED, index
        self._placed.setdefault(index, []).append((term, proposal))

    def answered(self, request: int, index: int, term: int, applied: int) -> None:
        """The leader says where it put a forwarded command, or (index 0) that it refused it for good."""
        proposal = self._forwarded.pop(request, None)
        if proposal is None:
            return
        if index == 0:
            self._finish(proposal, None, NotApplied("the leader refused the command: try again"))
        elif index <= applied:
            self._finish(proposal, None, OutcomeUnknown("outcome unknown: the leader's answer came too late"))
        else:
            self.place(proposal, index, term)

    # --- ends --------------------------------------------------------------------------------------------------------
    def applied(self, index: int, term: int, outcome: Outcome | None) -> None:
        """The entry at `index` is committed, of `term`, and gave `outcome`: what waited at this index ends."""
        for placed_term, proposal in self._placed.pop(index, ()):
            if placed_term == term and outcome is not None:
                self._finish(proposal, outcome, None)
            else:
                self._finish(proposal, None, NotApplied("another leader's entry took the command's place: try again"))

    def any_placed(self) -> bool:
        """Whether any proposal stands in a log."""
        return bool(self._placed)

    def not_sent(self, requests: list[int]) -> None:
        """The link did not take these forwards: the leader never sees them."""
        for request in requests:
            if proposal := self._forwarded.pop(request, None):
                self._finish(proposal, None, NotApplied("the link to the leader is full or gone: try again"))

    def uncertain(self, first_index: int | None) -> None:
        """What stood at `first_index` and beyond was cut off here; or (None) the leader that had forwards is gone."""
        error = "outcome unknown: the leader changed"
        if first_index is None:
            for proposal in list(self._forwarded.values()):
                self._finish(proposal, None, OutcomeUnknown(error))
        else:
            for index in [i for i in self._placed if i >= first_index]:
                for _, proposal in self._placed.pop(index):
                    self._finish(proposal, None, OutcomeUnknown(error))

    def expire(self, now: float) -> None:
        """Ends every proposal whose deadline is over."""
        for proposal in [p for p in self._live if p.deadline <= now]:
            if proposal.stage == Stage.QUEUED:
                self._finish(proposal, None, NoQuorum("no quorum: no leader took the command in time"))
            else:
                self._finish(proposal, None, OutcomeUnknown("outcome unknown: no majority confirmed it in time"))
        if len(self._queue) > 2 * (len(self._live) + self._remote) + 1024:
            self._queue = deque(i for i in self._queue if not isinstance(i, Proposal) or i.stage != Stage.DONE)

    def withdraw(self, proposal: Proposal) -> None:
        """Its proposer does not want to know any more (cancelled). If it was queued still, it never happens."""
        self._forget(proposal)
        proposal.stage = Stage.DONE

    def stop(self, text: str) -> None:
        """The node stops: everything ends now."""
        for proposal in list(self._live):
            error = NotApplied if proposal.stage == Stage.QUEUED else OutcomeUnknown
            self._finish(proposal, None, error(text if error is NotApplied else f"outcome unknown: {text}"))
        self._queue.clear()
        self._remote = 0

    def _finish(self, proposal: Proposal, outcome: Outcome | None, error: RaftmftError | None) -> None:
        self._forget(proposal)
        proposal._end(outcome, error)

    def _forget(self, proposal: Proposal) -> None:
        if proposal in self._live:
            del self._live[proposal]
            self._live_bytes -= len(proposal.payload)
        if proposal.stage == Stage.FORWARDED:
            self._forwarded.pop(proposal.request, None)
        elif proposal.stage == Stage.PLACED and (placed := self._placed.get(proposal.index)):
            placed[:] = [pair for pair in placed if pair[1] is not proposal]
            if not placed:
                del self._placed[proposal.index]
