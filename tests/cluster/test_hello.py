"""A member that was away while the others renewed links again: real TLS, either dials, one or both are unlisted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import trio
from peer_nodes import CLUSTER, until

from raftmft.cluster import certificates, hello, succession
from raftmft.cluster.certificates import CertificateFiles, Issued
from raftmft.cluster.hello import PeerRefused, Self
from raftmft.cluster.listener import PeerListener, open_port
from raftmft.cluster.tls import TlsStream
from raftmft.wire import peer
from raftmft.wire.frames import FrameReader

NOW = datetime.now(timezone.utc)
AUTHORITY = certificates.make_authority("test")
BOTH_WAYS = pytest.mark.parametrize("dialler", ["old", "new"])


class Member:
    """Files, a listener, and a list of whom it knows; what it is convinced of goes into the list, as in the roster."""

    def __init__(self, folder: Path, name: str, issued: Issued | None = None) -> None:
        folder.mkdir()
        self.name = name
        self.files = CertificateFiles(folder / "ca.crt", folder / "node.crt", folder / "node.key")
        self.issued = issued or certificates.issue_member(AUTHORITY, name)
        self.directory: dict[str, str] = {}
        self.revoked: set[str] = set()
        self.judged: list[str] = []
        self.welcomed: list[tuple[str, str]] = []
        self.load()

    def load(self) -> None:
        certificates.write_member_files(self.files, AUTHORITY.certificate, self.issued)
        self.me = Self.load(self.name, CLUSTER, self.files, self.judge)

    def renew(self, times: int = 1, now: datetime = NOW) -> None:
        for _ in range(times):
            made = certificates.issue_member(AUTHORITY, self.name)
            chained = succession.succeed(self.issued, made.certificate, CLUSTER, self.name, now)
            self.issued = Issued(chained, made.key)
        self.load()

    def lists(self, *others: Member) -> None:
        self.directory |= {other.issued.fingerprint: other.name for other in others}

    def judge(self, member: str, certificate: bytes, chain: peer.Chain) -> str:
        def standing(fingerprint: str) -> bool | None:
            if fingerprint in self.revoked:
                return False
            return None if fingerprint not in self.directory else self.directory[fingerprint] == member

        self.judged.append(member)
        objection = succession.objection(CLUSTER, member, certificate, chain, standing, NOW)
        if not objection:
            self.directory[certificates.fingerprint(certificate)] = member
        return objection

    async def serve(self, member: str, stream: TlsStream) -> None:
        self.welcomed.append((member, stream.peer_fingerprint()))
        await stream.send_all(b"served")

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[tuple[str, int]]:
        async def nobody(_: object) -> None:
            raise AssertionError("nobody relays")

        listener = PeerListener(self.me, lambda: self.directory, on_control=self.serve, on_bulk=self.serve,
                                on_relay=nobody)
        port = open_port("127.0.0.1", 0)
        async with trio.open_nursery() as nursery:
            await nursery.start(listener.serve, port)
            yield port.getsockname()
            nursery.cancel_scope.cancel()


async def link(dialler: Member, answerer: Member, channel: str = peer.CONTROL) -> None:
    """A link that either would use; PeerRefused."""
    refusal: list[PeerRefused] = []  # raised below: a nursery would wrap it
    async with answerer.listening() as address:
        try:
            stream = await hello.dial(dialler.me, answerer.name, address, channel, lambda: dialler.directory)
            read = memoryview(bytearray(6))
            with trio.fail_after(5):
                assert await stream.receive_exactly_into(read) and bytes(read) == b"served"
            stream.close()
            assert answerer.welcomed[-1] == (dialler.name, dialler.issued.fingerprint)
        except PeerRefused as refused:
            refusal.append(refused)
    if refusal:
        raise refusal[0]


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Member]:
    made = {name: Member(tmp_path / name, name) for name in ("old", "new")}
    for member in made.values():
        member.lists(*made.values())
    return made


@BOTH_WAYS
@pytest.mark.parametrize("times", [1, 2, peer.MOST_ENDORSEMENTS])
async def test_who_lists_an_older_certificate_links_and_lists_the_new_one(
        pair: dict[str, Member], dialler: str, times: int) -> None:
    old, new = pair["old"], pair["new"]
    new.renew(times)
    answerer = new if dialler == "old" else old
    await link(pair[dialler], answerer)
    assert old.directory[new.issued.fingerprint] == "new" and old.judged == ["new"] and not new.judged
    await link(pair[dialler], answerer)
    await link(pair[dialler], answerer, peer.BULK)
    assert old.judged == ["new"], "it is listed now"


@BOTH_WAYS
async def test_both_may_have_renewed(pair: dict[str, Member], dialler: str) -> None:
    for member in pair.values():
        member.renew(2)
    await link(pair[dialler], pair["new" if dialler == "old" else "old"])
    assert pair["old"].judged == ["new"] and pair["new"].judged == ["old"]


@BOTH_WAYS
@pytest.mark.parametrize("how", ["revoked", "too often", "no chain", "another's chain", "expired", "never listed"])
async def test_who_convinces_nobody_is_told_so(
        pair: dict[str, Member], tmp_path: Path, dialler: str, how: str) -> None:
    old, new = pair["old"], pair["new"]
    first = new.issued
    if how == "expired":
        aged = certificates.issue_member(AUTHORITY, "new", now=NOW - timedelta(days=91))
        old.directory = {aged.fingerprint: "new", old.issued.fingerprint: "old"}
        new.issued = aged
        new.renew(now=NOW - timedelta(days=2))
    else:
        new.renew(peer.MOST_ENDORSEMENTS + 1 if how == "too often" else 1)
    if how == "revoked":
        old.revoked.add(first.fingerprint)
    elif how == "no chain":
        new.me = replace(new.me, chain=tuple)
    elif how == "another's chain":
        third = Member(tmp_path / "third", "third")
        old.lists(third)
        third.renew()
        new.me = replace(new.me, chain=third.me.chain)
    elif how == "never listed":
        del old.directory[first.fingerprint]
    reason = ("refused the link: your certificate is not listed" if dialler == "new" else
              "its certificate is not listed: .*(vouches|retired|forged|expired)")
    with pytest.raises(PeerRefused, match=reason):
        await link(pair[dialler], new if dialler == "old" else old)
    assert new.issued.fingerprint not in old.directory and not old.welcomed and not new.welcomed


@BOTH_WAYS
async def test_a_chain_opens_no_bulk_link(pair: dict[str, Member], dialler: str) -> None:
    old, new = pair["old"], pair["new"]
    new.renew()
    with pytest.raises(PeerRefused, match="not listed"):
        await link(pair[dialler], new if dialler == "old" else old, peer.BULK)
    assert not old.judged


async def test_one_members_chain_is_no_other_members(pair: dict[str, Member], tmp_path: Path) -> None:
    old, thief = pair["old"], Member(tmp_path / "thief", "thief")
    old.lists(thief)
    thief.renew()
    thief.me = replace(thief.me, member="new")
    with pytest.raises(PeerRefused, match="not listed"):
        await link(thief, old)
    assert old.judged == ["new"] and not old.welcomed


async def test_who_asks_twice_is_closed(pair: dict[str, Member]) -> None:
    old, new = pair["old"], pair["new"]
    async with new.listening() as address:
        connection = await trio.open_tcp_stream(*address)
        stream = TlsStream(hello._take_socket(connection), old.me.client, server_side=False)
        await stream.handshake(5)
        asked = peer.encode_hello(peer.Hello(peer.VERSION, CLUSTER, peer.LINEAGE, "old"))
        await stream.send_all(asked)
        got, reader, view = list[object](), FrameReader(), memoryview(bytearray(4096))
        with trio.fail_after(5):
            while not got:
                got = reader.feed(view[:await stream.receive_into(view)])
            assert peer.decode_welcome(got[0]).chain == new.me.chain()
            await stream.send_all(asked)
            try:
                assert await stream.receive_into(view) == 0
            except trio.BrokenResourceError:
                pass
        stream.close()
        assert not new.welcomed


async def test_a_listed_member_that_asks_may_go_away_again(pair: dict[str, Member]) -> None:
    """Who is not convinced closes; the other must not have taken that for a link."""
    old, new = pair["old"], pair["new"]
    new.renew()
    old.revoked |= set(old.directory)
    async with new.listening() as address:
        with pytest.raises(PeerRefused, match="retired, revoked"):
            await hello.dial(old.me, "new", address, peer.CONTROL, lambda: old.directory)
        old.revoked.clear()
        stream = await hello.dial(old.me, "new", address, peer.CONTROL, lambda: old.directory)
        await until(lambda: len(new.welcomed) == 1)
        stream.close()
