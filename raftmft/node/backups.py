"""Backups of the replicated state: snapshot files (raft/snapshots.py), checked, and a new cluster made out of one.

A snapshot that a member made for itself (raft/snapshot.* in its data directory) is as good as a backup.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from raftmft.cluster.certificates import (
    CLUSTER_KEY_SIZE,
    SealBroken,
    expires_at,
    issue_member,
    make_authority,
    seal,
    unseal,
)
from raftmft.cluster.keyring import RingKey, name_of
from raftmft.core import features
from raftmft.core.audit import AuditLog
from raftmft.core.commands import Envelope, MemberSpec, Refound
from raftmft.core.errors import ConfigError, CorruptFile, ProgramTooOld
from raftmft.core.machine import discard, open_reader
from raftmft.core.settings import Settings as StateSettings
from raftmft.core.state import State
from raftmft.node.datadir import DataDir, Seed
from raftmft.node.genesis import AUTHORITY_KEY, HOST_KEY, make_ssh_key, write_member
from raftmft.node.settings import Settings
from raftmft.raft import offline
from raftmft.raft.configuration import Configuration
from raftmft.raft.journal import Journal
from raftmft.raft.snapshots import Snapshot, SnapshotFolder, SnapshotWriter, blocks_of, read_file, unpack_to
from raftmft.raft.stamped import command_of
from raftmft.wire.frames import FrameError


@dataclass(frozen=True, slots=True)
class Backup:
    """What a sound backup holds. `key`: the name of the cluster key that seals its secrets."""

    root: str
    index: int
    term: int
    cluster: str
    cluster_id: str
    time_ms: int
    members: tuple[str, ...]
    users: int
    files: int
    file_bytes: int
    audit_records: int
    audit_head: str
    replicas: int
    key: str
    host_public_key: str = field(repr=False)
    sealed_host_key: bytes = field(repr=False)

    def told(self) -> dict[str, Any]:
        """For people and programs."""
        table = asdict(self)
        for name in ("key", "host_public_key", "sealed_host_key", "replicas", "term"):
            del table[name]
        return {**table, "members": list(self.members)}


def examine(path: Path, scratch: Path) -> Backup:
    """Checks everything in a backup: each block's hash, the database's structure, the audit log's chain. The state is
    left at `scratch`, a new file, for the caller to use and remove. CorruptFile, OSError.
    """
    snapshot = _header(path)
    unpack_to(str(path), snapshot, str(scratch))
    try:
        reader = open_reader(str(scratch))
        try:
            return _facts(path, snapshot, reader)
        finally:
            reader.close()
    except sqlite3.DatabaseError as error:
        raise CorruptFile(f"{path} holds a state whose database is damaged ({error}); use another backup") from None


def _header(path: Path) -> Snapshot:
    try:
        return read_file(str(path))
    except FrameError as error:
        raise CorruptFile(f"{path} is no sound backup: {error}; use another one") from None


def _facts(path: Path, snapshot: Snapshot, reader: sqlite3.Connection) -> Backup:
    (sound,) = reader.execute("PRAGMA integrity_check(1)").fetchone()
    if sound != "ok":
        raise CorruptFile(f"{path} holds a state whose database is damaged ({sound}); use another backup")
    state, audit = State(reader), AuditLog(reader)
    settings = StateSettings(state)
    if state.applied > snapshot.index or not settings.is_bootstrapped:
        raise CorruptFile(f"{path} is of entry {snapshot.index} and its state of entry {state.applied}: it holds no "
                          "cluster; use another backup")
    if settings.level > features.CURRENT.newest:
        raise ProgramTooOld(features.too_old(settings.level, features.CURRENT.newest))
    if (bad := audit.verify()) is not None:
        raise CorruptFile(f"{path}: the audit record at index {bad} does not fit those before it; use another backup")
    users, files, size = reader.execute(
        "SELECT count(*), coalesce(sum(files), 0), coalesce(sum(file_bytes), 0) FROM users").fetchone()
    members = tuple(row[0] for row in reader.execute("SELECT name FROM members ORDER BY name"))
    return Backup(snapshot.root.hex(), snapshot.index, snapshot.term, settings.cluster, settings.cluster_id,
                  state.now_ms, members, users, files, size, audit.count, audit.head, settings.replicas, settings.key,
                  settings.host_public_key, settings.sealed_host_key)


def restore(path: Path, made: DataDir, settings: Settings, keys: Sequence[RingKey] | None) -> Backup:
    """Fills a directory that `made.made()` has just made with the first member of a new cluster, of the backup's state.

    Authority, cluster key and cluster id are new: the old cluster, should it still run, has nothing to do with it. The
    SSH host key stays, opened with one of `keys`; None makes a new one. ConfigError, CorruptFile, OSError.
    """
    scratch = made.state.parent / "backup.db"
    backup = examine(path, scratch)
    discard(str(scratch))
    host_key, host_public_key = make_ssh_key() if keys is None else (_host_key(path, backup, keys),
                                                                     backup.host_public_key)
    authority, cluster_key = make_authority(backup.cluster), secrets.token_bytes(CLUSTER_KEY_SIZE)
    me, cluster_id, key_name = secrets.token_hex(8), secrets.token_hex(8), name_of(cluster_key)
    issued = issue_member(authority, me)
    spec = MemberSpec(me, settings.name, settings.advertise, settings.peer_port, settings.gossip_port,
                      settings.sftp_port, issued.fingerprint)
    sealed = seal(cluster_key, HOST_KEY, host_key), seal(cluster_key, AUTHORITY_KEY, authority.key)
    _begin(path, made, me, Refound(
        "restore", spec, int(expires_at(issued.certificate).timestamp() * 1000), cluster_id, backup.key, key_name,
        *sealed, host_public_key))
    write_member(made, settings, authority.certificate, issued, cluster_key, Seed(
        backup.cluster, cluster_id, me, (spec,), backup.replicas, host_public_key, sealed[0].hex(), sealed[1].hex(),
        founder=False), key_name=key_name)
    return replace(backup, cluster_id=cluster_id, host_public_key=host_public_key)


def _host_key(path: Path, backup: Backup, keys: Sequence[RingKey]) -> bytes:
    key = next((entry.key for entry in keys if entry.name == backup.key), None)
    try:
        if key is not None:
            return unseal(key, HOST_KEY, backup.sealed_host_key)
    except SealBroken:
        pass
    raise ConfigError(f"the key export does not hold the cluster key {backup.key or '(the first)'}, with which the "
                      f"secrets in {path} are sealed: give one that was made when the backup was, or --new-host-key "
                      "(clients will be warned of another host key)")


def _begin(path: Path, made: DataDir, me: str, command: Refound) -> None:
    """Snapshot and journal: the log begins behind the backup's entry with the command that makes the cluster anew."""
    snapshot, folder = _header(path), SnapshotFolder(str(made.snapshots))
    with open(path, "rb") as source, SnapshotWriter(folder, snapshot.index) as writer:
        for (_, block_id), block in zip(snapshot.blocks, blocks_of(source, str(path), snapshot), strict=True):
            writer.add(block, block_id)
        writer.finish(snapshot.term, Configuration((me,)).encode(), snapshot.raw_bytes)
    journal = Journal(str(made.journal))
    try:
        offline.begin_behind(journal, snapshot.index, snapshot.term, me,
                             command_of(Envelope(command), time.time_ns() // 1_000_000))
    finally:
        journal.close()
