"""Fields of requests: what a value must be, and one line for whoever gives another. The OpenAPI document shows them.

Kinds: text, whole (number), flag (true or false), texts (a list of text), time (ISO 8601; milliseconds when parsed).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from raftmft.core.errors import RaftmftError
from raftmft.core.names import clipped

MOST_TEXT = 4096
MOST_TEXTS = 1024
MOST_WHOLE = (1 << 62) - 1
_ASKED = {"text": "text", "flag": "true or false", "texts": "a list of texts",
          "time": "a time like 2026-01-31T08:00:00Z"}


class BadRequest(RaftmftError):
    """The request is wrong; the text says what."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field. `low` and `high` bound whole numbers, `most` the characters of text; `choices` are the only texts."""

    name: str
    kind: str
    help: str
    required: bool = False
    low: int = 0
    high: int = MOST_WHOLE
    most: int = MOST_TEXT
    choices: tuple[str, ...] = ()

    @property
    def asked(self) -> str:
        """What it must be, in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.kind == "whole":
            return f"a whole number, {self.low} to {self.high}" if self.high < MOST_WHOLE else (
                f"a whole number, {self.low} or more")
        return _ASKED[self.kind]

    def of_json(self, value: Any) -> Any:
        """The value out of a JSON body. Raises BadRequest."""
        given, kind = type(value), {"whole": int, "flag": bool, "texts": list}.get(self.kind, str)
        if given is not kind:  # True is an int to isinstance
            raise self._wrong(value)
        if self.kind == "time":
            return self._time(value)
        if kind is int and not self.low <= value <= self.high:
            raise self._wrong(value)
        if kind is str:
            self._check_text(value)
        if kind is list:
            if len(value) > MOST_TEXTS or not all(type(text) is str for text in value):
                raise BadRequest(f"{self.name} must be {self.asked}, at most {MOST_TEXTS}")
            for text in value:
                self._check_text(text)
        return value

    def of_text(self, text: str) -> Any:
        """The value out of a query or path. Raises BadRequest."""
        if self.kind == "whole":
            if not text.isascii() or not text.isdigit() or len(text) > 19 or not self.low <= int(text) <= self.high:
                raise self._wrong(text)
            return int(text)
        if self.kind == "flag":
            if text not in ("true", "false"):
                raise self._wrong(text)
            return text == "true"
        return self.of_json(text)

    def _check_text(self, text: str) -> None:
        if self.choices and text not in self.choices:
            raise self._wrong(text)
        if len(text) > self.most:
            raise BadRequest(f"{self.name} has at most {self.most} characters")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadRequest(f"{self.name} is not valid Unicode text") from None

    def _time(self, text: str) -> int:
        try:
            moment = datetime.fromisoformat(text)
            return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
        except (ValueError, OverflowError):
            raise self._wrong(text) from None

    def _wrong(self, value: Any) -> BadRequest:
        shown = value if isinstance(value, str) else ascii(value)[:64] if isinstance(value, (int, float)) else None
        told = "" if shown is None else f", not '{clipped(shown, 64)}'"
        return BadRequest(f"{self.name} must be {self.asked}{told}")


def from_body(fields: Sequence[Field], body: Any) -> dict[str, Any]:
    """The given fields, each checked. Raises BadRequest."""
    if type(body) is not dict:
        raise BadRequest("the body must be a JSON object")
    known = {field.name: field for field in fields}
    return _complete(fields, {name: _known(known, name).of_json(value) for name, value in body.items()})


def from_query(fields: Sequence[Field], items: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The given parameters, each checked. Raises BadRequest."""
    known = {field.name: field for field in fields}
    given: dict[str, Any] = {}
    for name, text in items:
        value = _known(known, name).of_text(text)
        if name in given:
            raise BadRequest(f"{name} is given twice")
        given[name] = value
    return _complete(fields, given)


def _known(known: dict[str, Field], name: str) -> Field:
    if name not in known:
        allowed = f"known are {', '.join(sorted(known))}" if known else "none is known here"
        raise BadRequest(f"unknown field '{clipped(name, 64)}'; {allowed}")
    return known[name]


def _complete(fields: Sequence[Field], given: dict[str, Any]) -> dict[str, Any]:
    for field in fields:
        if field.required and field.name not in given:
            raise BadRequest(f"{field.name} is missing; it must be {field.asked}")
    return given
