"""What an operator may know of one file; and that a path's text leads back to its bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machine_world import World, content

from raftmft.core import commands as c
from raftmft.core.inspection import FileRow
from raftmft.core.names import bytes_of, text_of
from raftmft.core.outcome import Code, Rejection


@given(st.binary(min_size=1, max_size=40))
def test_the_text_of_a_name_leads_back_to_it(name: bytes) -> None:
    assert bytes_of(text_of(name)) == name


@given(st.text(min_size=1, max_size=40))
def test_any_text_is_a_name_or_a_value_error(text: str) -> None:
    try:
        name = bytes_of(text)
    except ValueError:
        return
    assert bytes_of(text_of(name)) == name


def file(world: World, where: str) -> FileRow:
    row = world.machine.inspection.file(where)
    assert isinstance(row, FileRow), row
    return row


def refused(world: World, where: str) -> Code:
    answer = world.machine.inspection.file(where)
    assert isinstance(answer, Rejection) and "\n" not in answer.text
    return answer.code


def test_a_published_file(world: World) -> None:
    world.user()
    session = world.login()
    world.ok(c.Mkdir(session, (b"d",)))
    version = world.put(session, "d/\u00e9\\\x07", 2_000_000, seed=3)["version"]
    row = file(world, "/ann/d/\u00e9\\\\\\u0007")
    assert (row.user, row.path, row.version, row.partial) == ("ann", "/d/\u00e9\\\\\\u0007", version, False)
    assert row.manifest == content(2_000_000, 3) and row.file > 0
    assert file(world, "ann//d/\u00e9\\\\\\u0007") == row


def test_links_are_followed(world: World) -> None:
    world.user()
    session = world.login()
    world.put(session, "f", 5)
    world.ok(c.Symlink(session, (b"l",), b"/f"))
    assert file(world, "/ann/l") == file(world, "/ann/f")


def test_a_partial(world: World) -> None:
    world.user()
    session = world.login()
    upload = world.begin(session, "big")["upload"]
    assert refused(world, "/ann/big") == Code.NOT_FOUND
    world.checkpoint(session, upload, 1_500_000, seed=4)
    row = file(world, "/ann/big")
    assert row.partial and row.file == 0 and row.manifest == content(1_500_000, 4) and row.digest == ""


@pytest.mark.parametrize(("where", "code"), [
    ("", Code.INVALID), ("/", Code.INVALID), ("/ann", Code.INVALID), ("/ann/", Code.INVALID),
    ("/ann/\\", Code.INVALID), ("/ann/\\x41", Code.INVALID), ("/ann/\\ud800", Code.INVALID),
    ("/bob/x", Code.NO_USER), ("/ann/missing", Code.NOT_FOUND), ("/ann/d", Code.IS_A_DIRECTORY),
    ("/ann/f/x", Code.NOT_A_DIRECTORY), ("/ann/missing/x", Code.NOT_FOUND), ("/ann/..", Code.BAD_NAME),
    ("/ann/a\0", Code.BAD_NAME), ("/ann/" + "x" * 256, Code.NAME_TOO_LONG)])
def test_what_is_wrong_is_told(world: World, where: str, code: Code) -> None:
    world.user()
    session = world.login()
    world.ok(c.Mkdir(session, (b"d",)))
    world.put(session, "f")
    assert refused(world, where) == code
