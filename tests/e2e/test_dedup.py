"""What a home has is neither stored nor sent again; what only another home has is, unless dedup.scope is cluster."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raftmft.store import format
from tests.e2e.harness import Cluster, wait_for

MIB = 1 << 20


def stored(cluster: Cluster) -> list[int]:
    """How many full chunks stand in the segments of each node, every copy counted."""
    found = []
    for name in cluster.names:
        count = 0
        for path in (Path(cluster.node(name)["data_dir"]) / "chunks").glob("*.seg"):
            with open(path, "rb") as file:
                salt = format.parse_segment_header(file.read(format.SEGMENT_HEADER), str(path))
                assert salt is not None
                codec, position = format.RecordCodec(salt), format.SEGMENT_HEADER
                while True:
                    file.seek(position)
                    header = file.read(format.RECORD_HEADER)
                    record = codec.parse(header, position) if len(header) == format.RECORD_HEADER else None
                    if record is None:
                        break
                    count += record.length == MIB
                    position = record.end
        found.append(count)
    return found


def added(cluster: Cluster, before: list[int]) -> list[int]:
    return [now - then for now, then in zip(stored(cluster), before, strict=True)]


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """12 MiB and some that nobody has."""
    path = tmp_path / "dump"
    path.write_bytes(os.urandom(12 * MIB + 77))
    return path


def everywhere(cluster: Cluster, name: str, content: bytes, folder: Path, user: str = "demo") -> None:
    for node in cluster.names:
        cluster.sftp(node, f"get {name} {folder}/got\n", user=user)
        assert (folder / "got").read_bytes() == content


def test_what_the_home_has_is_stored_and_sent_once(shared_cluster: Cluster, dump: Path, tmp_path: Path) -> None:
    one, two, three = shared_cluster.names
    start = stored(shared_cluster)
    shared_cluster.sftp(one, f"mkdir dd\nput {dump} dd/monday\n")
    wait_for("three copies", lambda: added(shared_cluster, start) == [12, 12, 12])
    before = stored(shared_cluster)
    for node, name in ((two, "tuesday"), (one, "monday"), (three, "wednesday")):
        shared_cluster.sftp(node, f"put {dump} dd/{name}\n")
        everywhere(shared_cluster, f"dd/{name}", dump.read_bytes(), tmp_path)
        assert added(shared_cluster, before) == [0, 0, 0], f"{name} through {node}"
    changed = bytearray(dump.read_bytes())
    changed[5 * MIB + 1] ^= 1
    dump.write_bytes(changed)
    shared_cluster.sftp(two, f"put {dump} dd/thursday\n")
    everywhere(shared_cluster, "dd/thursday", bytes(changed), tmp_path)
    wait_for("the one that changed", lambda: added(shared_cluster, before) == [1, 1, 1])


def test_what_only_another_home_has_is_stored_again_unless_the_setting_says_otherwise(
        shared_cluster: Cluster, dump: Path, tmp_path: Path) -> None:
    one, two, three = shared_cluster.names
    public = Path(shared_cluster.about["users"][0]["key"] + ".pub")
    for user in ("other", "third"):
        shared_cluster.run("user", "add", user, "--key", str(public))
    shared_cluster.sftp(one, f"put {dump} theirs\n")
    before = stored(shared_cluster)
    shared_cluster.sftp(two, f"put {dump} mine\n", user="other")
    wait_for("three copies more", lambda: added(shared_cluster, before) == [12, 12, 12])
    everywhere(shared_cluster, "mine", dump.read_bytes(), tmp_path, "other")
    shared_cluster.run("config", "set", "dedup.scope", "cluster")
    try:
        before = stored(shared_cluster)
        shared_cluster.sftp(three, f"put {dump} mine\n", user="third")
        everywhere(shared_cluster, "mine", dump.read_bytes(), tmp_path, "third")
        assert added(shared_cluster, before) == [0, 0, 0]
    finally:
        shared_cluster.run("config", "set", "dedup.scope", "home")
