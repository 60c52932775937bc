"""Who and what a log line is about stands in its fields, too, under the same names everywhere. Read from the source."""

from __future__ import annotations

import ast
import inspect
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftmft.node import oplog
from raftmft.wire.loglines import MOST_USER_CHARS, fields
from tests.test_architecture import ROOT, modules

LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log", "say"}
NAMES = set(inspect.signature(fields).parameters)
NEEDS = {"session": "session", "user": "user", "username": "user", "address": "address", "client": "address",
         "member": "member", "_member": "member", "target": "member", "upload": "upload", "index": "index",
         "epoch": "epoch", "worker": "worker", "chunk_id": "chunk", "index_id": "chunk"}
"""What is called so in the code of a call's values -> the field that the call must have."""
NOUNS = re.compile(r"\b(session|user|member|upload|worker|chunk|epoch)s? %")
"""What is named so in a call's text."""
WHOLE = {"session", "user", "address"}
"""What `**about` brings: the whole client."""


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
            owner = ast.unparse(node.func.value)
            if owner in ("log", "logger") or node.func.attr == "say":
                yield node


def text_and_values(call: ast.Call) -> tuple[str, list[ast.expr]]:
    args = call.args[1:] if isinstance(call.func, ast.Attribute) and call.func.attr == "log" else call.args
    texts = [n.value for n in ast.walk(args[0]) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return " ".join(texts), args[1:]


def named(value: ast.expr) -> Iterator[str]:
    """What a value is called: the last name of each dotted one, and its owner: `self._member`, `worker.number`."""
    for node in ast.walk(value):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Name):
            yield node.id


def needed(call: ast.Call) -> set[str]:
    text, values = text_and_values(call)
    found = {NEEDS[name] for value in values for name in named(value) if name in NEEDS}
    return found | set(NOUNS.findall(text))


def given(call: ast.Call) -> set[str] | None:
    """The names of the call's fields; None if it gives them as a whole that was made elsewhere, or has none to give."""
    extra = next((keyword.value for keyword in call.keywords if keyword.arg == "extra"), None)
    if extra is None:
        return set()
    if isinstance(extra, ast.Call) and ast.unparse(extra.func) == "fields":
        names = {keyword.arg for keyword in extra.keywords if keyword.arg}
        return names | (WHOLE if any(keyword.arg is None for keyword in extra.keywords) else set())
    if isinstance(extra, ast.Dict):  # core knows no fields(); {"fields": {...}}
        (inner,) = extra.values
        return {ast.literal_eval(key) for key in inner.keys} if isinstance(inner, ast.Dict) else None
    return None


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_what_a_line_names_is_in_its_fields(path: Path) -> None:
    for call in calls(ast.parse(path.read_text())):
        names = given(call)
        if names is not None:
            assert names <= NAMES, f"line {call.lineno}: unknown fields {names - NAMES}"
            assert needed(call) <= names, f"line {call.lineno} has no fields {needed(call) - names}"


def test_there_are_calls_to_read_and_both_ways_of_naming_are_seen() -> None:
    found = [call for path in modules() for call in calls(ast.parse(path.read_text()))]
    assert len(found) > 60 and sum(bool(needed(call)) for call in found) > 25
    (bad,) = calls(ast.parse('log.info("session %d of %s ends", number, worker.sessions[i].user)'))
    assert needed(bad) == {"session", "user", "worker"} and given(bad) == set()
    (good,) = calls(ast.parse('log.info("%s", link.member, extra=fields(member=link.member, **about))'))
    assert needed(good) == {"member"} and given(good) == {"member", *WHOLE}


def test_operation_lines_use_the_same_names() -> None:
    args = {"op": "a.1", "session": 4, "upload": 9, "path": [b"x"], "target": [b"y"], "reason": "closed"}
    found = oplog._fields(args, ("ann", "192.0.2.1:7"), {}, 12, "ok", 3.0)
    assert set(found) - NAMES == {"path", "target", "outcome", "ms"}


def test_what_is_not_known_is_left_out_and_strangers_names_are_bounded() -> None:
    assert fields(session=0, user="", member="n1", chunk=bytes(range(32))) == {"fields": {
        "session": 0, "member": "n1", "chunk": "0001020304050607"}}
    (user,) = fields(user="x\n" * 999)["fields"].values()
    assert len(user) == MOST_USER_CHARS and "\n" not in user
    record = logging.LogRecord("raftmft.x", logging.INFO, "f", 1, "x", (), None)
    assert not set(fields(session=1)) & set(record.__dict__), "logging refuses an extra that is its own"
