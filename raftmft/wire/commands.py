"""Commands and outcomes as bytes: what the Raft log and the peers carry.

An envelope is one msgpack array [VERSION, kind, id, acked_below, fields]: kind is the command's number in COMMANDS,
id is nil or [member, epoch, seq], fields are the command's in the order of its class; nested values are arrays of
their fields, too. Every value is checked against the annotation of its field, both ways: what cannot be decoded
everywhere must never get into the log. An outcome is [VERSION, index, value, nil or [code, text]].

Codecs are built once from the classes' annotations. A command that gets another field is another command, of a later
feature level (core/features.py).
"""

from __future__ import annotations

import dataclasses
import operator
import types
import typing
from collections.abc import Callable
from typing import Any

import msgpack

from raftmft.core.commands import COMMANDS, Attrs, Command, CommandId, Envelope, MemberSpec
from raftmft.core.manifest import Manifest
from raftmft.core.outcome import Code, Outcome, Rejection
from raftmft.wire.frames import FrameError, unpack

VERSION = 1
MAX_COMMAND = 480 * 1024
"""An encoded envelope's most bytes: the engine stalls on commands near its batch size (field notes)."""
MAX_OUTCOME_DEPTH = 16
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 63) - 1
_NESTED = (Attrs, CommandId, Manifest, MemberSpec)

# A codec is a pair: to wire form (lists of msgpack types) and from it. Both raise FrameError for a wrong type.
_Convert = Callable[[Any], Any]
_Codec = tuple[_Convert, _Convert]


def encode_envelope(envelope: Envelope) -> bytes:
    """The envelope as bytes, at most MAX_COMMAND. Raises FrameError if a field has not the type it is declared to."""
    kind = _KINDS.get(type(envelope.command))
    if kind is None:
        raise FrameError(f"{type(envelope.command).__name__} is no command")
    identity = None if envelope.id is None else _ID[0](envelope.id)
    body = _pack([VERSION, kind, identity, _int(envelope.acked_below), _CODECS[kind][0](envelope.command)])
    if len(body) > MAX_COMMAND:
        raise FrameError(f"a command of {len(body)} bytes is over the limit of {MAX_COMMAND}")
    return body


def decode_envelope(body: bytes | memoryview) -> Envelope:
    """The envelope in `body`. Raises FrameError on anything that `encode_envelope` would not have made."""
    if len(body) > MAX_COMMAND:
        raise FrameError(f"a command of {len(body)} bytes is over the limit of {MAX_COMMAND}")
    match unpack(body):
        case [int(version), kind, identity, acked_below, fields] if type(version) is int:
            if version != VERSION:
                raise FrameError(f"a command of format {version}; this program reads format {VERSION}")
            codec = _CODECS.get(_int(kind))
            if codec is None:
                raise FrameError(f"no command has the number {kind}")
            decoded = None if identity is None else _ID[1](identity)
            return Envelope(codec[1](fields), decoded, _int(acked_below))
        case _:
            raise FrameError("a command of no known shape")


def encode_outcome(outcome: Outcome) -> bytes:
    """The outcome as bytes. Raises FrameError if its value is not a str-keyed map of msgpack types."""
    rejection = outcome.rejection
    refused = None if rejection is None else [str(rejection.code), _str(rejection.text)]
    if type(outcome.value) is not dict:
        raise FrameError("an outcome's value must be a map")
    _check_value(outcome.value)
    return _pack([VERSION, _int(outcome.index), outcome.value, refused])


def decode_outcome(body: bytes | memoryview) -> Outcome:
    """The outcome in `body`. Raises FrameError on anything that `encode_outcome` would not have made."""
    match unpack(body):
        case [int(version), index, dict(value), refused] if type(version) is int:
            if version != VERSION:
                raise FrameError(f"an outcome of format {version}; this program reads format {VERSION}")
            _check_value(value)
            return Outcome(_int(index), value, None if refused is None else _rejection(refused))
        case _:
            raise FrameError("an outcome of no known shape")


def _rejection(value: Any) -> Rejection:
    match value:
        case [str(code), str(text)] if code in _CODES:
            return Rejection(_CODES[code], text)
        case _:
            raise FrameError("a rejection of no known shape")


def _pack(value: Any) -> bytes:
    try:
        return msgpack.packb(value, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:  # UnicodeEncodeError is a ValueError
        raise FrameError(f"not encodable as msgpack ({type(error).__name__})") from None


def _check_value(value: Any, depth: int = 0) -> None:
    """Raises FrameError unless `value` is made of plain msgpack types with text keys, to a bounded depth."""
    if depth > MAX_OUTCOME_DEPTH:
        raise FrameError("an outcome's value is nested too deep")
    if type(value) is dict:
        for key in value:
            if type(key) is not str:
                raise FrameError("an outcome's map has a key that is no text")
        value = value.values()
    for item in value:
        kind = type(item)
        if kind in _PLAIN:
            continue
        if kind is int:
            _int(item)
        elif kind is dict or kind is list:
            _check_value(item, depth + 1)
        else:
            raise FrameError(f"an outcome's value holds a {kind.__name__}")


# --- codecs of single types ------------------------------------------------------------------------------------------
def _int(value: Any) -> int:
    if type(value) is not int or not _INT_MIN <= value <= _INT_MAX:
        raise FrameError("a field that must be a 64-bit integer is none")
    return value


def _exactly(kind: type) -> _Convert:
    def check(value: Any) -> Any:
        if type(value) is not kind:
            raise FrameError(f"a field that must be {kind.__name__} is {type(value).__name__}")
        return value
    return check


_str = _exactly(str)
_PLAIN = frozenset({type(None), bool, str, bytes})
_SCALARS: dict[type, _Convert] = {int: _int, str: _str, bytes: _exactly(bytes), bool: _exactly(bool)}


def _optional(codec: _Codec) -> _Codec:
    def both(convert: _Convert) -> _Convert:
        return lambda value: None if value is None else convert(value)
    return both(codec[0]), both(codec[1])


def _sequence(codec: _Codec) -> _Codec:
    to_wire, from_wire = codec

    def encode(value: Any) -> Any:
        if type(value) is not tuple:
            raise FrameError(f"a field that must be a tuple is {type(value).__name__}")
        return [to_wire(item) for item in value]

    def decode(value: Any) -> Any:
        if type(value) is not list:
            raise FrameError(f"a field that must be an array is {type(value).__name__}")
        return tuple([from_wire(item) for item in value])
    return encode, decode


def _fixed(codecs: list[_Codec]) -> _Codec:
    count = len(codecs)

    def encode(value: Any) -> Any:
        if type(value) is not tuple or len(value) != count:
            raise FrameError(f"a field that must be a tuple of {count} is none")
        return [codec[0](item) for codec, item in zip(codecs, value, strict=True)]

    def decode(value: Any) -> Any:
        if type(value) is not list or len(value) != count:
            raise FrameError(f"a field that must be an array of {count} is none")
        return tuple([codec[1](item) for codec, item in zip(codecs, value, strict=True)])
    return encode, decode


def _record(cls: Any) -> _Codec:
    """A dataclass as the array of its fields."""
    names = [field.name for field in dataclasses.fields(cls)]
    hints = typing.get_type_hints(cls)
    codecs = [_codec(hints[name]) for name in names]
    encoders = [codec[0] for codec in codecs]
    decoders = [codec[1] for codec in codecs]
    count = len(names)
    take: Callable[[Any], tuple[Any, ...]] = operator.attrgetter(*names) if count > 1 else _single(names[0])

    def encode(value: Any) -> Any:
        if type(value) is not cls:
            raise FrameError(f"a field that must be {cls.__name__} is {type(value).__name__}")
        return [encoder(item) for encoder, item in zip(encoders, take(value), strict=True)]

    def decode(value: Any) -> Any:
        if type(value) is not list or len(value) != count:
            raise FrameError(f"{cls.__name__} must be an array of {count} fields")
        return cls(*[decoder(item) for decoder, item in zip(decoders, value, strict=True)])
    return encode, decode


def _single(name: str) -> Callable[[Any], tuple[Any, ...]]:
    """As operator.attrgetter of several names, which gives no tuple for one."""
    return lambda value: (getattr(value, name),)


def _codec(hint: Any) -> _Codec:
    """The codec of an annotation; a TypeError at import time if a command declares what this file does not know."""
    if hint in _SCALARS:
        return _SCALARS[hint], _SCALARS[hint]
    if hint in _NESTED:
        return _record(hint)
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return _sequence(_codec(arguments[0]))
        return _fixed([_codec(argument) for argument in arguments])
    if typing.get_origin(hint) in (types.UnionType, typing.Union) and type(None) in arguments and len(arguments) == 2:
        return _optional(_codec(next(argument for argument in arguments if argument is not type(None))))
    raise TypeError(f"no codec for the annotation {hint!r}")


_CODES: dict[str, Code] = {str(code): code for code in Code}
_KINDS: dict[type[Command], int] = {cls: kind for kind, cls in COMMANDS.items()}
_CODECS: dict[int, _Codec] = {kind: _record(cls) for kind, cls in COMMANDS.items()}
_ID: _Codec = _record(CommandId)
