"""./scripts/table: seeds of random operations, with chunks of 4 KiB unless --chunk says otherwise."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

TRACE_SHOWN = 60


def main() -> int:
    """0 if every answer was the model's; 1 if not."""
    parser = argparse.ArgumentParser(prog="scripts/table", description="The contract's table under random operations.")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from --seed on")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--steps", type=int, default=600, help="operations of each")
    parser.add_argument("--chunk", type=int, default=4096, help="bytes of a chunk; the product's is 1048576")
    parser.add_argument("--cluster", action="store_true", help="against three real nodes, which are started")
    parser.add_argument("--storm", action="store_true", help="all at once: what is published is whole")
    options = parser.parse_args()
    if not options.cluster:
        from tests.table import chunks

        chunks.set_size(options.chunk)
        from tests.table.seeds import run_seed
        from tests.table.storm import run_storm

        return run(options, run_storm if options.storm else run_seed)
    from tests.e2e.harness import Cluster
    from tests.table.real import run_seed_on

    folder = Path(tempfile.mkdtemp(prefix="table"))
    cluster = Cluster(folder / "c")
    try:
        cluster.start()
        return run(options, lambda seed, steps: run_seed_on(cluster, seed, steps))
    finally:
        cluster.stop()
        shutil.rmtree(folder)


def run(options: argparse.Namespace, run_seed: Callable[[int, int], Any]) -> int:
    """Runs the seeds, until one fails."""
    seen: Counter[str] = Counter()
    started = time.monotonic()
    for seed in range(options.seed, options.seed + options.seeds):
        report = run_seed(seed, options.steps)
        seen += report.seen
        if report.failure:
            print("\n".join(report.trace[-TRACE_SHOWN:]))
            how = "--storm" if options.storm else "--cluster" if options.cluster else f"--chunk {options.chunk}"
            print(f"\nseed {seed} failed after {len(report.trace)} operations: {report.failure}\nreplay it: "
                  f"./scripts/table --seed {seed} --steps {options.steps} {how}")
            return 1
    print(f"{options.seeds} seeds, {seen.total()} operations in {time.monotonic() - started:.0f} s, "
          f"{'nothing torn' if options.storm else 'as the model says'}")
    print("  " + ", ".join(f"{what} {count}" for what, count in sorted(seen.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
