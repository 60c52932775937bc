"""The admin API's backups: a snapshot of the replicated state, made now, and handed out block by block.

A caller gets the header first and checks each block by its id (raft/snapshots.py), so that what it puts together is
whole whatever happens on the way. The file is held open until its last block was asked for, or others were made since.
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from typing import Any

import trio

from raftmft.core.errors import RaftmftError
from raftmft.core.outcome import Code
from raftmft.node.api import ADMIN, V1, Call, Operation
from raftmft.node.api_audit import iso
from raftmft.node.api_fields import Field
from raftmft.node.epoch import Epoch
from raftmft.node.link import Rejected
from raftmft.node.state import ReplicatedState
from raftmft.raft.snapshots import HEAD_BYTES, MAX_BLOCKS, Snapshot, SnapshotFolder
from raftmft.raft.snapshotter import Snapshotter

MOST_HELD = 2
"""Backups that are being fetched at once."""
BACKUP = {"cluster": str, "cluster_id": str, "index": int, "time": str, "root": str, "bytes": int, "blocks": int,
          "header": str}


@dataclass(frozen=True, slots=True)
class _Held:
    fd: int
    snapshot: Snapshot
    offsets: tuple[int, ...]


class BackupsApi:
    """What `raftmft backup create` asks."""

    def __init__(self, state: ReplicatedState, epoch: Epoch, snapshotter: Snapshotter, folder: SnapshotFolder) -> None:
        self._state, self._epoch, self._snapshotter, self._folder = state, epoch, snapshotter, folder
        self._held: dict[str, _Held] = {}

    def operations(self) -> list[Operation]:
        """The routes."""
        root = Field("root", "text", "the backup's root, in hex", required=True)
        number = Field("number", "whole", "which block; the first is 0", required=True, high=MAX_BLOCKS)
        return [
            Operation("POST", f"{V1}/backups", "Make a backup of the replicated state, as of now, to be fetched",
                      self._create, BACKUP, ADMIN),
            Operation("GET", f"{V1}/backups/block", "A block of a backup made just now, in base64", self._block,
                      {"data": str}, ADMIN, query=(root, number)),
        ]

    async def _create(self, _: Call) -> Any:
        await self._epoch.barrier()
        snapshot = await self._snapshotter.make()
        if snapshot is None:
            raise RaftmftError("no snapshot of the state could be made; see the node's log")
        self._hold(snapshot)
        settings = self._state.machine.settings
        return {"cluster": settings.cluster, "cluster_id": settings.cluster_id, "index": snapshot.index,
                "time": iso(self._state.machine.now_ms), "root": snapshot.root.hex(), "bytes": snapshot.size_bytes,
                "blocks": len(snapshot.blocks), "header": base64.b64encode(snapshot.header()).decode()}

    def _hold(self, snapshot: Snapshot) -> None:
        root = snapshot.root.hex()
        self._let_go(root)
        while len(self._held) >= MOST_HELD:
            self._let_go(next(iter(self._held)))
        offsets, at = [], HEAD_BYTES
        for size, _ in snapshot.blocks:
            offsets.append(at)
            at += size
        self._held[root] = _Held(os.open(self._folder.name(snapshot), os.O_RDONLY | os.O_CLOEXEC), snapshot,
                                 tuple(offsets))

    def _let_go(self, root: str) -> None:
        held = self._held.pop(root, None)
        if held is not None:
            os.close(held.fd)

    async def _block(self, call: Call) -> Any:
        root, number = call.query["root"], call.query["number"]
        held = self._held.get(root)
        if held is None or number >= len(held.offsets):
            raise Rejected(Code.NOT_FOUND, "there is no such block here any more; make another backup")
        fd = os.dup(held.fd)  # another caller may let go of it meanwhile
        try:
            size = held.snapshot.blocks[number][0]
            data = await trio.to_thread.run_sync(os.pread, fd, size, held.offsets[number])
        except OSError as error:
            raise RaftmftError(f"the backup cannot be read here: {error.strerror or error}") from None
        finally:
            os.close(fd)
        if number == len(held.offsets) - 1:
            self._let_go(root)
        return {"data": base64.b64encode(data).decode()}
