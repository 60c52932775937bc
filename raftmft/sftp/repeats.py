"""Which chunks of an upload need not be stored, since the same bytes are (deduplication, as the worker sees it).

*Repeats* of a chunk that this upload has put and that was acknowledged cost nothing: blocks of zeros in an image. Of
others the node is asked (`ChunkWriter.offer`, node/hits.py), before they are appended. That costs a turn of two loops,
so it is asked only where it pays: not for small chunks, and once it was in vain for a while, only now and then, until
it is not. Most uploads are of new bytes, and what differs from what is there mostly does so in long runs.

What is measured (bench/reuploads.py): an upload of new bytes pays for one offer in PROBE_EVERY chunks.
"""

from __future__ import annotations

from raftmft.core.references import LEAST_OFFERED

PATIENCE = 8
"""Offers in vain, one after the other, after which only now and then one is made."""
PROBE_EVERY = 16
"""How many chunks of an upload go by from one offer to the next then."""
MOST_REPEATS = 256
"""Ids that are remembered of an upload: the latest ones."""


class Repeats:
    """What one upload knows. Used on the loop; `in` may be asked in a thread."""

    def __init__(self) -> None:
        self._ids: dict[bytes, None] = {}
        self._in_vain = self._passed = 0

    def __contains__(self, chunk_id: object) -> bool:
        return chunk_id in self._ids

    def acknowledged(self, chunk_id: bytes) -> None:
        """Enough owners hold the chunk durably, or will before this upload is published."""
        self._ids[chunk_id] = None
        if len(self._ids) > MOST_REPEATS:
            del self._ids[next(iter(self._ids))]

    def is_offered(self, length: int) -> bool:
        """Whether the node is to be asked about the next chunk, of this length."""
        if length < LEAST_OFFERED:
            return False
        self._passed += 1
        return self._in_vain < PATIENCE or self._passed >= PROBE_EVERY

    def answered(self, held: bool) -> None:
        """What came of an offer."""
        self._passed = 0
        self._in_vain = 0 if held else self._in_vain + 1
