"""The tables of the replicated state, and opening, discarding and fingerprinting the SQLite file that holds them.

The file is changed only by `Machine.apply_batch`, one transaction a batch. It is a cache of the Raft journal: it is
written with synchronous=OFF and made again from the journal after an unclean stop, so no commit waits for a disk.
journal_mode is WAL and not memory: a process killed in the middle of a commit leaves a whole database, and a second
connection can pin a snapshot (for copies, digests and long queries in a thread) while batches go on being applied.

Ids of inodes, sessions, opens and uploads are the Raft indexes of the entries that made them, so they are never used
twice. Names are BLOBs: they need be no text. A partial stands only where no published name does.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3

from raftmft.core import features
from raftmft.core.errors import CorruptFile, ProgramTooOld
from raftmft.core.features import FIRST, Features

APPLICATION_ID = 0x724D4654  # "rMFT" in the SQLite header
FORMAT_VERSION = 6
LEVEL = "feature_level"
"""The key in `settings` of the feature level in force: the tables are those of _DDL and of the levels up to it."""

_DDL = (
    """CREATE TABLE clock (
        one INTEGER PRIMARY KEY CHECK (one = 1), applied INTEGER NOT NULL, time_ms INTEGER NOT NULL,
        next_sweep_ms INTEGER NOT NULL, next_uid INTEGER NOT NULL, audit_count INTEGER NOT NULL,
        audit_head BLOB NOT NULL, chain BLOB NOT NULL)""",
    "INSERT INTO clock VALUES (1, 0, 0, 0, 1000, 0, zeroblob(32), zeroblob(32))",
    """CREATE TABLE bans (
        network TEXT PRIMARY KEY, until_ms INTEGER NOT NULL, reason TEXT NOT NULL, actor TEXT NOT NULL,
        since_ms INTEGER NOT NULL) WITHOUT ROWID""",
    "CREATE TABLE settings (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID",
    """CREATE TABLE members (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, host TEXT NOT NULL, peer_port INTEGER NOT NULL,
        gossip_port INTEGER NOT NULL, sftp_port INTEGER NOT NULL, fingerprint TEXT NOT NULL, mode TEXT NOT NULL,
        weight INTEGER NOT NULL, version TEXT NOT NULL, epoch INTEGER NOT NULL, nonce BLOB NOT NULL,
        nonce_epoch INTEGER NOT NULL, acked_below INTEGER NOT NULL, joined INTEGER NOT NULL, home_mode TEXT NOT NULL,
        supports INTEGER NOT NULL, opens_recorded INTEGER NOT NULL, reads_from INTEGER NOT NULL)
        WITHOUT ROWID""",
    """CREATE TABLE certificates (
        fingerprint TEXT PRIMARY KEY, member TEXT NOT NULL, name TEXT NOT NULL, not_after_ms INTEGER NOT NULL,
        added_ms INTEGER NOT NULL, state TEXT NOT NULL) WITHOUT ROWID""",
    # A used token keeps the member that it admitted, and the key of that host, until it expires.
    """CREATE TABLE tokens (
        token TEXT PRIMARY KEY, mode TEXT NOT NULL, expires_ms INTEGER NOT NULL, member TEXT NOT NULL,
        key TEXT NOT NULL) WITHOUT ROWID""",
    """CREATE TABLE outcomes (
        member TEXT NOT NULL, seq INTEGER NOT NULL, outcome BLOB NOT NULL, PRIMARY KEY (member, seq)) WITHOUT ROWID""",
    """CREATE TABLE users (
        uid INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, home INTEGER NOT NULL, password_hash TEXT,
        quota_bytes INTEGER NOT NULL, max_sessions INTEGER NOT NULL, read_only INTEGER NOT NULL,
        enabled INTEGER NOT NULL, credential INTEGER NOT NULL, files INTEGER NOT NULL, file_bytes INTEGER NOT NULL,
        partial_bytes INTEGER NOT NULL)""",
    """CREATE TABLE user_keys (
        uid INTEGER NOT NULL, fingerprint TEXT NOT NULL, line TEXT NOT NULL, added_ms INTEGER NOT NULL,
        PRIMARY KEY (uid, fingerprint)) WITHOUT ROWID""",
    """CREATE TABLE sessions (
        id INTEGER PRIMARY KEY, member TEXT NOT NULL, epoch INTEGER NOT NULL, uid INTEGER NOT NULL,
        address TEXT NOT NULL, method TEXT NOT NULL, started_ms INTEGER NOT NULL)""",
    "CREATE INDEX sessions_by_member ON sessions (member)",
    "CREATE INDEX sessions_by_user ON sessions (uid)",
    # An open outlives its session (left_ms > 0) until the member reports its end or is known to be dead.
    # `id` is the Raft index of its entry, or, recorded afterwards, minus its number; `at` is the index that it reads.
    """CREATE TABLE opens (
        session INTEGER NOT NULL, id INTEGER NOT NULL, member TEXT NOT NULL, user TEXT NOT NULL,
        address TEXT NOT NULL, inode INTEGER NOT NULL, version INTEGER NOT NULL, path TEXT NOT NULL,
        digest TEXT NOT NULL, at INTEGER NOT NULL, left_ms INTEGER NOT NULL, PRIMARY KEY (session, id))
        WITHOUT ROWID""",
    "CREATE INDEX opens_by_member ON opens (member, at)",
    "CREATE INDEX opens_by_inode ON opens (inode)",
    "CREATE INDEX opens_left ON opens (left_ms) WHERE left_ms > 0",
    """CREATE TABLE inodes (
        id INTEGER PRIMARY KEY, kind INTEGER NOT NULL, mode INTEGER NOT NULL, uid INTEGER NOT NULL,
        gid INTEGER NOT NULL, atime INTEGER NOT NULL, mtime INTEGER NOT NULL, ctime INTEGER NOT NULL,
        size INTEGER NOT NULL, depth INTEGER NOT NULL, ids BLOB NOT NULL, digest TEXT NOT NULL,
        version INTEGER NOT NULL, nlink INTEGER NOT NULL, target BLOB NOT NULL)""",
    "CREATE INDEX inodes_by_version ON inodes (version) WHERE version > 0",
    "CREATE INDEX inodes_by_user ON inodes (uid, version) WHERE version > 0",
    """CREATE TABLE dentries (
        parent INTEGER NOT NULL, name BLOB NOT NULL, inode INTEGER NOT NULL, kind INTEGER NOT NULL,
        PRIMARY KEY (parent, name)) WITHOUT ROWID""",
    "CREATE INDEX dentries_by_inode ON dentries (inode)",
    """CREATE TABLE uploads (
        id INTEGER PRIMARY KEY, session INTEGER NOT NULL, uid INTEGER NOT NULL, parent INTEGER NOT NULL,
        name BLOB NOT NULL, file INTEGER NOT NULL, base INTEGER NOT NULL, truncate INTEGER NOT NULL,
        exclusive INTEGER NOT NULL, append INTEGER NOT NULL, mode INTEGER NOT NULL)""",
    "CREATE INDEX uploads_by_session ON uploads (session)",
    "CREATE INDEX uploads_by_file ON uploads (file) WHERE file > 0",
    # Versions that a live upload took chunks from (copy-data): their chunks are in use until it ends.
    """CREATE TABLE sources (
        upload INTEGER NOT NULL, inode INTEGER NOT NULL, version INTEGER NOT NULL, size INTEGER NOT NULL,
        depth INTEGER NOT NULL, ids BLOB NOT NULL, PRIMARY KEY (upload, inode, version)) WITHOUT ROWID""",
    # `upload` is the live upload that the prefix belongs to, 0 when none does; `begun` is kept to order writers.
    """CREATE TABLE partials (
        uid INTEGER NOT NULL, parent INTEGER NOT NULL, name BLOB NOT NULL, upload INTEGER NOT NULL,
        begun INTEGER NOT NULL, size INTEGER NOT NULL, depth INTEGER NOT NULL, ids BLOB NOT NULL,
        mode INTEGER NOT NULL, version INTEGER NOT NULL, touched_ms INTEGER NOT NULL,
        PRIMARY KEY (uid, parent, name)) WITHOUT ROWID""",
    "CREATE INDEX partials_by_upload ON partials (upload) WHERE upload > 0",
    "CREATE INDEX partials_by_parent ON partials (parent)",
    "CREATE INDEX partials_by_version ON partials (version)",
    "CREATE INDEX partials_idle ON partials (touched_ms) WHERE upload = 0",
    """CREATE TABLE admin_tokens (
        name TEXT PRIMARY KEY, token_hash TEXT NOT NULL UNIQUE, role TEXT NOT NULL, added_ms INTEGER NOT NULL,
        added_by TEXT NOT NULL) WITHOUT ROWID""",
    """CREATE TABLE audit (
        idx INTEGER NOT NULL, n INTEGER NOT NULL, time INTEGER NOT NULL, kind TEXT NOT NULL, user TEXT, path TEXT,
        target TEXT, member TEXT, address TEXT, session INTEGER, size INTEGER, digest TEXT, outcome TEXT NOT NULL,
        hash BLOB NOT NULL, PRIMARY KEY (idx, n)) WITHOUT ROWID""",
)

# Table -> order of its rows in the digest. The audit table is represented by the head of its hash chain and its
# count, which stand in `clock`: else a digest would cost as much as the cluster is old.
_DIGEST_ORDER = {
    "clock": "one", "settings": "key", "bans": "network", "admin_tokens": "name", "members": "id",
    "certificates": "fingerprint", "tokens": "token", "outcomes": "member, seq", "users": "uid",
    "user_keys": "uid, fingerprint", "sessions": "id", "opens": "session, id", "inodes": "id",
    "dentries": "parent, name",
    "uploads": "id", "sources": "upload, inode, version", "partials": "uid, parent, name",
}


def open_state(path: str, known: Features | None = None) -> sqlite3.Connection:
    """The state's one writing connection, made with its tables if the file is new.

    Raises CorruptFile (naming the file) if it is another program's, of an unknown format, or no database at all;
    ProgramTooOld if it is at a feature level above those `known` (by default, to this program).
    """
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=512)
    try:
        application, version, tables = _identify(db)
        if not tables and application == 0 and version == 0:
            _create(db)
        else:
            _check(path, application, version)
            _check_level(path, db, known or features.CURRENT)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=OFF")
        db.execute("PRAGMA temp_store=MEMORY")  # the statement journal of a savepoint never becomes a file
        db.execute("PRAGMA cache_size=-32768")
    except sqlite3.DatabaseError as error:
        db.close()
        if isinstance(error, sqlite3.OperationalError):
            raise
        raise CorruptFile(f"{path} is no state database ({error}); discard it to rebuild it from the journal") from None
    except BaseException:
        db.close()
        raise
    return db


def open_reader(path: str) -> sqlite3.Connection:
    """A read-only connection for long queries in another thread; it pins a snapshot from its BEGIN and first SELECT.

    The caller closes it. Raises CorruptFile as `open_state` does, sqlite3.OperationalError if there is no file.
    """
    db = sqlite3.connect(f"file:{_uri_path(path)}?mode=ro", uri=True, isolation_level=None, check_same_thread=False)
    try:
        application, version, _ = _identify(db)
        _check(path, application, version)
    except BaseException:
        db.close()
        raise
    return db


def copy(path: str, target: str) -> int:
    """Copies the state at `path` as of one moment into a new file at `target`; the Raft index that it is of.

    For a thread: the moment is pinned by a read transaction, and the writing connection goes on meanwhile. `target` is
    not synced. Raises as `open_reader` does.
    """
    reader = open_reader(path)
    try:
        reader.execute("BEGIN")
        (applied,) = reader.execute("SELECT applied FROM clock").fetchone()
        discard(target)
        made = sqlite3.connect(target, isolation_level=None)
        try:
            made.execute("PRAGMA journal_mode=OFF")
            made.execute("PRAGMA synchronous=OFF")
            reader.backup(made)
        finally:
            made.close()
    finally:
        reader.close()
    return int(applied)


def check_format(path: str, known: Features | None = None) -> None:
    """Raises CorruptFile, ProgramTooOld as `open_state` does, without changing the database: no side file is made."""
    still = "" if os.path.exists(path + "-wal") else "&immutable=1"  # a WAL that a reader kept alive must be read, too
    db = sqlite3.connect(f"file:{_uri_path(path)}?mode=ro{still}", uri=True)
    try:
        application, version, tables = _identify(db)
        if tables or application or version:
            _check(path, application, version)
            _check_level(path, db, known or features.CURRENT)
    except sqlite3.DatabaseError as error:
        raise CorruptFile(f"{path} is no state database ({error}); discard it to rebuild it from the journal") from None
    finally:
        db.close()


def close_synced(db: sqlite3.Connection, path: str) -> None:
    """Closes the writing connection; when this returns, everything committed is on disk, also if power fails next.

    Until now nothing was ever synced. Raises OSError if a sync fails: then the file must not be trusted.
    """
    db.close()  # moves the WAL into the file and removes it, unless a reader is still there
    for name in (path, path + "-wal"):
        if os.path.exists(name):
            _fsync(name)
    _fsync(os.path.dirname(os.path.abspath(path)))


def discard(path: str) -> None:
    """Removes the database and its side files; no error if there are none. The journal makes them again."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        try:
            os.remove(path + suffix)
        except FileNotFoundError:
            continue


def digest(db: sqlite3.Connection, known: Features | None = None) -> str:
    """SHA-256 (hex) over every row of every table in key order; the audit log stands in by the head of its chain.

    Equal on all members at equal applied index. Takes about a second for a million rows: on a busy node run it in a
    thread, in a read transaction of `open_reader`.
    """
    sha = hashlib.sha256()
    tables = _DIGEST_ORDER | (known or features.CURRENT).tables(_level(db))
    for table, order in tables.items():
        sha.update(b"%s\n" % table.encode())
        for row in db.execute(f"SELECT * FROM {table} ORDER BY {order}"):
            # ascii(), since repr() depends on the Unicode tables of the Python at hand.
            sha.update(ascii(row).encode())
    return sha.hexdigest()


def _identify(db: sqlite3.Connection) -> tuple[int, int, int]:
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return application, version, tables


def _check(path: str, application: int, version: int) -> None:
    if application != APPLICATION_ID:
        raise CorruptFile(f"{path} is not a raftmft state (application id {application:#x}); move it away")
    if version != FORMAT_VERSION:
        raise CorruptFile(f"{path} has state format {version}, this program reads format {FORMAT_VERSION}: "
                          f"run the version that wrote it, or discard the file to rebuild it from the journal")


def _level(db: sqlite3.Connection) -> int:
    row = db.execute("SELECT value FROM settings WHERE key = ?", (LEVEL,)).fetchone()
    return FIRST if row is None else int(row[0])


def _check_level(path: str, db: sqlite3.Connection, known: Features) -> None:
    level = _level(db)
    if level > known.newest:
        raise ProgramTooOld(f"{path}: {features.too_old(level, known.newest)}")


def _create(db: sqlite3.Connection) -> None:
    db.execute("BEGIN IMMEDIATE")  # all or nothing, the format numbers included
    for statement in _DDL:
        db.execute(statement)
    db.execute(f"PRAGMA application_id={APPLICATION_ID}")
    db.execute(f"PRAGMA user_version={FORMAT_VERSION}")
    db.execute("COMMIT")


def _fsync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _uri_path(path: str) -> str:
    return os.path.abspath(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
