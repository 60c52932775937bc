"""Processes as surface.md has them: workers die with their node and are restarted; dev, SIGTERM, pid files, locks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

from tests.e2e.harness import RAFTMFT, Cluster, process_is_alive, wait_for


def workers_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"raftmft.sftp.worker" in command_line(child)]


def command_line(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""  # it ended between our two looks


def test_workers_end_within_a_second_of_their_node(cluster: Cluster) -> None:
    name = cluster.names[0]
    workers = workers_of(cluster.pid(name))
    assert workers
    os.kill(cluster.pid(name), signal.SIGKILL)
    killed = time.monotonic()
    wait_for("the workers' end", lambda: not any(process_is_alive(w) for w in workers), 1.0)
    assert time.monotonic() - killed < 1.0


def test_a_crashed_worker_is_restarted_and_ends_only_its_own_sessions(cluster: Cluster, tmp_path: Path) -> None:
    one, two, _ = cluster.names
    source = tmp_path / "s"
    source.write_bytes(b"x")
    before = {name: workers_of(cluster.pid(name)) for name in cluster.names}
    os.kill(before[one][0], signal.SIGKILL)
    wait_for("another worker", lambda: set(workers_of(cluster.pid(one))) - set(before[one]))
    wait_for("service", lambda: cluster.sftp(one, f"put {source} after\n", check=False).returncode == 0)
    assert workers_of(cluster.pid(two)) == before[two]
    # SIGTERM and SIGINT are for the node; workers ignore both.
    worker = workers_of(cluster.pid(two))[0]
    os.kill(worker, signal.SIGTERM)
    os.kill(worker, signal.SIGINT)
    cluster.sftp(two, "ls\n")
    assert workers_of(cluster.pid(two)) == before[two]


def test_sigterm_stops_a_node_cleanly_and_it_comes_back(cluster: Cluster, tmp_path: Path) -> None:
    one, two, _ = cluster.names
    source = tmp_path / "s"
    source.write_bytes(b"kept")
    cluster.sftp(one, f"put {source} kept\n")
    pid = cluster.pid(one)
    os.kill(pid, signal.SIGTERM)
    wait_for("a clean stop", lambda: not process_is_alive(pid), 10)
    assert "ended (exit code 0)" in wait_for(
        "dev to tell", lambda: (t := cluster.folder.with_suffix(".log").read_text()) and "ended" in t and t
    )
    assert cluster.dev is not None and cluster.dev.poll() is None, "dev ended with its node"
    cluster.sftp(two, f"put {source} meanwhile\n")
    cluster.restart(one)
    cluster.wait_ready(one)
    assert cluster.pid(one) != pid
    cluster.sftp(one, f"get kept {tmp_path}/back\nget meanwhile {tmp_path}/back2\n")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "back2").read_bytes() == b"kept"


def test_dev_stops_all_nodes_and_resumes(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "c").start()
    source = tmp_path / "s"
    source.write_bytes(b"over the restart")
    try:
        where = cluster.folder / "cluster.json"
        assert where.stat().st_mode & 0o777 == 0o600
        about = json.loads(where.read_text())
        assert about["pid"] == cluster.dev.pid and [n["name"] for n in about["nodes"]] == ["n1", "n2", "n3"]
        cluster.sftp("n1", f"put {source} s\n")
        cluster.kill("n2")
        cluster.restart("n2")
        cluster.wait_ready("n2")
        pids = [cluster.pid(n) for n in cluster.names]
        begun = time.monotonic()
        cluster.stop()
        assert time.monotonic() - begun < 10
        assert not any(process_is_alive(p) for p in pids), "a node outlives dev"
        assert not where.exists()
        cluster.start()
        assert cluster.about["nodes"][0]["sftp"] == about["nodes"][0]["sftp"], "ports are kept"
        cluster.sftp("n3", f"get s {tmp_path}/back\n")
        assert (tmp_path / "back").read_bytes() == source.read_bytes()
        cluster.stop()
        secrets = [about["users"][0]["password"].encode(), b"OPENSSH PRIVATE KEY"]
        secrets += [(cluster.folder / name / "keys" / "cluster.key").read_bytes() for name in ("n1", "n2", "n3")]
        files = [
            f for n in cluster.names for f in (cluster.folder / n).rglob("*") if f.is_file() and f.parent.name != "keys"
        ]
        for file in [*files, *cluster.folder.glob("*.log")]:
            content = file.read_bytes()
            assert not any(secret in content or secret.hex().encode() in content for secret in secrets), file
    finally:
        cluster.stop()


def one_line(done: subprocess.CompletedProcess[bytes]) -> str:
    text = done.stderr.decode()
    assert done.returncode == 1, (done.returncode, text)
    assert text.count("\n") == 1 and "Traceback" not in text, text
    return text


def node(data_dir: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*RAFTMFT, "node", "--data-dir", str(data_dir)], capture_output=True, timeout=30)


def test_bad_data_directories_settings_and_ports_get_one_line(cluster: Cluster, tmp_path: Path) -> None:
    name = cluster.names[0]
    data_dir = Path(cluster.node(name)["data_dir"])
    assert "in use" in one_line(node(data_dir))
    assert "raftmft.toml" in one_line(node(tmp_path))
    assert "init" in one_line(node(tmp_path / "nowhere"))
    done = subprocess.run([*RAFTMFT, "dev", "--dir", str(tmp_path)], capture_output=True, timeout=30)
    assert "not empty" in one_line(done)
    cluster.kill(name)
    settings = data_dir / "raftmft.toml"
    good = settings.read_text()
    for bad, says in (
        (good + "nonsense = 1\n", "nonsense"),
        ("name = [", "TOML"),
        (good + "workers = 1\n", "TOML"),
        (good.replace("workers = 1", 'workers = "many"'), "workers"),
        ("", "name is missing"),
        (good.replace("segment_mib = 256", "segment_mib = 1"), "segment_mib"),
    ):
        settings.write_text(bad)
        assert says in one_line(node(data_dir)), bad
    other = cluster.node(cluster.names[1])["sftp"].rsplit(":", 1)[1]
    mine = cluster.node(name)["sftp"].rsplit(":", 1)[1]
    settings.write_text(good.replace(f"sftp_port = {mine}", f"sftp_port = {other}"))
    assert other in one_line(node(data_dir)), "the port in use is named"
    settings.write_text(good)
    os.chmod(data_dir, 0o755)
    assert "chmod 700" in one_line(node(data_dir))
    os.chmod(data_dir, 0o700)
    journal = data_dir / "raft" / "journal.00000001"
    whole = journal.read_bytes()
    journal.write_bytes(b"\x80\x04\x95" + b"cos\nsystem\n(S'touch /tmp/raftmft-pwned'\ntR." * 10)
    assert str(journal) in one_line(node(data_dir)), "pickles in the journal"
    middle = bytearray(whole)
    middle[len(whole) // 2] ^= 0xFF
    journal.write_bytes(middle)
    assert str(journal) in one_line(node(data_dir))
    assert journal.read_bytes() == bytes(middle), "a damaged journal was changed"
    journal.write_bytes(whole)
    cluster.restart(name)
    cluster.wait_ready(name)


def test_random_bytes_and_pickles_at_the_ports_change_nothing(shared_cluster: Cluster, tmp_path: Path) -> None:
    import pickle
    import random
    import socket

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/pwned",)

    rng = random.Random(7)
    before = shared_cluster.status()["term"]
    payloads = [
        pickle.dumps(Bomb()),
        b"\x16\x03\x01" + rng.randbytes(500),
        rng.randbytes(5000),
        b"GET / HTTP/1.0\r\n\r\n",
        b"\x89RMFTRLY" + rng.randbytes(600),
        b"SSH-2.0-x\r\n" + rng.randbytes(4000),
        b"\0" * 9000,
    ]
    for name in shared_cluster.names:
        for port in ("peer", "sftp", "admin"):
            host, number = shared_cluster.node(name)[port].removeprefix("http://").rsplit(":", 1)
            for payload in payloads:
                with socket.create_connection((host, int(number)), 5) as connection:
                    try:
                        connection.sendall(payload)
                        connection.shutdown(socket.SHUT_WR)
                        connection.settimeout(10)
                        while connection.recv(4096):
                            pass
                    except OSError:
                        pass
        host, number = shared_cluster.node(name)["gossip"].rsplit(":", 1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            for payload in payloads:
                udp.sendto(payload[:1400], (host, int(number)))
    assert not (tmp_path / "pwned").exists()
    status = shared_cluster.status()
    assert status["verdict"] == "ok" and status["term"] == before
    for name in shared_cluster.names:
        shared_cluster.sftp(name, "ls\n")


def test_bad_names_get_the_right_sftp_status(shared_cluster: Cluster, tmp_path: Path) -> None:
    one = shared_cluster.names[0]
    source = tmp_path / "s"
    source.write_bytes(b"x")
    shared_cluster.sftp(one, f"put {source} {'n' * 255}\nrm {'n' * 255}\n")
    done = shared_cluster.sftp(one, f"put {source} {'n' * 256}\n", check=False)
    assert done.returncode != 0
    done = shared_cluster.sftp(one, f"get missing {tmp_path}/x\n", check=False)
    assert done.returncode != 0 and b"not found" in done.stderr or b"No such file" in done.stderr
    assert shared_cluster.sftp(one, f"put {source} no/such/dir/x\n", check=False).returncode != 0
    assert shared_cluster.sftp(one, "mkdir bad1\nrmdir bad1\nrmdir bad1\n", check=False).returncode != 0


def test_cli_errors_are_one_line_with_the_right_exit_code(shared_cluster: Cluster, tmp_path: Path) -> None:
    cluster = shared_cluster
    for words, code, says in (
        (("user", "show", "nobody"), 1, "user list"),
        (("user", "add", "demo"), 1, "demo"),
        (("user", "add", "bad/name"), 1, "name"),
        (("user", "set", "demo"), 2, "nothing to set"),
        (("user", "add", "x", "--quota", "many"), 2, "50GiB"),
        (("audit", "query", "--since", "soon"), 1, "2026"),
        (("status", "--data-dir", str(tmp_path)), 5, "node"),
        (("user", "key", "add", "demo", "/etc/passwd"), 2, "key"),
        (("frobnicate",), 2, "frobnicate"),
    ):
        done = cluster.run(*words, check=False)
        assert done.returncode == code, (words, done.returncode, done.stderr)
        assert says in done.stderr.decode() and "Traceback" not in done.stderr.decode(), (words, done.stderr)
    admin = cluster.node(cluster.names[0])["admin"]
    plain = {k: v for k, v in os.environ.items() if not k.startswith("RAFTMFT")}
    for env, code in (
        ({"RAFTMFT_ADMIN": admin}, 1),
        ({"RAFTMFT_ADMIN": admin, "RAFTMFT_ADMIN_TOKEN_FILE": cluster.about["admin_token_file"]}, 0),
    ):
        done = subprocess.run([*RAFTMFT, "status"], env={**plain, **env}, capture_output=True, timeout=30)
        assert done.returncode == code, done.stderr
