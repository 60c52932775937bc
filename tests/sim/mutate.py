"""./scripts/mutants: is every broken rule caught by some seed?

A mutant is a patch of raftmft in tests/sim/mutants/ whose first line says which rule it breaks. Each is applied to a
copy of the source tree, and seeds are run there until one fails. `Run: quiet` in the first line has the quiet scenarios
run.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent / "mutants"
MOST_SEEDS = 400
LIMIT_S = 600.0
_FAILED = re.compile(r"^seed (\d+) failed: (.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which seed caught a mutant, and by which check; seed -1 if none did."""

    name: str
    seed: int
    failure: str
    took_s: float


def names() -> list[str]:
    """All mutants."""
    return sorted(path.stem for path in FOLDER.glob("*.patch"))


def first_line(name: str) -> str:
    """Which rule the mutant breaks."""
    return (FOLDER / f"{name}.patch").read_text().splitlines()[0]


def apply(name: str, tree: Path) -> None:
    """Copies what the simulation needs to `tree`, and breaks it. AssertionError if the patch does not fit any more."""
    skip = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(ROOT / "raftmft", tree / "raftmft", ignore=skip)
    shutil.copytree(ROOT / "tests" / "sim", tree / "tests" / "sim", ignore=skip)
    (tree / "tests" / "__init__.py").touch()
    done = subprocess.run(["git", "apply", "--whitespace=nowarn", str(FOLDER / f"{name}.patch")], cwd=tree,
                          capture_output=True, text=True,
                          env={**os.environ, "GIT_CEILING_DIRECTORIES": str(tree.parent)})
    assert done.returncode == 0, f"the mutant {name} does not fit the source any more: {done.stderr.strip()}"


def hunt(name: str, seeds: int = MOST_SEEDS, first: int = 0) -> Verdict:
    """Runs seeds on the broken tree until one fails."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="raftmft-mutant-") as folder:
        tree = Path(folder)
        apply(name, tree)
        command = [sys.executable, "-m", "tests.sim", "--seeds", str(seeds), "--seed", str(first)]
        if "Run: quiet" in first_line(name):
            command.append("--quiet")
        done = subprocess.run(command, cwd=tree, env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": str(tree)},
                              capture_output=True, text=True, timeout=LIMIT_S)
    found = _FAILED.search(done.stdout)
    if found is None:
        assert "seeds held" in done.stdout, f"the mutant {name} does not run: {done.stderr[-2000:]}"
        return Verdict(name, -1, "", time.monotonic() - started)
    return Verdict(name, int(found[1]), found[2], time.monotonic() - started)


def main() -> int:
    """0 if all were caught."""
    parser = argparse.ArgumentParser(prog="scripts/mutants", description="Is every broken rule caught by some seed?")
    parser.add_argument("names", nargs="*", metavar="MUTANT", help=", ".join(names()))
    parser.add_argument("--seeds", type=int, default=MOST_SEEDS, help="how many each mutant may survive")
    options = parser.parse_args()
    survived: list[str] = []
    for name in options.names or names():
        verdict = hunt(name, options.seeds)
        caught = f"seed {verdict.seed}" if verdict.seed >= 0 else "SURVIVED"
        print(f"{name:22} {caught:9} {verdict.took_s:4.0f} s  {verdict.failure[:120]}", flush=True)
        if verdict.seed < 0:
            survived.append(name)
    print(f"{len(survived)} survived: {', '.join(survived)}" if survived else "all were caught")
    return int(bool(survived))


if __name__ == "__main__":
    sys.exit(main())
