"""Whom this node knows: who may link with it, and where they are found. Follows the replicated list as it changes.

What must be agreed (placement, routing, votes) goes by the replicated list alone. But a member whose state is old, or
that has just joined and has none, cannot be helped by a list it does not have yet: the leader may be one that it lists
only later. So what others tell is believed for *contact*, until the own state has caught up with what they tell:

- the seed, while the own state does not list this member itself (it was admitted after what is applied here);
- *introductions*: each peer says on a fresh link whom it lists and as of which Raft index. They count while that index
  is beyond the own, and only add: nobody is cut off by hearsay;
- *endorsements* (cluster/succession.py): a certificate that is not listed here counts as that of the member whose
  listed one vouches for it, as long as that one is listed and the own state does not know better.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgpack

from raftmft.cluster.certificates import fingerprint as fingerprint_of
from raftmft.cluster.renewing import utc
from raftmft.cluster.succession import WAS_REMOVED, objection
from raftmft.core import commands as c
from raftmft.core.certificates import LISTED
from raftmft.core.commands import MemberSpec
from raftmft.core.machine import Entry
from raftmft.core.members import MAX_MEMBERS, MemberRow
from raftmft.core.outcome import Outcome
from raftmft.node.datadir import Seed
from raftmft.node.state import ReplicatedState
from raftmft.wire.frames import FrameError, unpack
from raftmft.wire.loglines import fields
from raftmft.wire.peer import Chain

log = logging.getLogger(__name__)

FORMAT = 1
INTRODUCTION = "roster"
"""The kind of control message that carries an introduction."""
MOST_INTRODUCED = 2 * MAX_MEMBERS
_CHANGES = (c.Bootstrap, c.MemberAdmit, c.MemberReady, c.MemberSet, c.MemberRemove, c.CertAdd, c.CertRetire,
            c.CertRevoke, c.ConfigSet, c.Refound)


@dataclass(frozen=True, slots=True)
class Contact:
    """A certificate that may link, whose it is, and where that member is found."""

    fingerprint: str
    member: str
    host: str
    peer_port: int
    gossip_port: int


class Roster:
    """The members. `on_change(gone)` is called in the loop after each change, with the ids whose certificates changed
    or went; it must not block.
    """

    def __init__(self, seed: Seed, state: ReplicatedState, on_change: Callable[[set[str]], None],
                 clock_ms: Callable[[], int]) -> None:
        self._seed, self._state, self._on_change, self._clock_ms = seed, state, on_change, clock_ms
        self._introduced: tuple[int, tuple[Contact, ...]] = (0, ())
        self._endorsed: dict[str, tuple[bytes, Chain]] = {}
        self._rows: tuple[MemberRow, ...] | None = None
        self._contacts = self._gather()
        state.subscribe(self._applied)
        state.on_installed(self._installed)

    # --- agreed ---------------------------------------------------------------------------------------
    def rows(self) -> tuple[MemberRow, ...]:
        """The members as the replicated list has them; before there is one, those of the seed."""
        if self._rows is None:
            rows = tuple(self._state.machine.members.list())
            if not rows:
                return tuple(_row(spec) for spec in self._seed.members)
            self._rows = rows
        return self._rows

    def mine(self) -> MemberRow | None:
        """This member's own row; None before it is listed, and after it was removed."""
        return next((row for row in self.rows() if row.id == self._seed.me), None)

    @property
    def is_removed(self) -> bool:
        """Whether this member was listed and is not any more."""
        machine = self._state.machine
        listed_once = any(row.member == self._seed.me for row in machine.certificates.list())
        return machine.is_bootstrapped and listed_once and machine.members.get(self._seed.me) is None

    # --- contact --------------------------------------------------------------------------------------
    def directory(self) -> dict[str, str]:
        """Certificate fingerprint -> member id: who may link."""
        return {contact.fingerprint: contact.member for contact in self._contacts.values()}

    def peer_addresses(self) -> dict[str, tuple[str, int]]:
        """Member id -> host and peer port."""
        return {contact.member: (contact.host, contact.peer_port) for contact in self._contacts.values()}

    def gossip_addresses(self) -> dict[str, tuple[str, int]]:
        """Member id -> host and gossip port."""
        return {contact.member: (contact.host, contact.gossip_port) for contact in self._contacts.values()}

    def introduction(self) -> bytes:
        """What this member tells on a fresh link."""
        known = [[k.fingerprint, k.member, k.host, k.peer_port, k.gossip_port] for k in self._listed()]
        return bytes(msgpack.packb([FORMAT, self._state.applied, known[:MOST_INTRODUCED]]))

    def introduced(self, member: str, body: bytes) -> None:
        """A linked member told whom it lists. FrameError if it is malformed; one of a later format is passed over."""
        index, contacts = _decode(body)
        if index <= self._state.applied or index <= self._introduced[0]:
            return
        if set(contacts) - set(self._contacts.values()):
            log.info("member %s tells of members that are not listed here yet", member,
                     extra=fields(member=member, index=index))
        self._introduced = (index, contacts)
        self._changed()

    def endorsed(self, member: str, certificate: bytes, chain: Chain) -> str:
        """A peer shows a certificate (DER) that the directory lacks, as that of `member`. "": it is in the directory
        from now on, in place of one that was there by the same right. Else why not, in one line.
        """
        why_not = self._objection(member, certificate, chain, self._told())
        if why_not:
            return why_not
        log.info("member %s shows a certificate that is not listed here yet; the one that is listed vouches for it",
                 member, extra=fields(member=member))
        self._endorsed[member] = certificate, chain
        self._changed()
        return ""

    # --- within ---------------------------------------------------------------------------------------
    def _objection(self, member: str, certificate: bytes, chain: Chain, told: dict[str, Contact]) -> str:
        machine = self._state.machine
        if machine.members.get(member) is None and any(row.member == member for row in machine.certificates.list()):
            return WAS_REMOVED

        def standing(fingerprint: str) -> bool | None:
            row = machine.certificates.get(fingerprint)
            if row is not None:
                return row.state == LISTED and row.member == member and machine.members.get(member) is not None
            contact = told.get(fingerprint)
            return None if contact is None else contact.member == member

        return objection(self._seed.cluster_id, member, certificate, chain, standing, utc(self._clock_ms()))

    def _listed(self) -> list[Contact]:
        certificates = self._state.machine.certificates.listed()
        rows = {row.id: row for row in self._state.machine.members.list()}
        return [Contact(fingerprint, member, rows[member].host, rows[member].peer_port, rows[member].gossip_port)
                for fingerprint, member in certificates.items() if member in rows]

    def _told(self) -> dict[str, Contact]:
        """By fingerprint: what is agreed, and what was told."""
        known: dict[str, Contact] = {}
        if self.mine() is None or not self._state.machine.is_bootstrapped:
            known |= {m.fingerprint: Contact(m.fingerprint, m.id, m.host, m.peer_port, m.gossip_port)
                      for m in self._seed.members}
        if self._introduced[0] > self._state.applied:
            known |= {contact.fingerprint: contact for contact in self._introduced[1]}
        for contact in self._listed():  # last: what is agreed overrides what is told
            known[contact.fingerprint] = contact
        return known

    def _gather(self) -> dict[str, Contact]:
        known = self._told()
        found = {contact.member: contact for contact in known.values()}
        for member, (certificate, chain) in list(self._endorsed.items()):
            fingerprint = fingerprint_of(certificate)
            if fingerprint in known or self._objection(member, certificate, chain, known):
                del self._endorsed[member]
            else:
                known[fingerprint] = replace(found[member], fingerprint=fingerprint)
        return known

    def _applied(self, entries: Sequence[Entry], _: Sequence[Outcome]) -> None:
        caught_up = 0 < self._introduced[0] <= self._state.applied
        if caught_up:
            self._introduced = (0, ())
        if caught_up or any(type(entry.envelope.command) in _CHANGES for entry in entries):
            self._changed()
        elif any(type(entry.envelope.command) is c.MemberBoot for entry in entries):
            self._rows = None  # what it runs; who may link did not change

    def _installed(self) -> None:
        if self._introduced[0] <= self._state.applied:
            self._introduced = (0, ())
        self._changed()

    def _changed(self) -> None:
        before, self._rows = self._contacts, None
        self._contacts = self._gather()
        self._on_change({contact.member for key, contact in before.items() if key not in self._contacts})


def _row(spec: MemberSpec) -> MemberRow:
    return MemberRow(spec.id, spec.name, spec.host, spec.peer_port, spec.gossip_port, spec.sftp_port, spec.fingerprint,
                     spec.mode, spec.weight)


def _decode(body: bytes) -> tuple[int, tuple[Contact, ...]]:
    value = unpack(body)
    if type(value) is list and value and type(value[0]) is int and value[0] > FORMAT:
        return 0, ()
    if type(value) is not list or len(value) != 3 or value[0] != FORMAT or type(value[1]) is not int or (
            type(value[2]) is not list or len(value[2]) > MOST_INTRODUCED):
        raise FrameError("an introduction of no known shape")
    contacts = []
    for item in value[2]:
        match item:
            case [str(fingerprint), str(member), str(host), int(peer_port), int(gossip_port)] if (
                    len(fingerprint) == 64 and 0 < len(member) <= 64 and 0 < len(host) <= 253
                    and 0 < peer_port < 65536 and 0 < gossip_port < 65536):
                contacts.append(Contact(fingerprint, member, host, peer_port, gossip_port))
            case _:
                raise FrameError("an introduction with a malformed contact")
    return value[1], tuple(contacts)
