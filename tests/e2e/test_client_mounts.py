"""Programs that know nothing of SFTP work on a home that sshfs mounts, and restic keeps its backups there: the work is
done through one node, and what came of it is read through another.
"""

from __future__ import annotations

import os
import random
import shlex
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.e2e.harness import Cluster

pytestmark = pytest.mark.slow
LIMIT_S = 60.0
OPERATIONS = 120
needs_sshfs = pytest.mark.skipif(shutil.which("sshfs") is None, reason="sshfs is missing: apt-get install sshfs")
needs_fuse = pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="mounting needs /dev/fuse")
needs_restic = pytest.mark.skipif(shutil.which("restic") is None, reason="restic is missing: apt-get install restic")
Mount = Callable[[str, str], Path]


def run(*words: object, **environment: str) -> str:
    """A program's output; AssertionError with all it said when it fails."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=LIMIT_S,
                          env={**os.environ, **environment}, check=False)
    assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def ssh_options(cluster: Cluster) -> list[str]:
    """OpenSSH's options for the demo user, and nothing of the machine's own settings."""
    return ["-F", "/dev/null", "-o", f"IdentityFile={cluster.about['users'][0]['key']}", "-o", "IdentitiesOnly=yes",
            "-o", "BatchMode=yes", "-o", f"UserKnownHostsFile={cluster.about['known_hosts']}"]


@contextmanager
def mounted(cluster: Cluster, name: str, remote: str, point: Path) -> Iterator[Path]:
    """The remote directory at `point`, through that node, without caches of attributes."""
    host, port = cluster.node(name)["sftp"].rsplit(":", 1)
    point.mkdir()
    run("sshfs", f"demo@{host}:{remote}", point, "-p", port, *ssh_options(cluster), "-o", "idmap=user",
        "-o", "dir_cache=no", "-o", "attr_timeout=0", "-o", "entry_timeout=0")
    try:
        yield point
    finally:
        run("fusermount3", "-u", point)


@pytest.fixture
def mount(shared_cluster: Cluster, tmp_path: Path) -> Iterator[Mount]:
    """Mounts a remote directory through a node, until the test ends or unmounts it."""
    with ExitStack() as stack:
        yield lambda name, remote: stack.enter_context(mounted(shared_cluster, name, remote, tmp_path / f"at-{name}"))


def got(cluster: Cluster, name: str, remote: str, local: Path) -> bytes:
    """A file as OpenSSH's sftp gets it from that node."""
    cluster.sftp(name, f"get {remote} {local}\n")
    return local.read_bytes()


@needs_sshfs
@needs_fuse
def test_random_operations_on_a_mounted_file_leave_what_they_leave_on_a_local_one(
    shared_cluster: Cluster, mount: Mount, tmp_path: Path
) -> None:
    first, second, _ = shared_cluster.names
    shared_cluster.sftp(first, "mkdir /mounts-random\n")
    chance, model = random.Random(20_261_125), tmp_path / "model"
    file = mount(first, "/mounts-random") / "file"
    with open(file, "w+b", buffering=0) as real, open(model, "w+b", buffering=0) as expected:
        for number in range(OPERATIONS):
            offset, size = chance.randrange(3 << 20), chance.randrange(1, 200_000)
            kind = chance.choice(("write", "write", "read", "cut", "sync"))
            if kind == "write":
                data = chance.randbytes(size)
                assert os.pwrite(real.fileno(), data, offset) == os.pwrite(expected.fileno(), data, offset) == size
            elif kind == "read":
                assert os.pread(real.fileno(), size, offset) == os.pread(expected.fileno(), size, offset), number
            elif kind == "cut":
                real.truncate(offset)
                expected.truncate(offset)
            else:
                os.fsync(real.fileno())
            assert os.fstat(real.fileno()).st_size == os.fstat(expected.fileno()).st_size, (number, kind)
    assert got(shared_cluster, second, "/mounts-random/file", tmp_path / "seen") == model.read_bytes()


@needs_sshfs
@needs_fuse
def test_names_links_and_a_database_of_a_mount_are_the_same_at_another_node(
    shared_cluster: Cluster, mount: Mount, tmp_path: Path
) -> None:
    first, second, third = shared_cluster.names
    shared_cluster.sftp(first, "mkdir /mounts-names\n")
    here = mount(first, "/mounts-names")
    (here / "old").write_bytes(b"content")
    (here / "replaced").write_bytes(b"other")
    (here / "old").replace(here / "replaced")
    (here / "link").symlink_to("replaced")
    base = sqlite3.connect(here / "base.sqlite")
    base.execute("create table t (n integer primary key, text text)")
    base.executemany("insert into t (text) values (?)", [("x" * 200,)] * 1000)
    base.commit()
    base.execute("delete from t where n % 2")
    base.commit()
    base.execute("vacuum")
    base.close()
    there = mount(second, "/mounts-names")
    assert sorted(os.listdir(there)) == ["base.sqlite", "link", "replaced"]
    assert os.readlink(there / "link") == "replaced"
    assert (there / "link").read_bytes() == b"content"
    got(shared_cluster, third, "/mounts-names/base.sqlite", tmp_path / "base.sqlite")
    copy = sqlite3.connect(tmp_path / "base.sqlite")
    assert copy.execute("pragma integrity_check").fetchone() == ("ok",)
    assert copy.execute("select count(*) from t").fetchone() == (500,)
    copy.close()


@needs_restic
def test_restic_backs_up_checks_restores_and_prunes_each_at_another_node(
    shared_cluster: Cluster, tmp_path: Path
) -> None:
    first, second, third = shared_cluster.names
    source, chance = tmp_path / "source", random.Random(7)
    (source / "sub").mkdir(parents=True)
    for name, size in (("large", 5 << 20), ("sub/small ü", 100), ("sub/empty", 0)):
        (source / name).write_bytes(chance.randbytes(size))

    def restic(name: str, *words: object) -> str:
        host, port = shared_cluster.node(name)["sftp"].rsplit(":", 1)
        ssh = shlex.join(["ssh", "-p", port, *ssh_options(shared_cluster), f"demo@{host}", "-s", "sftp"])
        return run("restic", "--no-cache", "-r", "sftp:demo@any:/mounts-restic", "-o", f"sftp.command={ssh}", *words,
                   RESTIC_PASSWORD="of this test", HOME=str(tmp_path))

    restic(first, "init")
    restic(first, "backup", source)
    (source / "large").write_bytes(chance.randbytes(4 << 20))
    restic(second, "backup", source)
    restic(third, "forget", "--keep-last", "1", "--prune")
    assert "no errors were found" in restic(first, "check", "--read-data")
    restic(second, "restore", "latest", "--target", tmp_path / "back")
    back = tmp_path / "back" / source.relative_to("/")
    assert {path.relative_to(back): path.read_bytes() for path in back.rglob("*") if path.is_file()} == {
        path.relative_to(source): path.read_bytes() for path in source.rglob("*") if path.is_file()}
