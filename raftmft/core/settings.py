"""What the cluster agreed on for good: its name and id, host key, sealed secrets, number of copies, placement epoch."""

from __future__ import annotations

from typing import TypeVar

from raftmft.core.commands import Bootstrap
from raftmft.core.features import FIRST
from raftmft.core.outcome import Code
from raftmft.core.schema import LEVEL
from raftmft.core.state import Refuse, State

T = TypeVar("T", str, int, bytes)
MAX_REPLICAS = 16


class Settings:
    """Read side, and `write_bootstrap` for the entry that makes the cluster. Empty values before that."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._placement: int | None = None
        self._level: int | None = None

    def get(self, key: str, default: T) -> T:
        """The value of a setting, which is of the default's type, or the default."""
        row = self._state.db.execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()
        return default if row is None else row[0]

    @property
    def is_bootstrapped(self) -> bool:
        """True once the cluster was made."""
        return self.placement != 0

    @property
    def cluster(self) -> str:
        """The cluster's name."""
        return self.get("cluster", "")

    @property
    def cluster_id(self) -> str:
        """The id that no other cluster has."""
        return self.get("cluster_id", "")

    @property
    def host_public_key(self) -> str:
        """The SSH host key's public line."""
        return self.get("host_public_key", "")

    @property
    def sealed_host_key(self) -> bytes:
        """The SSH host key, sealed with the cluster key."""
        return self.get("sealed_host_key", b"")

    @property
    def sealed_ca_key(self) -> bytes:
        """The authority's key, sealed with the cluster key."""
        return self.get("sealed_ca_key", b"")

    @property
    def replicas(self) -> int:
        """How many members should hold each chunk (R), as it is now: options.py has the say."""
        return self.get("replicas", 3)

    @property
    def first_replicas(self) -> int:
        """How many the cluster was made with: what R is unless it was configured."""
        return self.get("first_replicas", 3)

    @property
    def placement(self) -> int:
        """The placement epoch: the Raft index of the last change of the member list or of R; 0 before the bootstrap."""
        if self._placement is None:
            self._placement = self.get("placement", 0)
        return self._placement

    @property
    def key(self) -> str:
        """The name of the cluster key that the secrets are sealed with; "" for the first one."""
        return self.get("key", "")

    @property
    def owes_rotation(self) -> int:
        """The Raft index at which somebody who knew the present cluster key was last cut off; 0 if nobody was."""
        return self.get("owes_rotation", 0)

    @property
    def level(self) -> int:
        """The feature level in force (features.py)."""
        if self._level is None:
            self._level = self.get(LEVEL, FIRST)
        return self._level

    def raise_level(self, level: int) -> None:
        """Another feature level is in force."""
        self._level = level
        self.put(LEVEL, level)

    def put(self, key: str, value: str | int | bytes) -> None:
        """Sets one value."""
        self._state.db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (key, value))

    def move_placement(self) -> None:
        """The set of members that store, or their weights, changed with this entry."""
        self._placement = self._state.index
        self.put("placement", self._placement)

    def forget(self) -> None:
        """Drops what is held in memory, after a rollback."""
        self._placement = self._level = None

    def replicas_changed(self, replicas: int) -> None:
        """R is another from this entry on, and with it the owners of chunks: a new placement epoch."""
        self._state.db.executemany("UPDATE settings SET value = ? WHERE key = ?",
                                   ((replicas, "replicas"), (self._state.index, "placement")))
        self._placement = self._state.index

    def write_bootstrap(self, command: Bootstrap) -> None:
        """Stores what `command` fixes; the member list is members.py's. Refuses what is no sane cluster."""
        if not command.cluster or not command.cluster_id:
            raise Refuse(Code.INVALID, "a cluster needs a name and an id")
        if not 1 <= command.replicas <= MAX_REPLICAS:
            raise Refuse(Code.INVALID, f"replicas must be 1..{MAX_REPLICAS}, not {command.replicas}")
        values = {"cluster": command.cluster, "cluster_id": command.cluster_id,
                  "host_public_key": command.host_public_key, "sealed_host_key": command.sealed_host_key,
                  "sealed_ca_key": command.sealed_ca_key, "replicas": command.replicas,
                  "first_replicas": command.replicas, "placement": self._state.index}
        self._state.db.executemany("INSERT INTO settings VALUES (?, ?)", values.items())
        self._placement = self._state.index
