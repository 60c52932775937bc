"""One line for each operation on names: the id that the worker made, the index, and how it ended."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio

from raftmft.core.errors import NoQuorum, OutcomeUnknown, RaftmftError
from raftmft.core.outcome import Code
from raftmft.node import oplog
from raftmft.node.link import Rejected

ARGS = {"op": "7f3a.12", "session": 41, "path": [b"a", b"b\n"], "password": "secret", "attrs": {"mode": 1}}


async def told(work: Any, args: dict[str, Any] | None = None, operation: str = "fs.mkdir") -> Any:
    return await oplog.told(operation, ARGS if args is None else args, ("anna", "192.0.2.1:7"), work)


async def apply(index: int, value: Any = None, error: Exception | None = None) -> Any:
    await trio.lowlevel.checkpoint()
    oplog.committed(index)
    if error is not None:
        raise error
    return value


async def test_a_line_has_the_id_who_what_and_the_index(caplog):
    caplog.set_level(logging.INFO)
    assert await told(apply(1234, {"upload": 9})) == {"upload": 9}
    (record,) = caplog.records
    fields = record.fields
    assert fields.pop("ms") >= 0
    assert record.getMessage() == "mkdir" and fields == {
        "op": "7f3a.12", "session": 41, "user": "anna", "address": "192.0.2.1:7", "path": "/a/b\\u000a", "upload": 9,
        "index": 1234, "outcome": "ok"}


@pytest.mark.parametrize(("error", "outcome"), [
    (Rejected(Code.EXISTS, "x"), "exists"), (NoQuorum("x"), "no quorum"), (OutcomeUnknown("x"), "outcome unknown"),
    (RaftmftError("x"), "failed"), (KeyError("x"), "internal")])
async def test_each_end_has_its_word(error, outcome, caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(type(error)):
        await told(apply(7, error=error))
    assert [(r.fields["outcome"], r.fields["index"]) for r in caplog.records] == [(outcome, 7)]


async def test_one_that_is_cancelled_is_told_as_unknown(caplog):
    caplog.set_level(logging.INFO)
    with trio.CancelScope() as scope:
        scope.cancel()
        await told(trio.sleep_forever())
    assert [r.fields["outcome"] for r in caplog.records] == ["outcome unknown"]


async def test_two_at_once_do_not_take_each_others_index(caplog):
    caplog.set_level(logging.INFO)
    async with trio.open_nursery() as nursery:
        for index in range(1, 20):
            nursery.start_soon(told, apply(index), {"op": f"x.{index}"})
    assert {(r.fields["op"], r.fields["index"]) for r in caplog.records} == {(f"x.{n}", n) for n in range(1, 20)}


@pytest.mark.parametrize("args", [
    {"path": "no list"}, {"path": [1]}, {"op": ["x"] * 99, "session": None}, {}, {"target": 5, "source": {}}])
async def test_a_worker_that_sends_nonsense_hurts_nothing(args, caplog):
    caplog.set_level(logging.INFO)
    await told(apply(1), args)
    assert len(caplog.records) == 1 and len(str(caplog.records[0].fields.get("op", ""))) <= oplog.MOST_ID_CHARS


def test_nothing_is_told_below_the_level_nor_of_reads_and_bytes(caplog):
    caplog.set_level(logging.INFO)
    assert oplog.is_told("fs.publish") and not oplog.is_told("fs.checkpoint")
    for operation in ("chunk.put", "fs.stat", "fs.list", "read.end", "load"):
        assert not oplog.is_told(operation)
    caplog.set_level(logging.WARNING)
    assert not oplog.is_told("fs.publish")
