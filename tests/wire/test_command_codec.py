"""Commands and outcomes as bytes: exact there and back, and nothing but FrameError for anything else."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftmft.core import commands as c
from raftmft.core.manifest import Manifest
from raftmft.core.outcome import Code, Outcome, Rejection
from raftmft.wire.commands import (
    MAX_COMMAND,
    VERSION,
    decode_envelope,
    decode_outcome,
    encode_envelope,
    encode_outcome,
)
from raftmft.wire.frames import FrameError

INTS = st.integers(-(1 << 63), (1 << 63) - 1)
for scalar, strategy in ((int, INTS), (str, st.text(max_size=20)), (bytes, st.binary(max_size=20))):
    st.register_type_strategy(scalar, strategy)
COMMANDS = st.one_of([st.builds(cls) if cls is c.NoOp else st.from_type(cls) for cls in c.COMMANDS.values()])
ENVELOPES = st.builds(c.Envelope, COMMANDS, st.none() | st.builds(c.CommandId), INTS)
PLAIN = st.recursive(st.none() | st.booleans() | INTS | st.text(max_size=9) | st.binary(max_size=9),
                     lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                         st.text(max_size=5), inner, max_size=3),
                     max_leaves=8)
OUTCOMES = st.builds(Outcome, INTS, st.dictionaries(st.text(max_size=9), PLAIN, max_size=4),
                     st.none() | st.builds(Rejection, st.sampled_from(Code), st.text(max_size=30)))
JUNK = st.recursive(st.none() | st.booleans() | st.integers(-9, 50) | st.floats() | st.text(max_size=3) |
                    st.binary(max_size=3),
                    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(
                        st.integers(-9, 9) | st.text(max_size=3), inner, max_size=2), max_leaves=20)


MANIFEST, ATTRS = Manifest(1, 0, b"i" * 32), c.Attrs(1, 2, None, 4, 5, 6)
SPEC = c.MemberSpec("id", "n1", "host", 1, 2, 3, "ff", "standby", 7)
FULL: dict[type[c.Command], c.Command] = {type(x): x for x in (
    c.NoOp(b"p"), c.Bootstrap("c", "i", (SPEC, SPEC), "k", b"h", b"a", 2), c.MemberBoot("m", b"n", "v"),
    c.ExpireMember("m", 1), c.UserAdd("u", None, ("k",), 1, 2, True, "a"),
    c.UserSet("u", "", 1, None, False, None, "a"),
    c.UserRemove("u", "a"), c.UserKeyAdd("u", "k", "a"), c.UserKeyRemove("u", "f", "a"),
    c.Login("m", 1, "u", "a", "p", 2), c.LoginRefused("m", (("a", "u", "r", 1),)), c.Logout(1, "r"),
    c.OpenRead(1, (b"a",)), c.ReadEnd(((1, 2, 3, True),)),
    c.RecordOpens("m", ((1, 2, "u", "a", 3, 4, "/p", 5, "d", 6),), 7), c.BeginUpload(1, (), False, True, True, True, 5),
    c.Checkpoint(1, 2, MANIFEST, 3), c.Publish(1, 2, MANIFEST, 3, "d", ATTRS, 9), c.EndUpload(1, 2, False),
    c.Mkdir(1, (b"a", b"b"), 7), c.Rmdir(1, ()), c.Remove(1, ()), c.Rename(1, (), (b"x",), True),
    c.SetStat(1, (), ATTRS, 9, False), c.Symlink(1, (b"a",), b"t"), c.Link(1, (), (b"x",)),
    c.CopyData(1, 2, 3, MANIFEST, 4),
    c.MemberAdmit("t", "k", SPEC, 5, "1", 2, "old"), c.MemberReady("m"), c.FeatureRaise(2),
    c.MemberSet("m", "h", 1, None, 3, "active", 4, "a"), c.MemberRemove("m", "a"), c.KeyRotate("b", "k", b"h", b"c", 7),
    c.TokenCreate("t", "active", 5, "a"), c.CertAdd("m", "f", 5), c.CertRetire("m", "f"), c.CertRevoke("f", "a"),
    c.Refound("restore", SPEC, 5, "id", "b", "k", b"h", b"c", "ssh-ed25519 A"),
    c.ConfigSet("k", "v", "a"), c.BanAdd("::/0", 5, "r", "a"), c.BanRemove("::/0", "a"), c.SessionKill(5, "a"),
    c.AdminTokenAdd("n", "r", "h", "a"), c.AdminTokenRemove("n", "a"))}


@settings(max_examples=300, deadline=None)
@given(ENVELOPES)
def test_envelopes_there_and_back(envelope: c.Envelope) -> None:
    body = encode_envelope(envelope)
    again = decode_envelope(body)
    assert again == envelope and type(again.command) is type(envelope.command)
    assert encode_envelope(again) == body
    hash(again)  # lists in place of tuples would show here


def test_every_command_is_covered_and_comes_back() -> None:
    assert set(FULL) == set(c.COMMANDS.values())
    for command in FULL.values():
        for identity in (None, c.CommandId("m", 1, 2)):
            envelope = c.Envelope(command, identity, 5)
            assert decode_envelope(encode_envelope(envelope)) == envelope
            assert decode_envelope(memoryview(encode_envelope(envelope))) == envelope


@settings(max_examples=200, deadline=None)
@given(OUTCOMES)
def test_outcomes_there_and_back(outcome: Outcome) -> None:
    body = encode_outcome(outcome)
    assert decode_outcome(body) == outcome
    assert encode_outcome(decode_outcome(body)) == body


def test_what_is_on_disk_already_must_stay_readable() -> None:
    """Golden bytes of format 1: if this fails, a new VERSION is due."""
    envelope = c.Envelope(c.Checkpoint(3, 4, Manifest(0), 2), c.CommandId("m", 1, 2), 1)
    assert encode_envelope(envelope).hex() == "95012193a16d010201940304930000c40002"
    outcome = Outcome(7, {"a": [b"x", None]}, Rejection(Code.QUOTA, "full"))
    assert encode_outcome(outcome).hex() == "94010781a16192c40178c092a571756f7461a466756c6c"


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=60))
def test_random_bytes_give_frame_errors_only(body: bytes) -> None:
    for decode in (decode_envelope, decode_outcome):
        try:
            decode(body)
        except FrameError:
            continue


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(sorted(c.COMMANDS)), JUNK, JUNK, JUNK, JUNK)
def test_random_shapes_give_frame_errors_only(kind: int, version: Any, identity: Any, acked: Any, fields: Any) -> None:
    for value in ([VERSION, kind, identity, acked, fields], [version, kind, None, 0, fields], fields,
                  [VERSION, acked, fields, identity]):
        body = msgpack.packb(value)
        for decode in (decode_envelope, decode_outcome):
            try:
                decode(body)
            except FrameError:
                continue


def test_mutated_commands_decode_to_a_valid_command_or_give_a_frame_error() -> None:
    rng = random.Random(7)
    refused = 0
    for command in FULL.values():
        body = encode_envelope(c.Envelope(command, c.CommandId("m", 1, 2), 3))
        for _ in range(150):
            changed = bytearray(body)
            for _ in range(rng.randint(1, 3)):
                how, at = rng.randrange(3), rng.randrange(len(changed))
                if how == 0:
                    changed[at] = rng.randrange(256)
                elif how == 1:
                    del changed[at:at + 1]
                else:
                    changed.insert(at, rng.randrange(256))
                if not changed:
                    changed = bytearray(b"\0")
            try:
                envelope = decode_envelope(bytes(changed))
            except FrameError:
                refused += 1
                continue
            assert decode_envelope(encode_envelope(envelope)) == envelope
    assert refused > 1000


def wrong_values(declared: str) -> list[Any]:
    """Values that are not of the declared type."""
    values: list[Any] = [1.5, object(), {"a": 1}, [1], (object(),)]
    values += [b""] if "bytes" not in declared or declared.startswith("tuple") else [""]
    values += [1] if declared == "bool" else [True] if "bool" not in declared else []
    return values


@pytest.mark.parametrize("command", FULL.values(), ids=lambda x: type(x).__name__)
def test_what_is_not_of_the_declared_type_is_never_encoded(command: Any) -> None:
    for field in dataclasses.fields(command):
        for wrong in wrong_values(str(field.type)):
            with pytest.raises(FrameError):
                encode_envelope(c.Envelope(dataclasses.replace(command, **{field.name: wrong})))
    with pytest.raises(FrameError):
        encode_envelope(c.Envelope(command, ("m", 1, 2)))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [1 << 63, -(1 << 63) - 1, True, 1.0, "1", None])
def test_integers_are_64_bit_integers(value: Any) -> None:
    with pytest.raises(FrameError):
        encode_envelope(c.Envelope(c.Logout(value)))
    with pytest.raises(FrameError):
        encode_envelope(c.Envelope(c.NoOp(), None, value))
    with pytest.raises(FrameError):
        decode_envelope(msgpack.packb([VERSION, 22, None, 0, [value if value != -(1 << 63) - 1 else 1 << 64 - 1, "r"]]))


@pytest.mark.parametrize("body", [
    [2, 1, None, 0, [b""]], [True, 1, None, 0, [b""]], [1, 99, None, 0, [b""]], [1, True, None, 0, [b""]],
    [1, 1, [], 0, [b""]], [1, 1, ["m", 1], 0, [b""]], [1, 1, ["m", 1, 2, 3], 0, [b""]], [1, 1, None, 0, []],
    [1, 1, None, 0, [b"", b""]], [1, 1, None, 0, [""]], [1, 1, None, 0], [1, 1, None, 0, [b""], 0], {}, None,
    [1, 33, None, 0, [1, 2, [0, 0], 3]], [1, 30, None, 0, [1, b"a"]], [1, 30, None, 0, [1, ["a"]]]])
def test_malformed_envelopes(body: Any) -> None:
    with pytest.raises(FrameError):
        decode_envelope(msgpack.packb(body))


@pytest.mark.parametrize("body", [
    [2, 1, {}, None], [1, "1", {}, None], [1, 1, [], None], [1, 1, {1: 2}, None], [1, 1, {"a": {1: 2}}, None],
    [1, 1, {"a": 1.5}, None], [1, 1, {}, ["nonsense", "x"]], [1, 1, {}, ["quota"]], [1, 1, {}, ["quota", 1]],
    [1, 1, {}], None, {}, [1, 1, {}, None, None], [1, 1, {"a": msgpack.ExtType(1, b"")}, None]])
def test_malformed_outcomes(body: Any) -> None:
    with pytest.raises(FrameError):
        decode_outcome(msgpack.packb(body))


def test_bytes_after_the_end_are_refused() -> None:
    with pytest.raises(FrameError):
        decode_envelope(encode_envelope(c.Envelope(c.NoOp())) + b"\0")
    with pytest.raises(FrameError):
        decode_outcome(encode_outcome(Outcome(1)) + b"\0")


def test_a_command_has_a_most_size() -> None:
    room = MAX_COMMAND - len(encode_envelope(c.Envelope(c.NoOp(b"x" * 100_000)))) + 100_000
    body = encode_envelope(c.Envelope(c.NoOp(b"x" * room)))
    assert len(body) == MAX_COMMAND and decode_envelope(body)
    with pytest.raises(FrameError, match="over the limit"):
        encode_envelope(c.Envelope(c.NoOp(b"x" * (room + 1))))
    with pytest.raises(FrameError, match="over the limit"):
        decode_envelope(body + b"\0")


@pytest.mark.parametrize("value", [{"a": object()}, {"a": 1.5}, {1: 2}, {"a": (1,)}, {"a": "\ud800"}, {"a": 1 << 64},
                                   {"a": {"b": [{2: 3}]}}, [], None])
def test_an_outcome_that_is_no_plain_map_is_not_encoded(value: Any) -> None:
    with pytest.raises(FrameError):
        encode_outcome(Outcome(1, value))


def test_deep_nesting_is_refused_both_ways() -> None:
    value: Any = []
    for _ in range(100):
        value = [value]
    with pytest.raises(FrameError):
        encode_outcome(Outcome(1, {"a": value}))
    with pytest.raises(FrameError):
        decode_outcome(msgpack.packb([1, 1, {"a": value}, None]))


def test_text_that_is_no_unicode_is_not_encoded() -> None:
    with pytest.raises(FrameError):
        encode_envelope(c.Envelope(c.UserAdd("a\ud800")))


def test_an_unknown_class_is_not_encoded() -> None:
    class Other(c.Command):
        __slots__ = ()

    with pytest.raises(FrameError):
        encode_envelope(c.Envelope(Other()))
