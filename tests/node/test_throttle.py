"""Early drop as sshd has it; a rate for each address that delays before it refuses, in bounded memory."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftmft.core.options import OPTIONS, Startups
from raftmft.node import throttle
from raftmft.node.throttle import AddressRates, drop_chance

ONE, TWO = ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("192.0.2.2")


@pytest.mark.parametrize(("half_open", "chance"), [
    (0, 0), (99, 0), (100, 0.3), (200, 0.65), (299, 0.9965), (300, 1), (5000, 1)])
def test_drops_begin_at_start_and_are_certain_at_full(half_open, chance):
    assert drop_chance(half_open, Startups(100, 30, 300)) == pytest.approx(chance)


@given(st.integers(0, 500), st.integers(1, 300), st.integers(1, 100), st.integers(0, 200))
def test_more_half_open_connections_never_lower_the_chance(half_open, start, rate, more):
    startups = Startups(start, rate, start + more)
    assert 0 <= drop_chance(half_open, startups) <= drop_chance(half_open + 1, startups) <= 1


def test_a_quiet_address_has_its_burst_then_waits_then_is_refused():
    rates = AddressRates()
    waits = [rates.take(ONE, 30, 100.0) for _ in range(200)]
    assert waits[:60] == [0.0] * 60
    assert waits[60] == pytest.approx(1 / 30) and waits[179] == pytest.approx(4)
    assert waits[180:] == [None] * 20
    assert rates.take(TWO, 30, 100.0) == 0.0, "another address waits for nobody"
    assert rates.take(ONE, 30, 106.0) == 0.0


@given(st.lists(st.floats(0, 3), min_size=1, max_size=300), st.integers(1, 50))
def test_never_more_than_burst_and_rate_go_on(gaps, rate):
    rates, now, gone = AddressRates(), 1000.0, []
    for gap in gaps:
        now += gap
        wait = rates.take(ONE, rate, now)
        if wait is not None:
            assert 0 <= wait <= throttle.MOST_DELAY_S
            gone.append(now + wait)
    for i, first in enumerate(gone):
        for j in range(i, len(gone)):
            assert j - i + 1 <= rate * (throttle.BURST_S + gone[j] - first) + 1.001


def test_defaults_never_hinder_ordinary_use():
    rate = OPTIONS["login.rate_per_address"].parse(OPTIONS["login.rate_per_address"].default)
    rates, now = AddressRates(), 0.0
    assert all(rates.take(ONE, rate, now) == 0.0 for _ in range(50)), "fifty at once"
    rates = AddressRates()
    for _ in range(200):  # one after the other, as fast as the door lets them
        wait = rates.take(ONE, rate, now)
        assert wait is not None
        now += wait
    assert now < 10


def test_memory_is_bounded_and_quiet_addresses_are_forgotten(monkeypatch):
    monkeypatch.setattr(throttle, "MOST_ADDRESSES", 100)
    rates = AddressRates()
    for i in range(1000):
        rates.take(ipaddress.IPv4Address(i), 1, 0.0)
    assert len(rates) == 100
    rates.take(ONE, 1, 10.0)
    assert len(rates) == 1


def test_an_ipv6_customer_is_one_address_and_no_ipv4_one():
    rates = AddressRates()
    for i in range(6):
        rates.take(ipaddress.ip_address(f"2001:db8::{i:x}"), 1, 0.0)
    assert rates.take(ipaddress.ip_address("2001:db8::ffff"), 1, 0.0) is None
    assert rates.take(ipaddress.ip_address("2001:db8:0:1::1"), 1, 0.0) == 0.0
    small = AddressRates()
    for _ in range(6):
        small.take(ipaddress.ip_address("::1"), 1, 0.0)
    assert small.take(ipaddress.IPv4Address(0), 1, 0.0) == 0.0
