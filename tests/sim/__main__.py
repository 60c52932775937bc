"""./scripts/sim: runs seeds on all cores, says what they covered, and shows the last events of one that failed."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.sim.many import run_many
from tests.sim.seeds import SECONDS, Report, run_seed, uncovered

TRACE_SHOWN = 80
PROGRESS_S = 2.0


def summary(reports: list[Report]) -> str:
    """What all of them came to, in lines."""
    count = len(reports)
    lines = [f"{count} seeds, {sum(r.seconds for r in reports):.0f} virtual seconds, "
             f"{sum(r.commands for r in reports)} commands, {sum(r.reads for r in reports)} reads, "
             f"{sum(r.faults.total() for r in reports)} faults"]
    for name in sorted(set().union(*(r.coverage for r in reports))):
        total, seen = sum(r.coverage[name] for r in reports), sum(bool(r.coverage[name]) for r in reports)
        lines.append(f"  {name}: {total}, in {seen} of {count} seeds ({seen / count:.0%})")
    faults: Counter[str] = sum((r.faults for r in reports), Counter())
    lines.append("  faults: " + ", ".join(f"{name} {number}" for name, number in sorted(faults.items())))
    return "\n".join(lines)


def main() -> int:
    """0 if all seeds held and covered what they should; 1 if not."""
    parser = argparse.ArgumentParser(prog="scripts/sim", description="Simulates whole clusters in virtual time.")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from --seed on")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="virtual seconds of each, at least")
    parser.add_argument("--jobs", type=int, default=0, help="processes; by default one a core")
    parser.add_argument("--quiet", action="store_true", help="calm seeds: hardly a term may pass")
    parser.add_argument("--trace", action="store_true", help="print every event and message of --seed")
    options = parser.parse_args()
    if options.trace:
        report = run_seed(options.seed, options.seconds, verbose=True)
        print("\n".join(report.trace), report.failure or "all held", sep="\n")
        return int(bool(report.failure))
    reports: list[Report] = []
    started = shown = time.monotonic()
    for report in run_many(range(options.seed, options.seed + options.seeds), options.seconds, jobs=options.jobs,
                           calm=options.quiet):
        reports.append(report)
        if report.failure:
            print("\n".join(report.trace[-TRACE_SHOWN:]))
            print(f"\nseed {report.seed} failed: {report.failure}\n"
                  f"replay it: ./scripts/sim --seed {report.seed} --seconds {options.seconds:g} [--trace]")
            return 1
        if time.monotonic() - shown >= PROGRESS_S or len(reports) == options.seeds:
            shown = time.monotonic()
            print(f"{len(reports)} of {options.seeds} seeds held, {shown - started:.0f} s", flush=True)
    print(summary(reports))
    lacking = [] if options.seeds < 20 or options.quiet else uncovered(reports)
    for text in lacking:
        print(f"too little was seen: {text}")
    return int(bool(lacking))


if __name__ == "__main__":
    sys.exit(main())
