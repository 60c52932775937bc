"""What a user does on the first day, through real nodes and OpenSSH's client."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

from tests.e2e.harness import Cluster, wait_for


def test_a_file_put_through_one_node_is_there_through_all_at_once(shared_cluster: Cluster, tmp_path: Path) -> None:
    one, *others = shared_cluster.names
    for number, size in enumerate((0, 1, 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5_000_000)):
        source = tmp_path / f"s{number}"
        source.write_bytes(random.Random(number).randbytes(size))
        shared_cluster.sftp(one, f"put {source} visible{number}\n")
        for name in [one, *others]:
            shared_cluster.sftp(name, f"get visible{number} {tmp_path}/{name}-{number}\n")
            assert (tmp_path / f"{name}-{number}").read_bytes() == source.read_bytes()


def test_directories_and_names(shared_cluster: Cluster, tmp_path: Path) -> None:
    one, two, three = shared_cluster.names
    source = tmp_path / "x"
    source.write_bytes(b"hello")
    shared_cluster.sftp(one, f"mkdir d\nmkdir d/e\nput {source} d/e/x\nrename d/e/x d/y\nrmdir d/e\n")
    assert b"d/y" in shared_cluster.sftp(two, "ls -1 d\n").stdout
    assert shared_cluster.sftp(two, "rmdir d\n", check=False).returncode != 0
    shared_cluster.sftp(three, f"put {source} d/z\nrename d/z d/y\n")  # posix-rename replaces
    shared_cluster.sftp(one, "chmod 600 d/y\n")
    assert b"-rw-------" in shared_cluster.sftp(two, "ls -l d\n").stdout
    shared_cluster.sftp(two, "rm d/y\nrmdir d\n")
    assert shared_cluster.sftp(three, "ls d\n", check=False).returncode != 0


def test_overwriting_is_atomic_and_unpublished_bytes_are_nobody_elses(shared_cluster: Cluster, tmp_path: Path) -> None:
    one, two, _ = shared_cluster.names
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"old" * 100)
    new.write_bytes(os.urandom(30 << 20))
    shared_cluster.sftp(one, f"put {old} atomic\n")
    slow = subprocess.Popen(
        shared_cluster.sftp_command(one, "-l", "20000"),  # 12 s, so that even a busy machine looks often
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert slow.stdin
    slow.stdin.write(f"put {new} atomic\n".encode())
    slow.stdin.close()
    looks = 0
    while slow.poll() is None:
        shared_cluster.sftp(two, f"get atomic {tmp_path}/seen\n")
        seen = (tmp_path / "seen").read_bytes()
        assert seen == old.read_bytes() or seen == new.read_bytes()
        looks += 1
    assert slow.returncode == 0 and looks > 2
    shared_cluster.sftp(two, f"get atomic {tmp_path}/seen\n")
    assert (tmp_path / "seen").read_bytes() == new.read_bytes()


def test_a_lost_connection_publishes_nothing(shared_cluster: Cluster, tmp_path: Path) -> None:
    one, two, _ = shared_cluster.names
    source = tmp_path / "big"
    source.write_bytes(os.urandom(40 << 20))
    client = subprocess.Popen(
        shared_cluster.sftp_command(one, "-l", "4000"),  # over a minute: under way however busy this machine is
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert client.stdin
    client.stdin.write(f"put {source} lost\n".encode())
    client.stdin.close()
    wait_for(
        "the upload to be under way",
        lambda: (
            b"lost" not in shared_cluster.sftp(two, "ls -1\n").stdout
            and any(r["path"] == "/lost" for r in shared_cluster.audit("--kind", "partial"))
            or shared_cluster.sftp(two, "ls -l lost\n", check=False).returncode == 0
        ),
        60,
    )
    assert client.poll() is None, "the upload has ended by itself: nothing is lost that could be told"
    ssh = subprocess.run(["pgrep", "-P", str(client.pid)], capture_output=True, text=True).stdout.split()
    for pid in [*map(int, ssh), client.pid]:
        os.kill(pid, 9)
    client.wait()
    assert b"lost" not in shared_cluster.sftp(two, "ls -1\n").stdout, "an unpublished name is listed"
    shared_cluster.sftp(two, f"reput {source} lost\n")
    shared_cluster.sftp(one, f"get lost {tmp_path}/back\n")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()


def test_password_and_key_and_refusals(shared_cluster: Cluster, tmp_path: Path) -> None:
    one, two, three = shared_cluster.names
    assert shared_cluster.sftp_with_password(one, "pwd\n", shared_cluster.about["users"][0]["password"]).returncode == 0
    shared_cluster.run("user", "add", "acme", "--password-stdin", input=b"secret pass\n", node=one)
    for name in shared_cluster.names:
        assert shared_cluster.sftp_with_password(name, "pwd\n", "secret pass", "acme").returncode == 0, name
    assert shared_cluster.sftp_with_password(two, "pwd\n", "wrong", "acme").returncode != 0
    assert shared_cluster.sftp_with_password(three, "pwd\n", "wrong", "nobody-here").returncode != 0
    wait_for(
        "refusals in the audit log",
        lambda: {"acme", "nobody-here"} <= {r["user"] for r in shared_cluster.audit("--kind", "login_refused")},
    )
    assert shared_cluster.sftp(one, "pwd\n", check=False, user="acme").returncode != 0, "demo's key opens acme"
    shared_cluster.run("user", "key", "add", "acme", shared_cluster.about["users"][0]["key"] + ".pub", node=two)
    shared_cluster.sftp(three, "pwd\n", user="acme")
    shared_cluster.run("user", "remove", "acme", "--yes", node=three)
    assert shared_cluster.sftp(one, "pwd\n", check=False, user="acme").returncode != 0


def test_users_do_not_see_each_other(shared_cluster: Cluster, tmp_path: Path) -> None:
    one, two, _ = shared_cluster.names
    key = shared_cluster.about["users"][0]["key"]
    shared_cluster.run("user", "add", "outsider", "--key", key + ".pub")
    source = tmp_path / "private"
    source.write_bytes(b"mine")
    shared_cluster.sftp(one, f"put {source} private\n")
    listing = shared_cluster.sftp(two, "ls -la\nls -la /..\nls -la ../../..\n", user="outsider").stdout
    assert b"private" not in listing
    for path in ("../demo/private", "/../demo/private", "/etc/passwd", "../../../../etc/passwd"):
        assert shared_cluster.sftp(two, f"get {path} {tmp_path}/stolen\n", user="outsider", check=False).returncode != 0
    assert not (tmp_path / "stolen").exists()


def test_audit_tells_who_did_what_once(shared_cluster: Cluster, tmp_path: Path) -> None:
    one, two, _ = shared_cluster.names
    source = tmp_path / "audited"
    source.write_bytes(b"12345")
    shared_cluster.sftp(one, f"put {source} audited\n")
    shared_cluster.sftp(two, f"get audited {tmp_path}/back\n")
    wait_for(
        "the end of the read",
        lambda: any(r["kind"] == "read_end" for r in shared_cluster.audit("--path", "audited")),
        5,
    )
    records = shared_cluster.audit("--path", "audited")
    kinds = [r["kind"] for r in records]
    assert kinds == ["open", "publish", "open", "read_end"], kinds
    publish = next(r for r in records if r["kind"] == "publish")
    assert publish["user"] == "demo" and publish["size"] == 5 and publish["address"].startswith("127.0.0.1")
    assert all(shared_cluster.audit("--path", "audited", node=n) == records for n in shared_cluster.names)


def test_new_sessions_are_spread(shared_cluster: Cluster) -> None:
    one = shared_cluster.names[0]
    # What earlier tests left behind would rightly weigh in.
    wait_for("an idle cluster", lambda: not any(m["sessions"] for m in shared_cluster.status()["members"]))
    clients = []
    try:
        for _ in range(9):
            client = subprocess.Popen(
                shared_cluster.sftp_command(one),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            assert client.stdin and client.stdout
            client.stdin.write(b"pwd\n")
            client.stdin.flush()
            client.stdout.readline()
            client.stdout.readline()
            clients.append(client)
        logins = shared_cluster.audit("--kind", "login")[-9:]
        counts = {name: sum(r["member"] == name for r in logins) for name in shared_cluster.names}
        assert all(2 <= count <= 4 for count in counts.values()), counts
        assert {r["address"].rsplit(":", 1)[0] for r in logins} == {"127.0.0.1"}
        assert len({r["address"] for r in logins}) == 9, "the client's real address and port is recorded"
    finally:
        for client in clients:
            client.kill()
            client.wait()


def test_disabling_a_user_ends_its_sessions(shared_cluster: Cluster) -> None:
    key = shared_cluster.about["users"][0]["key"]
    one, two, _ = shared_cluster.names
    shared_cluster.run("user", "add", "leaver", "--key", key + ".pub")
    client = subprocess.Popen(
        shared_cluster.sftp_command(one, user="leaver"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert client.stdin and client.stdout
    client.stdin.write(b"pwd\n")
    client.stdin.flush()
    assert client.stdout.readline() and client.stdout.readline()
    shared_cluster.run("user", "disable", "leaver", node=two)
    wait_for(
        "the session's end",
        lambda: any(
            r["user"] == "leaver"
            for r in shared_cluster.audit("--kind", "session_killed") + shared_cluster.audit("--kind", "logout")
        ),
    )
    _, _ = client.communicate(b"ls\n", timeout=10)
    assert client.returncode != 0, "the session of a disabled user lives on"
    assert shared_cluster.sftp(two, "pwd\n", user="leaver", check=False).returncode != 0
    shared_cluster.run("user", "enable", "leaver")
    shared_cluster.sftp(two, "pwd\n", user="leaver")
