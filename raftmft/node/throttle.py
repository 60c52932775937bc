"""How many connections may try to log in: the early drop of sshd's MaxStartups, and a rate for each address.

Both protect this node's own time and memory, so they count on each node by itself. Nothing here reads a clock or draws
a number; callers give both.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

from raftmft.core.bans import Address
from raftmft.core.options import Startups

BURST_S = 2.0
"""An address that was quiet may make as many connections at once as its rate allows in this time."""
MOST_DELAY_S = 4.0
"""A connection over the rate waits its turn for up to this; if that is not enough it is refused."""
MOST_ADDRESSES = 16_384
"""Addresses remembered. Beyond, the one that was quiet longest is forgotten, which only errs in its favour."""
IPV6_PREFIX = 64
"""One IPv6 customer has at least a /64: it counts as one address."""


def drop_chance(half_open: int, startups: Startups) -> float:
    """The chance, 0 to 1, with which a further connection is dropped while `half_open` have not logged in (sshd_config
    (5), MaxStartups): none below `start`, `rate` percent there, rising linearly to all at `full`.
    """
    if half_open < startups.start:
        return 0.0
    if half_open >= startups.full:
        return 1.0
    rate = startups.rate / 100
    return rate + (1 - rate) * (half_open - startups.start) / (startups.full - startups.start)


class AddressRates:
    """A token bucket for each address: `rate` connections a second, BURST_S of them at once."""

    def __init__(self) -> None:
        # For each address the time at which its bucket is full again: all that a bucket is (GCRA, ITU-T I.371).
        self._full_at: OrderedDict[int | Address, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, address: Address, rate: int, now_s: float) -> float | None:
        """Takes one connection of `address`. Seconds until it may go on (0: at once), or None: refused, not counted."""
        key = _key(address)
        full_at = max(now_s, self._full_at.get(key, now_s)) + 1 / rate
        wait_s = full_at - now_s - BURST_S
        if wait_s > MOST_DELAY_S:
            self._full_at.move_to_end(key)
            return None
        self._full_at[key] = full_at
        self._full_at.move_to_end(key)
        while len(self._full_at) > MOST_ADDRESSES or next(iter(self._full_at.values())) <= now_s:
            self._full_at.popitem(last=False)
        return max(0.0, wait_s)


def _key(address: Address) -> int | Address:
    if isinstance(address, ipaddress.IPv6Address):
        return int(address) >> (128 - IPV6_PREFIX) | 1 << 128
    return address
