"""The admin API's certificates: who may link, until when; renewing this node's; cutting one off."""

from __future__ import annotations

from typing import Any

from raftmft.core import commands as c
from raftmft.core.certificates import LISTED
from raftmft.core.outcome import Code
from raftmft.node.api import ADMIN, OPERATOR, V1, Call, Operation
from raftmft.node.api_audit import iso
from raftmft.node.api_fields import Field
from raftmft.node.epoch import Epoch
from raftmft.node.link import Rejected
from raftmft.node.renewal import Renewal
from raftmft.node.state import ReplicatedState
from raftmft.node.stewards import Stewards

CERTIFICATE = {"fingerprint": str, "member": str, "name": str, "state": str, "not_after": (str, None), "added": str}


class CertsApi:
    """What `raftmft cert` does."""

    def __init__(self, state: ReplicatedState, epoch: Epoch, renewal: Renewal, stewards: Stewards) -> None:
        self._state, self._epoch, self._renewal, self._stewards = state, epoch, renewal, stewards

    def operations(self) -> list[Operation]:
        """The routes."""
        which = (Field("which", "text", "a certificate's fingerprint (16 digits are enough), or a member's name"),)
        return [
            Operation("GET", f"{V1}/certs", "List the certificates", self._list, {"certs": [CERTIFICATE]}),
            Operation("POST", f"{V1}/certs", "Renew the certificate of this node", self._renew, {"fingerprint": str},
                      OPERATOR),
            Operation("DELETE", f"{V1}/certs/{{which}}", "Revoke: whoever shows it is cut off at once", self._revoke,
                      {"revoked": [str]}, ADMIN, where=which),
        ]

    async def _list(self, _: Call) -> Any:
        await self._epoch.barrier()
        return {"certs": [
            {"fingerprint": row.fingerprint, "member": row.member, "name": row.name, "state": row.state,
             "not_after": iso(row.not_after_ms) if row.not_after_ms else None, "added": iso(row.added_ms)}
            for row in self._state.machine.certificates.list()]}

    async def _renew(self, _: Call) -> Any:
        return {"fingerprint": await self._renewal.renew()}

    async def _revoke(self, call: Call) -> Any:
        await self._epoch.barrier()
        which = call.path["which"]
        found = [row for row in self._state.machine.certificates.list() if row.state == LISTED and (
            row.fingerprint == which or (len(which) >= 16 and row.fingerprint.startswith(which))
            or which in (row.name, row.member))]
        if not found:
            raise Rejected(Code.NOT_FOUND, f"there is no listed certificate {which[:64]!r}, nor a member of that name; "
                                           "see raftmft cert list")
        for row in found:
            if len(self._state.machine.members.list()) > 1:
                await self._stewards.lead(None, other_than=row.member)
            await self._epoch.value(c.CertRevoke(row.fingerprint, call.actor))
        return {"revoked": [row.fingerprint for row in found]}
