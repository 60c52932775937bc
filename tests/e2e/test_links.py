"""The rest of SFTP with OpenSSH's own client: links, cp, df, append, each looked at through another node."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.e2e.harness import Cluster


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 MB and some."""
    path = tmp_path_factory.mktemp("links") / "source"
    path.write_bytes(os.urandom(5_000_077))
    return path


def content(cluster: Cluster, node: str, name: str, folder: Path) -> bytes:
    """A file as OpenSSH's client gets it."""
    cluster.sftp(node, f"get {name} {folder}/got\n")
    return (folder / "got").read_bytes()


def test_symbolic_links(shared_cluster: Cluster, source: Path, tmp_path: Path) -> None:
    one, two, three = shared_cluster.names
    shared_cluster.sftp(one, f"mkdir sy\nmkdir sy/d\nput {source} sy/d/real\nln -s d/real sy/rel\n"
                             "ln -s /sy/d/real sy/abs\nln -s ../rel sy/d/up\nln -s d sy/dir\n"
                             "ln -s nowhere sy/dangling\nln -s ../../../../../etc/passwd sy/out\nln -s loop sy/loop\n")
    for name in ("rel", "abs", "d/up", "dir/real", "dir/up"):
        assert content(shared_cluster, two, f"sy/{name}", tmp_path) == source.read_bytes(), name
    lines = shared_cluster.sftp(three, "ls -l sy\n").stdout.decode()
    assert len(re.findall(r"^lrwxrwxrwx ", lines, re.M)) == 6, lines
    assert b"sy/dir/up" in shared_cluster.sftp(two, "ls -1 sy/dir\n").stdout
    assert b"/sy/d\n" in shared_cluster.sftp(two, "cd sy/dir\npwd\n").stdout
    for name in ("dangling", "out", "loop", "dir/none"):
        assert shared_cluster.sftp(three, f"get sy/{name} {tmp_path}/x\n", check=False).returncode == 1, name
    shared_cluster.sftp(two, "chmod 600 sy/rel\n")
    assert b"-rw-------" in shared_cluster.sftp(three, "ls -l sy/d/real\n").stdout
    shared_cluster.sftp(three, f"put {source} sy/dangling\n")  # makes what it points to
    assert content(shared_cluster, one, "sy/nowhere", tmp_path) == source.read_bytes()
    shared_cluster.sftp(two, "rename sy/rel sy/moved\nrm sy/abs\n")
    assert shared_cluster.sftp(one, "ls sy/abs\n", check=False).returncode == 1
    assert content(shared_cluster, three, "sy/moved", tmp_path) == source.read_bytes()
    shared_cluster.sftp(one, "rename sy/moved sy/d/moved\n")
    assert shared_cluster.sftp(two, f"get sy/d/moved {tmp_path}/x\n", check=False).returncode == 1, "d/d/real"
    records = shared_cluster.audit("--kind", "symlink", node=two)
    assert {"path": "/sy/rel", "target": "d/real"} in [{k: r[k] for k in ("path", "target")} for r in records]


def test_hard_links(shared_cluster: Cluster, source: Path, tmp_path: Path) -> None:
    one, two, three = shared_cluster.names
    small = tmp_path / "small"
    small.write_bytes(b"small")
    shared_cluster.sftp(one, f"mkdir ha\nput {source} ha/a\nln ha/a ha/b\n")
    assert content(shared_cluster, two, "ha/b", tmp_path) == source.read_bytes()
    shared_cluster.sftp(two, f"put {small} ha/b\n")
    assert content(shared_cluster, three, "ha/a", tmp_path) == b"small", "one file, two names"
    shared_cluster.sftp(three, "rm ha/a\n")
    assert content(shared_cluster, one, "ha/b", tmp_path) == b"small"
    assert shared_cluster.sftp(one, "ln ha ha/c\n", check=False).returncode == 1
    (record,) = shared_cluster.audit("--kind", "link", "--path", "ha/b", node=three)
    assert (record["path"], record["target"]) == ("/ha/a", "/ha/b")


def test_cp_moves_no_bytes(shared_cluster: Cluster, source: Path, tmp_path: Path) -> None:
    one, two, three = shared_cluster.names
    shared_cluster.sftp(one, f"put {source} cp-from\n")
    before = [stored(shared_cluster, name) for name in shared_cluster.names]
    shared_cluster.sftp(two, "cp cp-from cp-to\n")
    assert [stored(shared_cluster, name) for name in shared_cluster.names] == before, "nothing was stored anew"
    assert content(shared_cluster, three, "cp-to", tmp_path) == source.read_bytes()
    (copy,) = shared_cluster.audit("--kind", "copy", "--path", "cp-from", node=three)
    put, copied = shared_cluster.audit("--kind", "publish", "--path", "cp-from"), shared_cluster.audit(
        "--kind", "publish", "--path", "cp-to")
    assert (copy["path"], copy["target"], copy["size"]) == ("/cp-from", "/cp-to", source.stat().st_size)
    assert put[0]["digest"] == copied[0]["digest"] == copy["digest"] != ""
    shared_cluster.sftp(three, "rm cp-from\n")
    assert content(shared_cluster, one, "cp-to", tmp_path) == source.read_bytes()


def stored(cluster: Cluster, node: str) -> int:
    """Bytes of chunks on a node's disk, as far as segments were written."""
    return sum(len(path.read_bytes().rstrip(b"\0"))
               for path in sorted((Path(cluster.node(node)["data_dir"]) / "chunks").glob("*.seg")))


def test_df_tells_of_the_quota_and_else_of_the_disk(shared_cluster: Cluster, source: Path, tmp_path: Path) -> None:
    one, two, three = shared_cluster.names
    key = Path(shared_cluster.about["users"][0]["key"])
    shared_cluster.run("user", "add", "small", "--quota", "20MiB", "--key", str(key) + ".pub", node=one)

    def df(node: str, user: str) -> list[int]:
        lines = shared_cluster.sftp(node, "df\n", user=user).stdout.decode().splitlines()
        return [int(number) for number in re.findall(r"\d+", lines[-1])]

    assert df(two, "small") == [20480, 0, 20480, 20480, 0]
    shared_cluster.sftp(two, f"put {source} x\nln x y\n", user="small")
    used = -(-source.stat().st_size // 1024)
    assert df(three, "small") == [20480, used, 20480 - used, 20480 - used, 100 * used // 20480], "charged once"
    disk = os.statvfs(shared_cluster.node(one)["data_dir"])
    total, *_ = df(one, "demo")
    assert total == disk.f_blocks * disk.f_frsize // 1024
    done = shared_cluster.sftp(three, "cp x z1\ncp x z2\ncp x z3\ncp x z4\n", user="small", check=False)
    assert done.returncode == 1 and b"z4" in done.stderr, "a copy counts, though its chunks are stored once"
    assert shared_cluster.sftp(one, "ls -1\n", user="small").stdout.split()[-5:] == [b"x", b"y", b"z1", b"z2", b"z3"]


def test_scp_with_the_home_spelled_out(shared_cluster: Cluster, source: Path, tmp_path: Path) -> None:
    one, two, _ = shared_cluster.names
    for number, (node, words) in enumerate(((one, (source, "{}:~/by-scp")), (two, ("{}:~demo/by-scp", tmp_path / "x")),
                                            (two, ("{}:by-scp", tmp_path / "y")))):
        command = shared_cluster.sftp_command(node)
        target = command.pop()
        options = [word for word in command[1:] if word not in ("-b", "-")]
        done = subprocess.run(["scp", *options, *(str(word).format(target) for word in words)], capture_output=True,
                              timeout=60)
        assert done.returncode == 0, (number, done.stderr)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes() == source.read_bytes()


def test_put_a_continues_and_reget_resumes(shared_cluster: Cluster, source: Path, tmp_path: Path) -> None:
    one, two, three = shared_cluster.names
    half = tmp_path / "half"
    half.write_bytes(source.read_bytes()[:2_000_000])
    shared_cluster.sftp(one, f"put {half} appended\n")
    shared_cluster.sftp(two, f"put -a {source} appended\n")
    assert content(shared_cluster, three, "appended", tmp_path) == source.read_bytes()
