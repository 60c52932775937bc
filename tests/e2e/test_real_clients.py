"""Contract 3 with the clients that people use: each is cut off in the middle of an upload through one node, and goes on
through another: OpenSSH's `put -a` (`reput` is in test_resume.py), lftp's `put -c` and `mirror -c`, WinSCP's requests.
rclone never resumes; it begins again, and leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from raftmft.sftp import packets as p
from raftmft.sftp.attrs import FileAttrs
from tests.e2e.harness import Cluster, wait_for
from tests.e2e.metered_ssh import RUN, Meter, program_in
from tests.e2e.test_failures import partial_size
from tests.sftp.raw_client import PUT, RawSftp, Status

pytestmark = pytest.mark.slow
MIB = 1 << 20
NO_SUCH_FILE = 2
SIZE = 20 * MIB + 12_345
TREE = (MIB, 12 * MIB, MIB)
BYTES_PER_S = 4_000_000
WRITE_ONLY = p.FXF_WRITE | p.FXF_CREAT
needs_lftp = pytest.mark.skipif(shutil.which("lftp") is None, reason="lftp is missing: apt-get install lftp")
needs_rclone = pytest.mark.skipif(shutil.which("rclone") is None, reason="rclone is missing: apt-get install rclone")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file to upload."""
    path = tmp_path / "source"
    path.write_bytes(os.urandom(SIZE))
    return path


def tree_in(folder: Path) -> Path:
    """A directory of three files, the second of them so large that one can be quick enough to cut it off."""
    tree = folder / "tree"
    tree.mkdir()
    for number, size in enumerate(TREE):
        (tree / f"f{number}").write_bytes(os.urandom(size))
    return tree


def metered(folder: Path) -> tuple[Meter, dict[str, str]]:
    """A meter that lets everything pass, and the environment of a client whose ssh is to be metered."""
    file = folder / f"meter{time.monotonic_ns()}"
    meter = Meter(file)
    meter["gate"] = RUN
    return meter, {**os.environ, "METER": str(file), "HOME": str(folder)}


def cut_off(words: list[str], batch: str, is_time: Callable[[], Any], environment: dict[str, str]) -> None:
    """Runs a client until it is time, and kills it with its ssh: nobody can send a CLOSE."""
    client = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              start_new_session=True, env=environment)
    assert client.stdin
    client.stdin.write(batch.encode())
    client.stdin.close()
    try:
        wait_for("a durable prefix", is_time)
        assert client.poll() is None, "it was through before it could be cut off"
    finally:
        os.killpg(client.pid, signal.SIGKILL)
        client.wait()


def run(words: list[str], batch: str, environment: dict[str, str]) -> None:
    done = subprocess.run(words, input=batch.encode(), capture_output=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr.decode()


def check_content(cluster: Cluster, node: str, name: str, want: bytes, folder: Path) -> None:
    cluster.sftp(node, f"get {name} {folder}/back\n")
    assert (folder / "back").read_bytes() == want


def charged(cluster: Cluster) -> int:
    """Bytes in the user's quota."""
    return int(json.loads(cluster.run("user", "show", "demo", "-o", "json").stdout)["used_bytes"])


def listing(cluster: Cluster, node: str, folder: str) -> list[bytes]:
    """What stands in a directory."""
    return sorted(line.rsplit(b"/")[-1] for line in cluster.sftp(node, f"ls -1 {folder}\n").stdout.splitlines()[1:])


def lftp(cluster: Cluster, node: str, folder: Path, commands: str) -> list[str]:
    """lftp with metered ssh."""
    host, port = cluster.node(node)["sftp"].rsplit(":", 1)
    connect = (f"{program_in(folder)} -a -x -F /dev/null -i {cluster.about['users'][0]['key']} -o IdentitiesOnly=yes "
               f"-o BatchMode=yes -o UserKnownHostsFile={cluster.about['known_hosts']}")
    return ["lftp", "-c", f'set sftp:connect-program "{connect}"; set net:max-retries 1; '
                          f"open -p {port} -u demo, sftp://{host}; {commands}"]


def test_openssh_put_a(shared_cluster: Cluster, source: Path, tmp_path: Path) -> None:
    one, two, three = shared_cluster.names
    batch = f"put -a {source} puta\n"
    meter, environment = metered(tmp_path)
    words = shared_cluster.sftp_command(one, "-S", program_in(tmp_path), "-l", str(BYTES_PER_S * 8 // 1000))
    # The first put cannot be one with -a: OpenSSH wants something to continue.
    cut_off(words, batch.replace(" -a", ""), lambda: partial_size(shared_cluster, two, "puta") > 2 * MIB, environment)
    assert b"puta" not in listing(shared_cluster, two, "/")
    again, environment = metered(tmp_path)
    run(shared_cluster.sftp_command(two, "-S", program_in(tmp_path)), batch, environment)
    assert 2 * MIB < again["first"] and meter["acked_to"] - again["first"] <= 16 * MIB
    check_content(shared_cluster, three, "puta", source.read_bytes(), tmp_path)


@needs_lftp
def test_lftp_put_c(shared_cluster: Cluster, source: Path, tmp_path: Path) -> None:
    one, two, three = shared_cluster.names
    put = f"put -c {source} -o putc; bye"
    meter, environment = metered(tmp_path)
    cut_off(lftp(shared_cluster, one, tmp_path, f"set net:limit-rate {BYTES_PER_S}; {put}"), "",
            lambda: partial_size(shared_cluster, two, "putc") > 2 * MIB, environment)
    assert b"putc" not in listing(shared_cluster, two, "/")
    again, environment = metered(tmp_path)
    run(lftp(shared_cluster, two, tmp_path, put), "", environment)
    assert 2 * MIB < again["first"] and meter["acked_to"] - again["first"] <= 16 * MIB
    check_content(shared_cluster, three, "putc", source.read_bytes(), tmp_path)


@needs_lftp
def test_lftp_mirror_c(shared_cluster: Cluster, tmp_path: Path) -> None:
    """lftp looks at the listing, which has no partials: what was published is not sent again, the rest is whole."""
    one, two, three = shared_cluster.names
    tree = tree_in(tmp_path)
    before, mirror = charged(shared_cluster), f"mirror -R -c {tree} mirrored; bye"
    _, environment = metered(tmp_path)
    cut_off(lftp(shared_cluster, one, tmp_path, f"set net:limit-rate {BYTES_PER_S // 2}; {mirror}"), "",
            lambda: partial_size(shared_cluster, two, "mirrored/f1") > 0, environment)
    assert listing(shared_cluster, two, "mirrored") == [b"f0"]
    again, environment = metered(tmp_path)
    run(lftp(shared_cluster, two, tmp_path, mirror), "", environment)
    for path in tree.iterdir():
        check_content(shared_cluster, three, f"mirrored/{path.name}", path.read_bytes(), tmp_path)
    assert charged(shared_cluster) - before == sum(TREE), "nothing is left of what was cut off"
    published = shared_cluster.audit("--kind", "publish", "--path", "/mirrored/f0", node=three)
    assert len(published) == 1, "it was sent again"


@needs_rclone
def test_rclone_begins_again_and_leaves_nothing(shared_cluster: Cluster, tmp_path: Path) -> None:
    one, two, three = shared_cluster.names
    tree = tree_in(tmp_path)

    def rclone(node: str, *words: str) -> list[str]:
        host, port = shared_cluster.node(node)["sftp"].rsplit(":", 1)
        about = shared_cluster.about
        return ["rclone", "--config", "/dev/null", "--retries", "1", "--transfers", "1", *words,
                str(tree), f":sftp,host={host},port={port},user=demo,key_file={about['users'][0]['key']},"
                           f"known_hosts_file={about['known_hosts']},shell_type=none:cloned"]
    before = charged(shared_cluster)
    cut_off(rclone(one, "--bwlimit", f"{BYTES_PER_S // 1000}k", "copy"), "",
            lambda: partial_size(shared_cluster, two, "cloned/f1") > 0, {**os.environ})
    assert b"f1" not in listing(shared_cluster, two, "cloned")
    run(rclone(two, "copy"), "", {**os.environ})
    run(rclone(three, "check", "--download"), "", {**os.environ})
    assert listing(shared_cluster, three, "cloned") == [b"f0", b"f1", b"f2"]
    assert charged(shared_cluster) - before == sum(TREE)


@pytest.mark.parametrize("target_exists", [False, True])
def test_winscp(shared_cluster: Cluster, source: Path, tmp_path: Path, target_exists: bool) -> None:
    """The requests of WinSCP 5/6 (SFTP 3, TSFTPFileSystem::Source), in their order, for a file over 100 KiB."""
    one, two, three = shared_cluster.names
    data, old, name = source.read_bytes(), b"old version", f"winscp{int(target_exists)}"
    part, size, block = f"{name}.filepart", len(data), 32768 - 4

    async def exists(sftp: RawSftp, path: str) -> int | None:
        try:
            return (await sftp.lstat(path)).size
        except Status as refusal:
            assert refusal.code == NO_SUCH_FILE
            return None

    def send(sftp: RawSftp, handle: bytes, start: int, end: int) -> list[int]:
        return [sftp.send_write(handle, at, data[at : min(at + block, end)]) for at in range(start, end, block)]

    async def interrupted() -> None:
        sftp = await connect(shared_cluster, one)
        if target_exists:
            await sftp.put(name, old)
        assert await exists(sftp, name) == (len(old) if target_exists else None)
        assert await exists(sftp, part) is None
        # It announces the size: nothing is longer for that.
        handle = await sftp.open_file(part, PUT, FileAttrs(size=size))
        numbers = send(sftp, handle, 0, 6 * MIB)
        for number in numbers[:150]:
            await sftp.answer(number)
        sftp.connection.abort()
        await sftp.connection.wait_closed()

    async def resumed(offset: int) -> None:
        sftp = await connect(shared_cluster, two)
        had = await exists(sftp, name)
        assert had == (len(old) if target_exists else None)
        resume_from = await exists(sftp, part)
        assert resume_from is not None and resume_from >= offset
        handle = await sftp.open_file(part, WRITE_ONLY)
        numbers = send(sftp, handle, resume_from, size)
        numbers.append(sftp.send(p.CLOSE, len(handle).to_bytes(4, "big") + handle))  # before the answers are read
        for number in numbers:
            await sftp.answer(number)
        if had is not None:
            await sftp.remove(name)
        await sftp.rename(part, name)
        await sftp.setstat(name, FileAttrs(mode=0o640, atime=1_700_000_000, mtime=1_700_000_000))
        await sftp.close()

    async def seen() -> tuple[int | None, int | None, set[bytes]]:
        sftp = await connect(shared_cluster, three)
        found = await exists(sftp, name), await exists(sftp, part), set(await sftp.names("/"))
        await sftp.close()
        return found

    before = charged(shared_cluster)
    asyncio.run(interrupted())
    kept = wait_for("the partial", lambda: asyncio.run(seen())[1])
    assert 0 < kept <= 6 * MIB
    whole, _, names = asyncio.run(seen())
    assert whole == (len(old) if target_exists else None) and part.encode() not in names
    asyncio.run(resumed(kept))
    whole, left, names = asyncio.run(seen())
    assert whole == size and left is None and name.encode() in names and part.encode() not in names
    check_content(shared_cluster, three, name, data, tmp_path)
    assert charged(shared_cluster) - before == size


async def connect(cluster: Cluster, node: str, user: str = "demo") -> RawSftp:
    """A session of its own."""
    host, port = cluster.node(node)["sftp"].rsplit(":", 1)
    return await RawSftp.open(None, await asyncssh.connect(
        host, int(port), username=user, client_keys=[cluster.about["users"][0]["key"]],
        known_hosts=cluster.about["known_hosts"], config=[], agent_path=None))
