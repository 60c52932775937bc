"""A member whose disk or journal is lost comes back by one command, as another member; its old self never votes."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.harness import wait_for
from tests.e2e.hosts import Host, Hosts, refused
from tests.e2e.test_growth import Writer
from tests.e2e.test_recover import get, names, put, recover, sftp_port, three

pytestmark = pytest.mark.slow
GAP_S = 3.0
"""What the contract grants for a leader's death."""


def member_id(host: Host) -> str:
    return str(json.loads((host.data_dir / "seed.json").read_text())["me"])


def line_of_the_end(hosts: Hosts, host: Host) -> str:
    """The one line with which a node that cannot run ends."""
    done = hosts.run("node", "--data-dir", str(host.data_dir))
    assert done.returncode == 1, done
    return done.stderr.decode().splitlines()[-1]


def segments(host: Host) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in (host.data_dir / "chunks").glob("*.seg")}


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 0x40
    file.write_bytes(data)


def test_a_wiped_member_is_replaced_under_load_and_never_votes_again(hosts: Hosts, tmp_path: Path) -> None:
    a, b, c = three(hosts)
    put(a, "before", b"x" * 2_000_000)
    assert "the member b is alive" in refused(
        hosts.run(*hosts.join_words("x", hosts.token(a), "--name", "b", "--replace")))
    old_id = member_id(b)
    with Writer(sftp_port(a)) as writer:
        hosts.end(b, signal.SIGKILL)
        b.data_dir.rename(tmp_path / "old-b")
        begun = time.monotonic()
        new = hosts.join("b", hosts.token(a), "--replace")
        hosts.start(new)
        hosts.wait_members(a, 3)
        hosts.wait_ready(new)
        print(f"replaced and ready after {time.monotonic() - begun:.1f} s")
        count = len(writer.done)
        wait_for("writes with the new member", lambda: len(writer.done) > count + 20)
        gap = writer.gap_s(begun)
    assert not writer.failures, writer.failures[:3]
    assert gap < GAP_S, gap
    assert member_id(new) != old_id and names(hosts, a) == ["a", "b", "c"]
    assert get(new, "before") == b"x" * 2_000_000
    # The old self, from a copy of its disk: refused by all, and no election takes it for a voter.
    hosts.end(new)
    term = hosts.json(a, "status")["term"]
    old = Host("old-b", tmp_path / "old-b")
    hosts.start(old)
    wait_for("the old self to hear it", lambda: "not listed" in old.log.read_text())
    hosts.end(c, signal.SIGKILL)
    wait_for("no quorum with two of three gone, whatever the old self would vote", lambda: json.loads(hosts.run(
        "status", "-o", "json", "--data-dir", str(a.data_dir)).stdout)["verdict"] == "no-quorum")
    hosts.start(c)
    hosts.wait_ready(c)
    assert hosts.json(a, "status")["term"] <= term + 5
    hosts.end(old, signal.SIGKILL)
    hosts.start(new)
    hosts.wait_members(a, 3)


def test_lost_and_damaged_files_name_the_one_command_that_helps(hosts: Hosts) -> None:
    a, _, c = three(hosts)
    put(a, "before", b"y" * 2_000_000)
    hosts.wait_ready(c)
    hosts.end(c)
    shutil.rmtree(c.data_dir / "state")
    (c.data_dir / "state").mkdir(mode=0o700)
    hosts.start(c)  # the state alone is made again from the journal
    hosts.wait_ready(c)
    hosts.end(c)
    whole = c.data_dir.with_name("whole")
    shutil.copytree(c.data_dir, whole)
    for what in ("raft", "raft state", "journal", "keys"):
        shutil.rmtree(c.data_dir)
        shutil.copytree(whole, c.data_dir)
        if what == "journal":
            damage(max((c.data_dir / "raft").glob("journal.*"), key=lambda file: file.stat().st_size))
        elif what == "keys":
            damage(c.data_dir / "keys" / "cluster.key")
        else:
            for folder in what.split():
                shutil.rmtree(c.data_dir / folder)
                (c.data_dir / folder).mkdir(mode=0o700)
        line = line_of_the_end(hosts, c)
        assert "raftmft join --replace" in line, (what, line)
    old_id, before_chunks = member_id(c), segments(c)
    before = (c.data_dir / "raftmft.toml").read_bytes()
    token = hosts.folder / "c.token"
    # Whatever is refused changes nothing.
    token.write_text(hosts.token(a)[:-3])
    refused(hosts.run("join", "--replace", "--token-file", str(token), "--data-dir", str(c.data_dir)))
    assert (c.data_dir / "seed.json").exists() and member_id(c) == old_id
    token.write_text(hosts.token(a))
    done = hosts.run("join", "--replace", "--token-file", str(token), "--data-dir", str(c.data_dir))
    assert done.returncode == 0, done.stderr.decode()
    assert member_id(c) != old_id and (c.data_dir / "raftmft.toml").read_bytes() == before
    assert before_chunks and before_chunks.items() <= segments(c).items()
    hosts.start(c)
    hosts.wait_members(a, 3)
    hosts.wait_ready(c)
    assert names(hosts, a) == ["a", "b", "c"]
    assert hosts.json(a, "file", "show", "/ann/before")["health"] == "ok"
    assert "is in use by a running node" in refused(hosts.run(
        "join", "--replace", "--token-file", str(token), "--data-dir", str(c.data_dir), "--advertise", "127.0.0.1",
        *[word for word in hosts.join_words("free", "")[-8:]]))


def test_a_member_of_before_a_recovery_joins_anew_with_its_chunks(hosts: Hosts) -> None:
    a, b, c = three(hosts)
    put(a, "content", b"z" * 3_000_000)
    hosts.wait_ready(b)
    for host in (a, b, c):
        hosts.end(host, signal.SIGKILL)
    # What only b and c hold: a survives with its names alone.
    shutil.rmtree(a.data_dir / "chunks")
    (a.data_dir / "chunks").mkdir(mode=0o700)
    recover(hosts, a)
    hosts.start(a)
    wait_for("the loss to be told", lambda: json.loads(hosts.run(
        "status", "-o", "json", "--data-dir", str(a.data_dir)).stdout or b"{}").get("under_replicated"))
    assert hosts.json(a, "file", "show", "/ann/content")["health"] == "lost"
    token = hosts.folder / "b.token"
    token.write_text(hosts.token(a))
    done = hosts.run("join", "--replace", "--token-file", str(token), "--data-dir", str(b.data_dir))
    assert done.returncode == 0, done.stderr.decode()
    hosts.start(b)
    hosts.wait_members(a, 2)
    hosts.wait_ready(a, b)
    assert get(a, "content") == b"z" * 3_000_000
    wait_for("all copies", lambda: hosts.json(a, "file", "show", "/ann/content")["health"] == "ok", 40)
