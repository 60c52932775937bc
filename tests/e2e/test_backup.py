"""A backup of a cluster of three becomes a new cluster of one that grows again: users, names, audit; and no secrets."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import asyncssh
import pytest

from tests.e2e.harness import wait_for
from tests.e2e.hosts import Hosts, port_options, refused
from tests.e2e.test_recover import get, names, put, sftp_port, three

pytestmark = pytest.mark.slow


def host_key(port: int) -> str:
    found = subprocess.run(["ssh-keyscan", "-t", "ed25519", "-p", str(port), "127.0.0.1"], capture_output=True,
                           text=True, timeout=20)
    return found.stdout.split()[-1]


def test_a_backup_becomes_a_cluster_of_another_size(hosts: Hosts, tmp_path: Path) -> None:
    a, b, _ = three(hosts)
    put(a, "kept", b"content that only the old members hold")
    put(a, "empty", b"")
    assert hosts.run("config", "set", "login.limit_s", "20", "--data-dir", str(a.data_dir)).returncode == 0
    pass_file = tmp_path / "pass"
    pass_file.write_text("correct horse battery\n")
    pass_file.chmod(0o600)
    export, file = tmp_path / "k.export", tmp_path / "files.backup"
    with_pass = ["--passphrase-file", str(pass_file)]
    assert hosts.run("key", "export", "--data-dir", str(a.data_dir), *with_pass, "--out", str(export)).returncode == 0
    made = hosts.json(b, "backup", "create", "--out", str(file))
    assert made["index"] > 0 and file.stat().st_mode & 0o777 == 0o600
    assert "is not overwritten" in refused(
        hosts.run("backup", "create", "--out", str(file), "--data-dir", str(a.data_dir)))
    put(a, "after the backup", b"x")
    # Checked anywhere, without a node.
    found = json.loads(hosts.run("backup", "verify", str(file), "-o", "json").stdout)
    assert found["ok"] and found["root"] == made["root"] and found["members"] == ["a", "b", "c"]
    assert (found["users"], found["files"]) == (1, 2) and found["audit_records"] > 5
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "bad.backup").write_bytes(data)
    assert "is damaged at byte" in refused(hosts.run("backup", "verify", str(tmp_path / "bad.backup")))
    # No secret is in it in the open.
    for secret in (keyring_key(a.data_dir), b"PRIVATE KEY"):
        assert secret not in file.read_bytes()
    old_key = host_key(sftp_port(a))
    for host in list(hosts.started):
        hosts.end(host, signal.SIGKILL)
    where = ["--advertise", "127.0.0.1", "--listen", "127.0.0.1"]
    words = ["restore", str(file), "--data-dir", str(tmp_path / "r"), "--name", "r", *where, *port_options()]
    refused(hosts.run(*words), 2)
    refused(hosts.run("restore", str(tmp_path / "bad.backup"), "--data-dir", str(tmp_path / "r2"), "--name", "r",
                      "--new-host-key", *where, *port_options()))
    assert not (tmp_path / "r2").exists()
    done = hosts.run(*words, "--key-export", str(export), *with_pass, "-o", "json")
    restored = hosts._made("r", done)
    assert json.loads(done.stdout)["cluster_id"] != found["cluster_id"]
    hosts.start(restored)
    wait_for("the restored node to serve", lambda: hosts.run(
        "user", "list", "--data-dir", str(restored.data_dir)).returncode == 0, 30)
    assert names(hosts, restored) == ["r"]
    assert b"ann" in hosts.run("user", "list", "--data-dir", str(restored.data_dir)).stdout
    assert b"20" in hosts.run("config", "get", "login.limit_s", "--data-dir", str(restored.data_dir)).stdout
    hosts.wait_ready(restored)
    assert host_key(sftp_port(restored)) == old_key, "clients see the same host"
    # Content that nobody holds is told, and never served as anything else; the rest works.
    with pytest.raises(asyncssh.SFTPError):
        get(restored, "kept")
    assert get(restored, "empty") == b""
    assert hosts.json(restored, "file", "show", "/ann/kept")["health"] == "lost"
    status = hosts.json(restored, "status")
    assert status["verdict"] == "degraded" and "no member gave them" in " ".join(status["reasons"]), status
    put(restored, "kept", b"uploaded again")
    with pytest.raises(asyncssh.SFTPNoSuchFile):
        get(restored, "after the backup")
    records = hosts.json_lines(restored, "audit", "query", "--kind", "admin")
    assert any("cluster restore: r goes on alone" in record["target"] for record in records)
    assert hosts.run("audit", "verify", "--data-dir", str(restored.data_dir)).returncode == 0
    # It grows, and a member that never saw the backup has it all.
    second = hosts.join("s", hosts.token(restored))
    hosts.start(second)
    hosts.wait_members(restored, 2)
    hosts.wait_ready(second)
    assert get(second, "kept") == b"uploaded again"
    wait_for("all to be well", lambda: hosts.json(second, "status")["verdict"] == "ok", 40)
    # A member's own snapshot does as well as a backup.
    (snapshot,) = (b.data_dir / "raft").glob("snapshot.*")
    shutil.copy(snapshot, tmp_path / "from-a-disk")
    assert json.loads(hosts.run("backup", "verify", str(tmp_path / "from-a-disk"), "-o", "json").stdout)["ok"]


def keyring_key(data_dir: Path) -> bytes:
    from raftmft.cluster.keyring import KeyRing
    (key,) = KeyRing.load(data_dir / "keys" / "cluster.key").keys()
    return key.key
