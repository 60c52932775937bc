"""Whose turn it is to dial: pure, time is given.

Of two members the one with the greater id dials. That is not enough for a member that the others do not list any more
(it was removed, or its certificate revoked, while it was away): those whose turn it was never come, and it would see
silence where it ought to hear "not listed". So who lacks links to a majority for ALONE_S dials all that it knows. A
majority, and not just any link: two members that were shut out may still be linked to each other.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

ALONE_S = 3.0
"""Long enough for a usual start, also of all members at once, and for a link that broke to come back."""
BACKOFF_MAX_S, ALONE_BACKOFF_MAX_S = 0.5, 5.0

log = logging.getLogger(__name__)


class Turns:
    """Whom `me` dials. `wanted` is asked at short intervals, as it keeps the time for which `me` was alone."""

    def __init__(self, me: str) -> None:
        self._me = me
        self._alone_since: float | None = None
        self._is_told = False

    def is_mine(self, member: str) -> bool:
        """Whether of the two it is usually `me` that dials."""
        return member < self._me

    def wanted(self, now: float, known: Iterable[str], linked: Iterable[str], *, is_moved: bool) -> set[str]:
        """Of the `known` members those to be dialled now. Who dials out of turn leaves alone whom it is linked to."""
        others, up = set(known) - {self._me}, set(linked)
        if 2 * (len(others & up) + 1) > len(others) + 1:
            self._alone_since, self._is_told = None, False
        elif self._alone_since is None:
            self._alone_since = now
        is_alone = self._alone_since is not None and now - self._alone_since >= ALONE_S
        if is_alone and not self._is_told:
            self._is_told = True
            log.info("no links to a majority for %g s: this member dials all that it knows", ALONE_S)
        return {m for m in others if self.is_mine(m) or ((is_alone or is_moved) and m not in up)}

    def backoff_max_s(self, member: str, *, is_moved: bool) -> float:
        """The longest pause between two attempts: who dials all for want of a majority does so patiently."""
        return BACKOFF_MAX_S if is_moved or self.is_mine(member) else ALONE_BACKOFF_MAX_S
