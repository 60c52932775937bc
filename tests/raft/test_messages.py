"""Messages from the network: what members send comes through, all else is dropped without an exception."""

from __future__ import annotations

import os
import pickle
from random import Random
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftmft.raft.journal import Journal
from raftmft.raft.messages import (
    MAX_BATCH_BYTES,
    MAX_BATCH_COUNT,
    MAX_BODY_BYTES,
    MAX_COMMAND_BYTES,
    MAX_PAYLOAD_BYTES,
    AppendEntries,
    AppendReply,
    Forward,
    ForwardReply,
    Message,
    PreVote,
    PreVoteReply,
    RequestVote,
    TimeoutNow,
    Vote,
    decode,
    encode,
)
from raftmft.raft.replica import Replica
from raftmft.wire.frames import FrameError
from tests.sim.disk import SimDisk
from tests.sim.machine import MemoryMachine

GOOD: list[Message] = [
    AppendEntries(3, 4, 1, 0, [(b"\x01", 2, 1), (b"\x00abc", 3, 1), (b"\x01", 4, 3)]),
    AppendEntries(3, 4, 9, 3, []),
    AppendReply(3, True, 1, 5),
    AppendReply(3, False, 1, 5, 1_800_000_000_000),
    RequestVote(4, 9, 3),
    RequestVote(4, 9, 3, True),
    PreVote(4, 1 << 47, 9, 4),
    PreVoteReply(4, 1 << 47, True),
    TimeoutNow(4),
    Vote(4),
    Forward(4, 77, [(1, b"x"), (5, b"y")]),
    ForwardReply(4, [(1, 10), (5, 0)]),
]
BAD: list[list[Any]] = [
    [1, 1, 3, 4, 0, 0, [], []],                                # before the first entry
    [1, 1, 3, 4, 1, 4, [], []],                                # prev_term over the leader's
    [1, 1, 3, 4, 1, 1, [[0, 1]], [b"x"]],                      # terms fall
    [1, 1, 3, 4, 1, 0, [[4, 1]], [b"x"]],                      # an entry of a later term than its leader
    [1, 1, 3, 4, 1, 0, [[1, 2]], [b"x"]],
    [1, 1, 3, 4, 1, 0, [[1, 1]], [b"x", b"y"]],
    [1, 1, 3, 4, 1, 0, [[1, 1 << 50]], [b"x"]],
    [1, 1, 3, 4, 1, 0, [[1, 1]], ["text"]],
    [1, 1, 3, 4, 1, 0, [[1, 1]], [b""]],
    [1, 1, 3, 4, 1, 0, [[1, 1]], [bytes(MAX_COMMAND_BYTES + 1)]],
    [1, 1, 3, 4, 1, 0, [[1, MAX_BATCH_COUNT + 1]], [b"x"] * (MAX_BATCH_COUNT + 1)],
    [1, 1, 3, True, 1, 0, [], []],
    [1, 1, -1, 4, 1, 0, [], []],
    [1, 1, 1 << 60, 4, 1, 0, [], []],
    [1, 2, 3, 1, 1, 5, 0],
    [1, 2, 3, True, 1, 0, 0],
    [1, 2, 3, True, 1, 5],
    [1, 2, 3, True, 1, 5, -1],
    [1, 2, 3, True, 1, 5, 1.5],
    [1, 3, 4, 9, 4, False],
    [1, 3, 4, 9, 3],
    [1, 3, 4, 9, 3, 1],
    [1, 9, 4, 7, 9, 5],                                        # a log newer than its member's term
    [1, 9, 4, 7, 0, 4],
    [1, 9, 4, -1, 9, 4],
    [1, 9, 4, 7, 9],
    [1, 10, 4, 7, 1],
    [1, 10, 4, "7", True],
    [1, 10, 4, 7, True, 1],
    [1, 4, "4"],
    [1, 5, 4, 1, []],
    [1, 5, 4, 1, [[2, b"x"], [1, b"y"]]],
    [1, 5, 4, 1, [[1, b"x"], [1, b"y"]]],
    [1, 5, 4, 1, [[1, bytes(MAX_PAYLOAD_BYTES + 1)]]],
    [1, 6, 4, [[1]]],
    [1, 8, 4],
    [1, "append_entries", 4],
    [2, 4, 4],
    [True, 4, 4],
    [1, 4],
    [],
]


@pytest.mark.parametrize("message", GOOD, ids=lambda m: type(m).__name__)
def test_a_message_comes_through(message: Message) -> None:
    assert decode(encode(message)) == message


@pytest.mark.parametrize("value", BAD, ids=lambda v: repr(v)[:40])
def test_what_no_member_sends_is_refused(value: list[Any]) -> None:
    with pytest.raises(FrameError):
        decode(msgpack.packb(value))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_refused_or_means_something(body: bytes) -> None:
    try:
        decode(body)
    except FrameError:
        pass


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(GOOD), st.integers(0, 1 << 30))
def test_a_damaged_message_never_harms_a_replica(message: Message, seed: int) -> None:
    rng = Random(seed)
    body = bytearray(encode(message))
    for _ in range(rng.randrange(1, 4)):
        body[rng.randrange(len(body))] = rng.randrange(256)
    replica = Replica("a", ["a", "b", "c"], Journal("j", disk=SimDisk()), MemoryMachine(), rng=Random(1))
    replica.connected("b")
    replica.receive("b", bytes(body))
    replica.tick()
    replica.collect()


def test_an_oversized_body_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(FrameError, match="over the limit"):
        decode(bytes(MAX_BODY_BYTES + 1))


def test_the_largest_batch_fits_a_body() -> None:
    command = bytes(MAX_COMMAND_BYTES)
    entries = [(command, index, 1) for index in (2, 3)]
    assert sum(len(entry[0]) for entry in entries) <= MAX_BATCH_BYTES
    assert len(encode(AppendEntries(1, 1, 1, 0, entries))) < MAX_BODY_BYTES


class Bomb:
    """Unpickling it makes a directory: the mildest of what it could do."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (os.mkdir, (self.path,))


def test_a_pickle_bomb_does_nothing(tmp_path: Any) -> None:
    """From the network, as a command, and in the journal's file. Stock pysyncobj runs all three."""
    bomb = pickle.dumps(Bomb(str(tmp_path / "ran")), 2)
    replica = Replica("a", ["a", "b", "c"], Journal("j", disk=SimDisk()), MemoryMachine(), rng=Random(1))
    replica.receive("b", bomb)
    replica.receive("b", encode(AppendEntries(1, 2, 1, 0, [(b"\x02" + bomb, 2, 1)])))  # where stock has membership
    replica.receive("b", encode(AppendEntries(1, 2, 1, 0, [(b"\x00" + bomb, 2, 1), (b"\x04" + bomb, 3, 1),
                                                           (b"\x03" + bomb, 4, 1)])))
    work = replica.collect()
    assert work.batch is not None
    replica.persist(work.batch)
    replica.persisted(work.batch)
    replica.receive("b", encode(AppendEntries(1, 4, 4, 1, [])))
    replica.tick()
    while replica.apply():
        pass
    assert replica.engine.applied() == 4 and replica.status().dropped_messages == 2
    path = tmp_path / "journal"
    path.write_bytes(bomb)
    with pytest.raises(Exception, match="does not begin"):
        Journal(str(path))
    assert not (tmp_path / "ran").exists()
    pickle.loads(bomb)
    assert (tmp_path / "ran").exists(), "the bomb must be a real one"
