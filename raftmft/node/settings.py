"""Settings of one host: D/raftmft.toml, parsed once into a frozen value. All else is cluster-wide, in Raft.

Unknown keys, wrong types and contradictions are a ConfigError of one line that names the file and the key.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

from raftmft.core.errors import ConfigError

FILE_NAME = "raftmft.toml"
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """What stands in raftmft.toml. `listen` is the address the SFTP, peer and gossip ports are bound to; the admin
    port is bound to `admin_listen`, loopback by default. workers = 0 means one for each core. log_file = ""
    means standard error; a relative path is below the data directory.
    """

    name: str
    advertise: str
    listen: str = "127.0.0.1"
    sftp_port: int = 2222
    peer_port: int = 7400
    gossip_port: int = 7400
    admin_listen: str = "127.0.0.1"
    admin_port: int = 7480
    workers: int = 0
    segment_mib: int = 256
    drain_timeout_s: int = 20
    log_level: str = "info"
    log_format: str = "text"
    log_file: str = ""

    @property
    def worker_count(self) -> int:
        """How many session workers this node runs."""
        return self.workers or max(1, len(os.sched_getaffinity(0)))

    @property
    def segment_bytes(self) -> int:
        """The size of one chunk segment."""
        return self.segment_mib * MIB


_PORTS = ("sftp_port", "peer_port", "gossip_port", "admin_port")
_RANGES = {"workers": (0, 256), "segment_mib": (8, 4096), "drain_timeout_s": (0, 3600)}


def parse(text: str, where: str) -> Settings:
    """Settings from TOML text; `where` names the file in errors. Raises ConfigError."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} is not valid TOML: {error}") from None
    known = {f.name: f for f in fields(Settings)}
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}; known are {', '.join(sorted(known))}")
        want = int if known[key].type == "int" else str
        if type(value) is not want:
            raise ConfigError(
                f"{where}: {key} must be {'a whole number' if want is int else 'a string'}, not {value!r}"
            )
    for key in ("name", "advertise"):
        if not table.get(key):
            raise ConfigError(f'{where}: {key} is missing; add {key} = "..."')
    settings = Settings(**table)
    for key in _PORTS:
        if not 1 <= getattr(settings, key) <= 65535:
            raise ConfigError(f"{where}: {key} must be 1..65535, not {getattr(settings, key)}")
    for key, (low, high) in _RANGES.items():
        if not low <= getattr(settings, key) <= high:
            raise ConfigError(f"{where}: {key} must be {low}..{high}, not {getattr(settings, key)}")
    if settings.log_level not in ("debug", "info", "warning", "error"):
        raise ConfigError(f"{where}: log_level must be debug, info, warning or error, not {settings.log_level!r}")
    if settings.log_format not in ("text", "json"):
        raise ConfigError(f"{where}: log_format must be text or json, not {settings.log_format!r}")
    taken: dict[int, str] = {}
    for key in ("sftp_port", "peer_port", "admin_port"):  # the gossip port is UDP and may equal the peer port
        port = getattr(settings, key)
        if port in taken:
            raise ConfigError(f"{where}: {key} and {taken[port]} are both {port}; choose different ports")
        taken[port] = key
    return settings


def load(data_dir: Path) -> Settings:
    """The settings of a data directory. Raises ConfigError."""
    path = data_dir / FILE_NAME
    try:
        return parse(path.read_text("utf-8"), str(path))
    except FileNotFoundError:
        raise ConfigError(
            f"{data_dir} holds no {FILE_NAME}; make a node there with raftmft init or raftmft dev"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None


def render(settings: Settings) -> str:
    """TOML text which `parse` reads back to an equal value."""
    lines = ["# Settings of this host. All else is cluster-wide: raftmft config."]
    for f in fields(Settings):
        value = getattr(settings, f.name)
        lines.append(f"{f.name} = {value}" if isinstance(value, int) else f'{f.name} = "{_escape(value)}"')
    return "\n".join(lines) + "\n"


def _escape(value: str) -> str:
    return "".join(f"\\u{ord(c):04x}" if c in '"\\' or ord(c) < 32 or ord(c) == 127 else c for c in value)
