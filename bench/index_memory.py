"""How much of a node's memory does the index of its chunks take, and what does a look-up cost?

Each size is filled in a process of its own, in both ways in which a node's index grows: from hint files at a start
("load"), and chunk by chunk as uploads come ("add"). Memory is the growth of the process's resident set, so that what
the allocator wastes counts; the promise is 64 bytes a chunk. Chunk ids are random, as BLAKE3's are.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from raftmft.store import format
from raftmft.store.format import Location
from raftmft.store.table import ChunkTable

PER_SEGMENT, LOOKUPS = 4000, 100_000
WAYS = ("load", "add")


def resident() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def fill(way: str, chunks: int) -> dict[str, Any]:
    """One process's measurement."""
    chance = random.Random(1)
    before = resident()
    table, begun = ChunkTable(), time.process_time()
    for number, first in enumerate(range(0, chunks, PER_SEGMENT)):
        name = format.segment_name("w", number)
        ids = [chance.randbytes(32) for _ in range(min(PER_SEGMENT, chunks - first))]
        if way == "load":
            table.load(name, b"".join(format.pack_entry(id, 32 + 48 * at, 1 << 20) for at, id in enumerate(ids)))
        else:
            for at, id in enumerate(ids):
                table.add(id, Location(name, 32 + 48 * at, 1 << 20))
        del ids
    seconds = time.process_time() - begun
    taken = resident() - before
    chance = random.Random(1)
    seen = [chance.randbytes(32) for _ in range(min(chunks, LOOKUPS))]
    begun = time.process_time()
    found = sum(table.get(id) is not None for id in seen)
    lookup = (time.process_time() - begun) / len(seen)
    assert found == len(seen) and len(table) == chunks
    return {"way": way, "chunks": chunks, "bytes_a_chunk": round(taken / chunks, 1), "mb": taken // 1_000_000,
            "lookup_us": round(lookup * 1e6, 2), "cpu_s": round(seconds, 1)}


def main() -> None:
    """Prints a table on standard error, JSON on standard output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, nargs="*", default=[1_000_000, 10_000_000])
    parser.add_argument("--fill", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fill:
        print(json.dumps(fill(options.fill, options.chunks[0])))
        return
    found = []
    print(f"{'chunks':>10}  {'way':<5}{'B a chunk':>10}{'MB':>7}{'look-up us':>12}{'fill CPU s':>12}", file=sys.stderr)
    for chunks in options.chunks:
        for way in WAYS:
            done = subprocess.run([sys.executable, __file__, "--chunks", str(chunks), "--fill", way],
                                  capture_output=True, check=True)
            row = json.loads(done.stdout)
            found.append(row)
            print(f"{chunks:>10}  {way:<5}{row['bytes_a_chunk']:>10}{row['mb']:>7}{row['lookup_us']:>12}"
                  f"{row['cpu_s']:>12}", file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
