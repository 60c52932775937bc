"""SWIM members under a simulated clock and network, which replay from their seed."""

from __future__ import annotations

import heapq
import random
from collections import defaultdict

from raftmft.core.membership import MAX_RUMOURS, Event, Membership, Message

TICK_S = 0.05


class World:
    """Members, a clock, and a network that can be told to misbehave."""

    def __init__(self, count=3, seed=1, loss=0.0, start=True):
        print(f"World({count=}, {seed=}, {loss=})")
        self.chance, self.loss, self.now, self.sent = random.Random(seed), loss, 0.0, 0
        self.names = [f"m{n}" for n in range(count)]
        self.nodes: dict[str, Membership] = {}
        self.cut: set[frozenset[str] | tuple[str, str]] = set()
        self.paused: set[str] = set()
        self.boots: dict[str, int] = defaultdict(int)
        self.events: list[tuple[float, str, Event]] = []
        self.flying: list[tuple[float, int, str, str, Message]] = []
        self.waiting: dict[str, list[tuple[str, Message]]] = defaultdict(list)
        if start:
            for name in self.names:
                self.boot(name)

    def boot(self, name, incarnation=None):
        self.boots[name] += 1
        life = self.boots[name]
        node = Membership(name, incarnation=incarnation or life * 1000, chance=random.Random(f"{name}{life}"))
        node.set_members(self.names)
        self.nodes[name] = node
        self.waiting[name].clear()

    def kill(self, name):
        del self.nodes[name]

    def partition(self, *groups):
        self.cut = {(a, b) for g in groups for h in groups if g is not h for a in g for b in h}

    def post(self, sender, outgoing):
        for to, message in outgoing:
            assert len(message.rumours) <= MAX_RUMOURS
            self.sent += 1
            if (sender, to) not in self.cut and self.chance.random() >= self.loss:
                arrival = self.now + self.chance.uniform(0.001, 0.02)
                heapq.heappush(self.flying, (arrival, self.sent, sender, to, message))

    def step(self):
        self.now += TICK_S
        while self.flying and self.flying[0][0] <= self.now:
            _, _, sender, to, message = heapq.heappop(self.flying)
            if to in self.nodes:
                self.waiting[to].append((sender, message))
        for name, node in list(self.nodes.items()):
            if name in self.paused:
                continue
            arrived, self.waiting[name] = self.waiting[name], []
            for sender, message in arrived:
                self.post(name, node.receive(sender, message, self.now))
            self.post(name, node.tick(self.now))
            self.events += [(self.now, name, event) for event in node.take_events()]

    def run(self, seconds):
        for _ in range(round(seconds / TICK_S)):
            self.step()

    def until(self, condition, limit_s):
        began = self.now
        while not condition():
            assert self.now - began < limit_s, {n: self.states(n) for n in self.nodes}
            self.step()
        return self.now - began

    def states(self, name):
        return {member: view.state for member, view in self.nodes[name].view().items()}

    def all_hold(self, member, state):
        return all(self.states(name)[member] == state for name in self.nodes if name != member)

    def settle(self):
        self.until(lambda: all(self.all_hold(m, "alive") for m in self.nodes), 5)
        self.run(1)
        self.events.clear()

    def never(self, what):
        return not [e for e in self.events if e[2].what == what]
