"""Cluster-wide options: known keys with typed values; what is wrong is refused by a line that says what is allowed."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest
from machine_world import BOOTSTRAP, World, content, open_machine

from raftmft.core import commands as c
from raftmft.core.options import OPTIONS, Startups
from raftmft.core.outcome import Code


def get(world: World, key: str) -> object:
    return world.machine.options.get(key)


def test_defaults_are_typed(world: World) -> None:
    assert get(world, "replicas") == 3
    assert get(world, "proxy.trusted") == ()
    assert get(world, "login.max_startups") == Startups(100, 30, 300)
    assert get(world, "login.rate_per_address") == 30
    assert get(world, "login.limit_s") == 30
    assert [row.key for row in world.machine.options.list()] == list(OPTIONS)
    assert not any(row.is_set for row in world.machine.options.list())


@pytest.mark.parametrize("key", OPTIONS)
def test_every_default_and_its_text_there_and_back(world: World, key: str) -> None:
    option, row = OPTIONS[key], world.machine.options.row(key)
    assert row is not None
    assert option.render(option.parse(row.default)) == row.default == row.value
    assert option.help and option.allowed


@pytest.mark.parametrize(("key", "text", "stored", "value"), [
    ("login.limit_s", "007", "7", 7),
    ("proxy.trusted", " 10.0.0.0/8 , 192.0.2.1,fd00::/8,10.0.0.0/8", "10.0.0.0/8,192.0.2.1/32,fd00::/8",
     (ip_network("10.0.0.0/8"), ip_network("192.0.2.1/32"), ip_network("fd00::/8"))),
    ("login.max_startups", "10:50:20", "10:50:20", Startups(10, 50, 20)),
])
def test_a_value_is_kept_in_one_form(world: World, key: str, text: str, stored: str, value: object) -> None:
    assert world.ok(c.ConfigSet(key, text, "op")) == {"value": stored}
    assert get(world, key) == value
    row = world.machine.options.row(key)
    assert row is not None and row.value == stored and row.is_set
    record = world.last()
    assert (record["kind"], record["target"], record["user"]) == ("admin", f"config set {key}={stored}", "op")
    assert world.ok(c.ConfigSet(key, "")) == {"value": OPTIONS[key].default}
    row = world.machine.options.row(key)
    assert row is not None and row.value == OPTIONS[key].default and not row.is_set
    assert get(world, key) == OPTIONS[key].parse(OPTIONS[key].default)


@pytest.mark.parametrize(("key", "text"), [
    ("replicas", "0"), ("replicas", "17"), ("replicas", "three"), ("replicas", "-1"), ("replicas", "1" * 400),
    ("replicas", "\u0663"), ("replicas", "2.0"), ("proxy.trusted", "10.0.0.1/8"), ("proxy.trusted", "balancer"),
    ("proxy.trusted", "fe80::1%eth0"), ("proxy.trusted", "10.0.0.0/33"), ("proxy.trusted", ",".join(
        f"10.0.{i // 256}.{i % 256}" for i in range(257))), ("login.max_startups", "10"),
    ("login.max_startups", "300:30:100"), ("login.max_startups", "1:0:2"), ("login.max_startups", "1:101:2"),
    ("login.max_startups", "0:30:2"), ("login.max_startups", "1:2:3:4"), ("login.limit_s", "0"),
    ("login.limit_s", "3601"),
    ("login.rate_per_address", " 5"), ("login.rate_per_address", "\0"), ("login.limit_s", "9" * 5000)])
def test_bad_values_are_refused_and_the_line_says_what_is_allowed(world: World, key: str, text: str) -> None:
    assert world.refused(c.ConfigSet(key, text)) == Code.INVALID
    rejection = world.apply(c.ConfigSet(key, text)).rejection
    assert rejection is not None and OPTIONS[key].allowed in rejection.text and len(rejection.text) < 400


def test_an_unknown_key_is_refused_and_the_line_lists_the_known(world: World) -> None:
    assert world.refused(c.ConfigSet("replica", "3")) == Code.NOT_FOUND
    rejection = world.apply(c.ConfigSet("replica\n", "3")).rejection
    assert rejection is not None and all(key in rejection.text for key in OPTIONS)


def test_the_number_of_replicas_moves_the_placement_epoch(world: World) -> None:
    before = world.placement
    world.ok(c.ConfigSet("login.limit_s", "9"))
    world.ok(c.ConfigSet("replicas", "3"))
    assert world.placement == before, "the owners are the same as before"
    world.ok(c.ConfigSet("replicas", "2"))
    assert world.placement == world.index and world.machine.settings.replicas == get(world, "replicas") == 2
    world.ok(c.ConfigSet("replicas", ""))
    assert world.placement == world.index and world.machine.settings.replicas == 3
    world.machine.close()
    again = open_machine(world.file)
    assert again.settings.placement == world.index
    again.close()


def test_an_upload_of_the_old_placement_is_not_published(world: World) -> None:
    world.user()
    session = world.login()
    old, upload = world.placement, world.begin(session, "a")["upload"]
    world.ok(c.ConfigSet("replicas", "2"))
    assert world.refused(c.Publish(session, upload, content(10), old)) == Code.STALE_PLACEMENT


def test_the_default_number_of_replicas_is_what_the_cluster_was_made_with(tmp_path: Path) -> None:
    world = World(tmp_path / "s", bootstrap=False)
    assert world.refused(c.ConfigSet("replicas", "2")) == Code.INVALID
    assert get(world, "replicas") == 3
    world.ok(c.Bootstrap("test", "id", BOOTSTRAP.members, "k", b"h", b"a", 5))
    assert get(world, "replicas") == 5
    world.ok(c.ConfigSet("replicas", "1"))
    world.ok(c.ConfigSet("replicas", ""))
    assert get(world, "replicas") == world.machine.settings.replicas == 5


def test_options_outlive_the_process(world: World) -> None:
    world.ok(c.ConfigSet("login.limit_s", "12"))
    world.machine.close()
    again = open_machine(world.file)
    assert again.options.get("login.limit_s") == 12
    again.close()


def test_a_rolled_back_entry_leaves_no_value_in_memory(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.ok(c.ConfigSet("login.limit_s", "12"))
    assert get(world, "login.limit_s") == 12

    def fail(*_: object, **__: object) -> None:
        get(world, "login.limit_s")  # the new value is in memory by now
        raise ZeroDivisionError

    monkeypatch.setattr(world.machine.options._audit, "admin", fail)
    assert world.refused(c.ConfigSet("login.limit_s", "13")) == Code.INTERNAL
    assert get(world, "login.limit_s") == 12
