"""One seed against a real cluster: sessions over SSH that different members serve, in homes of their own."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import asyncssh

from raftmft.core.manifest import CHUNK_SIZE
from tests.e2e.harness import Cluster
from tests.sftp.raw_client import RawSftp
from tests.table.model import Model
from tests.table.play import Actor, Play, Synced
from tests.table.seeds import Report
from tests.table.things import Session

MOST_BYTES, LARGEST_WRITE = 3 * CHUNK_SIZE, 250_000
LOGIN_TRIES = 12
END_LIMIT_S = 20.0


def run_seed_on(cluster: Cluster, seed: int, steps: int) -> Report:
    """Two new users, three sessions: two of one user, through different members."""
    key = cluster.about["users"][0]["key"] + ".pub"
    users = [f"{name}{seed}x{time.monotonic_ns() % 1_000_000}" for name in ("ann", "bob")]
    for user in users:
        cluster.run("user", "add", user, "--key", key)
    return asyncio.run(_run(cluster, users, seed, steps))


async def _run(cluster: Cluster, users: list[str], seed: int, steps: int) -> Report:
    actors = [RealActor(cluster, name, Session(user)) for name, user in zip("wou", (users[0], *users), strict=True)]
    actors[0].apart_from, actors[1].apart_from = actors[1], actors[0]
    model = Model(users)
    play = Play(seed, model, list(actors), most_bytes=MOST_BYTES, largest_write=LARGEST_WRITE, synced=Synced.ALWAYS)
    report = Report(seed, trace=play.trace, seen=play.seen)
    try:
        for actor in actors:
            await actor.log_in()
        async with asyncio.timeout(60 + steps):
            await play.run(steps)
    except (AssertionError, TimeoutError) as failure:
        report.failure = f"{type(failure).__name__}: {failure}"
    finally:
        for actor in actors:
            actor.end()
    return report


class RealActor(Actor):
    """A session over SSH. `apart_from`: one that another member must serve."""

    def __init__(self, cluster: Cluster, name: str, session: Session) -> None:
        super().__init__(name, session, None)  # type: ignore[arg-type]
        self._cluster, self.apart_from = cluster, self
        self.member = self._address = ""
        self._connection: Any = None

    async def log_in(self) -> None:
        """A new connection, through one node after the other until the right member serves it."""
        for attempt in range(LOGIN_TRIES):
            names = self._cluster.names
            host, port = self._cluster.node(names[attempt % len(names)])["sftp"].rsplit(":", 1)
            self._connection = await asyncssh.connect(
                host, int(port), known_hosts=self._cluster.about["known_hosts"], username=self.session.user,
                config=[], agent_path=None, client_keys=[self._cluster.about["users"][0]["key"]])
            self._address = "{}:{}".format(*self._connection.get_extra_info("sockname")[:2])
            self.member = (await self._sessions())[self._address]
            if self.member != self.apart_from.member or self.apart_from is self:
                self.sftp = await RawSftp.open(None, self._connection)
                return
            await self._break()
        raise AssertionError(f"{LOGIN_TRIES} sessions all went to {self.member}")

    async def again(self) -> None:
        await self._break()
        await self.log_in()

    def end(self) -> None:
        """No more of it."""
        if self._connection is not None:
            self._connection.abort()

    async def _break(self) -> None:
        self._connection.abort()
        await self._connection.wait_closed()
        deadline = time.monotonic() + END_LIMIT_S
        while self._address in await self._sessions():
            assert time.monotonic() < deadline, "a session whose connection is lost does not end"

    async def _sessions(self) -> dict[str, str]:
        """Addresses of the user's sessions, and the members that serve them."""
        done = await asyncio.to_thread(
            self._cluster.run, "sessions", "list", "--user", self.session.user, "-o", "json")
        return {each["address"]: each["member"] for each in json.loads(done.stdout)}
