"""Gossip over real UDP on 127.0.0.1, with short intervals."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from raftmft.cluster import gossip as gossip_module
from raftmft.cluster.gossip import Gossip
from raftmft.core.membership import Load, Timing

KEY = b"a key that all members have"
FAST = Timing(probe_interval_s=0.06, ack_timeout_s=0.03, suspicion_s=0.25)
LIMIT_S = 10.0


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(gossip_module, "TICK_S", 0.01)


class Cluster:
    """Gossiping members, each of which can be stopped and started again on its port."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.addresses: dict[str, tuple[str, int]] = {}
        self.nodes: dict[str, Gossip] = {}
        self._scopes: dict[str, trio.CancelScope] = {}

    async def start(self, name: str, *, key: bytes = KEY, host: str = "127.0.0.1") -> Gossip:
        port = self.addresses.get(name, ("", 0))[1]
        node = Gossip(name, ("127.0.0.1", port), key, lambda: self.addresses, timing=FAST)

        async def run(task_status=trio.TASK_STATUS_IGNORED):
            with trio.CancelScope() as self._scopes[name]:
                await node.run(task_status=task_status)

        await self._nursery.start(run)
        self.nodes[name] = node
        self.addresses[name] = (host, node.port)
        return node

    async def stop(self, name: str) -> None:
        self._scopes[name].cancel()
        node = self.nodes.pop(name)
        await until(lambda: node._socket is None)

    def states(self, name: str) -> dict[str, str]:
        return {member: view.state for member, view in self.nodes[name].view().items()}


@asynccontextmanager
async def cluster_of(*names: str):
    async with trio.open_nursery() as nursery:
        cluster = Cluster(nursery)
        for name in names:
            await cluster.start(name)
        yield cluster
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(LIMIT_S):
        while not condition():
            await trio.sleep(0.005)


def all_alive(cluster: Cluster) -> bool:
    return all(set(cluster.states(name).values()) == {"alive"} and len(cluster.states(name)) == len(cluster.addresses)
               for name in cluster.nodes)


async def test_members_find_each_other_die_and_come_back():
    async with cluster_of("a", "b", "c") as cluster:
        await until(lambda: all_alive(cluster))
        told: list[tuple[str, str]] = []
        cluster.nodes["a"].subscribe(lambda member, what: told.append((member, what)))
        await cluster.stop("c")
        await until(lambda: cluster.states("a")["c"] == cluster.states("b")["c"] == "dead")
        assert [event for event in told if event[1] != "load"] == [("c", "suspect"), ("c", "dead")]
        assert cluster.states("a")["b"] == "alive", "ICMP errors of the dead port disturb nobody else"
        await cluster.start("c")
        await until(lambda: all_alive(cluster))
        assert told[-1] == ("c", "alive")


async def test_loads_get_around_and_watchers_are_told_until_they_end_it():
    async with cluster_of("a", "b", "c") as cluster:
        told: list[tuple[str, str]] = []
        end = cluster.nodes["b"].subscribe(lambda member, what: told.append((member, what)))
        for n, name in enumerate("abc"):
            cluster.nodes[name].set_load(Load(sessions=n + 1, has_quorum=True))
        assert told == [("b", "load")], "of this member's own load at once"
        await until(lambda: all(view.load is not None and view.load.sessions == "abc".index(member) + 1
                                for node in cluster.nodes.values() for member, view in node.view().items()))
        assert {("a", "load"), ("b", "load"), ("c", "load")} <= set(told)
        end()
        end()
        told.clear()
        with trio.fail_after(LIMIT_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cluster.nodes["b"].changed)
                await trio.testing.wait_all_tasks_blocked(0.001)
                cluster.nodes["a"].set_load(Load(sessions=77))
        await until(lambda: cluster.nodes["b"].view()["a"].load.sessions == 77)
        assert told == []


async def test_another_key_is_another_cluster():
    async with cluster_of("a", "b") as cluster:
        await cluster.start("x", key=b"another")
        a, x = cluster.nodes["a"], cluster.nodes["x"]
        await until(lambda: a.dropped["mac"] > 5 and x.dropped["mac"] > 5 and cluster.states("a")["b"] == "alive")
        assert cluster.states("a")["x"] != "alive" and cluster.states("x")["a"] != "alive"


async def test_noise_from_strangers_is_dropped_and_counted():
    async with cluster_of("a", "b") as cluster:
        await until(lambda: all_alive(cluster))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for size in (0, 1, 19, 20, 21, 500, 1401, 9000) * 20:
                stranger.sendto(b"RMG\x01" + bytes(size), cluster.addresses["a"])
            await until(lambda: sum(cluster.nodes["a"].dropped.values()) >= 100)
        assert all_alive(cluster)


async def test_captured_datagrams_do_not_raise_the_dead(monkeypatch):
    """Everything b ever sent is sent again and again after b's death, to a restarted a as well."""
    real, captured = socket.socket.sendto, []

    def sendto(self, data, address):
        captured.append((data, address))
        return real(self, data, address)

    monkeypatch.setattr(socket.socket, "sendto", sendto)
    async with cluster_of("a", "b") as cluster:
        await until(lambda: all_alive(cluster))
        await cluster.stop("b")
        to_a = [data for data, address in captured if address == cluster.addresses["a"]]
        monkeypatch.undo()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attacker:
            def replay() -> None:
                for data in to_a[-50:]:
                    attacker.sendto(data, cluster.addresses["a"])

            def dead_despite_replay() -> bool:
                replay()
                return cluster.states("a")["b"] == "dead"

            await until(dead_despite_replay)
            await cluster.stop("a")
            a = await cluster.start("a")
            states = set()
            a.subscribe(lambda member, what: states.add(what))
            seen = sum(a.dropped.values())

            def replayed() -> bool:
                replay()
                return sum(a.dropped.values()) > seen + 300

            await until(replayed)
            assert "alive" not in states and cluster.states("a")["b"] != "alive"


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.EAGAIN, errno.ENETUNREACH, errno.EPERM])
async def test_datagrams_that_cannot_be_sent_are_lost_and_counted(monkeypatch, number):
    async with cluster_of("a", "b") as cluster:
        await until(lambda: all_alive(cluster))
        with monkeypatch.context() as patch:
            def fail(self, data, address):
                raise OSError(number, "no")
            patch.setattr(socket.socket, "sendto", fail)
            await until(lambda: cluster.nodes["a"].lost[errno.errorcode[number]] > 3)
        await until(lambda: all_alive(cluster))


async def test_errors_on_receiving_do_not_end_the_gossip(monkeypatch):
    async with cluster_of("a", "b") as cluster:
        await until(lambda: all_alive(cluster))
        with monkeypatch.context() as patch:
            def fail(self, size):
                raise OSError(errno.ECONNREFUSED, "refused")
            patch.setattr(socket.socket, "recv", fail)
            await until(lambda: cluster.nodes["a"].lost["ECONNREFUSED"] > 1)
        await until(lambda: all_alive(cluster))


async def test_host_names_are_resolved_and_those_that_cannot_be_are_no_trouble(monkeypatch, caplog):
    monkeypatch.setattr(gossip_module, "RESOLVE_FAILED_EVERY_S", 0.02)
    real = trio.socket.getaddrinfo

    async def getaddrinfo(host, *args, **kwargs):
        if host == "nowhere.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return await real("127.0.0.1" if host == "b.test" else host, *args, **kwargs)

    monkeypatch.setattr(trio.socket, "getaddrinfo", getaddrinfo)
    caplog.set_level(logging.WARNING)
    async with cluster_of("a") as cluster:
        await cluster.start("b", host="b.test")
        cluster.addresses["c"] = ("nowhere.invalid", 9)
        await until(lambda: cluster.states("a").get("b") == "alive" and cluster.nodes["a"].lost["unresolved"] > 3)
        assert cluster.states("a")["c"] != "alive"
        await until(lambda: "nowhere.invalid" in caplog.text)
        assert sum("nowhere.invalid" in r.message for r in caplog.records) <= 2, "once by each member"


async def test_members_that_come_go_and_move(monkeypatch):
    async with cluster_of("a", "b", "c") as cluster:
        await until(lambda: all_alive(cluster))
        del cluster.addresses["c"]
        await until(lambda: set(cluster.states("a")) == set(cluster.states("b")) == {"a", "b"})
        assert set(cluster.nodes["a"]._codec._peers) == {"b"}
        await cluster.stop("c")
        await cluster.start("d")
        await until(lambda: set(cluster.states("a")) == {"a", "b", "d"} and all_alive(cluster))
        await cluster.stop("b")
        cluster.addresses["b"] = ("127.0.0.1", 0)
        await cluster.start("b")
        await until(lambda: all_alive(cluster))


async def test_a_port_in_use_is_an_error_at_start():
    async with cluster_of("a") as cluster:
        with pytest.raises(OSError):
            await Gossip("z", ("127.0.0.1", cluster.nodes["a"].port), KEY, dict).run()


async def test_the_socket_is_closed_when_it_ends():
    async with cluster_of("a") as cluster:
        port = cluster.nodes["a"].port
        await cluster.stop("a")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
            again.bind(("127.0.0.1", port))
