"""What the front door asks of the replicated state: who is banned, which balancers are believed, how many may come."""

from __future__ import annotations

import time
from typing import Protocol

from raftmft.core.bans import Address, Network
from raftmft.core.options import Startups
from raftmft.node.state import ReplicatedState


class DoorRules(Protocol):
    """Asked anew for each connection, so that a change counts at once."""

    def trusted(self) -> tuple[Network, ...]:
        """Balancers whose PROXY header is required and believed."""

    def startups(self) -> Startups:
        """When connections before login are dropped."""

    def rate_per_address(self) -> int:
        """New connections a second of one address."""

    def limit_s(self) -> float:
        """Within this a client must have logged in."""

    def is_banned(self, address: Address | None) -> bool:
        """Whether this client is closed without a word."""


class StateRules:
    """The rules as of what is applied here."""

    def __init__(self, state: ReplicatedState) -> None:
        self._machine = state.machine

    def trusted(self) -> tuple[Network, ...]:
        """Option proxy.trusted."""
        networks: tuple[Network, ...] = self._machine.options.get("proxy.trusted")
        return networks

    def startups(self) -> Startups:
        """Option login.max_startups."""
        startups: Startups = self._machine.options.get("login.max_startups")
        return startups

    def rate_per_address(self) -> int:
        """Option login.rate_per_address."""
        return int(self._machine.options.get("login.rate_per_address"))

    def limit_s(self) -> float:
        """Option login.limit_s."""
        return float(self._machine.options.get("login.limit_s"))

    def is_banned(self, address: Address | None) -> bool:
        """A ban counts until its time is over by this host's clock too: the state's time stands still while nothing is
        written, and who waits for the end of a ban could never log in. The login itself is judged by the state's time.
        """
        machine = self._machine
        return machine.bans.match(address, max(machine.now_ms, int(time.time() * 1000))) is not None
