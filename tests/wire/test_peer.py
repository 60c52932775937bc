"""What peers may say to each other: everything well formed survives the trip, everything else is a FrameError."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftmft.wire import frames, peer
from raftmft.wire.frames import FrameError

names = st.text(min_size=1, max_size=40)
seqs = st.integers(0, peer.SEQ_LIMIT - 1)
ids = st.binary(min_size=32, max_size=32)
chains = st.lists(st.tuples(st.binary(max_size=60), st.binary(max_size=60)), max_size=peer.MOST_ENDORSEMENTS).map(tuple)
plain = st.recursive(st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.binary() | st.text(),
                     lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
                     max_leaves=12)


def one(frame: bytes):
    [value] = frames.FrameReader().feed(frame)
    return value


@given(st.integers(0, 1 << 31), names, st.sampled_from([peer.CONTROL, peer.BULK, peer.LINEAGE]), names, chains)
def test_hello_survives(version, cluster, channel, member, chain):
    hello = peer.Hello(version, cluster, channel, member, chain)
    assert peer.decode_hello(one(peer.encode_hello(hello))) == hello
    welcome = peer.Welcome(version, member, chain=chain)
    assert peer.decode_welcome(one(peer.encode_welcome(welcome))) == welcome


def test_the_longest_greetings_fit_in_their_limit():
    longest = "\U0001f512" * peer.NAME_LIMIT
    chain = ((b"c" * peer.CERTIFICATE_LIMIT, b"s" * peer.SIGNATURE_LIMIT),) * peer.MOST_ENDORSEMENTS
    assert len(peer.encode_hello(peer.Hello(1, longest, peer.CONTROL, longest, chain))) <= peer.HELLO_LIMIT
    refused = peer.Welcome(1, longest, "\U0001f512" * 2 * peer.TEXT_LIMIT, chain)
    assert len(peer.encode_welcome(refused)) <= peer.HELLO_LIMIT


@pytest.mark.parametrize("chain", [
    None, b"", [None], [[]], [[b"c"]], [[b"c", b"s", b"x"]], [[b"c", "s"]], ["cs"], {b"c": b"s"}, [[b"c", b"s"]] * 9,
    [[b"c" * (peer.CERTIFICATE_LIMIT + 1), b"s"]], [[b"c", b"s" * (peer.SIGNATURE_LIMIT + 1)]]])
def test_wrong_chains(chain):
    with pytest.raises(FrameError):
        peer.decode_hello({"raftmft": 1, "cluster": "c", "channel": "control", "member": "m", "chain": chain})
    with pytest.raises(FrameError):
        peer.decode_welcome({"raftmft": 1, "member": "m", "refusal": "", "chain": chain, "removed": False})


@pytest.mark.parametrize("removed", [None, 0, 1, "", b"", []])
def test_a_welcome_says_clearly_whether_the_dialler_was_removed(removed):
    with pytest.raises(FrameError):
        peer.decode_welcome({"raftmft": 1, "member": "m", "refusal": "x", "chain": [], "removed": removed})


@given(st.integers(0, 1 << 31), names, st.text(max_size=2000), st.booleans())
def test_welcome_survives_and_its_refusal_is_cut(version, member, refusal, removed):
    welcome = peer.decode_welcome(one(peer.encode_welcome(peer.Welcome(version, member, refusal, (), removed))))
    assert (welcome.version, welcome.member, welcome.is_removed) == (version, member, removed)
    assert len(welcome.refusal) <= peer.TEXT_LIMIT
    assert welcome.refusal == refusal or len(refusal) > peer.TEXT_LIMIT
    assert bool(welcome.refusal) == bool(refusal)


@given(st.text(min_size=1, max_size=peer.KIND_LIMIT), st.binary())
def test_control_survives(kind, body):
    assert peer.decode_control(one(peer.encode_control(kind, body))) == (kind, body)


@given(seqs, names, st.dictionaries(st.text(), plain, max_size=4))
def test_ask_survives(seq, op, args):
    assert peer.decode_ask(peer.encode_ask(seq, op, args)) == (seq, op, args)


@given(seqs, plain)
def test_answer_survives(seq, value):
    assert peer.decode_answer(peer.encode_answer(seq, peer.OK, value)) == (seq, peer.OK, value)


@given(st.one_of(st.builds(peer.Put, seqs, ids), st.builds(peer.Get, seqs, ids), st.builds(peer.Found, seqs),
                 st.builds(peer.Ack, seqs, st.text(max_size=peer.TEXT_LIMIT)),
                 st.builds(peer.Put, seqs, ids, st.lists(names, min_size=1, max_size=peer.MOST_PASSED_ON, unique=True)
                           .map(tuple)),
                 st.builds(peer.Passed, seqs, names, st.text(max_size=peer.TEXT_LIMIT))),
       st.integers(1, peer.BULK_BODY_LIMIT))
def test_bulk_survives_with_the_length_of_its_body(message, length):
    if isinstance(message, peer.Ack | peer.Get | peer.Passed):
        length = 0
    data = peer.encode_bulk(message, length)
    header_length, body_length = peer.bulk_lengths(data[:8])
    assert body_length == length and len(data) == 8 + header_length
    assert peer.decode_bulk(data[8:], body_length) == message


@given(plain)
def test_no_value_but_the_right_one_is_taken(value):
    for decode in (peer.decode_hello, peer.decode_welcome, peer.decode_control):
        if decode is peer.decode_control and type(value) is list and len(value) == 2:
            continue
        with pytest.raises(FrameError):
            decode(value)


@given(st.binary(max_size=200), st.integers(0, peer.BULK_BODY_LIMIT))
def test_random_bytes_are_frame_errors_and_nothing_else(data, length):
    for decode in (peer.decode_ask, peer.decode_answer, lambda d: peer.decode_bulk(d, length)):
        try:
            decode(data)
        except FrameError:
            pass


@pytest.mark.parametrize("value", [
    [1, -1, b"x" * 32], [1, 1 << 63, b"x" * 32], [1, True, b"x" * 32], [True, 1, b"x" * 32], [1, 1, b"x" * 31],
    [1, 1, "x" * 32], [1, 1], [1, 1, b"x" * 32, 0], [0, 1, b"x" * 32],
    [peer.BULK_CODE_LIMIT + 1, 1, b"x" * 32], {}, None, [4, 1, b"x"], [2, 1, ""],
    [5, 1, b"x" * 32], [5, 1, [b"x" * 32]], [5, 1, [b"x" * 31, "a"]], [5, 1, [b"x" * 32, "a", "a"]],
    [5, 1, [b"x" * 32, b"a"]], [5, 1, [b"x" * 32, ""]], [5, 1, [b"x" * 32, *"abcdefg"]], [6, 1, ["a", ""]], [6, 1, "a"],
])
def test_wrong_bulk_headers(value):
    with pytest.raises(FrameError):
        peer.decode_bulk(msgpack.packb(value), 7)


def test_what_a_later_version_may_say_is_taken():
    later = {"raftmft": 2, "cluster": "c", "channel": "bulk", "member": "m", "chain": [], "colour": [1]}
    assert peer.decode_hello(later) == peer.Hello(2, "c", "bulk", "m")
    later = {"raftmft": 2, "member": "m", "refusal": "", "chain": [], "removed": False, "colour": [1]}
    assert peer.decode_welcome(later) == peer.Welcome(2, "m")
    for detail, length in ((b"x" * 32, 0), ({"a": 1}, 5), (None, peer.BULK_BODY_LIMIT)):
        assert peer.decode_bulk(msgpack.packb([9, 7, detail]), length) == peer.Unknown(7)
    assert peer.decode_answer(msgpack.packb([3, "later", {"a": 1}]))[:2] == (3, peer.FAILED)


def test_a_put_needs_a_body_and_a_get_must_have_none():
    put, get = peer.encode_bulk(peer.Put(1, b"i" * 32), 5)[8:], peer.encode_bulk(peer.Get(1, b"i" * 32))[8:]
    assert peer.decode_bulk(put, 5) == peer.Put(1, b"i" * 32)
    for header, length in ((put, 0), (get, 5)):
        with pytest.raises(FrameError):
            peer.decode_bulk(header, length)


@pytest.mark.parametrize(("header", "body"), [(0, 0), (peer.BULK_HEADER_LIMIT + 1, 0), (10, peer.BULK_BODY_LIMIT + 1),
                                               (0xFFFFFFFF, 0xFFFFFFFF)])
def test_lengths_over_the_limits_are_refused_before_anything_is_read(header, body):
    with pytest.raises(FrameError):
        peer.bulk_lengths(peer.BULK_PREFIX.pack(header, body))


def test_a_control_message_that_the_peer_would_refuse_is_not_made():
    with pytest.raises(ValueError):
        peer.encode_control("raft", bytes(peer.CONTROL_LIMIT))
    whole = peer.encode_control("x" * peer.KIND_LIMIT, bytes(peer.CONTROL_LIMIT - 64))
    assert peer.decode_control(one(whole))[0] == "x" * peer.KIND_LIMIT
