"""Rules for names and paths, and how bytes become text for people and for the audit log."""

from __future__ import annotations

import re

from raftmft.core.commands import Path
from raftmft.core.outcome import Code
from raftmft.core.state import Refuse

MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 4096
MAX_USER_NAME_BYTES = 64
USER_NAME_RULE = ("a user name has 1 to 64 bytes of printable characters, without slash, backslash or colon, "
                  "not beginning with '.' or '-' nor with a space at either end")
_NAMES_NO_ENTRY = (b".", b"..")
# Ranges of what is not printable or deceives the eye. Spelled out because str.isprintable() and friends depend on the
# Unicode tables of the Python at hand, and all members must decide alike.
_UNPRINTABLE = ((0x00, 0x1F), (0x7F, 0xA0), (0xAD, 0xAD), (0x200B, 0x200F), (0x2028, 0x202F), (0x205F, 0x206F),
                (0xD800, 0xDFFF), (0xE000, 0xF8FF), (0xFDD0, 0xFDEF), (0xFEFF, 0xFEFF), (0xFFF0, 0xFFFB),
                (0xFFFE, 0xFFFF), (0xE0000, 0x10FFFF))

_ESCAPES = {code: f"\\u{code:04x}" for code in (
    *range(0x00, 0x20), *range(0x7F, 0xA0), 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))}


_ESCAPED = re.compile(r"\\(?:\\|x[89a-f][0-9a-f]|u[0-9a-f]{4}|)")


def check_path(path: Path) -> None:
    """Returns if every name may stand in a path below a home; raises Refuse (BAD_NAME, NAME_TOO_LONG) otherwise."""
    total = 0
    for name in path:
        size = len(name)
        total += size + 1
        if size > MAX_NAME_BYTES:
            raise Refuse(Code.NAME_TOO_LONG, f"a name has at most {MAX_NAME_BYTES} bytes, not {size}")
        if not size or name in _NAMES_NO_ENTRY or b"/" in name or b"\0" in name:
            raise Refuse(Code.BAD_NAME, f"'{text_of(name)}' cannot be the name of a file or directory")
    if total > MAX_PATH_BYTES:
        raise Refuse(Code.NAME_TOO_LONG, f"a path has at most {MAX_PATH_BYTES} bytes, not {total}")


def text_of(name: bytes) -> str:
    r"""The name as one line of text, safe to print: UTF-8, with each byte that is none as \xNN, control and direction
    characters as \uNNNN, and each backslash doubled, so that no two names give the same text.
    """
    return one_line(name.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace"))


def bytes_of(text: str) -> bytes:
    r"""The name of which text_of gave this text; what needs no escape may stand as it is. ValueError on a stray \."""
    def one(match: re.Match[str]) -> str:
        escape = match[0]
        if escape == "\\\\":
            return "\\"
        if len(escape) == 4:
            return chr(0xDC00 + int(escape[2:], 16))  # as surrogateescape has a byte that is no text
        if len(escape) == 6:
            return chr(int(escape[2:], 16))
        raise ValueError(f"{text!r} has a backslash that escapes nothing")
    return _ESCAPED.sub(one, text).encode("utf-8", "surrogateescape")


def one_line(text: str) -> str:
    """The text without what moves a terminal's cursor or turns its direction: such characters become escapes."""
    # isprintable() depends on the Python at hand, but in none does it hold for any of _ESCAPES.
    return text if text.isprintable() else text.translate(_ESCAPES)


def path_text(path: Path) -> str:
    """The path as its user sees it, from the root that the home is: "/a/b"; "/" for the home."""
    return "/" + "/".join([text_of(name) for name in path])


def user_name_problem(name: str) -> str | None:
    """None if a user may have this name, else one line that says what is asked."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return USER_NAME_RULE
    if not 1 <= size <= MAX_USER_NAME_BYTES or name[0] in ".-" or name[0] == " " or name[-1] == " ":
        return USER_NAME_RULE
    for character in name:
        code = ord(character)
        if character in "/\\:" or any(first <= code <= last for first, last in _UNPRINTABLE):
            return USER_NAME_RULE
    return None


def clipped(text: str, most: int = 256) -> str:
    """The text in one line, cut to `most` characters: for strings that strangers choose."""
    text = one_line(text)
    return text if len(text) <= most else text[: most - 1] + "\u2026"
