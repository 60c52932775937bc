"""The messages that members' Raft replicas exchange, as values and as bytes.

A body is one msgpack array: [format, kind, term, fields...]. Every message carries its sender's term; who the sender is
stands in its certificate and never in the message. Bodies come from the network: `decode` takes exactly what `encode`
makes, bounded in every dimension, and raises FrameError for all else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import msgpack

from raftmft.raft import configuration
from raftmft.wire.commands import MAX_COMMAND
from raftmft.wire.frames import FrameError, unpack

FORMAT = 1
MAX_PAYLOAD_BYTES = MAX_COMMAND
"""Of one encoded envelope. Twice this stays below MAX_BATCH_BYTES, so an entry always fits one append_entries."""
MAX_COMMAND_BYTES = MAX_PAYLOAD_BYTES + 9
MAX_BATCH_BYTES = 1 << 20
"""Of the commands in one append_entries or one forward."""
MAX_BATCH_COUNT = 8192
MAX_BODY_BYTES = 2 << 20
CONFIGURATION = configuration.KIND[0]
MAX_NUMBER = 1 << 53
"""Terms, indexes and request ids: 2 ** 53 is out of reach of an honest cluster."""

LogEntry = tuple[bytes, int, int]
"""(command, index, term), as pysyncobj keeps them."""


@dataclass(frozen=True, slots=True)
class AppendEntries:
    """The leader of `term` says what follows (prev_index, prev_term), and how far the log is committed."""

    term: int
    commit_index: int
    prev_index: int
    prev_term: int
    entries: list[LogEntry]


@dataclass(frozen=True, slots=True)
class AppendReply:
    """Answers the append whose prev_index was `prev_index`. ok: all below `next_index` equals the leader's and is on
    this disk. Not ok: `next_index` is the best place to try next. `clock_ms`: the sender's wall clock (clocks.py).
    """

    term: int
    ok: bool
    prev_index: int
    next_index: int
    clock_ms: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class RequestVote:
    """A candidate of `term` asks for a vote and says how far its log reaches. `handed_over`: its leader asked it to."""

    term: int
    last_index: int
    last_term: int
    handed_over: bool = False


@dataclass(frozen=True, slots=True)
class Vote:
    """The sender's vote in `term`: on its disk."""

    term: int


@dataclass(frozen=True, slots=True)
class Forward:
    """A follower's commands for the leader of `term`: (request id, envelope bytes). Ids rise within one `boot`."""

    term: int
    boot: int
    commands: list[tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class ForwardReply:
    """What the leader did with forwarded commands: (request id, index in the log of `term`, or 0 if refused)."""

    term: int
    placed: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class TimeoutNow:
    """The leader asks this member, whose log is as long as its own, to stand for election now (Ongaro, 3.10)."""

    term: int


@dataclass(frozen=True, slots=True)
class PreVote:
    """A member of `term` asks whether it would get a vote in a later term. Nothing changes by it, no term either."""

    term: int
    round: int
    last_index: int
    last_term: int


@dataclass(frozen=True, slots=True)
class PreVoteReply:
    """The answer to the PreVote of that `round`."""

    term: int
    round: int
    granted: bool


@dataclass(frozen=True, slots=True)
class SnapshotOffer:
    """The leader of `term` has no entries for this member any more, but a snapshot as of entry (index, index_term);
    `root`: see snapshots.py. Answered as an append whose prev_index was `index`.
    """

    term: int
    index: int
    index_term: int
    root: bytes


@dataclass(frozen=True, slots=True)
class ReadIndexRequest:
    """Asks the leader of `term` how far the sender must have applied to read. For this and the three below see
    readindex.py.
    """

    term: int
    question: int


@dataclass(frozen=True, slots=True)
class ReadIndexReply:
    """Through `index`; 0 if the receiver of that question does not lead, or not any more."""

    term: int
    question: int
    index: int


@dataclass(frozen=True, slots=True)
class Confirm:
    """The leader of `term` asks whether the term is still the receiver's."""

    term: int
    round: int


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The sender's term when the Confirm of that `round` came."""

    term: int
    round: int


Message = (AppendEntries | AppendReply | RequestVote | Vote | Forward | ForwardReply | TimeoutNow | PreVote
           | PreVoteReply | SnapshotOffer | ReadIndexRequest | ReadIndexReply | Confirm | Confirmed)


def encode(message: Message) -> bytes:
    """The body of one message."""
    fields: list[Any]
    if type(message) is AppendEntries:
        runs: list[list[int]] = []
        for entry in message.entries:
            if runs and runs[-1][0] == entry[2]:
                runs[-1][1] += 1
            else:
                runs.append([entry[2], 1])
        fields = [1, message.term, message.commit_index, message.prev_index, message.prev_term, runs,
                  [entry[0] for entry in message.entries]]
    elif type(message) is AppendReply:
        fields = [2, message.term, message.ok, message.prev_index, message.next_index, message.clock_ms]
    elif type(message) is RequestVote:
        fields = [3, message.term, message.last_index, message.last_term, message.handed_over]
    elif type(message) is Vote:
        fields = [4, message.term]
    elif type(message) is Forward:
        fields = [5, message.term, message.boot, message.commands]
    elif type(message) is SnapshotOffer:
        fields = [8, message.term, message.index, message.index_term, message.root]
    elif type(message) is TimeoutNow:
        fields = [7, message.term]
    elif type(message) is PreVote:
        fields = [9, message.term, message.round, message.last_index, message.last_term]
    elif type(message) is PreVoteReply:
        fields = [10, message.term, message.round, message.granted]
    elif type(message) is ReadIndexRequest:
        fields = [11, message.term, message.question]
    elif type(message) is ReadIndexReply:
        fields = [12, message.term, message.question, message.index]
    elif type(message) is Confirm:
        fields = [13, message.term, message.round]
    elif type(message) is Confirmed:
        fields = [14, message.term, message.round]
    else:
        assert type(message) is ForwardReply
        fields = [6, message.term, message.placed]
    return msgpack.packb([FORMAT, *fields], use_bin_type=True)


def decode(body: bytes) -> Message:
    """The message of an untrusted body. Raises FrameError, never anything else."""
    if len(body) > MAX_BODY_BYTES:
        raise FrameError(f"a raft message of {len(body)} bytes is over the limit of {MAX_BODY_BYTES}")
    value = unpack(body)
    _need(type(value) is list and 3 <= len(value) <= 8, "not an array of 3 to 8")
    _need(value[0] == FORMAT and type(value[0]) is int, "an unknown format")
    kind, term, *fields = value[1:]
    _need(type(kind) is int and kind in _DECODERS, "an unknown kind")
    _number(term)
    arity, decoder = _DECODERS[kind]
    _need(len(fields) == arity, "a wrong number of fields")
    return decoder(term, *fields)


def _need(holds: bool, text: str) -> None:
    if not holds:
        raise FrameError(f"a raft message has {text}")


def _number(value: Any, least: int = 0) -> int:
    if type(value) is not int or not least <= value < MAX_NUMBER:
        raise FrameError("a raft message has a number out of range")
    return value


def _append_entries(term: int, commit: Any, prev_index: Any, prev_term: Any, runs: Any, commands: Any) -> Message:
    _number(commit)
    _number(prev_index, 1)
    _number(prev_term)
    _need(prev_term <= term, "an entry newer than its leader")
    _need(type(runs) is list and type(commands) is list and len(commands) <= MAX_BATCH_COUNT, "too many entries")
    for command in commands:
        if type(command) is not bytes or not 0 < len(command) <= MAX_COMMAND_BYTES:
            raise FrameError("a raft message has a command that is no bytes or has a wrong size")
        if command[0] == CONFIGURATION:
            configuration.decode(command)  # what could not be taken into force must not get into the log
    entries: list[LogEntry] = []
    newest = prev_term
    for run in runs:
        _need(type(run) is list and len(run) == 2, "a malformed run of terms")
        run_term, count = _number(run[0]), _number(run[1], 1)
        _need(newest <= run_term <= term, "terms that fall, or exceed the leader's")
        start = len(entries)
        _need(start + count <= len(commands), "more terms than entries")
        first = prev_index + 1 + start
        entries += zip(commands[start : start + count], range(first, first + count), repeat(run_term), strict=False)
        newest = run_term
    _need(len(entries) == len(commands), "more entries than terms")
    return AppendEntries(term, commit, prev_index, prev_term, entries)


def _append_reply(term: int, ok: Any, prev_index: Any, next_index: Any, clock_ms: Any) -> Message:
    _need(type(ok) is bool, "an answer that is neither yes nor no")
    return AppendReply(term, ok, _number(prev_index, 1), _number(next_index, 1), _number(clock_ms))


def _request_vote(term: int, last_index: Any, last_term: Any, handed_over: Any) -> Message:
    _need(_number(last_term) < term, "a candidate whose log is newer than its term")
    _need(type(handed_over) is bool, "a candidacy that neither was asked for nor was not")
    return RequestVote(term, _number(last_index, 1), last_term, handed_over)


def _pre_vote(term: int, round_: Any, last_index: Any, last_term: Any) -> Message:
    _need(_number(last_term) <= term, "a log that is newer than its member's term")
    return PreVote(term, _number(round_), _number(last_index, 1), last_term)


def _pre_vote_reply(term: int, round_: Any, granted: Any) -> Message:
    _need(type(granted) is bool, "an answer that is neither yes nor no")
    return PreVoteReply(term, _number(round_), granted)


def _vote(term: int) -> Message:
    return Vote(term)


def _forward(term: int, boot: Any, commands: Any) -> Message:
    _number(boot)
    _need(type(commands) is list and 0 < len(commands) <= MAX_BATCH_COUNT, "too many or no commands")
    pairs: list[tuple[int, bytes]] = []
    least = 0
    for pair in commands:
        _need(type(pair) is list and len(pair) == 2, "a malformed command")
        least = _number(pair[0], least) + 1
        payload = pair[1]
        if type(payload) is not bytes or not 0 < len(payload) <= MAX_PAYLOAD_BYTES:
            raise FrameError("a raft message has a command that is no bytes or has a wrong size")
        pairs.append((least - 1, payload))
    return Forward(term, boot, pairs)


def _forward_reply(term: int, placed: Any) -> Message:
    _need(type(placed) is list and 0 < len(placed) <= MAX_BATCH_COUNT, "too many or no places")
    pairs: list[tuple[int, int]] = []
    for pair in placed:
        _need(type(pair) is list and len(pair) == 2, "a malformed place")
        pairs.append((_number(pair[0]), _number(pair[1])))
    return ForwardReply(term, pairs)


def _snapshot_offer(term: int, index: Any, index_term: Any, root: Any) -> Message:
    _need(_number(index_term) <= term, "a snapshot newer than its leader")
    _need(type(root) is bytes and len(root) == 32, "a malformed root")
    return SnapshotOffer(term, _number(index, 1), index_term, root)


def _numbers(kind: Callable[..., Message]) -> Callable[..., Message]:
    """A decoder of a message that has only numbers."""
    return lambda term, *values: kind(term, *map(_number, values))


_DECODERS: dict[int, tuple[int, Any]] = {
    1: (5, _append_entries),
    2: (4, _append_reply),
    3: (3, _request_vote),
    4: (0, _vote),
    5: (2, _forward),
    6: (1, _forward_reply),
    7: (0, TimeoutNow),
    8: (3, _snapshot_offer),
    9: (3, _pre_vote),
    10: (2, _pre_vote_reply),
    11: (1, _numbers(ReadIndexRequest)),
    12: (2, _numbers(ReadIndexReply)),
    13: (1, _numbers(Confirm)),
    14: (1, _numbers(Confirmed)),
}
"""kind -> (fields after the term, decoder). Numbers on the wire are never reused."""
