"""The cluster key on this node: the key in force everywhere it is used, its rotation when one is owed, and fetching it.

What the replicated state says of the key and what is in this member's ring (cluster/keyring.py) are brought together
here. While the key in force is missing, gossip and relay prefaces are under a random one: nothing that the old key
signed is believed from the moment at which this member applied the rotation. Links, and with them Raft, go on: they
rest on certificates alone.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio

from raftmft.cluster.certificates import CLUSTER_KEY_SIZE, seal, unseal
from raftmft.cluster.keyring import KeyMissing, KeyRing
from raftmft.cluster.links import PeerLinks, PeerUnreachable, RequestFailed, RequestLost
from raftmft.cluster.rotation import Rotation
from raftmft.core.commands import Command, KeyRotate, Refound
from raftmft.core.errors import RaftmftError
from raftmft.core.machine import Entry
from raftmft.core.outcome import Outcome
from raftmft.node.datadir import Seed
from raftmft.node.genesis import AUTHORITY_KEY, HOST_KEY
from raftmft.node.state import ReplicatedState
from raftmft.wire.loglines import fields

log = logging.getLogger(__name__)

OFFER, GET = "key.offer", "key.get"
LOOK_EVERY_S = 0.25
ASK_TIMEOUT_S = 2.0
COMPLAIN_EVERY_S = 10.0

Rekey = Callable[[bytes], None]
Execute = Callable[[Command], Awaitable[Outcome]]


class ClusterKeys:
    """Holds the ring. `users` are told each key that comes into force; `run` must be running."""

    def __init__(self, ring: KeyRing, seed: Seed, state: ReplicatedState, links: PeerLinks, users: Sequence[Rekey], *,
                 leads: Callable[[], bool], execute: Execute) -> None:
        self._ring, self._seed, self._state, self._links, self._users = ring, seed, state, links, users
        self._leads, self._execute = leads, execute
        self._rotation: Rotation | None = None
        self._complained_at = float("-inf")
        self._host_key = b""
        links.handle(OFFER, self._offered)
        links.handle(GET, self._asked)
        state.subscribe(self._applied)
        state.on_installed(self._installed)
        self._switch()

    # --- what others use ----------------------------------------------------------------------------------------------
    def present(self) -> bytes:
        """The key in force. KeyMissing."""
        return self._ring.present(self._state.machine.settings.key)

    def authority_key(self) -> bytes:
        """The certificate authority's private key (PEM). KeyMissing; SealBroken."""
        settings = self._state.machine.settings
        sealed = settings.sealed_ca_key if settings.is_bootstrapped else bytes.fromhex(self._seed.sealed_ca_key)
        return unseal(self.present(), AUTHORITY_KEY, sealed)

    def host_key(self) -> bytes:
        """The SSH host key, the same under every cluster key. KeyMissing before it could be unsealed once."""
        if not self._host_key:
            settings = self._state.machine.settings
            sealed = settings.sealed_host_key if settings.is_bootstrapped else bytes.fromhex(self._seed.sealed_host_key)
            self._host_key = unseal(self.present(), HOST_KEY, sealed)
        return self._host_key

    async def wait_for_host_key(self) -> bytes:
        """Returns once the host key can be had: at once, unless the key was changed since this member last ran."""
        while True:
            try:
                return self.host_key()
            except KeyMissing:
                await trio.sleep(LOOK_EVERY_S)

    async def run(self) -> None:
        """Fetches the key in force when it is missing, and rotates it when that is owed and this member leads."""
        while True:
            try:
                if self._state.machine.settings.key not in self._ring:
                    await self._fetch()
                elif self._leads() and self._state.machine.settings.owes_rotation:
                    await self._rotate()
            except RaftmftError as trouble:
                log.info("the cluster key's rotation is put off: %s", trouble)
            await trio.sleep(LOOK_EVERY_S)

    # --- the key in force ---------------------------------------------------------------------------------------------
    def _applied(self, entries: Sequence[Entry], outcomes: Sequence[Outcome]) -> None:
        for entry, outcome in zip(entries, outcomes, strict=True):
            command = entry.envelope.command
            if isinstance(command, (KeyRotate, Refound)) and outcome.rejection is None:
                # Written and synced here, in the loop: rare, short, and the old key must be gone from disk before the
                # state that knows of it can be marked as clean. An OSError stops the node.
                self._ring.rotated(command.base, command.key)
                self._switch()

    def _installed(self) -> None:
        self._ring.only(self._state.machine.settings.key)
        self._switch()

    def _switch(self) -> None:
        current = self._ring.current(self._state.machine.settings.key)
        key = secrets.token_bytes(CLUSTER_KEY_SIZE) if current is None else current.key
        for user in self._users:
            user(key)

    async def _fetch(self) -> None:
        name = self._state.machine.settings.key
        for member in sorted(self._links.connected()):
            try:
                answer = await self._links.request(member, GET, {"name": name}, timeout_s=ASK_TIMEOUT_S)
                key = answer["key"]
                if not isinstance(key, bytes):
                    raise ValueError("no key")
                self._ring.fetched(name, key)
            except (PeerUnreachable, RequestFailed, RequestLost, ValueError, KeyError, TypeError):
                continue  # another member may have it; the complaint below tells of it
            self._switch()
            log.info("the cluster key %s was fetched from %s", name, member, extra=fields(member=member))
            return
        if trio.current_time() - self._complained_at > COMPLAIN_EVERY_S:
            self._complained_at = trio.current_time()
            log.warning("the cluster key %s is not here and no member that is linked gives it; asking on",
                        name or "(the first)")

    # --- rotation -----------------------------------------------------------------------------------------------------
    async def _rotate(self) -> None:
        machine = self._state.machine
        settings = machine.settings
        if self._rotation is None or not self._rotation.suits(settings.key, settings.owes_rotation):
            self._rotation = Rotation(settings.key, settings.owes_rotation)
        rotation = self._rotation
        self._ring.offer(rotation.name, rotation.base, rotation.key)
        rotation.holders.add(self._seed.me)
        members = [row.id for row in machine.members.list()]
        async with trio.open_nursery() as nursery:
            for member in rotation.to_ask(members, self._links.connected()):
                nursery.start_soon(self._give, rotation, member)
        if not rotation.may_commit(members) or not rotation.suits(settings.key, settings.owes_rotation):
            return
        old = self.present()
        host_key = unseal(old, HOST_KEY, settings.sealed_host_key)
        authority_key = unseal(old, AUTHORITY_KEY, settings.sealed_ca_key)
        log.warning("the cluster key is changed to %s", rotation.name)
        await self._execute(KeyRotate(
            rotation.base, rotation.name, seal(rotation.key, HOST_KEY, host_key),
            seal(rotation.key, AUTHORITY_KEY, authority_key), rotation.owed))

    async def _give(self, rotation: Rotation, member: str) -> None:
        try:
            await self._links.request(member, OFFER, {"base": rotation.base, "name": rotation.name,
                                                      "key": rotation.key}, timeout_s=ASK_TIMEOUT_S)
            rotation.holders.add(member)
        except (PeerUnreachable, RequestFailed, RequestLost) as trouble:
            log.info("%s did not take the new cluster key yet: %s", member, trouble, extra=fields(member=member))

    # --- what peers ask -----------------------------------------------------------------------------------------------
    async def _offered(self, member: str, args: dict[str, Any]) -> dict[str, Any]:
        base, name, key = args["base"], args["name"], args["key"]
        if not (isinstance(base, str) and isinstance(name, str) and isinstance(key, bytes)):
            raise ValueError("a key is offered by names and bytes")
        if base != self._state.machine.settings.key:
            raise ValueError("the key that this one replaces is not in force here")
        try:
            self._ring.offer(name, base, key)
        except OSError as error:  # as it was: the leader asks again, and goes by those who have the key on disk
            raise RaftmftError(f"the key cannot be stored here: {error.strerror or error}") from None
        return {}

    async def _asked(self, member: str, args: dict[str, Any]) -> dict[str, Any]:
        machine = self._state.machine
        # The link may be older than a removal that was applied in this very moment.
        if machine.members.get(member) is None or member not in machine.certificates.listed().values():
            raise ValueError("only members are given the cluster key")
        if args["name"] != machine.settings.key:
            raise ValueError("this is not the key in force here")
        return {"key": self.present()}
