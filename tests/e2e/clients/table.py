"""Prints what tests/e2e/test_clients.py finds as a table, client x scenario: ok, FAILED, or why it was skipped."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from tests.e2e.test_clients import CLIENTS, SCENARIOS

LIMIT_S = 600


def outcome(case: ElementTree.Element) -> str:
    """One cell."""
    if case.find("failure") is not None or case.find("error") is not None:
        return "FAILED"
    skipped = case.find("skipped")
    return "ok" if skipped is None else skipped.get("message", "").rsplit(" cannot: ")[-1]


def main() -> int:
    """Runs the tests; 0 if all that ran passed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", f"--junitxml={report}",
                               "tests/e2e/test_clients.py"], stdout=sys.stderr, timeout=LIMIT_S, check=False)
        cells = {case.get("name", ""): outcome(case) for case in ElementTree.parse(report).iter("testcase")}
    scenarios = [scenario.__name__ for scenario in SCENARIOS]
    print("| client | " + " | ".join(scenarios) + " |")
    print("|---" * (len(scenarios) + 1) + "|")
    for client in CLIENTS:
        row = [cells.get(f"test_client[{client.name}-{scenario}]", "not run") for scenario in scenarios]
        print(f"| {client.name} | " + " | ".join(row) + " |")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
