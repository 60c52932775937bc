"""Logs of real processes: JSON lines that parse, from node and workers."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Cluster, process_is_alive, wait_for
from tests.e2e.test_processes import workers_of


def test_json_lines_parse_and_hold_no_secret(cluster: Cluster, tmp_path: Path) -> None:
    name = cluster.names[0]
    old = workers_of(cluster.pid(name))
    cluster.kill(name)
    wait_for("its workers' end", lambda: not any(map(process_is_alive, old)))  # they log text
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
    lines = log.read_bytes()[before:].rpartition(b"\n")[0].splitlines()  # the last one may be in the writing
    assert len(lines) >= 2
    for line in lines:
        assert set(json.loads(line)) >= {"time", "level", "process", "logger", "event"}, line
    told = [json.loads(line) for line in lines]
    assert [line["worker"] for line in told if "starting another" in line["event"]] == [0]
    (boot,) = [line for line in told if "serves under epoch" in line["event"]]
    assert boot["epoch"] >= 2 and boot["index"] and boot["member"] in boot["event"]
    assert cluster.about["users"][0]["password"].encode() not in log.read_bytes()


def test_each_operation_has_one_line_with_its_id_and_raft_index(shared_cluster: Cluster, tmp_path: Path) -> None:
    cluster, name = shared_cluster, shared_cluster.names[0]
    (tmp_path / "f").write_bytes(b"x" * 3_000_000)
    cluster.sftp(name, f"mkdir oplog\nput {tmp_path / 'f'} \"oplog/a b\"\nrename \"oplog/a b\" oplog/c\nrm oplog/c\n")

    def lines() -> dict[str, str]:
        texts = [log.read_text() for log in cluster.folder.glob("*.log")]
        found = re.findall(r"info node raftmft\.operations: (.*/oplog\b.*)", "\n".join(texts))
        assert len(found) == len(set(found))
        return {line.split(" op=")[0]: line for line in found}

    told = wait_for("all lines", lambda: len(found := lines()) >= 5 and found)
    assert set(told) == {"mkdir", "open to write", "publish", "rename", "remove"}
    first = min(int(found[1]) for line in told.values() if (found := re.search(r" index=(\d+) ", line)))
    # Since the first of them: a cluster that others used has more records than one query gives.
    indexes = {record["index"]: record["kind"] for record in cluster.audit("--after", str(first - 1))}
    kinds = {"mkdir": "mkdir", "publish": "publish", "rename": "rename", "remove": "remove"}
    for event, line in told.items():
        fields = re.fullmatch(
            rf"{event} op=([0-9a-f]+\.\d+) session=\d+ user=demo address=127\.0\.0\.1:\d+ path=.* index=(\d+) "
            r"outcome=ok ms=[0-9.]+", line)
        assert fields, line
        if event in kinds:
            assert indexes[int(fields[2])] == kinds[event], line
    assert 'path="/oplog/a b"' in told["publish"] and "target=/oplog/c" in told["rename"]


def test_sighup_opens_the_log_file_again_in_node_and_worker(cluster: Cluster, tmp_path: Path) -> None:
    name = cluster.names[0]
    data_dir, started_with = Path(cluster.node(name)["data_dir"]), cluster.pid(name)
    os.kill(started_with, signal.SIGHUP)  # no log_file: it changes nothing
    cluster.sftp(name, "mkdir before\n")
    assert cluster.pid(name) == started_with
    cluster.kill(name)
    settings = data_dir / "raftmft.toml"
    settings.write_text(settings.read_text().replace('log_file = ""', 'log_file = "node.log"'))
    cluster.restart(name)
    cluster.wait_ready(name)
    pid, log, old = cluster.pid(name), data_dir / "node.log", data_dir / "node.log.1"
    (worker,) = workers_of(pid)
    assert log.stat().st_mode & 0o777 == 0o600 and log.stat().st_size
    log.rename(old)
    os.kill(pid, signal.SIGHUP)
    wait_for("the worker's word", lambda: log.exists() and f"worker[{worker}]" in log.read_text())
    wait_for("the node's word", lambda: " node raftmft.node.process: SIGHUP" in log.read_text())
    assert log.stat().st_mode & 0o777 == 0o600
    size = old.stat().st_size
    os.kill(worker, signal.SIGKILL)
    wait_for("another worker", lambda: workers_of(pid) not in ([], [worker]))
    (other,) = workers_of(pid)
    assert Path(f"/proc/{other}/fd/2").resolve() == log, "a worker that starts later has the new file"
    wait_for("the node to tell", lambda: "starting another" in log.read_text())
    assert old.stat().st_size == size and cluster.pid(name) == pid
    cluster.sftp(name, "mkdir after\n")


@pytest.fixture
def talkative(tmp_path: Path) -> Iterator[Cluster]:
    """Two nodes that log all they can."""
    cluster = Cluster(tmp_path / "c", 2)
    try:
        cluster.start()
        cluster.kill(*cluster.names)
        for node in cluster.about["nodes"]:
            settings = Path(node["data_dir"]) / "raftmft.toml"
            text = settings.read_text()
            assert 'log_level = "info"' in text
            settings.write_text(text.replace('log_level = "info"', 'log_level = "debug"'))
        cluster.restart(*cluster.names)
        cluster.wait_ready()
        yield cluster
    finally:
        cluster.stop()


def test_no_secret_stands_in_any_log_after_logins_of_every_kind(talkative: Cluster, tmp_path: Path) -> None:
    cluster, (first, second) = talkative, talkative.names
    demo, token = cluster.about["users"][0], Path(cluster.about["admin_token_file"]).read_text().strip()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    cluster.run("user", "add", "eve", "--password-stdin", input=b"eves own passphrase\n")
    for name in (first, second):
        cluster.sftp_with_password(name, "ls\n", demo["password"])
        cluster.sftp_with_password(name, "ls\n", "eves own passphrase", user="eve")
        cluster.sftp_with_password(name, "ls\n", "a wrong passphrase", user="eve")
        cluster.sftp_with_password(name, "ls\n", "for nobody at all", user="nobody")
        cluster.sftp(name, "mkdir by-key\nrmdir by-key\n")
        assert cluster.sftp(name, "ls\n", key=str(tmp_path / "other"), check=False).returncode
        url = cluster.node(name)["admin"]
        asked = [urllib.request.Request(f"{url}/api/v1/users", headers={"authorization": f"Bearer {shown}"})
                 for shown in (token, "forged-token-value")]
        with urllib.request.urlopen(asked[0], timeout=10) as answer:
            assert answer.status == 200
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(asked[1], timeout=10)
    wait_for("the refusals' records", lambda: cluster.audit("--kind", "login_refused"))
    logs = b"".join(log.read_bytes() for log in [*cluster.folder.glob("*.log"), cluster.folder.with_suffix(".log")])
    for control in (b": login ", b"user=eve", b"user=nobody", b"outcome=permission"):
        assert control in logs, f"the logs do not tell of {control!r}: there is nothing to search"
    key_bodies = [line for file in (demo["key"], tmp_path / "other") for line in Path(file).read_bytes().splitlines()
                  if line and not line.startswith(b"-----")]
    cluster_keys = [(Path(node["data_dir"]) / "keys" / "cluster.key").read_bytes() for node in cluster.about["nodes"]]
    secrets = [demo["password"].encode(), token.encode(), token.rpartition(".")[2].encode(), b"eves own passphrase",
               b"a wrong passphrase", b"for nobody at all", b"forged-token-value", b"$argon2", b"PRIVATE KEY",
               *key_bodies]
    for key in cluster_keys:
        secrets += [key, key.hex().encode(), base64.b64encode(key)]
    assert len(key_bodies) >= 6 and all(len(secret) >= 6 for secret in secrets)
    for secret in secrets:
        assert secret not in logs, secret
