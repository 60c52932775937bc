"""The worker's own life: it dies with its node and by nothing else, ends sessions when told, and stays small."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import asyncssh
import pytest

from raftmft.sftp.checkpoint import TICK_S
from tests.sftp.fake_node import FakeNode, key_of, random_file, rss_kib, wait_for
from tests.sftp.raw_client import PUT, RawSftp

MIB = 1 << 20


def test_it_ends_within_a_second_of_the_links_end(own_node: FakeNode) -> None:
    begun = time.monotonic()
    own_node.link.shutdown(socket.SHUT_RDWR)
    own_node.process.wait(5)
    assert time.monotonic() - begun < 1


def test_it_ends_with_its_parent_even_if_the_link_lives(tmp_path: Path) -> None:
    """The middle process starts a worker and is killed; the link's other end is held here."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    script = (
        "import socket, subprocess, sys, time\n"
        "link, there = socket.socketpair(); door, dthere = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        f"keep = socket.socket(fileno={there.fileno()})\n"
        "p = subprocess.Popen([sys.executable, '-m', 'raftmft.sftp.worker', '--link-fd', str(there.fileno()),"
        " '--door-fd', str(dthere.fileno())], pass_fds=(there.fileno(), dthere.fileno()))\n"
        "socket.send_fds(keep, [b'%d' % p.pid], [link.fileno()])\n"
        "time.sleep(60)\n")
    middle = subprocess.Popen([sys.executable, "-c", script], pass_fds=(there.fileno(),))
    body, fds, _, _ = socket.recv_fds(here, 100, 1)
    worker = int(body)
    link = socket.socket(fileno=fds[0])
    assert link.recv(100), "it said hello"
    begun = time.monotonic()
    middle.kill()
    middle.wait()
    wait_for("the worker's end", lambda: not _alive(worker), 5)
    assert time.monotonic() - begun < 1
    link.close()


def test_it_ignores_what_is_meant_for_the_node(node: FakeNode) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(node.process.pid, number)
    node.sftp("pwd\n")
    assert node.process.poll() is None


def test_a_session_is_killed_with_its_partial_kept(own_node: FakeNode) -> None:
    data = os.urandom(3 * MIB + 5)

    async def main() -> None:
        sftp = await RawSftp.open(own_node)
        bystander = await RawSftp.open(own_node)
        handle = await sftp.open_file("killed", PUT)
        await sftp.write(handle, 0, data)
        (number, _) = sorted(own_node.sessions)
        await asyncio.to_thread(own_node.ask, "session.kill", {"session": number, "reason": "no more"})
        assert own_node.ended == [(number, "no more")], "the answer comes after the end"
        with pytest.raises((asyncssh.DisconnectError, asyncio.IncompleteReadError, BrokenPipeError)):
            await sftp.stat("/")
        assert (await bystander.stat("/")).mode
        await bystander.close()
    asyncio.run(main())
    assert own_node.bytes_of(own_node.partials["anna", key_of("killed")]) == data
    assert own_node.ask("session.kill", {"session": 4711, "reason": ""}) == ("ok", {})


def test_drain_checkpoints_and_ends_everything(own_node: FakeNode) -> None:
    data = os.urandom(2 * MIB + 5)

    async def main() -> None:
        sessions = [await RawSftp.open(own_node) for _ in range(3)]
        for number, sftp in enumerate(sessions):
            await sftp.write(await sftp.open_file(f"drain{number}", PUT), 0, data)
        assert await asyncio.to_thread(own_node.ask, "drain", {"timeout_s": 5}) == ("ok", {})
        assert sorted(reason for _, reason in own_node.ended) == ["drained"] * 3
    asyncio.run(main())
    for number in range(3):
        assert own_node.bytes_of(own_node.partials["anna", key_of(f"drain{number}")]) == data


def test_drain_lets_an_open_file_be_finished(own_node: FakeNode) -> None:
    data = os.urandom(MIB)

    async def main() -> None:
        idle, busy = await RawSftp.open(own_node), await RawSftp.open(own_node)
        handle = await busy.open_file("finished", PUT)
        await busy.write(handle, 0, data)
        draining = asyncio.create_task(asyncio.to_thread(own_node.ask, "drain", {"timeout_s": 20}))
        while len(own_node.ended) < 1:
            await asyncio.sleep(0.01)
        with pytest.raises((asyncssh.DisconnectError, asyncio.IncompleteReadError, BrokenPipeError)):
            await idle.stat("/")
        assert not draining.done(), "the session with an open file was not waited for"
        await busy.write(handle, MIB, data)
        await busy.close_handle(handle)
        assert await draining == ("ok", {})
    asyncio.run(main())
    assert own_node.content("finished") == data + data


def test_drain_does_not_cut_a_batch_between_two_files(own_node: FakeNode) -> None:
    async def main() -> None:
        sftp, other = await RawSftp.open(own_node), await RawSftp.open(own_node)
        held = await other.open_file("held", PUT)  # keeps the drain going
        first = await sftp.open_file("first", PUT)
        draining = asyncio.create_task(asyncio.to_thread(own_node.ask, "drain", {"timeout_s": 20}))
        # Longer than a look of the drain, shorter than the silence that ends a session; no file is open meanwhile.
        await sftp.close_handle(first)
        until = asyncio.get_running_loop().time() + 2 * TICK_S
        while asyncio.get_running_loop().time() < until:
            assert (await sftp.stat("/first")).size == 0
        second = await sftp.open_file("second", PUT)
        await sftp.close_handle(second)
        await other.close_handle(held)
        assert await draining == ("ok", {})
    asyncio.run(main())
    assert own_node.content("first") == own_node.content("second") == b""


def test_the_load_is_told(node: FakeNode, tmp_path: Path) -> None:
    data = random_file(tmp_path / "s", 100_000)
    node.sftp(f"put {tmp_path}/s load\nget load {tmp_path}/b\n")
    load = wait_for("the load", lambda: next(
        (args for op, args in reversed(node.notes) if op == "load" and args["bytes_out"] >= len(data)), None))
    assert load["bytes_in"] >= len(data)


@pytest.mark.slow
def test_a_large_upload_stays_small_in_memory(node: FakeNode, tmp_path: Path) -> None:
    with open(tmp_path / "big", "wb") as file:
        for _ in range(300):
            file.write(os.urandom(MIB))
    node.sftp("pwd\n")
    before = rss_kib(node.process.pid)
    client = subprocess.Popen(node.sftp_command(), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert client.stdin
    client.stdin.write(f"put {tmp_path}/big big\nget big {tmp_path}/back\n".encode())
    client.stdin.close()
    most = before
    while client.poll() is None:
        most = max(most, rss_kib(node.process.pid))
        time.sleep(0.01)
    assert client.returncode == 0 and node.has("big")
    assert most - before < 60 * 1024, f"{(most - before) // 1024} MiB more"
    assert subprocess.run(["cmp", tmp_path / "big", tmp_path / "back"]).returncode == 0


@pytest.mark.skipif(shutil.which("rclone") is None, reason="rclone is missing")
def test_rclone(node: FakeNode, tmp_path: Path) -> None:
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    files = {name: random_file(tmp_path / "tree" / name, size)
             for name, size in (("a", 1), ("b", 0), ("sub/c", 3_500_001), ("sub/d", 32769))}
    remote = f":sftp,host=127.0.0.1,port={node.port},user=anna,key_file={node.key_file},shell_type=none:rclone"
    for words in (["copy", tmp_path / "tree", remote], ["check", tmp_path / "tree", remote, "--download"],
                  ["copy", remote, tmp_path / "back"]):
        done = subprocess.run(["rclone", "--config", "/dev/null", *words], capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
    for name, data in files.items():
        assert node.content(f"rclone/{name}") == data == (tmp_path / "back" / name).read_bytes()


@pytest.mark.skipif(shutil.which("lftp") is None, reason="lftp is missing")
def test_lftp_continues_a_partial(node: FakeNode, tmp_path: Path) -> None:
    data = random_file(tmp_path / "s", 3_000_000)

    async def half() -> None:
        sftp = await RawSftp.open(node)
        await sftp.write(await sftp.open_file("lftp", PUT), 0, data[:1_700_000])
        sftp.connection.abort()
    ended = len(node.ended)
    asyncio.run(half())
    wait_for("the session's end", lambda: len(node.ended) > ended)
    connect = (f"ssh -a -x -F /dev/null -i {node.key_file} -o IdentitiesOnly=yes -o BatchMode=yes "
               f"-o UserKnownHostsFile={node.known_hosts}")
    script = (f'set sftp:connect-program "{connect}"; set net:max-retries 1; open -p {node.port} -u anna, '
              f"sftp://127.0.0.1; put -c {tmp_path}/s -o lftp; get lftp -o {tmp_path}/back; bye")
    done = subprocess.run(["lftp", "-c", script], capture_output=True, timeout=60,
                          env={**os.environ, "HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr.decode()
    assert node.content("lftp") == data == (tmp_path / "back").read_bytes()
    assert sum(args["length"] for args in node.ops("chunk.put")[-2:]) < 2_500_000, "it began again"


def test_openssh_continues_a_partial(node: FakeNode, tmp_path: Path) -> None:
    data = random_file(tmp_path / "s", 3_000_000)

    async def half() -> None:
        sftp = await RawSftp.open(node)
        await sftp.write(await sftp.open_file("reput", PUT), 0, data[:1_700_000])
        sftp.connection.abort()
    ended = len(node.ended)
    asyncio.run(half())
    wait_for("the session's end", lambda: len(node.ended) > ended)
    assert b"reput" not in node.sftp("ls -1\n").stdout
    node.sftp(f"reput {tmp_path}/s reput\n")
    assert node.content("reput") == data


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_connection_that_comes_and_goes_between_reports_is_told(node: FakeNode) -> None:
    """Or its node would count it for ever among those that may still log in."""
    def loads() -> int:
        return sum(op == "load" for op, _ in node.notes)

    node.sftp("pwd\n")
    for _ in range(3):
        before = loads()
        with socket.create_connection(("127.0.0.1", node.port), 5):
            pass
        wait_for("a report", lambda before=before: loads() > before)  # type: ignore[misc]
