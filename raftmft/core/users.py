"""Tenants: their credentials, limits and homes.

`credential` counts the changes of password, keys and enabled: a login proven against an older number is rejected.
A uid is never used twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raftmft.core.audit import AuditWriter
from raftmft.core.commands import UserAdd, UserKeyAdd, UserKeyRemove, UserRemove, UserSet
from raftmft.core.keys import parse_key
from raftmft.core.names import clipped, user_name_problem
from raftmft.core.namespace import DIRECTORY, DIRECTORY_MODE, Namespace
from raftmft.core.outcome import Code
from raftmft.core.sessions import Sessions
from raftmft.core.state import Refuse, State

FIRST_CREDENTIAL = 1
MAX_KEYS = 64
MAX_HASH_CHARS = 1024
MAX_QUOTA_BYTES = 1 << 62
MAX_SESSIONS = 1 << 31
_COLUMNS = ("uid, name, home, password_hash, quota_bytes, max_sessions, read_only, enabled, credential, files, "
            "file_bytes, partial_bytes")


@dataclass(frozen=True, slots=True)
class UserRow:
    """A user. 0 means unlimited; password_hash is None if there is no password; `home` is an inode."""

    uid: int
    name: str
    home: int
    password_hash: str | None
    quota_bytes: int
    max_sessions: int
    read_only: bool
    enabled: bool
    credential: int
    files: int
    file_bytes: int
    partial_bytes: int

    @property
    def used_bytes(self) -> int:
        """What counts against the quota."""
        return self.file_bytes + self.partial_bytes


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One public key of a user."""

    fingerprint: str
    line: str
    added_ms: int


KeyRows = list[KeyRow]


class Users:
    """All users."""

    def __init__(self, state: State, namespace: Namespace, sessions: Sessions, audit: AuditWriter) -> None:
        self._state, self._namespace, self._sessions, self._audit = state, namespace, sessions, audit

    def get(self, name: str) -> UserRow | None:
        """A user by name, or None."""
        row = self._state.db.execute(f"SELECT {_COLUMNS} FROM users WHERE name = ?", (name,)).fetchone()
        return None if row is None else _user(row)

    def list(self) -> list[UserRow]:
        """All users by name."""
        return [_user(row) for row in self._state.db.execute(f"SELECT {_COLUMNS} FROM users ORDER BY name")]

    def keys(self, name: str) -> KeyRows:
        """The user's public keys; none for an unknown user."""
        rows = self._state.db.execute(
            "SELECT k.fingerprint, k.line, k.added_ms FROM user_keys k JOIN users u ON u.uid = k.uid "
            "WHERE u.name = ? ORDER BY k.added_ms, k.fingerprint", (name,))
        return [KeyRow(*row) for row in rows]

    # --- apply ---------------------------------------------------------------------------------------------------
    def add(self, command: UserAdd) -> dict[str, Any]:
        """A new user with an empty home."""
        state, name = self._state, command.name
        problem = user_name_problem(name)
        if problem is not None:
            raise Refuse(Code.BAD_NAME, problem)
        if self.get(name) is not None:
            raise Refuse(Code.EXISTS, f"the user {name} exists already")
        password_hash = _checked_hash(command.password_hash)
        _check_limits(command.quota_bytes, command.max_sessions)
        if len(command.keys) > MAX_KEYS:
            raise Refuse(Code.LIMIT, f"a user has at most {MAX_KEYS} keys")
        keys = {fingerprint: line for line, fingerprint in map(parse_key, command.keys)}
        uid, state.next_uid = state.next_uid, state.next_uid + 1
        home = self._namespace.add_inode(DIRECTORY, DIRECTORY_MODE, uid)
        state.db.execute(
            "INSERT INTO users VALUES (?,?,?,?,?,?,?,1,?,0,0,0)",
            (uid, name, home, password_hash, command.quota_bytes, command.max_sessions, int(command.read_only),
             FIRST_CREDENTIAL))
        for fingerprint, line in keys.items():
            state.db.execute("INSERT INTO user_keys VALUES (?,?,?,?)", (uid, fingerprint, line, state.now_ms))
        self._audit.admin(f"user add {name}", actor=command.actor)
        return {"uid": uid}

    def set(self, command: UserSet) -> dict[str, Any]:
        """Changes what is not None. Live sessions go on, under the new limits."""
        user = self._known(command.name)
        _check_limits(command.quota_bytes or 0, command.max_sessions or 0)
        columns: dict[str, Any] = {}
        if command.password_hash is not None:
            columns["password_hash"] = _checked_hash(command.password_hash)
        for column in ("quota_bytes", "max_sessions"):
            if (value := getattr(command, column)) is not None:
                columns[column] = value
        for column in ("read_only", "enabled"):
            if (value := getattr(command, column)) is not None:
                columns[column] = int(value)
        words = ", ".join("password" if column == "password_hash" else f"{column}={value}"
                          for column, value in columns.items())
        if "password_hash" in columns or columns.get("enabled", user.enabled) != user.enabled:
            columns["credential"] = user.credential + 1
        if columns:
            self._state.db.execute(f"UPDATE users SET {', '.join(f'{column}=?' for column in columns)} WHERE uid=?",
                                   (*columns.values(), user.uid))
        self._audit.admin(f"user set {user.name}: {words or 'nothing'}", actor=command.actor)
        return {}

    def remove(self, command: UserRemove) -> dict[str, Any]:
        """Ends the user's sessions and removes all it has. Takes about 3 us for each of its files."""
        user = self._known(command.name)
        db = self._state.db
        sessions = self._sessions.end_all_of(user.uid, "user removed")
        inodes = [row[0] for row in db.execute(
            "WITH RECURSIVE tree(id) AS (SELECT ? UNION ALL SELECT d.inode FROM tree JOIN dentries d "
            "ON d.parent = tree.id) SELECT id FROM tree", (user.home,))]
        db.executemany("DELETE FROM inodes WHERE id = ?", ((inode,) for inode in inodes))
        db.executemany("DELETE FROM dentries WHERE parent = ?", ((inode,) for inode in inodes))
        for table in ("partials", "user_keys", "users"):
            db.execute(f"DELETE FROM {table} WHERE uid = ?", (user.uid,))
        self._audit.admin(f"user remove {user.name}", actor=command.actor)
        return {"sessions": sessions}

    def add_key(self, command: UserKeyAdd) -> dict[str, Any]:
        """One more public key."""
        user = self._known(command.name)
        line, fingerprint = parse_key(command.key)
        known = self.keys(user.name)
        if any(key.fingerprint == fingerprint for key in known):
            raise Refuse(Code.EXISTS, f"the user {user.name} has this key already ({fingerprint})")
        if len(known) >= MAX_KEYS:
            raise Refuse(Code.LIMIT, f"a user has at most {MAX_KEYS} keys")
        self._state.db.execute("INSERT INTO user_keys VALUES (?,?,?,?)",
                               (user.uid, fingerprint, line, self._state.now_ms))
        self._bump(user.uid)
        self._audit.admin(f"user key add {user.name} {fingerprint}", actor=command.actor)
        return {"fingerprint": fingerprint}

    def remove_key(self, command: UserKeyRemove) -> dict[str, Any]:
        """One public key less."""
        user = self._known(command.name)
        done = self._state.db.execute("DELETE FROM user_keys WHERE uid = ? AND fingerprint = ?",
                                      (user.uid, command.fingerprint))
        if not done.rowcount:
            raise Refuse(Code.NOT_FOUND, f"the user {user.name} has no key {clipped(command.fingerprint, 64)}")
        self._bump(user.uid)
        self._audit.admin(f"user key remove {user.name} {command.fingerprint}", actor=command.actor)
        return {}

    def _known(self, name: str) -> UserRow:
        user = self.get(name)
        if user is None:
            raise Refuse(Code.NO_USER, f"there is no user {clipped(name, 64)}")
        return user

    def _bump(self, uid: int) -> None:
        self._state.db.execute("UPDATE users SET credential = credential + 1 WHERE uid = ?", (uid,))


def _user(row: tuple[Any, ...]) -> UserRow:
    return UserRow(*(*row[:6], bool(row[6]), bool(row[7]), *row[8:]))


def _checked_hash(password_hash: str | None) -> str | None:
    if password_hash is not None and len(password_hash) > MAX_HASH_CHARS:
        raise Refuse(Code.INVALID, f"a password hash has at most {MAX_HASH_CHARS} characters")
    return password_hash or None


def _check_limits(quota_bytes: int, max_sessions: int) -> None:
    if not 0 <= quota_bytes <= MAX_QUOTA_BYTES:
        raise Refuse(Code.INVALID, f"a quota is 0 (unlimited) to {MAX_QUOTA_BYTES} bytes")
    if not 0 <= max_sessions <= MAX_SESSIONS:
        raise Refuse(Code.INVALID, f"max_sessions is 0 (unlimited) to {MAX_SESSIONS}")
