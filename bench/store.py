"""How fast is the chunk store, beside a bare loop that appends to a file and fdatasyncs it?

    python -m bench.store [--directory D] [--rounds 5] [--budget-s 0.5] [--sync-every 64]

Store and bare loop take turns, so that a slow minute of the machine hits both; trust the ratio. Puts hash, append and
enter the index, and sync every so many chunks, as the bare loop does (to a file that it never preallocates). Gets read
at random places and never give out what was not verified. `put_ratio` and `get_ratio` are beside the bare loop, which
hashes nothing; `put_hashed_ratio` and `get_hashed_ratio` beside one that hashes the same bytes, which is the same work.
Prints JSON: chunks a second and the ratios, medians of the rounds. Also the time and memory to open an index of
1,000,000 chunks from hint files.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blake3 import blake3

from raftmft.store import files, format
from raftmft.store.disk import SegmentStore
from raftmft.store.index import ChunkIndex

SIZES = (4 << 10, 64 << 10, 1 << 20)
VARIANTS = 32
"""Different contents, made beforehand; each put changes the first bytes, so that no two chunks are the same."""
MOST_BYTES = 512 << 20
INDEXED, PER_SEGMENT = 1_000_000, 4000


def timed(step: Callable[[int], None], budget_s: float, size: int, finish: Callable[[], None]) -> tuple[float, int]:
    """Runs steps for the budget; returns steps a second, the finish included, and how many."""
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < budget_s and (count + 1) * size <= MOST_BYTES:
        step(count)
        count += 1
    finish()
    return count / (time.perf_counter() - began), count


def one_round(folder: Path, size: int, budget_s: float, sync_every: int, seed: int) -> dict[str, float]:
    """One turn of each; the folder is empty afterwards."""
    chance = random.Random(seed)
    contents = [bytearray(chance.randbytes(size)) for _ in range(VARIANTS)]
    store, ids = SegmentStore(folder / "store"), []

    def put(n: int) -> None:
        data = contents[n % VARIANTS]
        data[:8] = (seed << 40 | n).to_bytes(8, "big")
        chunk_id = blake3(data).digest()
        store.append(chunk_id, data)
        ids.append(chunk_id)
        if n % sync_every == sync_every - 1:
            store.sync()

    fd, hashed_fd = (os.open(folder / name, os.O_RDWR | os.O_CREAT) for name in ("bare", "hashed"))

    def bare_put(n: int) -> None:
        os.write(fd, contents[n % VARIANTS])
        if n % sync_every == sync_every - 1:
            os.fdatasync(fd)

    def hashed_put(n: int) -> None:
        data = contents[n % VARIANTS]
        blake3(data).digest()
        os.write(hashed_fd, data)
        if n % sync_every == sync_every - 1:
            os.fdatasync(hashed_fd)

    result = {}
    result["put"], _ = timed(put, budget_s, size, store.sync)
    result["bare_put"], written = timed(bare_put, budget_s, size, lambda: os.fdatasync(fd))
    result["hashed_put"], _ = timed(hashed_put, budget_s, size, lambda: os.fdatasync(hashed_fd))
    picks = [chance.choice(ids) for _ in range(4096)]

    def get(n: int) -> None:
        chunk_id = picks[n % 4096]
        location = store.find(chunk_id)
        assert location is not None
        store.read(location, chunk_id)

    result["get"], _ = timed(get, budget_s / 2, 0, lambda: None)
    places = [chance.randrange(written) * size for _ in range(4096)]

    def bare_get(n: int) -> None:
        os.pread(fd, size, places[n % 4096])

    def hashed_get(n: int) -> None:
        blake3(os.pread(fd, size, places[n % 4096])).digest()

    result["bare_get"], _ = timed(bare_get, budget_s / 2, 0, lambda: None)
    result["hashed_get"], _ = timed(hashed_get, budget_s / 2, 0, lambda: None)
    os.close(fd)
    os.close(hashed_fd)
    store.close()
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return result


def open_index(folder: Path) -> dict[str, float]:
    """Opens an index of INDEXED chunks from hint files; the segments hold nothing but their headers."""
    chance = random.Random(1)
    for number in range(1, INDEXED // PER_SEGMENT + 1):
        name, salt = format.segment_name("bench", number), chance.randbytes(format.SALT_SIZE)
        entries = b"".join(format.pack_entry(chance.randbytes(32), 80 + n * 65592, 65536) for n in range(PER_SEGMENT))
        fd = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o600)
        os.write(fd, format.pack_segment_header(salt))
        files.seal(str(folder), name, fd, format.Hint(entries, PER_SEGMENT * 65592, salt))
        os.close(fd)
    resident, began = _resident(), time.perf_counter()
    index = ChunkIndex(folder)
    took = time.perf_counter() - began
    assert len(index) == INDEXED
    return {"chunks": INDEXED, "seconds": round(took, 3), "bytes_a_chunk": round((_resident() - resident) / INDEXED, 1)}


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def main() -> None:
    """Prints one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", default=None, help="where to write (default: a temporary directory)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget-s", type=float, default=0.5)
    parser.add_argument("--sync-every", type=int, default=64)
    args = parser.parse_args()
    report: dict[str, Any] = {"rounds": args.rounds, "sync_every": args.sync_every, "sizes": {}}
    with tempfile.TemporaryDirectory(dir=args.directory) as folder:
        report["open"] = open_index(Path(folder))
        for path in Path(folder).iterdir():
            path.unlink()
        for size in SIZES:
            rounds = [one_round(Path(folder), size, args.budget_s, args.sync_every, n) for n in range(args.rounds)]
            median = {key: round(statistics.median(r[key] for r in rounds), 1) for key in rounds[0]}
            ratios = {f"{way}{kind}_ratio": round(statistics.median(r[way] / r[f"{beside}_{way}"] for r in rounds), 2)
                      for way in ("put", "get") for kind, beside in (("", "bare"), ("_hashed", "hashed"))}
            report["sizes"][size] = median | ratios
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
