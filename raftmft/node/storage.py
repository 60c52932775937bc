"""The node's chunk store as its peers' side sees it (cluster.holdings.Storage): the store, with damage said in the
cluster's word for it. Two rooms that know nothing of each other meet here.
"""

from __future__ import annotations

from raftmft.cluster.holdings import ChunkDamaged
from raftmft.store.disk import SegmentStore
from raftmft.store.errors import ChunkCorrupt
from raftmft.store.format import Location


class NodeStorage(SegmentStore):
    """A SegmentStore whose verified reads raise ChunkDamaged."""

    def read(self, location: Location, chunk_id: bytes | None = None) -> bytes:
        """The data at `location`; certainly the chunk's if its id is given. ChunkDamaged."""
        try:
            return super().read(location, chunk_id)
        except ChunkCorrupt as error:
            raise ChunkDamaged(str(error)) from None
