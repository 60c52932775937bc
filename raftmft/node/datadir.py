"""The data directory of one node: where each thing stands, whose it is, and that one process has it at a time.

raftmft.toml   settings of this host          seed.json   cluster id, first members (no open secrets)
keys/          ca.crt node.crt node.key cluster.key (0700; files 0600)
raft/          journal.*: the Raft log, term and vote; snapshot.*
state/         the state machine's SQLite file
chunks/        segments                       admin.sock, admin.token (0600), node.pid, lock
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from raftmft.cluster.certificates import CertificateFiles, write_file
from raftmft.core.commands import MemberSpec
from raftmft.core.errors import ConfigError
from raftmft.node import jsonfile

SEED, SEED_FORMAT = "seed", 2
CLEAN_MAGIC, CLEAN_FORMAT = b"raftmft clean ", 1
STARTED = b"raftmft started 1\n"
PROBE_BYTES = 1 << 20
"""Written and synced before anything else: what a new member's directory must at least have room for."""
LOST_FOUND = "lost+found"  # every fresh ext file system has it


@dataclass(frozen=True, slots=True)
class Seed:
    """What a node must know before it has any state. Sealed keys are in hex.

    A *founder* knows the first members of a cluster that it helps to make. A host that joined knows the members that it
    was told of at its admission, and itself: addresses for the first contact. It has no vote until the log says so.
    """

    cluster: str
    cluster_id: str
    me: str
    members: tuple[MemberSpec, ...]
    replicas: int
    host_public_key: str
    sealed_host_key: str
    sealed_ca_key: str
    founder: bool = True

    def member(self, member_id: str) -> MemberSpec:
        """The member with this id."""
        return next(m for m in self.members if m.id == member_id)


class DataDir:
    """Paths below one data directory. Opening it does not lock it; `lock()` does."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self._lock_fd = -1

    @property
    def keys(self) -> Path:
        """The folder of this member's secrets."""
        return self.path / "keys"

    @property
    def certificates(self) -> CertificateFiles:
        """This member's TLS files."""
        return CertificateFiles(self.keys / "ca.crt", self.keys / "node.crt", self.keys / "node.key")

    @property
    def cluster_key(self) -> Path:
        """The key that seals the secrets in the replicated state and signs gossip and prefaces."""
        return self.keys / "cluster.key"

    @property
    def chunks(self) -> Path:
        """The folder of chunk segments."""
        return self.path / "chunks"

    @property
    def journal(self) -> Path:
        """The Raft journal: what the names of its segments begin with."""
        return self.path / "raft" / "journal"

    @property
    def snapshots(self) -> Path:
        """What the names of the snapshots of the state begin with."""
        return self.path / "raft" / "snapshot"

    @property
    def state(self) -> Path:
        """The state machine's SQLite file."""
        return self.path / "state" / "state.db"

    @property
    def clean_mark(self) -> Path:
        """Stands only while the state file is whole on disk: made at a clean stop, removed at start."""
        return self.path / "state" / "clean"

    @property
    def started_mark(self) -> Path:
        """Stands from the moment at which this member had a journal: without one it has forgotten what it promised."""
        return self.path / "started"

    @property
    def repair_mark(self) -> Path:
        """Through which Raft index this member holds the chunks it should."""
        return self.path / "repair.mark"

    @property
    def admin_socket(self) -> Path:
        """The admin API's Unix socket."""
        return self.path / "admin.sock"

    @property
    def admin_token(self) -> Path:
        """The token for the admin API over TCP."""
        return self.path / "admin.token"

    @property
    def pid_file(self) -> Path:
        """The running node's process id."""
        return self.path / "node.pid"

    @contextmanager
    def made(self) -> Iterator[None]:
        """Makes the folders, 0700, for the block to fill. Whatever ends the block in between, nothing is left behind:
        the directory is as it was. Raises ConfigError if it is used already, another user's, or cannot be written.
        """
        top = next((path for path in reversed([self.path, *self.path.parents]) if not path.exists()), None)
        if top is None:
            self._check_empty()
        mode, locked, ours, whole = 0o700, -1, False, False
        try:
            try:
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                locked = _lock_folder(self.path)
                mode = self._check_empty()  # again, now that nobody else fills it
                ours = True
                os.chmod(self.path, 0o700)
                for folder in (self.keys, self.chunks, self.journal.parent, self.state.parent):
                    folder.mkdir(mode=0o700)
                write_file(self.path / ".probe", bytes(PROBE_BYTES))
                (self.path / ".probe").unlink()
            except OSError as error:
                raise ConfigError(f"{self.path} cannot be made and written: {error.strerror}; give another directory, "
                                  "or mend this") from None
            yield
            whole = True
        finally:
            if ours and not whole:
                self._empty()
                os.chmod(self.path, mode)
            if not whole and top is not None:
                _remove_empty_folders(self.path, top)
            if locked >= 0:
                os.close(locked)

    @contextmanager
    def made_anew(self) -> Iterator[Callable[[], None]]:
        """For a member's directory that is to become another member's: locked for the block, which gets a function that
        removes all but chunks, settings and logs, and makes the folders. Until that is called nothing is changed; after
        it the directory is no member's until a seed is written. ConfigError if it is no member's, or its node runs.
        """
        self.check_owner()
        if not any((self.path / name).exists() for name in ("seed.json", "raftmft.toml")):
            raise ConfigError(f"{self.path} is neither empty nor a member's: give a member's data directory, or an "
                              "empty or new one")
        self.lock()
        try:
            yield self._clear
        finally:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _clear(self) -> None:
        (self.path / "seed.json").unlink(missing_ok=True)
        sync_folder(self.path)  # first: what is left of a member is not run
        for path in (self.repair_mark, self.started_mark, self.admin_token, self.admin_socket, self.pid_file):
            path.unlink(missing_ok=True)
        for folder in (self.journal.parent, self.state.parent, self.keys):
            if folder.is_dir():
                shutil.rmtree(folder)
        for folder in (self.keys, self.chunks, self.journal.parent, self.state.parent):
            folder.mkdir(mode=0o700, exist_ok=True)

    def _empty(self) -> None:
        for path in self.path.iterdir():
            if path.name != LOST_FOUND:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def _check_empty(self) -> int:
        """The mode of an existing directory that is ours to fill. ConfigError otherwise."""
        try:
            info = self.path.stat()
            if not stat.S_ISDIR(info.st_mode):
                raise NotADirectoryError
            if info.st_uid != os.geteuid():
                raise ConfigError(f"{self.path} belongs to user {info.st_uid}, not to {os.geteuid()}; run as its owner")
            if (self.path / "seed.json").exists():
                raise ConfigError(f"{self.path} is not empty: a member was made there already; run it with raftmft "
                                  f"node --data-dir {self.path}, or give another directory")
            if any(path.name != LOST_FOUND for path in self.path.iterdir()):
                raise ConfigError(f"{self.path} is not empty; give an empty or new directory")
            return stat.S_IMODE(info.st_mode)
        except NotADirectoryError:
            raise ConfigError(f"{self.path} is not a directory; give an empty or new directory") from None
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be used: {error.strerror}") from None

    def check_owner(self) -> None:
        """Refuses a directory of another user, or one that others may read. Raises ConfigError."""
        try:
            info = self.path.stat()
        except OSError as error:
            raise ConfigError(
                f"{self.path}: {error.strerror}; make a node there with raftmft init or raftmft dev"
            ) from None
        if not stat.S_ISDIR(info.st_mode):
            raise ConfigError(f"{self.path} is not a directory")
        if info.st_uid != os.geteuid():
            raise ConfigError(f"{self.path} belongs to user {info.st_uid}, not to {os.geteuid()}; run as its owner")
        if info.st_mode & 0o077:
            raise ConfigError(f"{self.path} is open to other users; run chmod 700 {self.path}")

    def lock(self) -> None:
        """Takes the directory for this process until it ends. Raises ConfigError if another node runs on it."""
        fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            running = self.pid_file.read_text().strip() if self.pid_file.exists() else "unknown"
            raise ConfigError(f"{self.path} is in use by a running node (pid {running}); stop it first") from None
        self._lock_fd = fd

    def write_seed(self, seed: Seed) -> None:
        """Writes seed.json."""
        write_file(self.path / "seed.json", jsonfile.render(SEED, SEED_FORMAT, asdict(seed)))

    def read_seed(self) -> Seed:
        """Reads seed.json. Raises ConfigError."""
        path = self.path / "seed.json"
        try:
            table = jsonfile.read(path, SEED, SEED_FORMAT)
            table["members"] = tuple(MemberSpec(**m) for m in table["members"])
            seed = Seed(**table)
            seed.member(seed.me)
            if type(seed.founder) is not bool:
                raise TypeError("founder")
            return seed
        except FileNotFoundError:
            raise ConfigError(f"{path} is missing; make a node there with raftmft init or raftmft dev") from None
        except (ValueError, TypeError, KeyError, StopIteration, AttributeError, OSError) as error:
            raise ConfigError(f"{path} is damaged ({type(error).__name__}); restore it from another copy") from None

    def take_clean_mark(self) -> bool:
        """True if the last stop was clean. The mark is gone from the disk before this returns, so that a crash from
        now on is seen as one. A damaged mark says nothing. ConfigError if another version wrote it: it is left.
        """
        try:
            magic, _, number = self.clean_mark.read_bytes()[:64].rpartition(b" ")
        except FileNotFoundError:
            return False
        whole = magic + b" " == CLEAN_MAGIC and number.endswith(b"\n") and number[:-1].isdigit()
        if whole and int(number) != CLEAN_FORMAT:
            raise ConfigError(f"{self.clean_mark} has format {int(number)}, this program reads format {CLEAN_FORMAT}: "
                              "run the version that wrote it")
        self.clean_mark.unlink()
        sync_folder(self.clean_mark.parent)
        return whole

    def leave_clean_mark(self) -> None:
        """Says that the (closed) state file is whole: synced first, then marked."""
        fd = os.open(self.state, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        write_file(self.clean_mark, b"%s%d\n" % (CLEAN_MAGIC, CLEAN_FORMAT))


def sync_folder(path: Path) -> None:
    """Makes renames and new names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _lock_folder(path: Path) -> int:
    """Holds a folder against others that would fill it; gives the descriptor to close. ConfigError if one does."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise ConfigError(f"{path} is being filled by another raftmft at this moment; give another directory") from None
    return fd


def _remove_empty_folders(path: Path, top: Path) -> None:
    """Removes `path` and its parents up to `top`, as far as they are empty."""
    for folder in (path, *path.parents):
        try:
            folder.rmdir()
        except OSError:
            return
        if folder == top:
            return
