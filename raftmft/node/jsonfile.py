"""Small files in JSON that one program version writes and another may find: each begins with what it is and its format.

    {"raftmft": KIND, "format": NUMBER, ...}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raftmft.core.errors import ConfigError
from raftmft.core.names import clipped


def render(kind: str, format: int, table: dict[str, Any]) -> bytes:
    """The file's bytes."""
    return json.dumps({"raftmft": kind, "format": format, **table}, indent=1).encode()


def read(path: Path, kind: str, format: int) -> dict[str, Any]:
    """The table, without the two entries. ConfigError if another version wrote it, ValueError if it is no such file."""
    table = json.loads(path.read_bytes())
    if type(table) is not dict or table.pop("raftmft", None) != kind:
        raise ValueError(f"no {kind} file")
    if (found := table.pop("format", None)) != format:
        raise ConfigError(f"{path} has format {clipped(str(found), 16)}, this program reads format {format}: run the "
                          "version that wrote it")
    return table
