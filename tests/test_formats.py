"""Every file on disk begins with what it is and its version; one that another version wrote is refused by name.

Two are made anew instead, since all that they hold can be found again: a segment's hint file (the segment is scanned)
and repair.mark (losing it costs a walk over what is held).
"""

from __future__ import annotations

import fnmatch
import logging
import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from blake3 import blake3

from raftmft.cli.dev import PLAN, PLAN_FORMAT, PLAN_KIND, free_ports
from raftmft.cluster import keyexport, keyring
from raftmft.cluster.certificates import write_file
from raftmft.cluster.repairer import Marker
from raftmft.core import schema
from raftmft.node import datadir, jsonfile
from raftmft.node.datadir import DataDir
from raftmft.node.genesis import FirstMember, make_cluster
from raftmft.node.settings import Settings
from raftmft.node.state import close_state, open_state
from raftmft.raft import segment, snapshots
from raftmft.raft.configuration import Configuration
from raftmft.raft.journal import Journal
from raftmft.raft.snapshots import SnapshotFolder
from raftmft.store import format
from raftmft.store.index import ChunkIndex
from raftmft.store.writer import SegmentWriter

PASSPHRASE = "correct horse battery"
CHUNK = b"content" * 1000
OTHER = 9
KNOWN = {
    "seed.json": b'{\n "raftmft": "seed",\n "format": ',
    "raft/journal.*": segment.MAGIC,
    "raft/snapshot.*": snapshots.MAGIC,
    "state/state.db": b"SQLite format 3\0",
    "state/clean": datadir.CLEAN_MAGIC,
    "chunks/*.seg": format.SEGMENT_MAGIC,
    "chunks/*.hint": format.HINT_MAGIC,
    "repair.mark": b"RMFTHELD",
    "started": datadir.STARTED,
    "keys/cluster.key": keyring.MAGIC,
}
"""All files of a data directory, by what they begin with."""
EXEMPT = {"raftmft.toml", "keys/*.crt", "keys/node.key", "admin.token", "lock", "node.pid", "admin.sock"}
"""For people, or of somebody else's format (PEM); a token, a number or nothing; gone at the next start."""
MADE_AT_RUN = {"lock", "node.pid", "admin.sock"}


def unknown_files(data_dir: Path) -> list[str]:
    """The files of a data directory that begin like none of this program's and are not exempt."""
    found = []
    for path in sorted(data_dir.rglob("*")):
        name = str(path.relative_to(data_dir))
        if path.is_dir() or any(fnmatch.fnmatch(name, pattern) for pattern in EXEMPT):
            continue
        magic = next((magic for pattern, magic in KNOWN.items() if fnmatch.fnmatch(name, pattern)), None)
        if magic is None or not path.read_bytes().startswith(magic):
            found.append(name)
    return found


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of a cluster of one that was stopped cleanly, with every kind of file."""
    folder = tmp_path_factory.mktemp("formats") / "d"
    sftp, peer, gossip, admin = free_ports(4)
    make_cluster("files", [FirstMember(folder, Settings("n1", "127.0.0.1", "127.0.0.1", sftp, peer, gossip,
                                                        admin_port=admin))])
    data_dir = DataDir(folder)
    journal = Journal(str(data_dir.journal))
    journal.add(b"\x01", 1, 0)
    held = SnapshotFolder(str(data_dir.snapshots))
    state = open_state(data_dir, journal, held)
    journal.close()
    state.copy_to(str(data_dir.state) + ".copy")
    held.make(str(data_dir.state) + ".copy", 1, 0, Configuration(("a",)).encode())
    Path(str(data_dir.state) + ".copy").unlink()
    close_state(state, data_dir)
    writer = SegmentWriter(data_dir.chunks, "w", 1 << 20)
    writer.append(blake3(CHUNK).digest(), CHUNK)
    writer.sync()
    writer.close()
    Marker(data_dir.repair_mark).move(0, 0)
    return folder


@pytest.fixture
def member(template: Path, tmp_path: Path) -> DataDir:
    return DataDir(shutil.copytree(template, tmp_path / "d"))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
            if (name := str(path.relative_to(folder))) not in MADE_AT_RUN}


def rewrite(path: Path, known: int, place: tuple[int, str] | tuple[bytes, bytes]) -> None:
    """Makes the file's version OTHER, wherever it stands."""
    data = bytearray(path.read_bytes())
    if isinstance(place[0], bytes):
        before = place[0] + b"%d" % known
        assert data.count(before) == 1
        path.write_bytes(data.replace(before, place[0] + b"%d" % OTHER))
        return
    assert struct.unpack_from(place[1], data, place[0]) == (known,)
    struct.pack_into(place[1], data, place[0], OTHER)
    path.write_bytes(data)


def run(*words: object) -> subprocess.CompletedProcess[str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAFTMFT")}
    return subprocess.run([sys.executable, "-m", "raftmft", *map(str, words)], capture_output=True, text=True,
                          timeout=60, env=plain, stdin=subprocess.DEVNULL)


def assert_refused(done: subprocess.CompletedProcess[str], path: Path, known: int) -> None:
    *_, line = done.stderr.splitlines()
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert line.startswith("raftmft: ") and str(path) in line
    assert f"format {OTHER}" in line and str(known) in line.split(f"format {OTHER}", 1)[1], line


@pytest.mark.parametrize(("name", "known", "place"), [
    ("seed.json", datadir.SEED_FORMAT, (b'"format": ', b"")),
    ("raft/journal.*", segment.VERSION, (16, "<I")),
    ("raft/snapshot.*", snapshots.VERSION, (16, "<I")),
    ("state/state.db", schema.FORMAT_VERSION, (60, ">I")),
    ("state/clean", datadir.CLEAN_FORMAT, (datadir.CLEAN_MAGIC, b"")),
    ("chunks/*.seg", format.VERSION, (8, ">I")),
    ("keys/cluster.key", keyring.VERSION, (8, ">I")),
])
def test_a_node_refuses_a_file_of_another_version_and_changes_nothing(
        member: DataDir, name: str, known: int, place: tuple[int, str] | tuple[bytes, bytes]) -> None:
    (path,) = member.path.glob(name)
    rewrite(path, known, place)
    before = snapshot(member.path)
    for _ in range(2):  # the second start must not take the first one's refusal for a crash
        assert_refused(run("node", "--data-dir", member.path), path, known)
        assert snapshot(member.path) == before


def test_a_node_runs_on_what_the_others_are_made_of(member: DataDir) -> None:
    """The refusals above are for the version alone. And every file of a data directory is one of those."""
    with open(member.path.with_suffix(".log"), "wb") as log:
        node = subprocess.Popen([sys.executable, "-m", "raftmft", "node", "--data-dir", member.path], stderr=log)
    try:
        ready = run("status", "--wait", "ready", "--timeout", "30", "--data-dir", member.path)
        assert ready.returncode in (0, 3), member.path.with_suffix(".log").read_text()
        node.send_signal(signal.SIGTERM)
        assert node.wait(30) == 0
    finally:
        if node.poll() is None:
            node.kill()
            node.wait()
    assert unknown_files(member.path) == []
    assert {pattern for pattern in KNOWN if not list(member.path.glob(pattern))} == set()
    (member.path / "state" / "notes").write_bytes(b"x")
    assert unknown_files(member.path) == ["state/notes"]


def test_an_export_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "export"
    keyexport.write_export(path, keyexport.KeyExport("c", "id", 0, ()), PASSPHRASE)
    write_file(tmp_path / "pass", PASSPHRASE.encode())
    rewrite(path, keyexport.VERSION, (8, ">I"))
    assert_refused(run("key", "verify", path, "--passphrase-file", tmp_path / "pass"), path, keyexport.VERSION)


def test_a_dev_cluster_of_another_version_is_refused(tmp_path: Path) -> None:
    plan = tmp_path / PLAN
    write_file(plan, jsonfile.render(PLAN_KIND, OTHER, {"nodes": ["n1"], "password": "p", "host_key": "k"}))
    assert_refused(run("dev", "--dir", tmp_path), plan, PLAN_FORMAT)
    assert os.listdir(tmp_path) == [PLAN]
    plan.write_bytes(b'{"format": 1, "nodes": []}')
    assert "is damaged" in run("dev", "--dir", tmp_path).stderr


def test_a_clean_mark_that_is_none_means_a_crash(member: DataDir) -> None:
    for damage in (b"", b"clean\n", b"raftmft clean 1", b"raftmft clean x\n", b"raftmft clean 1 1\n"):
        member.clean_mark.write_bytes(damage)
        assert not member.take_clean_mark() and not member.clean_mark.exists(), damage
    member.leave_clean_mark()
    assert member.take_clean_mark()


def test_a_hint_of_another_version_is_made_anew(member: DataDir) -> None:
    (path,) = member.path.glob("chunks/*.hint")
    whole = path.read_bytes()
    rewrite(path, format.VERSION, (8, ">I"))
    body = path.read_bytes()[:-4]
    path.write_bytes(body + zlib.crc32(body).to_bytes(4, "big"))  # whole, as that other version would have left it
    index = ChunkIndex(member.chunks)
    assert blake3(CHUNK).digest() in index and path.read_bytes() == whole
    assert any("hint file" in line for line in index.problems)


def test_a_repair_mark_of_another_version_is_made_anew(member: DataDir, caplog: pytest.LogCaptureFixture) -> None:
    Marker(member.repair_mark).move(7, 3)
    head = struct.pack(">8sHQQ", b"RMFTHELD", OTHER, 7, 3)
    member.repair_mark.write_bytes(head + zlib.crc32(head).to_bytes(4, "big"))
    with caplog.at_level(logging.WARNING):
        marker = Marker(member.repair_mark)
    assert (marker.index, marker.placement) == (0, 0) and str(member.repair_mark) in caplog.text
    marker.move(8, 3)
    assert Marker(member.repair_mark).index == 8
