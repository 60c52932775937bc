"""Sessions of one account that look at a name again and again, through every node, while others upload to it.

What a look may give is what the contract's table says: another session sees the published version and nothing else,
but STAT of the exact name, which tells the same user how large the partial is while nothing is published. A `Truth` is
told by the test what may and what must be seen; a look that gives anything else is *torn* and is told with all that is
known of it. Looks that fail because a node is down, or has no quorum for a moment, are no sights.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import asyncssh

from raftmft.sftp import packets as p
from tests.e2e.harness import Cluster, wait_for
from tests.sftp.raw_client import RawSftp, Status, s

NO_SUCH_FILE = 2
PAUSE_S = 0.01
AGAIN_S = 0.1
ANSWER_S = 30.0
SAMPLE = 4096
_LOST = (asyncssh.Error, asyncio.IncompleteReadError, OSError, TimeoutError)


class Truth:
    """What is known of a name in `folder`. `old` is what is published, None for nothing; `new` is what is on its way.

    `may_be_new` says whether a client has sent its CLOSE yet; `sent` how far the file was ever sent; `new_since` is
    when it was known that the new one is published: who asks after that must see it.
    """

    def __init__(self, folder: str, name: str, old: bytes | None, new: bytes, may_be_new: Callable[[], bool],
                 sent: Callable[[], int]) -> None:
        self.folder, self.name, self.old, self.new = folder, name, old, new
        self.may_be_new, self.sent = may_be_new, sent
        self.new_since: float | None = None
        self.sights: Counter[str] = Counter()
        self.torn: list[str] = []

    def seen(self, what: str, version: str, begun: float, about: str) -> None:
        """A look that was begun then gave the version ("old", "new", "partial"; anything else is torn)."""
        problem = ""
        if version not in ("old", "new", "partial"):
            problem = "is neither version"
        elif version == "new" and not self.may_be_new():
            problem = "before its writer closed it"
        elif version == "old" and self.new_since is not None and begun > self.new_since:
            problem = f"{begun - self.new_since:.3f} s after the new one was there"
        if problem:
            self.torn.append(f"{what}: {version} {problem} ({about})")
        elif version == "new" and self.new_since is None:
            self.new_since = time.monotonic()
        self.sights[f"{what} {version}"] += 1

    def pinned(self, is_old: bool, about: str) -> None:
        """A handle that was opened on the old version still shows that one, or does not."""
        self.sights["pinned old"] += 1
        if not is_old:
            self.torn.append(f"a handle opened on the old version shows another one ({about})")

    def size_of(self, size: int) -> str:
        """Which version has this size."""
        if size == len(self.new):
            return "new"
        return "old" if self.old is not None and size == len(self.old) else f"size {size}"


class Watcher:
    """One session through `node`, which asks as long as there is a truth; comes back when it is cut off."""

    def __init__(self, cluster: Cluster, node: str, watch: Watch) -> None:
        self.node, self._cluster, self._watch = node, cluster, watch
        self._random = random.Random(node)
        self._pinned: bytes | None = None
        self._partial = 0
        self.is_looking = False

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._pinned = None
            try:
                async with asyncio.timeout(ANSWER_S):
                    sftp = await RawSftp.open(None, await self._connect())
            except _LOST:
                await asyncio.sleep(AGAIN_S)  # its node is down
                continue
            try:
                await self._look_on(sftp)
            except _LOST as trouble:
                self._watch.trouble[type(trouble).__name__] += 1
            finally:
                self.is_looking = False
                sftp.connection.abort()

    async def _connect(self) -> Any:
        host, port = self._cluster.node(self.node)["sftp"].rsplit(":", 1)
        user = self._cluster.about["users"][0]
        return await asyncssh.connect(host, int(port), username=user["name"], client_keys=[user["key"]],
                                      known_hosts=self._cluster.about["known_hosts"], config=[], agent_path=None)

    async def _look_on(self, sftp: RawSftp) -> None:
        truth = None
        while True:
            if truth is not self._watch.truth:
                if self._pinned is not None:
                    await sftp.close_handle(self._pinned)
                truth, self._pinned, self._partial = self._watch.truth, None, 0
            self.is_looking = truth is not None
            if truth is None:
                await asyncio.sleep(PAUSE_S)
                continue
            for look in (self._stat, self._list, self._get):
                try:
                    async with asyncio.timeout(ANSWER_S):
                        await look(sftp, truth)
                except Status as refusal:
                    self._watch.trouble[refusal.text or str(refusal.code)] += 1
            self._watch.looks[self.node] += 1
            await asyncio.sleep(PAUSE_S)

    async def _stat(self, sftp: RawSftp, truth: Truth) -> None:
        begun = time.monotonic()
        try:
            size = (await sftp.stat(f"{truth.folder}/{truth.name}")).size or 0
        except Status as refusal:
            if refusal.code != NO_SUCH_FILE:
                raise
            is_known = truth.old is not None or self._partial
            truth.seen("stat", f"nothing, {self._partial} bytes before" if is_known else "old", begun, self.node)
            return
        truth.seen("stat", self._partial_of(truth, size, begun) or truth.size_of(size), begun, self.node)

    def _partial_of(self, truth: Truth, size: int, begun: float) -> str:
        """"partial" if that may be what STAT gave: never more than was sent, and never less than before."""
        if truth.old is not None or (truth.new_since is not None and begun > truth.new_since) or size > truth.sent():
            return ""
        before, self._partial = self._partial, size
        return "partial" if size >= before else f"{size} bytes, {before} before"

    async def _list(self, sftp: RawSftp, truth: Truth) -> None:
        begun = time.monotonic()
        attrs = (await sftp.names(truth.folder)).get(truth.name.encode())
        if attrs is None:
            truth.seen("ls", "old" if truth.old is None else "nothing", begun, self.node)
        else:
            truth.seen("ls", truth.size_of(attrs.size or 0), begun, self.node)

    async def _get(self, sftp: RawSftp, truth: Truth) -> None:
        """Opens it and reads pieces: all of one version, and of the length of that version. One handle on the old
        version stays open, and must go on to show that one.
        """
        begun = time.monotonic()
        try:
            handle = await sftp.open_file(f"{truth.folder}/{truth.name}", p.FXF_READ)
        except Status as refusal:
            if refusal.code != NO_SUCH_FILE:
                raise
            truth.seen("get", "old" if truth.old is None else "nothing", begun, self.node)
            return
        size = (await sftp.call(p.FSTAT, s(handle))).size or 0
        version = truth.size_of(size)
        data = {"old": truth.old, "new": truth.new}.get(version)
        if data is not None and not await self._is(sftp, handle, data):
            version = "mixed content"
        truth.seen("get", version, begun, self.node)
        if version == "old" and self._pinned is None:
            self._pinned = handle
        else:
            await sftp.close_handle(handle)
        if self._pinned is not None and truth.old is not None:
            truth.pinned(await self._is(sftp, self._pinned, truth.old), self.node)

    async def _is(self, sftp: RawSftp, handle: bytes, data: bytes) -> bool:
        """Whether random pieces and the end of the file are as in `data`."""
        places = [self._random.randrange(len(data)) for _ in range(2)] + [max(0, len(data) - SAMPLE // 2)]
        return all([await sftp.read(handle, at, SAMPLE) == data[at : at + SAMPLE] for at in places])


class Watch:
    """One Watcher for each node, on a loop in a thread of its own. `truth` is looked at whenever there is one."""

    def __init__(self, cluster: Cluster) -> None:
        self.truth: Truth | None = None
        self.looks: Counter[str] = Counter()
        self.trouble: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._watchers = [Watcher(cluster, node, self) for node in cluster.names]
        self._tasks = [self._start(watcher.run()) for watcher in self._watchers]

    def _start(self, work: Coroutine[Any, Any, None]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def rest(self) -> None:
        """Nobody looks any more; raises what a watcher fell over, if one did."""
        self.truth = None
        wait_for("watchers that rest", lambda: not any(watcher.is_looking for watcher in self._watchers), 2 * ANSWER_S)
        for task in self._tasks:
            if task.done():
                task.result()

    def close(self) -> None:
        """Ends them."""
        for task in self._tasks:
            task.cancel()
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.2), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()
