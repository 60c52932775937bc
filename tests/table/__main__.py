"""./scripts/table: seeds of random operations, with chunks of 4 KiB unless --chunk says otherwise."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

TRACE_SHOWN = 60


def main() -> int:
    """0 if every answer was the model's; 1 if not."""
    parser = argparse.ArgumentParser(prog="scripts/table", description="The contract's table under random operations.")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from --seed on")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--steps", type=int, default=600, help="operations of each")
    parser.add_argument("--chunk", type=int, default=4096, help="bytes of a chunk; the product's is 1048576")
    options = parser.parse_args()
    from tests.table import chunks

    chunks.set_size(options.chunk)
    from tests.table.seeds import run_seed

    seen: Counter[str] = Counter()
    started = time.monotonic()
    for seed in range(options.seed, options.seed + options.seeds):
        report = run_seed(seed, options.steps)
        seen += report.seen
        if report.failure:
            print("\n".join(report.trace[-TRACE_SHOWN:]))
            print(f"\nseed {seed} failed after {len(report.trace)} operations: {report.failure}\nreplay it: "
                  f"./scripts/table --seed {seed} --steps {options.steps} --chunk {options.chunk}")
            return 1
    print(f"{options.seeds} seeds, {seen.total()} operations in {time.monotonic() - started:.0f} s, as the model says")
    print("  " + ", ".join(f"{what} {count}" for what, count in sorted(seen.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
