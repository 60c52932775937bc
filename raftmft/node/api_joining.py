"""The admin API's join tokens."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from raftmft.core import commands as c
from raftmft.core.addresses import address_text
from raftmft.core.admission import JOIN_MODES, MAX_TTL_MS
from raftmft.core.commands import MemberSpec
from raftmft.node.api import ADMIN, V1, Call, Operation
from raftmft.node.api_audit import iso
from raftmft.node.api_fields import Field
from raftmft.node.epoch import Epoch
from raftmft.wire.joining import proof_key
from raftmft.wire.token import MOST_ADDRESSES, SECRET_BYTES, JoinToken, encode_token, hash_of

DEFAULT_TTL_S = 3600


class JoiningApi:
    """What `raftmft token create` does. `members` gives the members to ask, best first."""

    def __init__(self, epoch: Epoch, cluster_id: str, ca_fingerprint: str,
                 members: Callable[[], Iterable[MemberSpec]], cluster_key: Callable[[], bytes]) -> None:
        self._epoch, self._cluster_id, self._ca_fingerprint, self._members = epoch, cluster_id, ca_fingerprint, members
        self._cluster_key = cluster_key

    def operations(self) -> list[Operation]:
        """The routes."""
        mode = Field("mode", "text", "what the host becomes", choices=JOIN_MODES)
        ttl = Field("ttl_s", "whole", "for how many seconds the token is good", low=1, high=MAX_TTL_MS // 1000)
        return [Operation("POST", f"{V1}/join-tokens", "Make a join token, good for one host; it is shown this once",
                          self._create, {"token": str, "expires": str}, ADMIN, body=(mode, ttl))]

    async def _create(self, call: Call) -> Any:
        secret = secrets.token_bytes(SECRET_BYTES)
        addresses = tuple(address_text(m.host, m.peer_port) for m in self._members())[:MOST_ADDRESSES]
        key = proof_key(self._cluster_key(), hash_of(secret))
        token = JoinToken(self._cluster_id, self._ca_fingerprint, secret, 0, addresses, key)
        made = await self._epoch.value(c.TokenCreate(
            token.hash, call.body.get("mode", "active"), call.body.get("ttl_s", DEFAULT_TTL_S) * 1000, call.actor))
        expires_ms = int(made["expires_ms"])
        return {"token": encode_token(replace(token, expires_ms=expires_ms)),
                "expires": iso(expires_ms)}
