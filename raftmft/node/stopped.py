"""A stopped member, for `raftmft recover`: what it knows at its log's end, and making it the only one.

It is locked meanwhile. Its state is looked at in a copy, brought to the log's end; the state itself stays as it is, and
goes on from where it is when the node runs.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from raftmft.cluster.certificates import CLUSTER_KEY_SIZE, SealBroken, expires_at, seal, unseal
from raftmft.cluster.keyring import KeyRing, RingKey, name_of
from raftmft.core.commands import Envelope, MemberSpec, Refound
from raftmft.core.errors import ConfigError
from raftmft.core.machine import Machine, discard
from raftmft.core.members import MemberRow
from raftmft.core.schema import check_format
from raftmft.node.datadir import DataDir, Seed
from raftmft.node.genesis import AUTHORITY_KEY, HOST_KEY
from raftmft.node.state import restore_newest
from raftmft.raft import offline
from raftmft.raft.journal import Journal
from raftmft.raft.offline import Standing
from raftmft.raft.snapshots import SnapshotFolder
from raftmft.raft.stamped import command_of
from raftmft.wire.commands import decode_outcome, encode_outcome

log = logging.getLogger(__name__)

KNOCK_LIMIT_S = 2.0
SCRATCH = "recover.db"


@dataclass(frozen=True, slots=True)
class Survivor:
    """What a stopped member knows. `others`: the members that would be given up; `key`: the name of the cluster key
    that seals the secrets.
    """

    cluster: str
    cluster_id: str
    me: MemberRow
    others: tuple[MemberRow, ...]
    standing: Standing
    users: int
    files: int
    file_bytes: int
    key: str
    sealed_host_key: bytes
    sealed_ca_key: bytes


class Stopped:
    """The member of a data directory while nothing runs there. Made by `stopped`."""

    def __init__(self, data_dir: DataDir, seed: Seed, journal: Journal) -> None:
        self.data_dir, self.seed, self._journal = data_dir, seed, journal
        self.survivor = self._look()

    def _look(self) -> Survivor:
        journal, path = self._journal, str(self.data_dir.state.parent / SCRATCH)
        founders = [member.id for member in self.seed.members] if self.seed.founder else []
        standing = offline.standing(journal, founders)
        try:
            self._copy_state(path)
            machine = Machine(path, encode_outcome=encode_outcome, decode_outcome=decode_outcome)
            try:
                offline.replay(journal, machine)
                rows = machine.members.list()
                me = next((row for row in rows if row.id == self.seed.me), None)
                if me is None:
                    raise ConfigError(f"{self.data_dir.path} knows of no cluster that this member belongs to: it was "
                                      "removed, or had not caught up yet; recover another survivor")
                settings = machine.settings
                files, size = machine.namespace.all_chunk_totals()
                return Survivor(
                    settings.cluster, settings.cluster_id, me, tuple(row for row in rows if row.id != me.id), standing,
                    len(machine.users.list()), files, size, settings.key, settings.sealed_host_key,
                    settings.sealed_ca_key)
            finally:
                machine.close()
        finally:
            discard(path)

    def _copy_state(self, path: str) -> None:
        discard(path)
        if self.data_dir.clean_mark.exists() and self.data_dir.state.exists():
            check_format(str(self.data_dir.state))
            shutil.copyfile(self.data_dir.state, path)
        else:
            snapshots = SnapshotFolder(str(self.data_dir.snapshots))
            snapshots.drop_beyond(self._journal.last_index)  # as the node does at its start
            restore_newest(path, self._journal, snapshots)

    def check_key(self, exported: Sequence[RingKey] = ()) -> None:
        """This member can open the cluster's secrets; a key that it lacks is taken from `exported`. ConfigError."""
        ring, survivor = KeyRing.load(self.data_dir.cluster_key), self.survivor
        key = {**{entry.name: entry.key for entry in exported}, **{entry.name: entry.key for entry in ring.keys()}}.get(
            survivor.key)
        if key is None:
            raise ConfigError(f"this member lacks the cluster key {survivor.key or '(the first)'}, which was changed "
                              "while it was away: give a key export that holds it by --key-export, or recover another "
                              "survivor")
        try:
            unseal(key, HOST_KEY, survivor.sealed_host_key)
            unseal(key, AUTHORITY_KEY, survivor.sealed_ca_key)
        except SealBroken:
            raise ConfigError(f"the cluster key {survivor.key or '(the first)'} of this member does not open the "
                              "cluster's secrets: give a key export by --key-export, or recover another survivor"
                              ) from None
        ring.fetched(survivor.key, key)

    def answering(self) -> list[MemberRow]:
        """Those of the others at whose peer port something answers now; within KNOCK_LIMIT_S."""
        others = self.survivor.others
        with ThreadPoolExecutor(max(1, len(others))) as threads:
            return [row for row, answers in zip(others, threads.map(_answers, others), strict=True) if answers]

    def recover(self) -> str:
        """Makes this member the only one, from its next start on; the cluster's new id. After `check_key`. A crash in
        between leaves a member that links with nobody: recover it again.
        """
        survivor, cluster_id = self.survivor, secrets.token_hex(8)
        certificate = self.data_dir.certificates.certificate.read_bytes()
        row = survivor.me
        spec = MemberSpec(row.id, row.name, row.host, row.peer_port, row.gossip_port, row.sftp_port, row.fingerprint,
                          row.mode, row.weight)
        ring, key = KeyRing.load(self.data_dir.cluster_key), secrets.token_bytes(CLUSTER_KEY_SIZE)
        old = ring.present(survivor.key)
        ring.offer(name_of(key), survivor.key, key)
        command = Refound(
            "recover", spec, int(expires_at(certificate).timestamp() * 1000), cluster_id, survivor.key, name_of(key),
            seal(key, HOST_KEY, unseal(old, HOST_KEY, survivor.sealed_host_key)),
            seal(key, AUTHORITY_KEY, unseal(old, AUTHORITY_KEY, survivor.sealed_ca_key)))
        # First the id: from then on no link to a member of before is made or taken, whatever state the node begins at,
        # and as no founder it has no vote before its log says so.
        self.data_dir.write_seed(replace(self.seed, cluster_id=cluster_id, members=(spec,),
                                          founder=False))
        offline.go_alone(self._journal, row.id, command_of(Envelope(command), time.time_ns() // 1_000_000))
        return cluster_id


@contextmanager
def stopped(path: Path) -> Iterator[Stopped]:
    """The member in a data directory, locked for the block. ConfigError if it runs or has nothing to recover;
    CorruptFile if what is there is damaged.
    """
    data_dir = DataDir(path)
    data_dir.check_owner()
    seed = data_dir.read_seed()
    data_dir.lock()
    if not Journal.exists(str(data_dir.journal)):
        raise ConfigError(f"{data_dir.journal} is lost, and with it what this member knew: recover another survivor, "
                          "or restore a backup (raftmft restore)")
    journal = Journal(str(data_dir.journal))
    try:
        yield Stopped(data_dir, seed, journal)
    finally:
        journal.close()


def _answers(row: MemberRow) -> bool:
    try:
        with socket.create_connection((row.host, row.peer_port), KNOCK_LIMIT_S):
            return True
    except OSError:
        return False


