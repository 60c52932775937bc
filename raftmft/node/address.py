"""Keeps the member list true about where this member is: a host that comes back under another address is found again.

Its id and certificate are what make it a member; the address is a setting of the host. Until the list has the present
one the others dial the old, so that meanwhile this member dials everybody itself.
"""

from __future__ import annotations

import logging

import trio

from raftmft.core.addresses import address_text
from raftmft.core.commands import MemberSet
from raftmft.core.errors import RaftmftError
from raftmft.node.epoch import Epoch
from raftmft.node.roster import Roster
from raftmft.node.settings import Settings
from raftmft.wire.loglines import fields

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5


class Address:
    """Compares this host's settings with its row in the list."""

    def __init__(self, settings: Settings, roster: Roster, epoch: Epoch) -> None:
        self._settings, self._roster, self._epoch = settings, roster, epoch

    def is_stale(self) -> bool:
        """Whether the others look for this member elsewhere."""
        row, here = self._roster.mine(), self._settings
        return row is not None and (row.host, row.peer_port, row.gossip_port, row.sftp_port) != (
            here.advertise, here.peer_port, here.gossip_port, here.sftp_port)

    async def run(self) -> None:
        """Tells the cluster whenever the list is stale, until cancelled; to be started once the epoch has begun."""
        here = self._settings
        while True:
            row = self._roster.mine()
            if row is not None and self.is_stale():
                log.info("this member moved from %s:%d to %s:%d", row.host, row.peer_port, here.advertise,
                         here.peer_port, extra=fields(
                             member=row.id, address=address_text(here.advertise, here.peer_port)))
                try:
                    # Asked for again after "unknown": the same values once more change nothing.
                    await self._epoch.value(MemberSet(row.id, here.advertise, here.peer_port, here.gossip_port,
                                                      here.sftp_port))
                except RaftmftError as trouble:
                    log.warning("the new address is not known to the cluster yet: %s", trouble)
            await trio.sleep(LOOK_EVERY_S)
