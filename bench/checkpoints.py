"""What do the checkpoints of a huge upload cost: index bytes stored again on every member, ids in Raft, memory, CPU?

    .venv/bin/python bench/checkpoints.py [--gib 1 32 100 1024] [--every 8]

Runs the table of slots alone (no node, no chunk): every chunk is another, a checkpoint each `--every` chunks, then the
manifest that is published. "as before" is what storing the last index chunk anew at each checkpoint would come to.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from raftmft.core.manifest import CHUNK_SIZE, ID_SIZE, IDS_PER_INDEX, INLINE_IDS, Manifest
from raftmft.sftp.content import Content
from raftmft.sftp.slots import UNCHANGED, SlotTable

MIB = 1 << 20


async def measure(gib: int, every: int) -> dict[str, Any]:
    """One file of `gib` GiB."""
    chunks, stored, most = gib * 1024, 0, 0
    nothing: Any = None

    async def store_index(content: bytes) -> bytes:
        nonlocal stored
        stored += len(content)
        return content[:ID_SIZE]

    table = SlotTable(Content(nothing, Manifest(0)))
    began = time.process_time()
    for slot in range(chunks):
        table.set(slot, (slot + 1).to_bytes(ID_SIZE, "big"), CHUNK_SIZE)
        if (slot + 1) % every == 0:
            table.lowest_change = UNCHANGED
            made = await table.checkpoint((slot + 1) * CHUNK_SIZE, store_index, b"")
            most = max(most, len(made.ids))
    for_checkpoints = stored
    published = await table.manifest(chunks * CHUNK_SIZE, b"", store_index)
    before = sum((count % IDS_PER_INDEX or IDS_PER_INDEX) * ID_SIZE
                 for count in range(every, chunks + 1, every) if count > INLINE_IDS)
    data = chunks * CHUNK_SIZE
    return {"gib": gib, "checkpoint_index_mib": round(for_checkpoints / MIB, 1),
            "percent": round(100 * for_checkpoints / data, 3), "percent_as_before": round(100 * before / data, 3),
            "most_ids_bytes": most, "published_ids_bytes": len(published.ids),
            "cpu_s": round(time.process_time() - began, 2),
            "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)}


def main() -> None:
    """Prints a table on standard error, JSON on standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=int, nargs="+", default=[1, 32, 100, 1024])
    parser.add_argument("--every", type=int, default=8)
    options = parser.parse_args()
    rows = [asyncio.run(measure(gib, options.every)) for gib in sorted(options.gib)]
    print(f"{'GiB':>6}{'index MiB':>11}{'%':>8}{'% as before':>13}{'ids, most':>11}{'published':>11}{'CPU s':>8}"
          f"{'peak MiB':>10}", file=sys.stderr)
    for row in rows:
        print(f"{row['gib']:>6}{row['checkpoint_index_mib']:>11}{row['percent']:>8}{row['percent_as_before']:>13}"
              f"{row['most_ids_bytes']:>11}{row['published_ids_bytes']:>11}{row['cpu_s']:>8}{row['peak_mib']:>10}",
              file=sys.stderr)
    print(json.dumps({"every": options.every, "rows": rows}))


if __name__ == "__main__":
    main()
