"""The store across real process deaths and a really full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raftmft.store.disk import SegmentStore
from raftmft.store.errors import StoreFull
from raftmft.store.index import ChunkIndex
from raftmft.store.reader import SegmentReader
from tests.store.contract import chunk

ROOT = Path(__file__).parents[2]
WRITER = """
import sys
from raftmft.store.writer import SegmentWriter
from tests.store.contract import chunk
writer, n = SegmentWriter(sys.argv[1], "w", 200_000, reserve_bytes=0), 0
while True:
    for _ in range(7):
        writer.append(*chunk(n, 1 + n * 131 % 20_000))
        n += 1
    writer.sync()
    print(n, flush=True)
    writer.append(*chunk(1_000_000 + n, 5000))
"""


@pytest.mark.parametrize("acknowledgements", [1, 4, 30])
def test_killed_at_any_moment_everything_acknowledged_is_there(tmp_path, acknowledgements):
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT,
                               env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert process.stdout is not None
    said = [int(process.stdout.readline()) for _ in range(acknowledgements)]
    process.send_signal(signal.SIGKILL)
    process.wait()
    said += [int(line) for line in process.stdout.read().split()]
    process.stdout.close()
    index, reader = ChunkIndex(tmp_path), SegmentReader(tmp_path)
    assert not index.problems and not index.busy
    for n in range(said[-1]):
        chunk_id, data = chunk(n, 1 + n * 131 % 20_000)
        location = index.get(chunk_id)
        assert location is not None, f"chunk {n} of {said[-1]}"
        assert reader.read(location, chunk_id) == data
    assert all(reader.read(index.get(i), i) for i in index.ids())
    reader.close()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("reserve", [0, 1 << 20])
def test_a_disk_that_is_really_full(small_disk, reserve):
    store = SegmentStore(small_disk / "chunks", reserve_bytes=reserve)
    kept = []
    with pytest.raises(StoreFull):
        for n in range(1000):
            store.append(*chunk(n, 20_000))
            kept.append(n)
    for _ in range(3):
        with pytest.raises(StoreFull):
            store.append(*chunk(5000, 20_000))
    store.sync()
    disk = os.statvfs(small_disk)
    assert disk.f_bavail * disk.f_frsize >= reserve - (64 << 10)
    assert len(kept) * 20_000 > (4 << 20) - reserve - (500 << 10), "the disk was put to use"
    ballast = small_disk / "chunks" / next(n for n in os.listdir(small_disk / "chunks") if n.endswith("000001.seg"))
    size = ballast.stat().st_size
    ballast.unlink()
    more = range(1000, 1000 + size // 2 // 20_048)
    for n in more:
        store.append(*chunk(n, 20_000))
    store.close()
    index, reader = ChunkIndex(small_disk / "chunks"), SegmentReader(small_disk / "chunks")
    assert {chunk(n, 20_000)[0] for n in more} <= set(index.ids())
    for chunk_id in index.ids():
        assert reader.read(index.get(chunk_id), chunk_id)
    reader.close()
