"""Segments of chunks: `SegmentWriter` appends, `SegmentReader` reads, `Location` says where. Layout: format.py."""

from raftmft.store.format import Location
from raftmft.store.reader import SegmentReader
from raftmft.store.writer import SegmentWriter

__all__ = ["Location", "SegmentReader", "SegmentWriter"]
