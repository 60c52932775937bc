"""What steering members takes beside commands: handing leadership over, and waiting until a leaving member's chunks lie
elsewhere. Each member answers for itself over the control links; the one that was asked by a person puts it together.
"""

from __future__ import annotations

from typing import Any

import trio

from raftmft.cluster.hello import PeerUnreachable
from raftmft.cluster.links import PeerLinks, RequestFailed, RequestLost
from raftmft.cluster.repairer import Repairer
from raftmft.core.errors import NoQuorum, RaftmftError
from raftmft.node.roster import Roster
from raftmft.raft.driver import RaftDriver

HAND_OVER, STANDING = "raft.hand_over", "repair.standing"
HAND_OVER_LIMIT_S = 4.0
LOOK_EVERY_S = 0.05
ANSWER_LIMIT_S = 2.0


class Stewards:
    """This member's part in it. `handle` for the links is registered at once."""

    def __init__(self, me: str, links: PeerLinks, driver: RaftDriver, roster: Roster, repairer: Repairer) -> None:
        self._me, self._links, self._driver, self._roster, self._repairer = me, links, driver, roster, repairer
        links.handle(HAND_OVER, self._asked_to_hand_over)
        links.handle(STANDING, self._asked_for_standing)

    async def lead(self, member: str | None, *, other_than: str = "") -> None:
        """Returns when `member` leads, or, without one, when `other_than` does not. Done already: at once.

        RaftmftError if it did not come about in HAND_OVER_LIMIT_S; then nothing is changed for good.
        """
        with trio.move_on_after(HAND_OVER_LIMIT_S):
            while True:
                leader = self._driver.status().leader
                if leader is not None and (leader == member or (member is None and leader != other_than)):
                    return
                if leader == self._me:
                    with trio.move_on_after(1.0):
                        await self._driver.hand_over(member)
                elif leader is not None:
                    try:
                        await self._links.request(leader, HAND_OVER, {"to": member}, timeout_s=ANSWER_LIMIT_S)
                    except (PeerUnreachable, RequestFailed, RequestLost):
                        pass  # whoever leads in a moment is asked next
                await trio.sleep(LOOK_EVERY_S)
        if self._driver.status().leader is None:
            raise NoQuorum("no quorum: nobody leads, so that leadership cannot be handed over")
        raise RaftmftError("the leader did not hand over in time: is the other member alive, and a voter? "
                           "See raftmft status")

    async def lacking(self, placement: int, index: int) -> list[str]:
        """Names of storing members that do not hold yet, durably, what is theirs under the placement epoch `placement`
        (or a later one) of all that was published through `index`; "(unreachable)" behind those that did not answer.
        """
        lacking: list[str] = []

        async def ask(member: str, name: str) -> None:
            try:
                standing = (self._standing() if member == self._me else
                            await self._links.request(member, STANDING, timeout_s=ANSWER_LIMIT_S))
                if standing["placement"] < placement or standing["through"] < index or standing["missing"]:
                    lacking.append(name)
            except (PeerUnreachable, RequestFailed, RequestLost, KeyError, TypeError):
                lacking.append(f"{name} (unreachable)")

        async with trio.open_nursery() as nursery:
            for row in self._roster.rows():
                if row.stores:
                    nursery.start_soon(ask, row.id, row.name)
        return sorted(lacking)

    async def _asked_to_hand_over(self, _: str, args: dict[str, Any]) -> dict[str, Any]:
        to = args.get("to")
        if to is not None and not isinstance(to, str):
            raise ValueError("`to` must be a member's id")
        with trio.move_on_after(ANSWER_LIMIT_S / 2):
            await self._driver.hand_over(to)
        return {}

    async def _asked_for_standing(self, _: str, __: dict[str, Any]) -> dict[str, Any]:
        return self._standing()

    def _standing(self) -> dict[str, Any]:
        self._repairer.kick()
        return {"placement": self._repairer.held_placement, "through": self._repairer.held_through,
                "missing": self._repairer.missing}
