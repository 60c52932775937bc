"""The link's messages: what is sent comes back, and nothing of another shape is taken for one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftmft.wire import frames
from raftmft.wire import link as wire


def whole(frame: bytes) -> Any:
    (value,) = frames.FrameReader().feed(frame)
    return wire.parse(value)


def test_messages_come_back() -> None:
    assert whole(wire.request(7, "fs.stat", {"path": [b"a"]})) == wire.Request(7, "fs.stat", {"path": [b"a"]})
    assert whole(wire.reply(7, wire.REJECTED, {"code": "quota"})) == wire.Reply(7, "rejected", {"code": "quota"})
    assert whole(wire.notification("load", {})) == wire.Notification("load", {})


LEAVES = st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5) | st.binary(max_size=5)


@given(st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3)))
def test_anything_else_is_refused(value: Any) -> None:
    try:
        message = wire.parse(value)
    except frames.FrameError:
        return
    assert isinstance(message, (wire.Request, wire.Reply, wire.Notification))


@pytest.mark.parametrize("value", [
    [1, 2, "perhaps", None], [0, "x", "op", {}], [0, 1, "op", []], [3, "op", {}], [], {}])
def test_examples_that_are_refused(value: Any) -> None:
    with pytest.raises(frames.FrameError):
        wire.parse(value)
