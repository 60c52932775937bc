"""Cluster-wide options: what `raftmft config` sets. One table of known keys; the values stand in the replicated state.

An option's value is text on the wire and in the state ("config.<key>" in the settings table) and is parsed once when it
is read. Only text that `parse` takes gets into the state, in the one form that `render` gives it, so that two spellings
of one value are one value. To add an option, append to OPTIONS.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raftmft.core.audit import AuditWriter
from raftmft.core.commands import ConfigSet
from raftmft.core.names import clipped
from raftmft.core.outcome import Code
from raftmft.core.settings import MAX_REPLICAS, Settings
from raftmft.core.state import Refuse, State

MAX_VALUE_CHARS = 4096
MAX_NETWORKS = 256
MAX_RATE = 1_000_000
MAX_STARTUPS = 1_000_000

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Startups:
    """As sshd's MaxStartups: up to `start` connections before login all are taken, from then on `rate` percent are
    dropped, rising to all at `full`.
    """

    start: int
    rate: int
    full: int


@dataclass(frozen=True, slots=True)
class Option:
    """A known key. `parse` gives the typed value or raises ValueError; `allowed` completes "<key> must be ..."."""

    key: str
    kind: str
    default: str
    allowed: str
    help: str
    parse: Callable[[str], Any]
    render: Callable[[Any], str] = str


@dataclass(frozen=True, slots=True)
class OptionRow:
    """An option as it stands: `value` and `default` as text; `is_set` is False while the default holds."""

    key: str
    value: str
    default: str
    is_set: bool
    kind: str
    allowed: str
    help: str


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or len(text) > 18 or not low <= int(text) <= high:
            raise ValueError(text)
        return int(text)
    return parse


def _networks(text: str) -> tuple[Network, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if len(parts) > MAX_NETWORKS or any(not part.isascii() or "%" in part for part in parts):
        raise ValueError(text)
    return tuple(dict.fromkeys(ipaddress.ip_network(part) for part in parts))


def _startups(text: str) -> Startups:
    start, rate, full = (_whole(0, MAX_STARTUPS)(part) for part in text.split(":"))
    if not 1 <= start <= full or not 1 <= rate <= 100:
        raise ValueError(text)
    return Startups(start, rate, full)


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(text)
        return text
    return parse


OPENS_KEY, RELAXED, OPENS_SINCE = "audit.opens", "relaxed", "opens_since"

OPTIONS: dict[str, Option] = {option.key: option for option in (
    Option("replicas", "int", "", f"a whole number, 1 to {MAX_REPLICAS}",
           "how many members hold each chunk, if there are that many that store; default: as the cluster was made",
           _whole(1, MAX_REPLICAS)),
    Option("proxy.trusted", "networks", "", f"networks like 10.0.0.0/8,fd00::/8 (at most {MAX_NETWORKS}), or nothing",
           "balancers whose PROXY protocol header is believed", _networks,
           lambda networks: ",".join(map(str, networks))),
    Option("login.max_startups", "startups", "100:30:300",
           f"start:rate:full with 1 <= start <= full <= {MAX_STARTUPS} and a rate of 1 to 100 percent",
           "connections before login on a node: from `start` on, `rate` percent are dropped, rising to all at `full`",
           _startups, lambda s: f"{s.start}:{s.rate}:{s.full}"),
    Option("login.rate_per_address", "int", "30", f"a whole number, 1 to {MAX_RATE}",
           "how many new connections a second one address may make to a node", _whole(1, MAX_RATE)),
    Option("login.limit_s", "int", "30", "a whole number, 1 to 3600",
           "seconds in which a client must have logged in", _whole(1, 3600)),
    Option("dedup.scope", "word", "home", "home or cluster",
           "within what equal content is stored once: a home, or the whole cluster, where whoever uploads can tell by "
           "the time it takes that somebody has the same bytes", _one_of("home", "cluster")),
    Option(OPENS_KEY, "word", "strict", "strict or relaxed",
           "strict: an open to read is in the audit log before it is answered; relaxed: within 1 s, in batches, so "
           "that opens of a node's last second may be missing there if it dies, although the files were read",
           _one_of("strict", RELAXED)),
)}


class Options:
    """The read side for all, and the handler of ConfigSet."""

    def __init__(self, state: State, settings: Settings, audit: AuditWriter) -> None:
        self._state, self._settings, self._audit = state, settings, audit
        self._values: dict[str, Any] = {}

    def get(self, key: str) -> Any:
        """The typed value of a known key; its default if it is not set. Kept in memory: cheap enough for each use."""
        if key in self._values:
            return self._values[key]
        value = OPTIONS[key].parse(self._text(key))
        if self._settings.is_bootstrapped:  # the bootstrap decides a default
            self._values[key] = value
        return value

    @property
    def opens_are_relaxed(self) -> bool:
        """Whether opens to read are recorded after they were answered."""
        return bool(self.get(OPENS_KEY) == RELAXED)

    @property
    def opens_since(self) -> int:
        """The Raft index at which that was last set; 0 if it never was."""
        return self._settings.get(OPENS_SINCE, 0)

    def row(self, key: str) -> OptionRow | None:
        """A known key as it stands, or None."""
        option = OPTIONS.get(key)
        if option is None:
            return None
        return OptionRow(key, self._text(key), self._default(key), self._stored(key) is not None, option.kind,
                         option.allowed, option.help)

    def list(self) -> tuple[OptionRow, ...]:
        """All known keys as they stand, in the table's order."""
        return tuple(row for row in map(self.row, OPTIONS) if row is not None)

    def forget(self) -> None:
        """Drops what is held in memory, after a rollback."""
        self._values.clear()

    # --- apply ---------------------------------------------------------------------------------------------------
    def set(self, command: ConfigSet) -> dict[str, Any]:
        """Sets a key, or with "" gives it its default back."""
        key, text = command.key, command.value
        if not self._settings.is_bootstrapped:
            raise Refuse(Code.INVALID, "the cluster is not made yet; try again in a moment")
        option = OPTIONS.get(key)
        if option is None:
            raise Refuse(Code.NOT_FOUND, f"there is no option '{clipped(key, 64)}'; known are {', '.join(OPTIONS)}")
        before = self.get("replicas")
        if text:
            try:
                if len(text) > MAX_VALUE_CHARS:
                    raise ValueError(text)
                text = option.render(option.parse(text))
            except ValueError:
                raise Refuse(Code.INVALID, f"{key} must be {option.allowed}, not '{clipped(text, 64)}'") from None
        self._state.db.execute("DELETE FROM settings WHERE key = ?", (_row_key(key),))
        if text:
            self._state.db.execute("INSERT INTO settings VALUES (?, ?)", (_row_key(key), text))
        self._values.clear()
        if self.get("replicas") != before:
            self._settings.replicas_changed(self.get("replicas"))
        if key == OPENS_KEY:
            self._settings.put(OPENS_SINCE, self._state.index)
        if self.opens_are_relaxed:
            # From here on members may read what no entry tells of yet; each says later how far its reads have got.
            self._state.db.execute("UPDATE members SET reads_from = ? WHERE reads_from = 0 AND epoch > 0 AND "
                                   "epoch = nonce_epoch", (self._state.index,))
        self._audit.admin(clipped(f"config set {key}={text}", MAX_VALUE_CHARS), actor=command.actor)
        return {"value": self._text(key)}

    def _text(self, key: str) -> str:
        stored = self._stored(key)
        return self._default(key) if stored is None else stored

    def _stored(self, key: str) -> str | None:
        return self._settings.get(_row_key(key), "") or None

    def _default(self, key: str) -> str:
        return str(self._settings.first_replicas) if key == "replicas" else OPTIONS[key].default


def _row_key(key: str) -> str:
    return f"config.{key}"
