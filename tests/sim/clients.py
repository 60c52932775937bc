"""Clients that write and read registers through one member each, and what they saw."""

from __future__ import annotations

from collections.abc import Callable

from raftmft.core.commands import Command, CommandId
from raftmft.core.errors import NotApplied, RaftmftError
from raftmft.core.outcome import Outcome
from tests.sim.cluster import Cluster
from tests.sim.linearizable import NEVER, Operation, violation
from tests.sim.machine import KEYS
from tests.sim.member import Member

MOST_NAMES = 16
"""Members that the state knows, whether they ever run or not."""
THINK_S = 0.25
WRITES = 0.55
BURSTS = 0.04
BURST = (10, 40)
ECHOES = 0.2
"""How often somebody else, anywhere, reads at once what was just acknowledged: a read that is served by a round which
began earlier shows then.
"""
MOVES = 0.05
"""How often a client goes to another member of its own accord."""


class Clients:
    """All clients, and the history of what they did."""

    def __init__(self, cluster: Cluster, count: int = 5) -> None:
        self.cluster, self.count = cluster, count
        self.history: list[Operation] = []
        self.writes = self.open = 0
        self.stopped = False
        self._hot = 0

    def begin(self) -> None:
        """Makes what the registers need, then lets the clients loose."""
        self._set_up(self.cluster.make_state.setup([f"n{i}" for i in range(MOST_NAMES)]), [])

    def _set_up(self, commands: list[Command], done: list[Command]) -> None:
        """Proposes the next one until some attempt was applied: then `done` has it."""
        if len(done) == len(commands):
            for number in range(self.count):
                Client(self, f"c{number}").next()
            return
        command = commands[len(done)]
        hosts = self._hosts()

        def ended(result: Outcome | RaftmftError) -> None:
            if isinstance(result, Outcome) and command not in done:
                done.append(command)  # a refusal means that an earlier attempt was applied

        if hosts and (frontend := self.cluster.rng.choice(hosts).frontend) is not None:
            frontend.propose_bare(command, ended)
        before = len(done)
        self._poll(lambda: len(done) > before, 1.0, lambda: self._set_up(commands, done))

    def _poll(self, until: Callable[[], bool], left_s: float, then: Callable[[], None]) -> None:
        if until() or left_s <= 0:
            then()
        else:
            self.cluster.after(0.02, lambda: self._poll(until, left_s - 0.02, then))

    def _hosts(self) -> list[Member]:
        cluster = self.cluster
        return [m for m in cluster.members.values()
                if m.frontend is not None and (cluster.listed is None or m.name in cluster.listed)]

    def _key(self) -> int:
        """Any register, or the one that was just written: there a stale read would show."""
        return self._hot if self.cluster.rng.random() < 0.4 else self.cluster.rng.randrange(KEYS)

    def ready_hosts(self) -> list[Member]:
        """Where a client may log in."""
        return [m for m in self._hosts() if m.frontend is not None and m.frontend.is_ready]

    def burst(self, member: Member) -> None:
        """Many writes at once through one member."""
        for _ in range(self.cluster.rng.randrange(*BURST)):
            self.write(member, "burst", lambda _: None)

    def write(self, member: Member, who: str, then: Callable[[bool], None]) -> None:
        """One write; `then(acknowledged)` at its end."""
        cluster = self.cluster
        assert member.frontend is not None
        cluster.proposed += 1
        number, key, called = cluster.proposed, self._key(), cluster.now
        self.writes += 1
        self.open += 1

        def done(result: Outcome | RaftmftError | None, identity: CommandId | None) -> None:
            self.open -= 1
            assert identity is not None
            returned = NEVER
            if isinstance(result, Outcome) and result.rejection is None:
                cluster.acknowledged[identity] = result
                self._hot = key
                returned = cluster.now
            if isinstance(result, NotApplied) or (isinstance(result, Outcome) and result.rejection is not None):
                cluster.refused.add(identity)
            else:
                self.history.append(Operation(key, True, number, called, returned, f"{who}@{member.name}"))
            cluster.note(f"{who}@{member.name} writes {number} to {key}: "
                         f"{result if isinstance(result, Outcome) else type(result).__name__}")
            then(returned != NEVER)
            if returned != NEVER and not self.stopped and cluster.rng.random() < ECHOES:
                self._echo(key)

        member.frontend.execute(cluster.make_state.write(key, number), done)

    def _echo(self, key: int) -> None:
        if hosts := self.ready_hosts():
            self.read(self.cluster.rng.choice(hosts), "echo", lambda _: None, key)

    def read(self, member: Member, who: str, then: Callable[[bool], None], key: int | None = None) -> None:
        """One read behind the barrier, of any register if no `key` is given; `then(answered)` at its end."""
        cluster = self.cluster
        assert member.frontend is not None
        key, called = self._key() if key is None else key, cluster.now
        self.open += 1

        def done(value: int | None) -> None:
            self.open -= 1
            if value is not None:
                self.history.append(Operation(key, False, value, called, cluster.now, f"{who}@{member.name}"))
            cluster.note(f"{who}@{member.name} reads {key}: {value}")
            then(value is not None)

        member.frontend.read(key, done)

    def check(self) -> None:
        """What was read fits what was written."""
        text = violation(self.history)
        assert text is None, text


class Client:
    """Asks, waits for the answer, thinks, asks again."""

    def __init__(self, clients: Clients, name: str) -> None:
        self.clients, self.cluster, self.name = clients, clients.cluster, name
        self._host: Member | None = None
        self._life = 0

    def next(self) -> None:
        """The next question."""
        rng = self.cluster.rng
        if self.clients.stopped:
            return
        hosts = self.clients.ready_hosts()
        if not hosts:
            self._think(False)
            return
        if self._host not in hosts or self._host.life != self._life or rng.random() < MOVES:
            self._host = rng.choice(hosts)
            self._life = self._host.life
        if rng.random() < BURSTS:
            self.clients.burst(self._host)
        ask = self.clients.write if rng.random() < WRITES else self.clients.read
        ask(self._host, self.name, self._think)

    def _think(self, served: bool) -> None:
        if not served:
            self._host = None  # some other member may do better
        self.cluster.after(self.cluster.rng.expovariate(1 / THINK_S), self.next)
