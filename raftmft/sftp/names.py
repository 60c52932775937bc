"""SFTP paths as names below the user's home: purely lexical, and nothing climbs out.

The home is "/". A relative path starts there too, since a session never leaves it. "." and empty parts vanish, ".."
takes the last name away and stops at the home. Names are bytes; which bytes they spell is nobody's business.
"""

from __future__ import annotations

from raftmft.core.names import MAX_NAME_BYTES, MAX_PATH_BYTES

Path = tuple[bytes, ...]


class BadPath(Exception):
    """The client's path cannot name anything; the text is one line."""


def parse_path(raw: bytes) -> Path:
    """The names of a client's path. BadPath for NUL bytes, a name over 255 bytes or a path over the limit."""
    if b"\0" in raw:
        raise BadPath("a path cannot hold a NUL byte")
    names: list[bytes] = []
    for name in raw.split(b"/"):
        if name in (b"", b"."):
            continue
        if name == b"..":
            if names:
                names.pop()
            continue
        if len(name) > MAX_NAME_BYTES:
            raise BadPath(f"File name too long: {len(name)} bytes, at most {MAX_NAME_BYTES}")
        names.append(name)
    if sum(map(len, names)) + len(names) > MAX_PATH_BYTES:
        raise BadPath(f"Path too long: at most {MAX_PATH_BYTES} bytes")
    return tuple(names)


def path_bytes(path: Path) -> bytes:
    """The absolute path that the client sees."""
    return b"/" + b"/".join(path)
