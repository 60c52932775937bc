"""Passing chunks on: what the receiver of a put does for the members that stand behind it in a chain.

A chunk is passed on out of the buffer that it was received in, while it is appended here: neither waits for the other,
so that a slow next member does not hold up what can be acknowledged by this one. What is being passed on is bounded
over all connections (PASSING_MAX_BYTES); what comes beyond it is not passed on, and the peer is told so: it then sends
its copies itself. A list that names this member, the peer, or somebody who is no member is not followed at all. Each
member takes itself off the list, so that none can go round.

Nothing is verified here: each receiver does that for itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from raftmft.cluster.bulk import Told
from raftmft.core.errors import RaftmftError
from raftmft.wire import peer

PASSING_MAX_BYTES = 32 << 20
"""Buffers that are held until the next members have answered for the chunks in them."""

Along = Callable[[Sequence[str], bytes, memoryview, Told], Awaitable[None]]


class Passing:
    """`chain` (BulkPool.chain) puts chunks to further members, if `is_listed(member)` in Raft for all of them."""

    def __init__(self, me: str, chain: Along, is_listed: Callable[[str], bool]) -> None:
        self._me, self._chain, self._is_listed = me, chain, is_listed
        self.held_bytes = 0
        self.counts: Counter[str] = Counter()

    def begin(self, sender: str, then: Sequence[str]) -> str:
        """"" if a chunk of `sender` is to be passed on to these members, and then `run` must follow; else one line that
        says why not.
        """
        if self._me in then or sender in then or not all(self._is_listed(member) for member in then):
            self.counts["refused"] += 1
            return "it was not to be passed on so: somebody who is no member, or a loop"
        if self.held_bytes + peer.BULK_BODY_LIMIT > PASSING_MAX_BYTES:
            self.counts["no_room"] += 1
            return "too much waits already to be passed on"
        self.held_bytes += peer.BULK_BODY_LIMIT  # a whole buffer, whatever is in it
        return ""

    async def run(self, put: peer.Put, data: memoryview, told: Told) -> None:
        """Puts the chunk to `put.then`, and calls `told` once for each. `data` is not used any more when this returns.

        Cancelled, `told` may not have been called for some, and the chunk may still be sent: `data` must not change.
        """
        left, why = set(put.then), ""

        def one(member: str, refusal: str) -> None:
            left.discard(member)
            told(member, refusal)

        try:
            await self._chain(put.then, put.chunk_id, data, one)
            self.counts["passed_on"] += 1
        except RaftmftError as error:
            why = str(error)
        finally:
            self.held_bytes -= peer.BULK_BODY_LIMIT
        for member in tuple(left):
            told(member, why or "it could not be passed on")
