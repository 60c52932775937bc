"""What does a linearizable read cost, alone and among 100, beside etcd's?

raftmft: a barrier (a round of confirmations that all readers share who came before it; raft/readindex.py) and then one
look into the local state, as a stat has it. etcd: a get, which is linearizable by default (a read-index round). Both
over the same HTTP client and in rounds as in commit_etcd.py, through the leader's member and through a follower's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.rivals import HEAD, Etcd, Raftmft, Subject, drive, interleaved, settle, show, show_ratios


def main() -> None:
    """Prints a table on standard error, JSON on standard output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--readers", type=int, nargs="*", default=[1, 100])
    parser.add_argument("--roles", nargs="*", default=["leader", "follower"])
    parser.add_argument("--dir", default=None, help="where both keep their files (a real disk)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="raftmft-reads-", dir=options.dir))
    subjects: list[Subject] = []
    try:
        subjects.append(Raftmft(folder / "raftmft"))
        subjects.append(Etcd(folder / "etcd"))
        settle()
        for subject in subjects:
            drive(subject, "leader", subject.put, 1, 0.2)  # so that there is something to be read
        print(HEAD, file=sys.stderr)
        rows: list[dict[str, Any]] = []
        for role in options.roles:
            for count in options.readers:
                medians = interleaved(subjects, role, "get", count, options.seconds, options.rounds)
                rows += show(role, count, medians)
        print(json.dumps({"rows": rows, "ratios": show_ratios(rows)}))
    finally:
        for subject in subjects:
            subject.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
