"""Letting new hosts in: join tokens, and the admission of who shows one.

Of a token only the hash of its secret stands here. A token admits one host once and expires in the state's time. The
same host that asks again with the same key (its first answer was lost) is given the same admission.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from raftmft.core.audit import AuditWriter
from raftmft.core.certificates import Certificates
from raftmft.core.commands import MemberAdmit, MemberRemove, TokenCreate
from raftmft.core.members import Members
from raftmft.core.names import clipped
from raftmft.core.outcome import Code
from raftmft.core.state import Refuse, State

JOIN_MODES = ("active", "standby", "witness")
MAX_TTL_MS = 30 * 24 * 3600 * 1000
MAX_TOKENS = 1000
HASH_CHARS = 64


class Admission:
    """Applies TokenCreate and MemberAdmit."""

    def __init__(self, state: State, members: Members, certificates: Certificates, audit: AuditWriter) -> None:
        self._state, self._members, self._certificates, self._audit = state, members, certificates, audit

    def create_token(self, command: TokenCreate) -> dict[str, Any]:
        """A token that admits one host."""
        if command.mode not in JOIN_MODES:
            raise Refuse(Code.INVALID, f"a host joins as one of {', '.join(JOIN_MODES)}")
        if not 0 < command.ttl_ms <= MAX_TTL_MS:
            raise Refuse(Code.INVALID, "a token lives for more than nothing and at most 30 days")
        if len(command.token) != HASH_CHARS:
            raise Refuse(Code.INVALID, "a token is named by a hash of 64 hex digits")
        (count,) = self._state.db.execute("SELECT count(*) FROM tokens").fetchone()
        if count >= MAX_TOKENS:
            raise Refuse(Code.LIMIT, f"there are {MAX_TOKENS} tokens already; wait until some expire")
        expires_ms = self._state.now_ms + command.ttl_ms
        self._state.db.execute("INSERT OR IGNORE INTO tokens VALUES (?,?,?,'','')",
                               (command.token, command.mode, expires_ms))
        self._audit.admin(f"token create {command.token[:8]} for a {command.mode} member", actor=command.actor)
        return {"expires_ms": expires_ms}

    def admit(self, command: MemberAdmit) -> dict[str, Any]:
        """A new member, as a learner that stores nothing yet."""
        state, spec = self._state, command.member
        row = state.db.execute("SELECT mode, expires_ms, member, key FROM tokens WHERE token = ?",
                               (command.token,)).fetchone()
        if row is None:
            raise Refuse(Code.PERMISSION, "the token is not known here: forged, long expired, or of another cluster; "
                                          "make one with raftmft token create")
        mode, expires_ms, member, key = row
        if member:
            admitted = self._members.get(member)
            if key != command.key or admitted is None or admitted.epoch:
                raise Refuse(Code.PERMISSION, "the token was used already; make another with raftmft token create")
            # Its first answer was lost: the certificate made for that one is replaced by the one made now.
            state.db.execute("DELETE FROM certificates WHERE member = ?", (member,))
            self._members.refresh(member, spec, command.version, command.supports)
            self._certificates.add(member, admitted.name, spec.fingerprint, command.not_after_ms)
            return {"member": member, "mode": admitted.mode}
        if state.now_ms >= expires_ms:
            raise Refuse(Code.PERMISSION, "the token has expired; make another with raftmft token create")
        old = self._members.get(command.replaces) if command.replaces else None
        if old is not None:
            if old.name != spec.name:
                raise Refuse(Code.CONFLICT, f"{clipped(old.name, 64)} is called otherwise and cannot be replaced so")
            self._members.remove(MemberRemove(old.id))
        weight = spec.weight if old is None else old.weight
        self._members.add(replace(spec, mode=mode, weight=weight), command.not_after_ms, command.version,
                          command.supports)
        state.db.execute("UPDATE tokens SET member = ?, key = ? WHERE token = ?",
                         (spec.id, clipped(command.key, 128), command.token))
        self._audit.admin(f"member join {clipped(spec.name, 64)} ({spec.host}) as {mode}", member=spec.id)
        return {"member": spec.id, "mode": mode}

    def sweep(self) -> bool:
        """Forgets tokens an hour after they expired, so that for a while people are told the true reason."""
        self._state.db.execute("DELETE FROM tokens WHERE expires_ms < ?", (self._state.now_ms - 3600_000,))
        return False
