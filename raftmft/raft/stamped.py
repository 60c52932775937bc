"""Commands as they stand in the log: a kind, the leader's stamp, the envelope.

    entry = kind(u8) stamp in ms(u64, big-endian) envelope;  kind 1 alone: a leader's no-op;  2: configuration.py
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from raftmft.core.commands import Envelope
from raftmft.core.machine import Entry
from raftmft.raft import configuration
from raftmft.raft.messages import LogEntry
from raftmft.wire.commands import decode_envelope, encode_envelope
from raftmft.wire.frames import FrameError

NO_OP = b"\x01"
_HEAD = struct.Struct(">BQ")


def head(stamp_ms: int) -> bytes:
    """What stands before an envelope that was stamped then."""
    return _HEAD.pack(0, max(0, stamp_ms))


def command_of(envelope: Envelope, stamp_ms: int) -> bytes:
    """A whole entry. FrameError if it cannot be encoded."""
    return head(stamp_ms) + encode_envelope(envelope)


def is_for_machine(command: bytes) -> bool:
    """Whether the state machine is given it: no-ops and configurations are Raft's own."""
    return command != NO_OP and command[:1] != configuration.KIND


def stamp_of(command: bytes) -> int:
    """The stamp of an entry for the machine. FrameError if it is none."""
    if len(command) < _HEAD.size:
        raise FrameError("an entry is cut short")
    kind, stamp_ms = _HEAD.unpack_from(command)
    if kind != 0:
        raise FrameError("unknown kind of entry")
    return int(stamp_ms)


def envelope_of(command: bytes) -> Envelope:
    """The envelope of an entry. FrameError."""
    return decode_envelope(command[_HEAD.size :])


def decoded(log: Sequence[LogEntry]) -> list[Entry]:
    """What the machine is given of these entries. What is no command is left out, as every member does."""
    entries = []
    for command, index, _ in log:
        if is_for_machine(command):
            try:
                entries.append(Entry(index, stamp_of(command), envelope_of(command)))
            except FrameError:
                continue
    return entries
