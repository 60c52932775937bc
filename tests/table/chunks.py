"""Chunks of another size, so that files have many of them and stay small. To be called before anything else of raftmft
is imported, in a process of its own: modules take the size over when they are imported.
"""

from __future__ import annotations

import sys

from raftmft.core import manifest

PAGES_PER_GROUP = 4


def set_size(size: int) -> None:
    """A chunk has `size` bytes from now on, and an index chunk as many ids as fit in it."""
    late = [name for name in sys.modules if name.startswith(("raftmft.sftp", "raftmft.store", "raftmft.node"))]
    assert not late or size == manifest.CHUNK_SIZE, f"too late: {late[0]} is imported already"
    manifest.CHUNK_SIZE = size
    manifest.IDS_PER_INDEX = size // manifest.ID_SIZE
    manifest.TAIL_IDS = min(manifest.TAIL_IDS, manifest.IDS_PER_INDEX // PAGES_PER_GROUP)
    manifest.MAX_FILE_SIZE = manifest.INLINE_IDS * manifest.IDS_PER_INDEX * size
    from raftmft.sftp import closing, repeats, slots

    # No piece may touch more slots than a session has in memory: of the product's chunks, MAX_DATA touches two.
    closing.MAX_DATA = min(closing.MAX_DATA, size)
    repeats.LEAST_OFFERED = min(repeats.LEAST_OFFERED, size // 2)
    slots.PAGE_SLOTS = min(slots.PAGE_SLOTS, manifest.IDS_PER_INDEX // PAGES_PER_GROUP)
    slots._PAGES_PER_GROUP = manifest.IDS_PER_INDEX // slots.PAGE_SLOTS
