"""Nothing that is logged breaks its line."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from raftmft.wire.loglines import MOST_EVENT_CHARS, LineFormatter


def record(text: str, failure: str = "") -> logging.LogRecord:
    info = None
    if failure:
        try:
            raise ValueError(failure)
        except ValueError:
            info = sys.exc_info()
    return logging.LogRecord("raftmft.x", logging.WARNING, "f", 1, "said %s", (text,), info)


@given(st.text(st.characters(), max_size=40), st.text(st.characters(), max_size=20))
def test_any_text_is_one_line_without_raw_control_characters(text, failure):
    for as_json in (False, True):
        line = LineFormatter("node", as_json=as_json).format(record(text, failure))
        assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c in "\u2028\u2029\u202e" for c in line)
        line.encode()
        if as_json:
            assert set(json.loads(line)) >= {"time", "level", "process", "logger", "event"}


def test_a_name_cannot_forge_a_line_and_lines_are_bounded():
    line = LineFormatter("node").format(record("a\n2026-01-01T00:00:00.000Z error node x: forged\x1b[2J"))
    assert "\n" not in line and "\\u000a2026" in line and "\x1b" not in line
    assert len(LineFormatter("node").format(record("x" * 100_000))) < MOST_EVENT_CHARS + 200


@given(st.text(st.characters(), max_size=30), st.text(st.characters(), max_size=30))
def test_fields_are_members_of_the_object_and_never_take_the_place_of_its_own(text, other):
    fields = {"path": text, "time": other, "index": 12}
    entry = record("x")
    entry.fields = fields
    line = LineFormatter("node", as_json=True).format(entry)
    found = json.loads(line)
    assert found["index"] == 12 and found["process"] == "node" and found["time"].endswith("Z") and "path" in found
    entry.fields = {"path": text, "target": other, "outcome": "ok"}
    line = LineFormatter("node").format(entry)
    assert not any(ord(c) < 32 for c in line)


def test_a_name_cannot_forge_a_field():
    entry = record("x")
    entry.fields = {"path": '/a outcome=ok "', "empty": "", "ms": 0.5}
    line = LineFormatter("node").format(entry)
    assert line.endswith(r'path="/a outcome=ok \"" empty="" ms=0.5')


def test_what_nobody_catches_is_a_line_too() -> None:
    program = """
import logging, sys, threading, warnings
from raftmft.wire.loglines import LineFormatter, log_what_nobody_catches
handler = logging.StreamHandler()
handler.setFormatter(LineFormatter("p", as_json=True))
logging.basicConfig(handlers=[handler])
log_what_nobody_catches()
warnings.warn("old")
class Bad:
    def __del__(self): raise ValueError("lost")
del (bad := [Bad()])[:]
thread = threading.Thread(target=lambda: 1 / 0)
thread.start(); thread.join()
raise ExceptionGroup("many", [OSError("one"), OSError("two")])
"""
    done = subprocess.run([sys.executable, "-W", "always", "-c", program], capture_output=True, text=True, timeout=30)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 1 and [line["level"] for line in lines] == ["warning", "error", "critical", "critical"]
    for line, text in zip(lines, ("old", "lost", "ZeroDivisionError", "two"), strict=True):
        assert text in line["event"] + line.get("exception", "")
