"""How many commits a second, at what latency, for what CPU, beside three members of etcd on the same machine?

What is compared, and over what transport, stands at the head of rivals.py. Rounds of both are interleaved; every figure
is the median of its rounds. "servers" is the CPU of all three members. With --check-perf also etcd's own
`etcdctl check perf` (gRPC, in Go; it takes a minute), which says what etcd does without its JSON gateway.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.rivals import HEAD, Etcd, Raftmft, Subject, interleaved, settle, show, show_ratios


def check_perf(etcd: Etcd, load: str) -> dict[str, Any]:
    """What `etcdctl check perf` says of the leader."""
    host, port = etcd.address(etcd.roles().index("leader"))
    run = subprocess.run(
        ["etcdctl", f"--endpoints=http://{host}:{port}", "--command-timeout=90s", "check", "perf", f"--load={load}"],
        env={**os.environ, "ETCDCTL_API": "3"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    lines = [line for line in re.split(r"[\r\n]+", run.stdout) if line.startswith(("PASS", "FAIL"))]
    for line in lines:
        print(f"etcdctl check perf --load={load}: {line}", file=sys.stderr)
    return {"load": load, "lines": lines}


def main() -> None:
    """Prints a table on standard error, JSON on standard output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--proposers", type=int, nargs="*", default=[1, 16, 128, 1000])
    parser.add_argument("--role", choices=("leader", "follower"), default="leader")
    parser.add_argument("--check-perf", nargs="?", const="l", default=None, help="s, m, l or xl: 150 to 15,000/s")
    parser.add_argument("--dir", default=None, help="where both keep their files (a real disk)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="raftmft-etcd-", dir=options.dir))
    subjects: list[Subject] = []
    try:
        ours, theirs = Raftmft(folder / "raftmft"), None
        subjects.append(ours)
        theirs = Etcd(folder / "etcd")
        subjects.append(theirs)
        settle()
        print(HEAD, file=sys.stderr)
        rows: list[dict[str, Any]] = []
        for count in options.proposers:
            medians = interleaved(subjects, options.role, "put", count, options.seconds, options.rounds)
            rows += show(options.role, count, medians)
        ratios = show_ratios(rows)
        perf = check_perf(theirs, options.check_perf) if options.check_perf else None
        equal = ours.digests_equal()
        print(f"raftmft's three state digests: {'equal' if equal else 'DIFFERENT'}", file=sys.stderr)
        print(json.dumps({"rows": rows, "ratios": ratios, "check_perf": perf, "digests_equal": equal}))
        if not equal:
            raise SystemExit(1)
    finally:
        for subject in subjects:
            subject.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
