"""A datagram is believed only if a member wrote it, for us, in both our present lives, and once."""

from __future__ import annotations

import math
import random

import msgpack
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from raftmft.core.membership import MAX_INCARNATION, Kind, Load, Message, Rumour, State
from raftmft.wire import gossip
from raftmft.wire.gossip import MAX_DATAGRAM, GossipCodec

KEY = b"the cluster's secret"
MEMBERS = {"a", "b", "c"}
LOAD = Load(3, 1 << 40, 0.25, 1 << 44, "active", 99, 7, "0.1.0", True)
PING = Message(Kind.PING, 7, "b", (Rumour("a", State.ALIVE, 5, 2, LOAD), Rumour("c", State.DEAD, 9)))


class Net:
    """Two or more members; every datagram is kept, as by somebody who listens."""

    def __init__(self, *names, seed=1):
        self.chance = random.Random(seed)
        self.at: dict[str, GossipCodec] = {}
        self.now = 0.0
        self.captured: list[tuple[str, bytes]] = []
        for name in names or ("a", "b"):
            self.boot(name)

    def boot(self, name):
        self.at[name] = GossipCodec(name, KEY, random_bytes=self.chance.randbytes)

    def send(self, sender, to, message=PING):
        """Delivers a message and all the answers it causes; returns the messages that were believed, by receiver."""
        return self.deliver(to, self.at[sender].encode(to, message))

    def deliver(self, to, datagram):
        believed, queue = [], [(to, datagram)]
        while queue:
            assert len(queue) + len(believed) < 20, "they never stop answering one another"
            to, datagram = queue.pop(0)
            self.captured.append((to, datagram))
            received = self.at[to].decode(datagram, MEMBERS, self.now)
            if received.message is not None:
                believed.append((to, received.sender, received.message))
            queue += received.replies
        return believed

    def acquaint(self, a="a", b="b"):
        self.send(a, b)
        assert self.send(a, b) == [(b, a, PING)] and self.send(b, a) == [(a, b, PING)]


def test_strangers_become_acquainted_by_one_lost_message_and_then_all_is_believed():
    net = Net()
    assert net.send("a", "b") == []
    assert len(net.captured) == 4, "PING, HELLO, HELLO, WELCOME"
    assert net.send("a", "b") == [("b", "a", PING)]
    assert net.send("b", "a") == [("a", "b", PING)]
    assert len(net.captured) == 6


def test_both_speaking_first_at_once_is_no_trouble():
    net = Net()
    first, second = net.at["a"].encode("b", PING), net.at["b"].encode("a", PING)
    net.deliver("b", first)
    net.deliver("a", second)
    assert net.send("a", "b") and net.send("b", "a")


@pytest.mark.parametrize("lost", range(4))
def test_any_lost_datagram_of_the_handshake_is_made_good_by_the_next_ping(lost):
    net = Net()
    queue, n = [("b", net.at["a"].encode("b", PING))], 0
    while queue:
        to, datagram = queue.pop(0)
        if n != lost:
            queue += net.at[to].decode(datagram, MEMBERS, 0.0).replies
        n += 1
    net.now = 0.3
    net.send("a", "b")
    net.send("b", "a")
    assert net.send("a", "b") and net.send("b", "a")


def test_a_datagram_is_believed_once():
    net = Net()
    net.acquaint()
    datagram = net.at["a"].encode("b", PING)
    assert net.deliver("b", datagram)
    for _ in range(3):
        assert net.deliver("b", datagram) == []
    assert net.at["b"].dropped["replayed"] == 3


def test_reordered_datagrams_are_each_believed_once_within_the_window():
    net = Net()
    net.acquaint()
    datagrams = [net.at["a"].encode("b", PING) for _ in range(100)]
    newest_first = [bool(net.deliver("b", d)) for d in reversed(datagrams)]
    assert newest_first == [True] * gossip.WINDOW + [False] * (100 - gossip.WINDOW)
    assert not any(net.deliver("b", d) for d in datagrams)


def test_nothing_captured_before_the_receivers_restart_is_believed_after_it():
    net = Net()
    net.acquaint()
    withheld = [net.at["a"].encode("b", PING) for _ in range(5)]
    before = list(net.captured)
    net.boot("b")
    for to, datagram in [*before, *(("b", d) for d in withheld)]:
        if to == "b":
            assert net.deliver("b", datagram) == []
    net.now = 10
    net.acquaint()
    for datagram in withheld:
        assert net.deliver("b", datagram) == []


def test_nothing_captured_before_the_senders_restart_is_believed_once_it_has_spoken_again():
    net = Net()
    net.acquaint()
    withheld = [net.at["a"].encode("b", PING) for _ in range(5)]
    net.boot("a")
    net.acquaint()
    for datagram in withheld:
        assert net.deliver("b", datagram) == []


@pytest.mark.parametrize("restarted", ["a", "b"])
def test_a_restart_of_either_side_costs_one_lost_message_at_most(restarted):
    net = Net()
    net.acquaint()
    net.boot(restarted)
    assert net.send("a", "b") == []
    assert net.send("a", "b") == [("b", "a", PING)]
    assert net.send("b", "a") == [("a", "b", PING)]


@pytest.mark.parametrize("seed", range(10))
def test_replaying_everything_at_any_moment_neither_deceives_nor_disturbs(seed):
    net = Net("a", "b", seed=seed)
    number = 0
    for step in range(60):
        net.now += 0.3
        number += 1
        sender, to = net.chance.sample(["a", "b"], 2)
        message = Message(Kind.PING, number, to)
        fresh = net.at[sender].encode(to, message)
        for target, old in net.chance.sample(net.captured, min(4, len(net.captured))):
            assert net.deliver(target, old) == [], f"step {step}"
        believed = net.deliver(to, fresh)
        assert believed in ([], [(to, sender, message)])
        if step % 15 == 14:
            net.boot(net.chance.choice(["a", "b"]))
    net.now += 1
    net.send("a", "b")
    assert net.send("a", "b") and net.send("b", "a")


def test_established_members_are_not_disturbed_by_replayed_handshakes():
    net = Net()
    for _ in range(3):
        net.boot("a")
        net.now += 1
        net.acquaint()
    old = list(net.captured)
    for to, datagram in old:
        assert net.deliver(to, datagram) == []
        assert net.send("a", "b") == [("b", "a", PING)] and net.send("b", "a") == [("a", "b", PING)]


def test_answers_to_unproven_datagrams_are_few_small_and_go_to_the_members_own_address():
    net = Net()
    datagram = net.at["a"].encode("b", PING)
    replies = [reply for _ in range(1000) for reply in net.at["b"].decode(datagram, MEMBERS, 5.0).replies]
    assert 1 <= len(replies) <= gossip.HELLO_BURST
    assert {to for to, _ in replies} == {"a"}
    assert all(len(reply) < len(datagram) for _, reply in replies)
    later = [r for n in range(1000) for r in net.at["b"].decode(datagram, MEMBERS, 6.0 + n / 1000).replies]
    assert len(later) <= gossip.HELLO_BURST + gossip.HELLO_RATE_PER_S + 1


def test_what_is_kept_of_a_peer_is_bounded():
    net = Net()
    for _ in range(100):
        net.boot("a")
        net.now += 1
        net.at["b"].decode(net.at["a"].encode("b", PING), MEMBERS, net.now)
    assert len(net.at["b"]._peers) == 1
    assert len(net.at["b"]._peers["a"].pending) <= gossip.PENDING_MAX


# --- forgery and nonsense --------------------------------------------------------------------------
def acquainted():
    net = Net()
    net.acquaint()
    return net


@settings(max_examples=200)
@given(st.data())
def test_any_change_to_a_datagram_is_noticed(data):
    net = acquainted()
    datagram = bytearray(net.at["a"].encode("b", PING))
    how = data.draw(st.sampled_from(["flip", "cut", "extend", "swap"]))
    at = data.draw(st.integers(0, len(datagram) - 1))
    if how == "flip":
        datagram[at] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "cut":
        del datagram[at:]
    elif how == "extend":
        datagram += data.draw(st.binary(min_size=1, max_size=20))
    else:
        datagram[4:20] = net.at["a"].encode("b", PING)[4:20]
    received = net.at["b"].decode(bytes(datagram), MEMBERS, 0.0)
    assert received == gossip.NOTHING
    assert net.at["b"].dropped["mac"] + net.at["b"].dropped["version"] == 1


@given(st.binary(max_size=2000))
def test_noise_is_dropped_and_counted(noise):
    codec = GossipCodec("a", KEY)
    assert codec.decode(noise, MEMBERS, 0.0) == gossip.NOTHING
    assert sum(codec.dropped.values()) == 1


def test_another_clusters_key_is_no_key():
    net = Net()
    other = GossipCodec("a", KEY + b"!")
    assert net.deliver("b", other.encode("b", PING)) == []
    assert net.at["b"].dropped == {"mac": 1}


def test_the_addressee_and_the_sender_are_part_of_what_is_signed_and_checked():
    net = Net("a", "b", "c")
    net.acquaint()
    datagram = net.at["a"].encode("b", PING)
    assert net.deliver("c", datagram) == [] and net.at["c"].dropped == {"misaddressed": 1}
    assert net.deliver("a", net.at["a"].encode("a", PING)) == [] and net.at["a"].dropped["stranger"] == 1
    assert net.at["b"].decode(datagram, {"c"}, 0.0) == gossip.NOTHING and net.at["b"].dropped["stranger"] == 1


def test_a_later_version_is_dropped_not_misread():
    net = acquainted()
    datagram = bytearray(net.at["a"].encode("b", PING))
    datagram[3] = gossip.VERSION + 1
    assert net.deliver("b", bytes(datagram)) == []
    assert net.at["b"].dropped["version"] == 1


GOOD = ["a", "b", b"B" * 8, b"", 1, b"", b"", 0, 1, "b", [["a", 0, 1, 1, [0, 0, 0.5, 0, "active", 0, 0, "v", True]]]]
HUGE = 1 << 63


def signed(body: bytes) -> bytes:
    prefix = b"RMG" + bytes([gossip.VERSION])
    key = blake3(KEY, derive_key_context=gossip._MAC_CONTEXT).digest()
    return prefix + blake3(prefix + body, key=key).digest(16) + body


def changed(at, value, *inner):
    body = msgpack.unpackb(msgpack.packb(GOOD))
    spot = body
    path = [at, *inner]
    for step in path[:-1]:
        spot = spot[step]
    spot[path[-1]] = value
    return body


MALFORMED = [
    None, [], {}, GOOD[:-1], [*GOOD, 1],
    *[changed(at, value) for at in (0, 1, 9) for value in (None, 5, b"a", "x" * 65, [])], changed(0, ""),
    *[changed(at, value) for at in (2, 3, 5, 6) for value in (None, "x", b"x", b"x" * 99, 0)], changed(2, b""),
    *[changed(at, value) for at in (4, 7, 8) for value in (-1, HUGE, None, "1", 1.0, True)],
    changed(7, 3), changed(7, 15),
    *[changed(10, value) for value in (None, {}, [None], [[]], [GOOD[10][0]] * 6, "x", [GOOD[10][0][:4]])],
    *[changed(10, value, 0, 0) for value in ("", 5, b"a", "x" * 65)],
    *[changed(10, value, 0, 1) for value in (3, -1, None, True)],
    *[changed(10, value, 0, 2) for value in (-1, MAX_INCARNATION + 1, None, 0.5)],
    *[changed(10, value, 0, 3) for value in (-1, HUGE, None)],
    *[changed(10, value, 0, 4) for value in ([], 5, "x", [0] * 9)],
    *[changed(10, value, 0, 4, n) for n in (0, 1, 3, 5, 6) for value in (-1, HUGE, None, 0.5, "0")],
    *[changed(10, value, 0, 4, 2) for value in (math.nan, math.inf, None, "1")],
    *[changed(10, value, 0, 4, 4) for value in (None, 1, "x" * 17)],
    *[changed(10, value, 0, 4, 7) for value in (None, 1, "x" * 33)],
    *[changed(10, value, 0, 4, 8) for value in (None, 1, "yes")],
]


@pytest.mark.parametrize("body", MALFORMED, ids=repr)
def test_even_a_member_is_checked_strictly(body):
    codec = GossipCodec("b", KEY)
    assert codec.decode(signed(msgpack.packb(body)), MEMBERS, 0.0) == gossip.NOTHING
    assert codec.dropped == {"malformed": 1}


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x91" * 500, msgpack.packb(GOOD) + b"\0", b"\xc7\x05\x01hello",
                                  b"\xdd\xff\xff\xff\xff", b"\xa2\xff\xfe"])
def test_bodies_that_are_no_msgpack(body):
    codec = GossipCodec("b", KEY)
    assert codec.decode(signed(body), MEMBERS, 0.0) == gossip.NOTHING
    assert codec.dropped == {"malformed": 1}


def test_the_good_body_of_these_tests_is_good_and_later_loads_and_rumours_may_have_more_fields():
    for body in (GOOD, changed(10, [*GOOD[10][0][4], "news"], 0, 4), changed(10, [*GOOD[10][0], "news"], 0)):
        codec = GossipCodec("b", KEY)
        codec.decode(signed(msgpack.packb(body)), MEMBERS, 0.0)
        assert codec.dropped == {"unproven": 1}


def test_a_sequence_from_far_away_costs_nothing():
    net = acquainted()
    for seq in (1 << 62, 1, (1 << 62) - 1, (1 << 63) - 1):
        net.at["a"]._seq = seq - 1
        net.send("a", "b")
    net.at["a"]._seq = (1 << 62)
    assert net.send("a", "b") == []


# --- what goes in comes out ------------------------------------------------------------------------
texts = st.text(max_size=20)
loads = st.builds(Load, st.integers(0, 1 << 30), st.integers(0, 1 << 50), st.floats(0, 1), st.integers(0, 1 << 60),
                  st.sampled_from(["active", "draining"]), st.integers(0, 1 << 62), st.integers(0, 1 << 40),
                  st.text(max_size=10), st.booleans())
messages = st.builds(
    Message, st.sampled_from(Kind), st.integers(0, (1 << 63) - 1), texts,
    st.lists(st.builds(Rumour, st.text("abc", min_size=1, max_size=20), st.sampled_from(State),
                       st.integers(0, MAX_INCARNATION), st.integers(0, 1 << 62), st.none() | loads),
             max_size=5).map(tuple))


@given(messages)
def test_every_message_survives_the_trip(message):
    net = acquainted()
    assert net.send("a", "b", message) == [("b", "a", message)]


def test_the_largest_message_fits():
    name = "\N{LATIN SMALL LETTER A WITH DIAERESIS}" * 20 + "x" * 24
    most = (1 << 63) - 1
    full = Load(most, most, 1 / 3, most, "w" * 16, most, most, "v" * 32, True)
    message = Message(Kind.PING, (1 << 63) - 1, "x" * 64,
                      tuple(Rumour("x" * 63 + str(n), State.DEAD, MAX_INCARNATION, (1 << 62), full) for n in range(5)))
    codec = GossipCodec("a" * 64, KEY)
    codec._seq = 1 << 60
    assert len(codec.encode("b" * 64, message)) <= MAX_DATAGRAM
    assert len(codec.encode(name, message)) <= MAX_DATAGRAM


def test_rumours_that_do_not_fit_are_left_out_from_the_end():
    net = acquainted()
    wide = "\N{GRINNING FACE}" * 64
    message = Message(Kind.ACK, 1, "a", tuple(Rumour(wide, State.ALIVE, n) for n in range(1, 9)))
    ((_, _, got),) = net.send("a", "b", message)
    assert 1 <= len(got.rumours) <= 5 and got.rumours == message.rumours[:len(got.rumours)]
    narrow = Message(Kind.ACK, 1, "a", tuple(Rumour("c", State.ALIVE, n) for n in range(1, 9)))
    ((_, _, got),) = net.send("a", "b", narrow)
    assert got.rumours == narrow.rumours[:5]


def test_an_odd_load_is_sent_as_a_valid_one():
    net = acquainted()
    odd = Load(-5, 1 << 80, math.nan, -1, "m" * 99, 3.7, 0, "v" * 99, True)  # type: ignore[arg-type]
    ((_, _, got),) = net.send("a", "b", Message(Kind.PING, 1, "b", (Rumour("a", State.ALIVE, 1, 1, odd),)))
    assert got.rumours[0].load == Load(0, (1 << 63) - 1, 1.0, 0, "m" * 16, 3, 0, "v" * 32, True)
