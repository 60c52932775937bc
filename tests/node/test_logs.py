"""The log file: its rights, its rotation, and what cannot be one."""

from __future__ import annotations

import logging
import os

import pytest

from raftmft.core.errors import ConfigError
from raftmft.node.logs import LogFile, set_up


@pytest.fixture(autouse=True)
def _root_logger():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_only_its_owner_reads_it_and_lines_follow_the_name(tmp_path):
    path = tmp_path / "node.log"
    file = LogFile(path)
    set_up("info", "text", file)
    assert path.stat().st_mode & 0o777 == 0o600 and not os.get_inheritable(file.fd)
    logging.getLogger("x").info("one")
    path.rename(tmp_path / "old")
    logging.getLogger("x").info("two")
    assert file.reopen() and path.stat().st_mode & 0o777 == 0o600 and not os.get_inheritable(file.fd)
    logging.getLogger("x").info("three")
    assert [line.split(": ")[1] for line in (tmp_path / "old").read_text().splitlines()] == ["one", "two"]
    assert path.read_text().endswith("x: three\n") and path.read_text().count("\n") == 1


def test_a_file_that_cannot_be_opened_again_loses_no_line(tmp_path):
    (tmp_path / "d").mkdir()
    file = LogFile(tmp_path / "d" / "node.log")
    set_up("info", "text", file)
    (tmp_path / "d").rename(tmp_path / "e")
    assert not file.reopen()
    logging.getLogger("x").info("goes on")
    text = (tmp_path / "e" / "node.log").read_text()
    assert "cannot be opened again" in text and "goes on" in text


def test_what_cannot_be_a_log_file_is_refused_in_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "missing" / "log", "/dev/null"):
        with pytest.raises(ConfigError, match=f"log_file {path} cannot be opened: [^\n]+$"):
            LogFile(path)
