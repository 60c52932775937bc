"""Bans: what they cover, who may not log in, whose sessions end, and when they are over."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machine_world import HOUR_MS, World

from raftmft.core import bans, schema
from raftmft.core import commands as c
from raftmft.core.bans import BanRow, covers, danger_of, parse_host, parse_network
from raftmft.core.machine import SWEEP_EVERY_MS
from raftmft.core.outcome import Code


def login(address: str, user: str = "ann") -> c.Login:
    return c.Login("id-n1", 1, user, address, "password", 1)


@pytest.fixture
def booted(world: World) -> World:
    world.user()
    world.boot()
    return world


@pytest.mark.parametrize(("text", "network"), [
    ("192.0.2.7", "192.0.2.7/32"), ("10.0.0.0/8", "10.0.0.0/8"), ("0.0.0.0/0", "0.0.0.0/0"),
    ("2001:DB8::0:1", "2001:db8::1/128"), ("2001:db8::/32", "2001:db8::/32"), ("::/0", "::/0"),
    ("::ffff:192.0.2.7", "192.0.2.7/32"), ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
])
def test_networks_have_one_form(text: str, network: str) -> None:
    assert str(parse_network(text)) == network
    assert parse_network(network) == parse_network(text)


@pytest.mark.parametrize("text", ["", "host", "1.2.3", "1.2.3.4.5", "10.0.0.1/8", "10.0.0.0/33", "::1/129",
                                  "fe80::1%eth0",
                                  "1.2.3.4\n", "1.2.3.4/24/24", "\u0661.2.3.4", "x" * 500])
def test_what_is_no_network_is_refused_in_one_line(booted: World, text: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_network(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200
    assert booted.refused(c.BanAdd(text)) == Code.INVALID
    assert booted.refused(c.BanRemove(text)) == Code.INVALID


@pytest.mark.parametrize(("text", "address"), [
    ("192.0.2.7:5000", "192.0.2.7"), ("192.0.2.7", "192.0.2.7"), ("[2001:db8::1]:22", "2001:db8::1"),
    ("2001:db8::1", "2001:db8::1"), ("[::ffff:192.0.2.7]:1", "192.0.2.7"), ("::ffff:192.0.2.7", "192.0.2.7"),
    ("[fe80::1%eth0]:22", "fe80::1"), ("", None), ("host:22", None), ("(others)", None),
])
def test_hosts_of_connections(text: str, address: str | None) -> None:
    assert parse_host(text) == (None if address is None else ipaddress.ip_address(address))


@pytest.mark.parametrize(("text", "dangerous"), [
    ("0.0.0.0/0", True), ("::/0", True), ("127.0.0.1", True), ("127.0.0.0/8", True), ("::1", True),
    ("64.0.0.0/2", True), ("::/1", True), ("10.0.0.0/8", False), ("192.0.2.7", False), ("2001:db8::/32", False),
])
def test_what_could_lock_its_maker_out(text: str, dangerous: bool) -> None:
    assert (danger_of(parse_network(text)) is not None) == dangerous


def test_nobody_logs_in_from_a_banned_address(booted: World) -> None:
    assert booted.ok(c.BanAdd("192.0.2.0/24", reason="scans\n", actor="op")) == {
        "network": "192.0.2.0/24", "sessions": []}
    assert booted.last()["target"] == "ban add 192.0.2.0/24: scans\\u000a" and booted.last()["user"] == "op"
    assert booted.refused(login("192.0.2.9:1")) == Code.PERMISSION
    assert booted.refused(login("[::ffff:192.0.2.9]:1")) == Code.PERMISSION
    booted.ok(login("192.0.3.9:1"))
    booted.ok(login("[2001:db8::9]:1"))
    assert booted.ok(c.BanRemove("192.0.2.0/24")) == {"network": "192.0.2.0/24"}
    booted.ok(login("192.0.2.9:1"))
    assert booted.refused(c.BanRemove("192.0.2.0/24")) == Code.NOT_FOUND


def test_a_ban_ends_the_sessions_that_it_covers(booted: World) -> None:
    inside = [booted.ok(login(address))["session"] for address in ("192.0.2.1:5", "192.0.2.200:6")]
    outside = [booted.ok(login(address))["session"] for address in ("192.0.3.1:5", "[2001:db8::1]:6")]
    upload = booted.begin(inside[0], "f", truncate=True)["upload"]
    assert booted.ok(c.BanAdd("192.0.2.0/24"))["sessions"] == inside
    assert [s.id for s in booted.machine.sessions.list()] == outside
    assert booted.machine.uploads.get(upload) is None
    assert booted.kinds()[-3:] == ["admin", "session_killed", "session_killed"]
    assert booted.last()["outcome"] == "address banned"
    assert booted.ok(c.BanAdd("2001:db8::1"))["sessions"] == outside[1:]


def test_a_ban_ends_by_the_states_time_and_is_swept(booted: World) -> None:
    until = booted.now_ms + HOUR_MS
    booted.ok(c.BanAdd("192.0.2.7", until))
    booted.ok(c.BanAdd("192.0.2.8"))
    assert booted.machine.bans.list()[0] == BanRow("192.0.2.7/32", until, "", "", booted.now_ms)
    booted.now_ms = until - 1
    assert booted.refused(login("192.0.2.7:1")) == Code.PERMISSION
    booted.now_ms = until
    booted.ok(login("192.0.2.7:1"))
    booted.now_ms += SWEEP_EVERY_MS
    booted.ok(c.NoOp())
    assert booted.machine._db.execute("SELECT network FROM bans").fetchall() == [("192.0.2.8/32",)]
    assert [ban.network for ban in booted.machine.bans.list()] == ["192.0.2.8/32"]
    assert booted.machine.bans.match(parse_host("192.0.2.7"), 0) is None, "kept in memory"


def test_a_sweep_removes_a_bounded_number_at_once(booted: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bans, "EXPIRE_AT_ONCE", 2)
    for i in range(5):
        booted.ok(c.BanAdd(f"192.0.2.{i}", booted.now_ms + 1000))
    booted.now_ms += SWEEP_EVERY_MS + 1000
    for left in (3, 1, 0):
        booted.ok(c.NoOp())
        assert booted.machine._db.execute("SELECT count(*) FROM bans").fetchone() == (left,)


def test_a_second_ban_of_a_network_replaces_the_first(booted: World) -> None:
    booted.ok(c.BanAdd("192.0.2.7", booted.now_ms + 5, "one"))
    booted.ok(c.BanAdd("::ffff:192.0.2.7", 0, "two"))
    (ban,) = booted.machine.bans.list()
    assert (ban.network, ban.until_ms, ban.reason) == ("192.0.2.7/32", 0, "two")


def test_bans_that_make_no_sense_or_are_too_many_are_refused(booted: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for until in (-1, 1, booted.now_ms, bans.MAX_UNTIL_MS + 1, (1 << 63) - 1):
        assert booted.refused(c.BanAdd("192.0.2.7", until)) == Code.INVALID
    booted.ok(c.BanAdd("192.0.2.6", bans.MAX_UNTIL_MS))
    monkeypatch.setattr(bans, "MAX_BANS", 1)
    assert booted.refused(c.BanAdd("192.0.2.7")) == Code.LIMIT
    booted.ok(c.BanAdd("192.0.2.6"))  # the one that stands may be changed


def test_a_rejected_entry_leaves_no_ban_in_memory(booted: World, monkeypatch: pytest.MonkeyPatch) -> None:
    booted.ok(c.BanAdd("192.0.2.6"))
    def fail(*_: object) -> None:
        assert booted.machine.bans.match(parse_host("192.0.2.7"), booted.now_ms) is not None  # now it is in memory
        raise ZeroDivisionError

    monkeypatch.setattr(booted.machine.sessions, "_leave", fail)
    booted.ok(login("192.0.2.7:1"))
    assert booted.refused(c.BanAdd("192.0.2.7")) == Code.INTERNAL
    assert booted.machine.bans.match(parse_host("192.0.2.7"), booted.now_ms) is None


ADDRESSES = st.ip_addresses().filter(lambda a: a.version == 4 or a.ipv4_mapped is None)


@given(st.lists(st.tuples(ADDRESSES, st.integers(0, 128)), max_size=12), ADDRESSES, st.integers(0, 128))
def test_looking_up_is_the_same_as_trying_every_ban(drawn, address, near) -> None:
    state = type("State", (), {"db": schema.open_state(":memory:"), "now_ms": 0})()
    networks = {ipaddress.ip_network((int(a) if a.version == 6 else a, min(length, a.max_prefixlen)), strict=False)
                for a, length in [*drawn, (address, near)]}
    networks = {parse_network(str(network)) for network in networks}
    for network in networks:
        state.db.execute("INSERT INTO bans VALUES (?, 0, '', '', 0)", (str(network),))
    found = bans.Bans(state, None).match(address, 1)  # type: ignore[arg-type]
    assert (found is not None) == any(covers(network, address) for network in networks)
    state.db.close()
