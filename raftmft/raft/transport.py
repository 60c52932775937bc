"""pysyncobj's Transport, which sends nothing: messages collect in an outbox until what they promise is on disk.

Two kinds leave at different times. What promises nothing about this disk (entries to append, forwarded commands and
where they were placed) leaves at once. Votes, candidacies and acknowledgements wait for the journal's next sync.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pysyncobj import SyncObj
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from raftmft.raft.messages import AppendReply, Message, RequestVote, encode


@dataclass(slots=True)
class Outgoing:
    """A body for a member. `lost` is called if the link did not even take it."""

    member: str
    body: bytes
    lost: Callable[[], None] | None = None


class Outbox(Transport):
    """Collects. `take_early` and `take_late` hand over what may leave before and after the sync."""

    def __init__(self, sync_obj: SyncObj, self_node: Node, other_nodes: set[Node]) -> None:
        super().__init__(sync_obj, self_node, other_nodes)
        self._engine: Any = sync_obj
        self.clock_ms: Callable[[], int] = lambda: 0
        """This member's wall clock, which every acknowledgement tells."""
        self._early: list[tuple[str, Message, Callable[[], None] | None]] = []
        self._late: list[tuple[str, Message, Callable[[], None] | None]] = []

    @property
    def ready(self) -> bool:
        """Always: the links are none of its business."""
        return True

    @property
    def is_pending(self) -> bool:
        """Whether anything waits to be taken."""
        return bool(self._early or self._late)

    def send(self, node: Node, message: dict[str, Any]) -> bool:
        """pysyncobj's own sends. Of them only a candidacy is left; all else is overridden in engine.py."""
        assert message["type"] == "request_vote", f"pysyncobj sent {message['type']!r} by itself"
        self.late(node.id, RequestVote(message["term"], message["last_log_index"], message["last_log_term"],
                                       self._engine.stands_for_its_leader))
        return True

    def early(self, member: str, message: Message, lost: Callable[[], None] | None = None) -> None:
        """For a message that promises nothing about this disk."""
        self._early.append((member, message, lost))

    def late(self, member: str, message: Message) -> None:
        """For a message that must not leave before everything done so far is on disk."""
        self._late.append((member, message, None))

    def take_early(self) -> list[Outgoing]:
        """What may leave now."""
        box, self._early = self._early, []
        return self._encoded(box)

    def take_late(self) -> list[Outgoing]:
        """What may leave once the journal bytes taken together with it are durable."""
        box, self._late = self._late, []
        return self._encoded(box)

    def connected(self, member: str) -> None:
        """Tells the engine that a link to `member` stands."""
        self._onNodeConnected(Node(member))

    def disconnected(self, member: str) -> None:
        """Tells the engine that the link to `member` is gone."""
        self._onNodeDisconnected(Node(member))

    def _encoded(self, box: list[tuple[str, Message, Callable[[], None] | None]]) -> list[Outgoing]:
        bodies: dict[int, bytes] = {}
        # The box keeps every message alive, so an id names one message; the same one may go to several members.
        out = []
        for member, message, lost in box:
            body = bodies.get(id(message))
            if body is None:
                told = replace(message, clock_ms=self.clock_ms()) if type(message) is AppendReply else message
                body = bodies[id(message)] = encode(told)
            out.append(Outgoing(member, body, lost))
        return out
