"""A member renews its certificate: by itself while it serves, and by the join door when it has expired."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import trio

from raftmft.cluster import certificates as certs
from raftmft.cluster.hello import Self
from raftmft.cluster.joining import JoinDoor
from raftmft.cluster.listener import PeerListener, open_port
from raftmft.cluster.succession import chain_of, objection
from raftmft.core import commands as c
from raftmft.core.errors import RaftmftError
from raftmft.core.machine import Entry
from raftmft.node.admitting import Admitting
from raftmft.node.genesis import AUTHORITY_KEY
from raftmft.node.link import value_of
from raftmft.node.renewal import Renewal
from raftmft.node.state import ReplicatedState
from raftmft.wire import joining
from tests.core.machine_world import open_machine

NOW = datetime.now(timezone.utc)
KEY = b"k" * 32
CLUSTER = "c0ffee"


def now_ms() -> int:
    return int(datetime.now(timezone.utc).timestamp() * 1000)


class Epoch:
    """Applies at once, as the only member."""

    def __init__(self, state: ReplicatedState) -> None:
        self.state, self.index = state, 0

    async def barrier(self) -> None:
        await trio.lowlevel.checkpoint()

    async def value(self, command: c.Command) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        self.index += 1
        (outcome,) = self.state.apply_batch([Entry(self.index, now_ms(), c.Envelope(command))])
        return value_of(outcome)


class World:
    """A cluster of a member `a` that serves and a member `b` whose certificate was issued `age` ago."""

    def __init__(self, folder: Path, age: timedelta) -> None:
        self.authority = certs.make_authority("files", now=NOW - age)
        self.files = {}
        self.issued = {"a": certs.issue_member(self.authority, "a"),
                       "b": certs.issue_member(self.authority, "b", now=NOW - age)}
        for name, issued in self.issued.items():
            (folder / name).mkdir()
            self.files[name] = certs.CertificateFiles(*(folder / name / f for f in ("ca.crt", "node.crt", "node.key")))
            certs.write_member_files(self.files[name], self.authority.certificate, issued)
        self.state = ReplicatedState(open_machine(folder / "state.db"))
        self.epoch = Epoch(self.state)
        self.contexts = (certs.client_context(self.files["b"]),)

    async def make(self) -> None:
        specs = tuple(c.MemberSpec(name, name, "127.0.0.1", 1, 1, 1, issued.fingerprint)
                      for name, issued in self.issued.items())
        sealed = certs.seal(KEY, AUTHORITY_KEY, self.authority.key)
        await self.epoch.value(c.Bootstrap("files", CLUSTER, specs, "ssh-ed25519 AAAA", b"host", sealed))

    def renewal(self) -> Renewal:
        return Renewal(CLUSTER, "b", self.files["b"], self.state, self.epoch,  # type: ignore[arg-type]
                       lambda: self.authority.key, self.contexts, now_ms)

    def listed(self) -> set[str]:
        return {f for f, member in self.state.machine.certificates.listed().items() if member == "b"}

    @asynccontextmanager
    async def door(self) -> AsyncIterator[str]:
        files = self.files["a"]
        admitting = Admitting(self.state, self.epoch, files, lambda: KEY, now_ms, lambda _: True)  # type: ignore[arg-type]
        me = Self("a", CLUSTER, certs.server_context(files), certs.client_context(files))

        async def nobody(*_: Any) -> None:
            raise AssertionError("only the join door is knocked at")

        listener = PeerListener(me, lambda: {}, on_control=nobody, on_bulk=nobody, on_relay=nobody,
                                join_door=JoinDoor(CLUSTER, files, {joining.RENEW: admitting.renew}, lambda: KEY))
        listening = open_port("127.0.0.1", 0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, listening)
            yield f"127.0.0.1:{listening.getsockname()[1]}"
            nursery.cancel_scope.cancel()


async def test_a_certificate_that_is_due_is_renewed_and_the_old_one_retired(tmp_path: Path) -> None:
    world = World(tmp_path, timedelta(days=70))
    await world.make()
    old = world.issued["b"].fingerprint
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.renewal().run)
        with trio.fail_after(10):
            while world.listed() == {old} or len(world.listed()) != 1:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    used = certs.load_member(world.files["b"])
    assert world.listed() == {used.fingerprint} and certs.expires_at(used.certificate) > NOW + timedelta(days=89)
    assert objection(CLUSTER, "b", certs.der_of_pem(used.certificate), chain_of(used.certificate),
                     {old: True}.get, NOW) == "", "the old one vouches for it to who was away"


async def test_one_that_is_not_due_stays_and_its_end_is_told(tmp_path: Path) -> None:
    world = World(tmp_path, timedelta(days=10))
    await world.make()
    old = world.issued["b"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.renewal().run)
        with trio.fail_after(10):
            while not world.state.machine.certificates.get(old.fingerprint).not_after_ms:  # type: ignore[union-attr]
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert certs.load_member(world.files["b"]) == old


async def test_a_commit_that_fails_leaves_the_old_pair_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, timedelta(days=70))
    await world.make()

    async def fails(_: c.Command) -> dict[str, Any]:
        raise RaftmftError("no")

    monkeypatch.setattr(world.epoch, "value", fails)
    with pytest.raises(RaftmftError):
        await world.renewal().renew()
    assert certs.load_member(world.files["b"]) == world.issued["b"]


async def test_an_expired_one_is_renewed_through_the_door(tmp_path: Path) -> None:
    world = World(tmp_path, timedelta(days=100))
    await world.make()
    renewal = world.renewal()
    assert renewal.warn_if_expired()
    async with world.door() as address:
        with trio.fail_after(10):
            await renewal.run_expired(CLUSTER, lambda: [address])
    used = certs.load_member(world.files["b"])
    assert used.fingerprint in world.listed() and not renewal.warn_if_expired()
    assert chain_of(used.certificate) == (), "an expired one vouches for nobody"
    await renewal.renew()
    assert len(chain_of(certs.load_member(world.files["b"]).certificate)) == 1


@pytest.mark.parametrize("how", ["revoked", "removed", "another key", "unlisted", "another member"])
async def test_who_may_not_renew(tmp_path: Path, how: str) -> None:
    world = World(tmp_path, timedelta(days=100))
    await world.make()
    old, name = world.issued["b"], "b"
    if how == "revoked":
        await world.epoch.value(c.CertRevoke(old.fingerprint))
    elif how == "removed":
        await world.epoch.value(c.MemberRemove("b"))
    elif how == "another key":
        old = certs.Issued(old.certificate, certs.make_key())
    elif how == "unlisted":
        old = certs.issue_member(world.authority, "b", now=NOW - timedelta(days=100))
    else:
        name = "a"
    admitting = Admitting(world.state, world.epoch, world.files["a"], lambda: KEY, now_ms, lambda _: True)  # type: ignore[arg-type]
    public_key, at = certs.public_key_of(certs.make_key()), now_ms()
    said = joining.statement(CLUSTER, name, public_key, at)
    before = world.state.machine.certificates.listed()
    with pytest.raises(RaftmftError, match="not signed|revoked or retired"):
        await admitting.renew({"member": name, "certificate": old.certificate, "public_key": public_key, "clock_ms": at,
                               "signature": certs.sign(old.key, said)})
    assert world.state.machine.certificates.listed() == before
