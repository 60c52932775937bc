"""One seed against two nodes in this process."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from raftmft.core.manifest import CHUNK_SIZE
from raftmft.sftp import checkpoint, rooms
from raftmft.sftp.extended import MAX_DATA
from tests.table.model import Model
from tests.table.play import Actor, Play, Synced
from tests.table.things import Session
from tests.table.world import Client, TwoNodes

WHO = (("w", "ann", 0), ("o", "ann", 1), ("u", "bob", 1))
"""The three sessions: name, user, node. w and o are of one user."""

NEVER = {"EVERY_BYTES": 1 << 62, "MOST_BEHIND_BYTES": 1 << 62}
EAGER = {"EVERY_BYTES": 2 * CHUNK_SIZE, "MOST_BEHIND_BYTES": 4 * CHUNK_SIZE + MAX_DATA, "EVERY_S": 0.004}


@dataclass
class Report:
    """How a seed went; `failure` is "" if every answer was the model's."""

    seed: int
    failure: str = ""
    trace: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)


def run_seed(seed: int, steps: int) -> Report:
    """Runs a seed from an empty cluster; in odd ones checkpoints come by themselves, and often."""
    folder = Path(tempfile.mkdtemp(prefix="table"))
    with mock.patch.multiple(checkpoint, **(EAGER if seed % 2 else NEVER)), mock.patch.object(rooms, "TICK_S", 0.002):
        try:
            return asyncio.run(_run(seed, steps, folder))
        finally:
            shutil.rmtree(folder)


async def _run(seed: int, steps: int, folder: Path) -> Report:
    cluster, model = TwoNodes(folder, ["ann", "bob"]), Model(["ann", "bob"])
    actors: list[Actor] = []
    for name, user, node in WHO:
        actors.append(_Actor(name, Session(user), cluster, node, await cluster.login(user, node)))
    lazily = seed % 2 == 1
    tasks = [asyncio.create_task(node.rooms.tick()) for node in cluster.nodes] if lazily else []
    large = CHUNK_SIZE < 1 << 20
    play = Play(seed, model, actors, most_bytes=(70 if large else 5) * CHUNK_SIZE,
                largest_write=min(3 * CHUNK_SIZE, 250_000), synced=Synced.LAZILY if lazily else Synced.NEVER)
    report = Report(seed, trace=play.trace, seen=play.seen)
    try:
        async with asyncio.timeout(300):
            await play.run(steps)
    except (AssertionError, TimeoutError) as failure:
        report.failure = f"{type(failure).__name__}: {failure}"
    finally:
        for task in tasks:
            task.cancel()
        await cluster.close()
    return report


class _Actor(Actor):
    def __init__(self, name: str, session: Session, cluster: TwoNodes, node: int, client: Client) -> None:
        super().__init__(name, session, client)
        self._cluster, self._node, self._client = cluster, node, client

    async def again(self) -> None:
        await self._client.lose()
        self.sftp = self._client = await self._cluster.login(self.session.user, self._node)
