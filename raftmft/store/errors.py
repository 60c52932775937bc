"""Trouble of the chunk store. Each text is one line: what was wrong and what to do."""

from __future__ import annotations

from raftmft.core.errors import RaftmftError


class StoreFull(RaftmftError):
    """There is no room for the chunk. Nothing of it is visible; the same append works once there is space again."""

    retry_is_safe = True


class StoreBroken(RaftmftError):
    """A write or fdatasync failed, so the page cache can no longer be trusted: this writer never works again
    (fsyncgate).
    """


class ChunkCorrupt(RaftmftError):
    """The copy at a location is not the chunk it should be: damaged, gone or unreadable. It is never served."""


class SegmentBusy(RaftmftError):
    """The segment is still being written by a living process."""

    retry_is_safe = True
