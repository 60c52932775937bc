"""The member list and each member's boot epoch.

A member is admitted as a learner (admission.py) and is *joined* once the leader made it a voter: from then on it
counts in the placement. Whatever changes who stores, or how much, moves the placement epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from raftmft.core.audit import AuditWriter
from raftmft.core.certificates import Certificates
from raftmft.core.commands import (
    Bootstrap,
    ExpireMember,
    MemberBoot,
    MemberReady,
    MemberRemove,
    MemberSet,
    MemberSpec,
)
from raftmft.core.features import too_old
from raftmft.core.names import clipped, user_name_problem
from raftmft.core.outcome import Code
from raftmft.core.sessions import Sessions
from raftmft.core.settings import Settings
from raftmft.core.state import Refuse, State

MODES = ("active", "standby", "witness", "draining", "leaving")
STORELESS = ("witness", "leaving")
"""Modes of members that own no chunks."""
UNDRAIN = "undrain"
MAX_WEIGHT = 10_000
MAX_HOST_CHARS = 253
MAX_MEMBERS = 64
MAX_MEMBER_ID_BYTES = 64
MAX_NONCE_BYTES = 64
_COLUMNS = "id, name, host, peer_port, gossip_port, sftp_port, fingerprint, mode, weight"
_ROW = f"SELECT {_COLUMNS}, epoch, version, joined, supports FROM members"


@dataclass(frozen=True, slots=True)
class MemberRow(MemberSpec):
    """A member as Raft lists it, with its present epoch (0: never booted), the version it last ran, and the feature
    level that this version knows (0: not said yet). `joined` is 0 while it is a learner.
    """

    epoch: int = 0
    version: str = ""
    joined: int = 1
    supports: int = 0

    @property
    def stores(self) -> bool:
        """Whether it may own chunks."""
        return bool(self.joined) and self.mode not in STORELESS


MemberRows = list[MemberRow]


class Members:
    """Who belongs to the cluster."""

    def __init__(self, state: State, settings: Settings, sessions: Sessions, certificates: Certificates,
                 audit: AuditWriter) -> None:
        self._state, self._settings, self._sessions, self._audit = state, settings, sessions, audit
        self._certificates = certificates

    def list(self) -> MemberRows:
        """All members by id."""
        rows = self._state.db.execute(f"{_ROW} ORDER BY id")
        return [MemberRow(*row) for row in rows]

    def get(self, member: str) -> MemberRow | None:
        """One member by id."""
        row = self._state.db.execute(f"{_ROW} WHERE id = ?", (member,)).fetchone()
        return None if row is None else MemberRow(*row)

    def epoch(self, member: str) -> int:
        """The member's present boot epoch; 0 if it never booted or is none."""
        row = self._state.db.execute("SELECT epoch FROM members WHERE id = ?", (member,)).fetchone()
        return 0 if row is None else int(row[0])

    # --- apply ---------------------------------------------------------------------------------------------------
    def bootstrap(self, command: Bootstrap) -> dict[str, Any]:
        """Makes the cluster, once."""
        if self._settings.is_bootstrapped:
            raise Refuse(Code.EXISTS, f"the cluster {self._settings.cluster} exists already")
        self._check_specs(command.members)
        self._settings.write_bootstrap(command)
        for spec in command.members:
            self._insert(spec, 0, joined=1)
        self._audit.admin(f"cluster create {clipped(command.cluster)}")
        return {}

    def boot(self, command: MemberBoot) -> dict[str, Any]:
        """Gives a new epoch for a new nonce and ends the sessions of earlier ones; the same nonce gets the same. A
        program that is too old for the feature level in force gets none.
        """
        if not self._settings.is_bootstrapped:
            raise Refuse(Code.INVALID, "the cluster is not made yet; try again in a moment")
        if not 1 <= len(command.nonce) <= MAX_NONCE_BYTES:
            raise Refuse(Code.INVALID, f"a boot nonce has 1 to {MAX_NONCE_BYTES} bytes")
        row = self._state.db.execute(
            "SELECT epoch, nonce, nonce_epoch FROM members WHERE id = ?", (command.member,)).fetchone()
        if row is None:
            raise Refuse(Code.NOT_FOUND, f"{clipped(command.member, 64)} is no member of this cluster")
        self._check_supports(command.supports)
        epoch, nonce, nonce_epoch = row
        if nonce == command.nonce:
            return {"epoch": nonce_epoch}
        epoch += 1
        self._state.db.execute("UPDATE members SET epoch=?, nonce=?, nonce_epoch=?, version=?, supports=? WHERE id=?",
                               (epoch, command.nonce, epoch, clipped(command.version, 64), command.supports,
                                command.member))
        self._sessions.expire(command.member, epoch, "member restarted")
        self._sessions.may_read(command.member)
        self._audit.admin(f"member boot epoch {epoch}", member=command.member)
        return {"epoch": epoch}

    def expire(self, command: ExpireMember) -> dict[str, Any]:
        """Ends the sessions of a dead member and raises its epoch, so that nothing it still says is taken."""
        if command.epoch != self.epoch(command.member) or command.epoch == 0:
            raise Refuse(Code.STALE_EPOCH, f"{clipped(command.member, 64)} is not in epoch {command.epoch}")
        self._state.db.execute("UPDATE members SET epoch=? WHERE id=?", (command.epoch + 1, command.member))
        self._sessions.expire(command.member, command.epoch + 1, "member died")
        self._audit.admin(f"member expire epoch {command.epoch}", member=command.member)
        return {}

    def ready(self, command: MemberReady) -> dict[str, Any]:
        """A learner became a voter and owns chunks from now on."""
        member = self._known(command.member)
        if not member.joined:
            self._state.db.execute("UPDATE members SET joined = 1 WHERE id = ?", (member.id,))
            self._settings.move_placement()
            self._audit.admin(f"member ready {member.name}", member=member.id)
        return {}

    def set(self, command: MemberSet) -> dict[str, Any]:
        """Changes what is not None."""
        member = self._known(command.member)
        columns: dict[str, Any] = {}
        for column in ("host", "peer_port", "gossip_port", "sftp_port", "weight"):
            if (value := getattr(command, column)) is not None and value != getattr(member, column):
                columns[column] = value
        if command.mode is not None:
            columns |= self._mode_columns(member, command.mode)
        if not columns:
            return {}
        changed = replace(member, **{key: value for key, value in columns.items() if key != "home_mode"})
        check_spec(changed)
        if member.stores and not changed.stores:
            self._check_others_store(member)
        self._state.db.execute(f"UPDATE members SET {', '.join(f'{column} = ?' for column in columns)} WHERE id = ?",
                               (*columns.values(), member.id))
        if (member.stores, member.weight) != (changed.stores, changed.weight):
            self._settings.move_placement()
        words = ", ".join(f"{column}={clipped(str(value))}" for column, value in columns.items()
                          if column != "home_mode")
        self._audit.admin(f"member set {member.name}: {words}", actor=command.actor, member=member.id)
        return {}

    def remove(self, command: MemberRemove) -> dict[str, Any]:
        """Takes a member off the list: what it shows and signs is refused from here on."""
        member = self._known(command.member)
        if member.stores:
            self._check_others_store(member)
        self._sessions.expire(member.id, member.epoch + 1, "member removed")
        self._certificates.drop_all_of(member.id)
        self._state.db.execute("DELETE FROM members WHERE id = ?", (member.id,))
        if member.stores:
            self._settings.move_placement()
        self._audit.admin(f"member remove {member.name}", actor=command.actor, member=member.id)
        return {}

    # --- for other handlers --------------------------------------------------------------------------------------
    def add(self, spec: MemberSpec, not_after_ms: int, version: str, supports: int) -> None:
        """Lists a new member as a learner. Refuses a name that is taken, too many members, and too old a program."""
        self._check_supports(supports)
        check_spec(spec)
        members = self.list()
        if len(members) >= MAX_MEMBERS:
            raise Refuse(Code.LIMIT, f"a cluster has at most {MAX_MEMBERS} members")
        if any(member.name == spec.name for member in members):
            raise Refuse(Code.EXISTS, f"a member named {clipped(spec.name, 64)} exists already; give another --name, "
                                      "or remove the old one with raftmft member remove")
        self._insert(spec, not_after_ms, joined=0)
        self._says(spec.id, version, supports)

    def refresh(self, member: str, spec: MemberSpec, version: str, supports: int) -> None:
        """A host that was admitted and never ran says anew where it will be found, and what it runs."""
        self._check_supports(supports)
        self._says(member, version, supports)
        check_spec(spec)
        self._state.db.execute(
            "UPDATE members SET host = ?, peer_port = ?, gossip_port = ?, sftp_port = ?, fingerprint = ? WHERE id = ?",
            (spec.host, spec.peer_port, spec.gossip_port, spec.sftp_port, spec.fingerprint, member))

    def give_up_all_but(self, kept: str, why: str) -> MemberRows:
        """Every member but `kept` is gone with its sessions and certificates; those that went. See refounding.py."""
        gone = [row for row in self.list() if row.id != kept]
        for row in gone:
            self._sessions.expire(row.id, row.epoch + 1, why)
            self._certificates.drop_all_of(row.id)
            self._state.db.execute("DELETE FROM members WHERE id = ?", (row.id,))
        return gone

    def stand_alone(self, spec: MemberSpec, not_after_ms: int) -> None:
        """The only member is `spec`: new, or the listed one, which begins a new epoch, has its vote, and stores."""
        present = self.get(spec.id)
        if present is None:
            self._insert(spec, not_after_ms, joined=1)
            return
        self._sessions.expire(spec.id, present.epoch + 1, "cluster recover")
        mode = present.mode if present.mode in ("active", "standby") else "active"
        self._state.db.execute(
            "UPDATE members SET epoch = ?, joined = 1, mode = ?, home_mode = ?, acked_below = 0 WHERE id = ?",
            (present.epoch + 1, mode, mode, spec.id))

    # --- leaves --------------------------------------------------------------------------------------------------
    def _known(self, member: str) -> MemberRow:
        row = self.get(member)
        if row is None:
            raise Refuse(Code.NOT_FOUND, f"{clipped(member, 64)} is no member of this cluster")
        return row

    def _says(self, member: str, version: str, supports: int) -> None:
        self._state.db.execute("UPDATE members SET version = ?, supports = ? WHERE id = ?",
                               (clipped(version, 64), supports, member))

    def _check_supports(self, supports: int) -> None:
        if supports < self._settings.level:
            raise Refuse(Code.CONFLICT, too_old(self._settings.level, supports))

    def _insert(self, spec: MemberSpec, not_after_ms: int, *, joined: int) -> None:
        self._state.db.execute(
            f"INSERT INTO members ({_COLUMNS}, version, epoch, nonce, nonce_epoch, acked_below, joined, home_mode, "
            "supports, opens_recorded, reads_from) VALUES (?,?,?,?,?,?,?,?,?, '', 0, x'', 0, 0, ?, ?, 0, 0, 0)",
            (spec.id, spec.name, spec.host, spec.peer_port, spec.gossip_port, spec.sftp_port, spec.fingerprint,
             spec.mode, spec.weight, joined, spec.mode))
        self._certificates.add(spec.id, spec.name, spec.fingerprint, not_after_ms)

    def _mode_columns(self, member: MemberRow, mode: str) -> dict[str, str]:
        if mode == UNDRAIN:
            (home_mode,) = self._state.db.execute(
                "SELECT home_mode FROM members WHERE id = ?", (member.id,)).fetchone()
            return {"mode": home_mode} if member.mode in ("draining", "leaving") else {}
        if mode in ("draining", "leaving"):
            return {"mode": mode} if member.mode != mode else {}
        return {"mode": mode, "home_mode": mode} if member.mode != mode else {}

    def _check_others_store(self, member: MemberRow) -> None:
        if not any(row.stores for row in self.list() if row.id != member.id):
            raise Refuse(Code.INVALID, f"{member.name} is the only member that stores files; let another join first")

    @staticmethod
    def _check_specs(members: tuple[MemberSpec, ...]) -> None:
        if not 1 <= len(members) <= MAX_MEMBERS:
            raise Refuse(Code.INVALID, f"a cluster has 1 to {MAX_MEMBERS} members, not {len(members)}")
        for spec in members:
            check_spec(spec)
        for what in ("id", "name", "fingerprint"):
            values = [getattr(spec, what) for spec in members]
            if len(set(values)) != len(values):
                raise Refuse(Code.INVALID, f"two members have the same {what}")


def check_spec(spec: MemberSpec) -> None:
    """Refuses what no member can be."""
    if not 1 <= len(spec.id.encode("utf-8", "replace")) <= MAX_MEMBER_ID_BYTES or user_name_problem(spec.name):
        raise Refuse(Code.INVALID, f"a member needs an id of at most {MAX_MEMBER_ID_BYTES} bytes and a name of 1 to "
                                   "64 printable characters without slash or colon")
    if not 1 <= len(spec.host) <= MAX_HOST_CHARS or clipped(spec.host) != spec.host or " " in spec.host:
        raise Refuse(Code.INVALID, "a member's host is an IP address or a host name")
    if spec.mode not in MODES or not 0 <= spec.weight <= MAX_WEIGHT:
        raise Refuse(Code.INVALID, f"a member's mode is one of {', '.join(MODES)} and its weight 0 to {MAX_WEIGHT}")
    if not all(0 <= port <= 65535 for port in (spec.peer_port, spec.gossip_port, spec.sftp_port)):
        raise Refuse(Code.INVALID, "a port is 0..65535")
