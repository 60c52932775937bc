"""The member list and each member's boot epoch. Static since the bootstrap; a change raises the placement epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raftmft.core.audit import AuditWriter
from raftmft.core.commands import Bootstrap, ExpireMember, MemberBoot, MemberSpec
from raftmft.core.names import clipped
from raftmft.core.outcome import Code
from raftmft.core.sessions import Sessions
from raftmft.core.settings import Settings
from raftmft.core.state import Refuse, State

MODES = ("active", "standby", "witness", "draining")
MAX_MEMBERS = 64
MAX_MEMBER_ID_BYTES = 64
MAX_NONCE_BYTES = 64
_COLUMNS = "id, name, host, peer_port, gossip_port, sftp_port, fingerprint, mode, weight"


@dataclass(frozen=True, slots=True)
class MemberRow(MemberSpec):
    """A member as Raft lists it, with its present epoch (0: never booted) and the version it last ran."""

    epoch: int = 0
    version: str = ""


MemberRows = list[MemberRow]


class Members:
    """Who belongs to the cluster."""

    def __init__(self, state: State, settings: Settings, sessions: Sessions, audit: AuditWriter) -> None:
        self._state, self._settings, self._sessions, self._audit = state, settings, sessions, audit

    def list(self) -> MemberRows:
        """All members by id."""
        rows = self._state.db.execute(f"SELECT {_COLUMNS}, epoch, version FROM members ORDER BY id")
        return [MemberRow(*row) for row in rows]

    def get(self, member: str) -> MemberRow | None:
        """One member by id."""
        row = self._state.db.execute(
            f"SELECT {_COLUMNS}, epoch, version FROM members WHERE id = ?", (member,)).fetchone()
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
        self._state.db.executemany(
            f"INSERT INTO members ({_COLUMNS}, version, epoch, nonce, nonce_epoch, acked_below) "
            "VALUES (?,?,?,?,?,?,?,?,?, '', 0, x'', 0, 0)",
            [(m.id, m.name, m.host, m.peer_port, m.gossip_port, m.sftp_port, m.fingerprint, m.mode, m.weight)
             for m in command.members])
        self._audit.admin(f"cluster create {clipped(command.cluster)}")
        return {}

    def boot(self, command: MemberBoot) -> dict[str, Any]:
        """Gives a new epoch for a new nonce and ends the sessions of earlier ones; the same nonce gets the same."""
        if not self._settings.is_bootstrapped:
            raise Refuse(Code.INVALID, "the cluster is not made yet; try again in a moment")
        if not 1 <= len(command.nonce) <= MAX_NONCE_BYTES:
            raise Refuse(Code.INVALID, f"a boot nonce has 1 to {MAX_NONCE_BYTES} bytes")
        row = self._state.db.execute(
            "SELECT epoch, nonce, nonce_epoch FROM members WHERE id = ?", (command.member,)).fetchone()
        if row is None:
            raise Refuse(Code.NOT_FOUND, f"{clipped(command.member, 64)} is no member of this cluster")
        epoch, nonce, nonce_epoch = row
        if nonce == command.nonce:
            return {"epoch": nonce_epoch}
        epoch += 1
        self._state.db.execute("UPDATE members SET epoch=?, nonce=?, nonce_epoch=?, version=? WHERE id=?",
                               (epoch, command.nonce, epoch, clipped(command.version, 64), command.member))
        self._sessions.expire(command.member, epoch, "member restarted")
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

    @staticmethod
    def _check_specs(members: tuple[MemberSpec, ...]) -> None:
        if not 1 <= len(members) <= MAX_MEMBERS:
            raise Refuse(Code.INVALID, f"a cluster has 1 to {MAX_MEMBERS} members, not {len(members)}")
        for spec in members:
            if not 1 <= len(spec.id.encode("utf-8", "replace")) <= MAX_MEMBER_ID_BYTES or not spec.name:
                raise Refuse(Code.INVALID, f"a member needs a name, and an id of at most {MAX_MEMBER_ID_BYTES} bytes")
            if spec.mode not in MODES or spec.weight < 0:
                raise Refuse(Code.INVALID, f"a member's mode is one of {', '.join(MODES)} and its weight not negative")
            if not all(0 <= port <= 65535 for port in (spec.peer_port, spec.gossip_port, spec.sftp_port)):
                raise Refuse(Code.INVALID, "a port is 0..65535")
        for what in ("id", "name", "fingerprint"):
            values = [getattr(spec, what) for spec in members]
            if len(set(values)) != len(values):
                raise Refuse(Code.INVALID, f"two members have the same {what}")
