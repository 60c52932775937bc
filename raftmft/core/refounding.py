"""One member goes on alone, under another cluster id: after a majority was lost for good, or out of a backup.

All that was only true of the processes and hosts of before ends here: members, their certificates, sessions, uploads,
join tokens, kept outcomes. What the users have stays: names, content, partials, bans, options, the audit log, which
records it. The old cluster's members are not listed any more, speak of another cluster id, and know a cluster key that
is replaced here: nothing that they say is believed.
"""

from __future__ import annotations

from typing import Any

from raftmft.core.audit import AuditWriter
from raftmft.core.certificates import MAX_TIME_MS
from raftmft.core.commands import Refound
from raftmft.core.members import Members, check_spec
from raftmft.core.names import clipped
from raftmft.core.outcome import Code
from raftmft.core.settings import Settings
from raftmft.core.state import Refuse, State

HOWS = ("recover", "restore")


class Refounding:
    """Applies Refound."""

    def __init__(self, state: State, settings: Settings, members: Members, audit: AuditWriter) -> None:
        self._state, self._settings, self._members, self._audit = state, settings, members, audit

    def refound(self, command: Refound) -> dict[str, Any]:
        """`command.member` is the only member, and joined; a listed one keeps its certificates."""
        settings, spec = self._settings, command.member
        if not settings.is_bootstrapped:
            raise Refuse(Code.INVALID, "there is no cluster yet that could be made anew")
        check_spec(spec)
        if command.how not in HOWS or not command.cluster_id or command.cluster_id == settings.cluster_id:
            raise Refuse(Code.INVALID, "a cluster is made anew by recover or restore, under an id of its own")
        if command.key in ("", settings.key) or not (command.sealed_host_key and command.sealed_ca_key):
            raise Refuse(Code.INVALID, "another cluster key comes with the secrets that it seals")
        if not 0 <= command.not_after_ms < MAX_TIME_MS:
            raise Refuse(Code.INVALID, "a certificate has an end")
        before = settings.cluster_id
        gone = self._members.give_up_all_but(spec.id, f"cluster {command.how}")
        self._members.stand_alone(spec, command.not_after_ms)
        self._state.db.execute("DELETE FROM tokens")
        self._state.db.execute("DELETE FROM outcomes")
        values: dict[str, str | bytes] = {
            "cluster_id": command.cluster_id, "key": command.key, "host_public_key": command.host_public_key,
            "sealed_host_key": command.sealed_host_key, "sealed_ca_key": command.sealed_ca_key}
        for key, value in values.items():
            if value:
                settings.put(key, value)
        settings.put("owes_rotation", 0)
        settings.move_placement()
        names = ", ".join(clipped(row.name, 64) for row in gone) or "none"
        self._audit.admin(f"cluster {command.how}: {clipped(spec.name, 64)} goes on alone, given up: {names}; cluster "
                          f"id {before} is now {clipped(command.cluster_id, 64)}", member=spec.id)
        return {"gone": [row.name for row in gone]}

