"""Benches must not rot: each runs for a moment and gives figures. What they say is not looked at here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def run(*words: str) -> list[str]:
    """The lines of JSON that a bench prints."""
    done = subprocess.run([sys.executable, *words], cwd=CHECKOUT, capture_output=True, timeout=240, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_commit(tmp_path: Path) -> None:
    words = "bench/commit.py", "--seconds", "0.2", "--proposers", "4", "--dir", str(tmp_path)
    (line,) = run(*words)
    told = json.loads(line)
    assert told["digests_equal"] and [row["kind"] for row in told["rows"][::2]] == ["noop", "command", "publish"]
    assert all(row["per_s"] > 0 for row in told["rows"])


def test_raft_inproc() -> None:
    assert all(json.loads(line)["per_s"] > 0 for line in run("bench/raft_inproc.py", "0.1"))


def test_snapshots(tmp_path: Path) -> None:
    (line,) = run("bench/snapshots.py", "--files", "3000", "--rounds", "1", "--seconds", "0.5", "--replay", "200",
                  "--log-mb", "2", "--dir", str(tmp_path))
    rows = json.loads(line)["rows"]
    assert {row["kind"] for row in rows} >= {"quiet", "one snapshot", "all snapshots", "install", "start, clean",
                                             "start, killed", "long"}
    assert next(row for row in rows if row["kind"] == "install")["installed"] == 1


def test_catch_up(tmp_path: Path) -> None:
    (line,) = run("bench/catch_up.py", "--stop", "1", "--proposers", "4", "--dir", str(tmp_path))
    rows = json.loads(line)["rows"]
    assert set(rows) == {"before", "stopped", "catching up"} and rows["catching up"]["commits_per_s"] > 0


def test_publishes(tmp_path: Path) -> None:
    (line,) = run("bench/publishes.py", "--only", "strict", "relaxed", "--sessions", "2", "--rounds", "1", "--seconds",
                  "0.5", "--dir", str(tmp_path))
    rows = json.loads(line)["rows"]
    assert [(row["subject"], row["way"]) for row in rows] == [
        (f"raftmft {opens}", way) for way in ("put", "get") for opens in ("strict", "relaxed")]
    assert all(row["per_s"] > 0 for row in rows)
    assert all(row["commits"] >= 2.0 for row in rows if row["way"] == "put")


def test_anysize() -> None:
    (line,) = run("bench/anysize.py", "--size-gib", "1", "--nodes", "1", "--short")
    assert all(row["ms"] > 0 for row in json.loads(line)["rows"])


def test_checkpoints() -> None:
    (line,) = run("bench/checkpoints.py", "--gib", "1", "32")
    assert all(row["percent"] < 1 and row["most_ids_bytes"] <= 4096 for row in json.loads(line)["rows"])


def test_links() -> None:
    (line,) = run("bench/links.py", "--mib", "32", "--rounds", "1")
    told = json.loads(line)
    assert all(told[name]["gb_per_s"] > 0 for name in ("plain", "floor", "newer", "sslstream", "tlsstream", "link"))


def test_ingest(tmp_path: Path) -> None:
    (line,) = run("bench/ingest.py", "--mib", "70", "--rounds", "1", "--idle-s", "1", "--dir", str(tmp_path))
    told = json.loads(line)
    assert all(told[way]["mb_per_s"] > 0 and told[way]["left_to_repair"] == 0 for way in ("chain", "fan-out"))
    assert told["idle_cpu_s_per_s"] > 0
    assert all(0 < told[way]["bare_cpu_s_per_gb"] < told[way]["cpu_s_per_gb"] for way in ("chain", "fan-out"))
    first, *others = told["counts"]
    assert first["chained"] and all(node["passed_on"] for node in others)


def test_reuploads(tmp_path: Path) -> None:
    (line,) = run("bench/reuploads.py", "--mb", "8", "--rounds", "1", "--dir", str(tmp_path))
    written = {row["kind"]: row["written_mb"] for row in json.loads(line)["rows"]}
    assert written["new"] > 23 and written["same"] < 4


def test_index_memory() -> None:
    rows = json.loads(run("bench/index_memory.py", "--chunks", "1000000")[0])
    assert [row["way"] for row in rows] == ["load", "add"] and all(row["chunks"] == 1_000_000 for row in rows)
    assert all(0 < row["bytes_a_chunk"] <= 64 for row in rows), "what a node's index may take"


def test_memory(tmp_path: Path) -> None:
    (line,) = run("bench/memory.py", "--files", "2", "--mib", "8", "--dir", str(tmp_path))
    rows = json.loads(line)["rows"]
    assert [row["way"] for row in rows] == ["put", "get"]
    assert all(row["node_mib"] > 10 and row["worker_mib"] > 10 for row in rows)
