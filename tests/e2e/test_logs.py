"""Logs of real processes: JSON lines that parse, from node and workers."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from tests.e2e.harness import Cluster, wait_for
from tests.e2e.test_processes import workers_of


def test_json_lines_parse_and_hold_no_secret(cluster: Cluster, tmp_path: Path) -> None:
    name = cluster.names[0]
    cluster.kill(name)
    settings = Path(cluster.node(name)["data_dir"]) / "raftmft.toml"
    settings.write_text(settings.read_text().replace('log_format = "text"', 'log_format = "json"'))
    log = cluster.folder / f"{name}.log"
    before = log.stat().st_size
    cluster.restart(name)
    cluster.wait_ready(name)
    cluster.sftp_with_password(name, "ls\n", cluster.about["users"][0]["password"])
    (worker,) = workers_of(cluster.pid(name))
    assert b"--log-format\0json" in Path(f"/proc/{worker}/cmdline").read_bytes()
    os.kill(worker, signal.SIGKILL)
    wait_for("the node to tell", lambda: b"starting another" in log.read_bytes()[before:])
    lines = log.read_bytes()[before:].splitlines()
    assert len(lines) >= 2
    for line in lines:
        assert set(json.loads(line)) >= {"time", "level", "process", "logger", "event"}, line
    assert cluster.about["users"][0]["password"].encode() not in log.read_bytes()
