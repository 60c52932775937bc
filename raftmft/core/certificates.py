"""Which certificates let a host in: those listed here, of a member that is one. Also which cluster key is in force.

A member has one certificate, and for a while two when it renews. A revoked certificate stays on the list as such, so
that it is never listed again and people can see it. Whoever knew the cluster key and is cut off makes a rotation of
that key *owed*: the leader sees to it, and KeyRotate settles it together with the secrets sealed anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raftmft.core.audit import AuditWriter
from raftmft.core.commands import CertAdd, CertRetire, CertRevoke, KeyRotate
from raftmft.core.names import clipped
from raftmft.core.outcome import Code
from raftmft.core.settings import Settings
from raftmft.core.state import Refuse, State

LISTED, RETIRED, REVOKED = "listed", "retired", "revoked"
FINGERPRINT_CHARS = 64
MOST_LISTED = 4
MOST_KEPT = 1000
"""Retired and revoked certificates that are remembered; the oldest go first, retired ones before revoked ones."""
MAX_TIME_MS = 1 << 53


@dataclass(frozen=True, slots=True)
class CertificateRow:
    """A certificate by its fingerprint (SHA-256 of the DER, hex). not_after_ms is 0 where it is not known yet."""

    fingerprint: str
    member: str
    name: str
    not_after_ms: int
    added_ms: int
    state: str


CertificateRows = list[CertificateRow]
_COLUMNS = "fingerprint, member, name, not_after_ms, added_ms, state"


class Certificates:
    """The list of certificates."""

    def __init__(self, state: State, settings: Settings, audit: AuditWriter) -> None:
        self._state, self._settings, self._audit = state, settings, audit

    def list(self) -> CertificateRows:
        """All that are remembered, oldest first."""
        return [CertificateRow(*row) for row in self._state.db.execute(
            f"SELECT {_COLUMNS} FROM certificates ORDER BY added_ms, fingerprint")]

    def get(self, fingerprint: str) -> CertificateRow | None:
        """One certificate."""
        row = self._state.db.execute(
            f"SELECT {_COLUMNS} FROM certificates WHERE fingerprint = ?", (fingerprint,)).fetchone()
        return None if row is None else CertificateRow(*row)

    def listed(self) -> dict[str, str]:
        """Fingerprint -> member id: who may link."""
        return dict(self._state.db.execute(
            "SELECT fingerprint, member FROM certificates WHERE state = ?", (LISTED,)).fetchall())

    # --- apply ---------------------------------------------------------------------------------------------------
    def add_command(self, command: CertAdd) -> dict[str, Any]:
        """Another certificate of a member (renewal), or the end of one that is listed already."""
        row = self._state.db.execute("SELECT name FROM members WHERE id = ?", (command.member,)).fetchone()
        if row is None:
            raise Refuse(Code.NOT_FOUND, f"{clipped(command.member, 64)} is no member of this cluster")
        known = self.get(command.fingerprint)
        if known is not None and (known.member != command.member or known.state != LISTED):
            raise Refuse(Code.PERMISSION, "this certificate was retired or revoked, or is another member's")
        if known is not None and known.not_after_ms == command.not_after_ms:
            return {}
        self.add(command.member, row[0], command.fingerprint, command.not_after_ms)
        self._audit.admin(f"cert add {command.fingerprint[:16]}", member=command.member)
        return {}

    def retire(self, command: CertRetire) -> dict[str, Any]:
        """A member renewed and does not use the old one any more; its last listed one is never retired."""
        known = self.get(command.fingerprint)
        if known is None or known.member != command.member:
            raise Refuse(Code.NOT_FOUND, "the member has no such certificate")
        if known.state != LISTED:
            return {}
        (count,) = self._state.db.execute("SELECT count(*) FROM certificates WHERE member = ? AND state = ?",
                                          (command.member, LISTED)).fetchone()
        if count < 2:
            raise Refuse(Code.INVALID, "the member's only certificate cannot be retired")
        self._mark(command.fingerprint, RETIRED)
        self._audit.admin(f"cert retire {command.fingerprint[:16]}", member=command.member)
        return {}

    def revoke(self, command: CertRevoke) -> dict[str, Any]:
        """Cuts off who shows this certificate."""
        known = self.get(command.fingerprint)
        if known is None:
            raise Refuse(Code.NOT_FOUND, f"there is no certificate {clipped(command.fingerprint, 64)}; "
                                         "see raftmft cert list")
        if known.state == LISTED:
            others = self._state.db.execute("SELECT 1 FROM certificates WHERE state = ? AND member <> ? LIMIT 1",
                                            (LISTED, known.member)).fetchone()
            if others is None:
                raise Refuse(Code.INVALID, "the last member's certificate cannot be revoked")
            self._settings.put("owes_rotation", self._state.index)
        self._mark(known.fingerprint, REVOKED)
        self._audit.admin(f"cert revoke {known.fingerprint[:16]}", actor=command.actor, member=known.member)
        return {"member": known.member}

    def rotate(self, command: KeyRotate) -> dict[str, Any]:
        """Another cluster key is in force, and the secrets are sealed with it."""
        if command.base != self._settings.key:
            raise Refuse(Code.CONFLICT, "the cluster key was changed meanwhile")
        if command.owed != self._settings.owes_rotation:
            raise Refuse(Code.CONFLICT, "another member was cut off meanwhile, who may know this key")
        if not command.key or command.key == command.base or not command.sealed_host_key:
            raise Refuse(Code.INVALID, "a rotation needs another key and the sealed secrets")
        for key, value in (("key", command.key), ("sealed_host_key", command.sealed_host_key),
                           ("sealed_ca_key", command.sealed_ca_key), ("owes_rotation", 0)):
            self._settings.put(key, value)
        self._audit.admin(f"cluster key {command.key}")
        return {}

    # --- for other handlers --------------------------------------------------------------------------------------
    def add(self, member: str, name: str, fingerprint: str, not_after_ms: int) -> None:
        """Lists a certificate. Refuses one that was retired or revoked, and too many at once."""
        if len(fingerprint) > FINGERPRINT_CHARS or not 0 <= not_after_ms < MAX_TIME_MS:
            raise Refuse(Code.INVALID, "a certificate has a fingerprint of 64 hex digits and an end")
        known = self.get(fingerprint)
        if known is not None and known.state != LISTED:
            raise Refuse(Code.PERMISSION, "this certificate was retired or revoked")
        (count,) = self._state.db.execute(
            "SELECT count(*) FROM certificates WHERE member = ? AND state = ? AND fingerprint <> ?",
            (member, LISTED, fingerprint)).fetchone()
        if count >= MOST_LISTED:
            raise Refuse(Code.LIMIT, f"a member has at most {MOST_LISTED} certificates at once; retire one first")
        self._state.db.execute("INSERT OR REPLACE INTO certificates VALUES (?,?,?,?,?,?)",
                               (fingerprint, member, name, not_after_ms, self._state.now_ms, LISTED))

    def drop_all_of(self, member: str) -> None:
        """The member is gone: what it showed is refused for good."""
        self._state.db.execute("UPDATE certificates SET state = ? WHERE member = ? AND state = ?",
                               (REVOKED, member, LISTED))
        self._settings.put("owes_rotation", self._state.index)
        self._forget_oldest()

    def _mark(self, fingerprint: str, state: str) -> None:
        self._state.db.execute("UPDATE certificates SET state = ? WHERE fingerprint = ?", (state, fingerprint))
        self._forget_oldest()

    def _forget_oldest(self) -> None:
        self._state.db.execute(
            "DELETE FROM certificates WHERE fingerprint IN (SELECT fingerprint FROM certificates WHERE state <> ? "
            "ORDER BY state = ? DESC, added_ms DESC, fingerprint LIMIT -1 OFFSET ?)", (LISTED, REVOKED, MOST_KEPT))
