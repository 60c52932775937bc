"""Tokens for the admin API, replicated: who may ask, and in which role. Only a token's hash is kept.

A token's secret has 256 random bits, so that a plain SHA-256 of it is as hard to reverse as the token is to guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raftmft.core.audit import AuditWriter
from raftmft.core.commands import AdminTokenAdd, AdminTokenRemove
from raftmft.core.names import clipped, user_name_problem
from raftmft.core.outcome import Code
from raftmft.core.state import Refuse, State

ADMIN_ROLES = ("viewer", "operator", "admin")
MAX_ADMIN_TOKENS = 1000
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class AdminTokenRow:
    """A token that is valid. Its secret is not here."""

    name: str
    role: str
    added_ms: int
    added_by: str


Rows = list[AdminTokenRow]


class AdminTokens:
    """All admin tokens but those that stand in data directories."""

    def __init__(self, state: State, audit: AuditWriter) -> None:
        self._state, self._audit = state, audit

    def list(self) -> Rows:
        """All tokens by name."""
        return [AdminTokenRow(*row) for row in self._state.db.execute(
            "SELECT name, role, added_ms, added_by FROM admin_tokens ORDER BY name")]

    def find(self, token_hash: str) -> AdminTokenRow | None:
        """The token whose secret has this SHA-256 (hex), or None."""
        row = self._state.db.execute("SELECT name, role, added_ms, added_by FROM admin_tokens WHERE token_hash = ?",
                                     (token_hash,)).fetchone()
        return None if row is None else AdminTokenRow(*row)

    # --- apply ---------------------------------------------------------------------------------------------------
    def add(self, command: AdminTokenAdd) -> dict[str, Any]:
        """One more token."""
        name, db = command.name, self._state.db
        if user_name_problem(name) is not None:
            raise Refuse(Code.BAD_NAME, "an admin token's name follows the rules of user names")
        if command.role not in ADMIN_ROLES:
            raise Refuse(Code.INVALID, f"a role is one of {', '.join(ADMIN_ROLES)}")
        if len(command.token_hash) != 64 or not _HEX.issuperset(command.token_hash):
            raise Refuse(Code.INVALID, "a token's hash has 64 hex digits")
        if db.execute("SELECT 1 FROM admin_tokens WHERE name = ? OR token_hash = ?",
                      (name, command.token_hash)).fetchone():
            raise Refuse(Code.EXISTS, f"the admin token {name} exists already; revoke it first or choose another name")
        if db.execute("SELECT count(*) FROM admin_tokens").fetchone()[0] >= MAX_ADMIN_TOKENS:
            raise Refuse(Code.LIMIT, f"there are {MAX_ADMIN_TOKENS} admin tokens already; revoke some")
        db.execute("INSERT INTO admin_tokens VALUES (?,?,?,?,?)",
                   (name, command.token_hash, command.role, self._state.now_ms, clipped(command.actor)))
        self._audit.admin(f"admin-token create {name} {command.role}", actor=command.actor)
        return {}

    def remove(self, command: AdminTokenRemove) -> dict[str, Any]:
        """One token less: from this entry on it is worth nothing."""
        done = self._state.db.execute("DELETE FROM admin_tokens WHERE name = ?", (command.name,))
        if not done.rowcount:
            raise Refuse(Code.NOT_FOUND, f"there is no admin token {clipped(command.name, 64)}; "
                                         "see raftmft admin-token list")
        self._audit.admin(f"admin-token revoke {command.name}", actor=command.actor)
        return {}
