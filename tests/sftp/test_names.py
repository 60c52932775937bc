"""Paths: lexical, below the home, and nothing climbs out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftmft.core.names import check_path
from raftmft.sftp.names import BadPath, parse_path, path_bytes


@pytest.mark.parametrize(("raw", "names"), [
    (b"", ()), (b".", ()), (b"/", ()), (b"..", ()), (b"/../../..", ()), (b"a/../../b", (b"b",)),
    (b"/a//b/./c/", (b"a", b"b", b"c")), (b"a/..", ()), (b"...", (b"...",)), (b"\xff\xfe", (b"\xff\xfe",)),
    (b"~", (b"~",)), (b"a\\b", (b"a\\b",))])
def test_examples(raw: bytes, names: tuple[bytes, ...]) -> None:
    assert parse_path(raw) == names


@given(st.text(alphabet="a./", max_size=30))
def test_what_is_accepted_is_a_path_that_the_state_machine_takes(text: str) -> None:
    path = parse_path(text.encode())
    check_path(path)
    assert parse_path(path_bytes(path)) == path


@pytest.mark.parametrize("raw", [b"a\0b", b"n" * 256, b"ok/" + b"n" * 300 + b"/..", b"/".join([b"d" * 200] * 21)])
def test_refused(raw: bytes) -> None:
    with pytest.raises(BadPath):
        parse_path(raw)


def test_a_name_of_255_bytes_is_fine() -> None:
    assert parse_path(b"n" * 255) == (b"n" * 255,)
