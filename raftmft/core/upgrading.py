"""Raises the feature level (features.py) once every listed member knows the higher one."""

from __future__ import annotations

from typing import Any

from raftmft.core import features
from raftmft.core.audit import AuditWriter
from raftmft.core.commands import FeatureRaise
from raftmft.core.errors import ProgramTooOld
from raftmft.core.features import Features
from raftmft.core.members import Members
from raftmft.core.outcome import Code
from raftmft.core.settings import Settings
from raftmft.core.state import Refuse, State


class Upgrading:
    """Applies FeatureRaise."""

    def __init__(self, state: State, settings: Settings, members: Members, known: Features, audit: AuditWriter) -> None:
        self._state, self._settings, self._members = state, settings, members
        self._known, self._audit = known, audit

    def raise_level(self, command: FeatureRaise) -> dict[str, Any]:
        """The level is `command.level` from here on, and the state has that level's layout. Raises ProgramTooOld, and
        the node must stop, if all others know the level and this program does not.
        """
        present, wanted = self._settings.level, command.level
        if not self._settings.is_bootstrapped:
            raise Refuse(Code.INVALID, "the cluster is not made yet")
        if wanted <= present:
            return {"level": present}
        behind = [row.name for row in self._members.list() if row.supports < wanted]
        if behind:
            raise Refuse(Code.CONFLICT, f"feature level {wanted} is not known to {', '.join(behind)}")
        if wanted > self._known.newest:
            raise ProgramTooOld(features.too_old(wanted, self._known.newest))
        for level in self._known.between(present, wanted):
            for statement in level.changes:
                self._state.db.execute(statement)
        self._settings.raise_level(wanted)
        self._audit.admin(f"feature level {wanted}")
        return {"level": wanted}
