"""Joining, both sides over real TLS: the member is proved before the secret is told; what is lost is asked again."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from peer_nodes import CLUSTER, cluster_of, make_files

from raftmft.cluster import certificates
from raftmft.cluster import joining as ways
from raftmft.cluster.joining import JoinDoor, ask_to_join
from raftmft.cluster.listener import PeerListener, open_port
from raftmft.core.errors import (
    ConfigError,
    NodeUnreachable,
    NoQuorum,
    OutcomeUnknown,
    RaftmftError,
)
from raftmft.wire import joining
from raftmft.wire.joining import Admitted, JoinRequest
from raftmft.wire.token import JoinToken, hash_of

KEY, SECRET = b"k" * 32, b"s" * 32
YEAR_MS = 365 * 86_400_000
ADMITTED = Admitted("m", "active", "files", CLUSTER, 3, b"cert", "", bytes(32), "ssh", b"h", b"c", [])


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def request() -> JoinRequest:
    return JoinRequest(b"s" * 32, "n9", "127.0.0.1", 1, 1, 1, b"key", now_ms(), "1.0", 1)


@asynccontextmanager
async def door(tmp_path, outcomes, asked) -> AsyncIterator[JoinToken]:
    """A member that answers with each of `outcomes` in turn, the last one again and again."""
    async with cluster_of(tmp_path, "n1") as cluster:
        files, _ = make_files(tmp_path / "door", "n1", cluster.authority)

        async def answer(table):
            asked.append(joining.decode_join(table))
            outcome = outcomes.pop(0) if len(outcomes) > 1 else outcomes[0]
            if isinstance(outcome, Exception):
                raise outcome
            if outcome is None:
                await trio.sleep_forever()
            return outcome

        node = cluster.nodes["n1"]
        listener = PeerListener(node.me, lambda: {}, on_control=node.links.serve, on_bulk=node.server.serve,
                                on_relay=node.take_relay,
                                join_door=JoinDoor(CLUSTER, files, {joining.JOIN: answer}, lambda: KEY))
        listening = open_port("127.0.0.1", 0)
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, listening)
            yield JoinToken(CLUSTER, certificates.fingerprint_of_pem(cluster.authority.certificate), SECRET, 0,
                            (address,), joining.proof_key(KEY, hash_of(SECRET)))
            nursery.cancel_scope.cancel()


async def test_admitted(tmp_path):
    asked = []
    async with door(tmp_path, [ADMITTED], asked) as token:
        admitted, authority = await ask_to_join(token, request)
    assert admitted == ADMITTED and certificates.fingerprint_of_pem(authority) == token.ca_fingerprint
    assert asked[0].secret == token.secret


@pytest.mark.parametrize("change", [{"ca_fingerprint": "00" * 32}, {"cluster_id": "other"}])
async def test_the_secret_is_not_told_to_another_cluster(tmp_path, change):
    asked = []
    async with door(tmp_path, [ADMITTED], asked) as token:
        other = JoinToken(**{"cluster_id": token.cluster_id, "ca_fingerprint": token.ca_fingerprint,
                             "secret": token.secret, "expires_ms": 0, "addresses": token.addresses,
                             "proof_key": token.proof_key, **change})
        with pytest.raises(ConfigError, match="another cluster"):
            await ask_to_join(other, request)
    assert asked == []


async def test_the_secret_is_not_told_to_who_was_a_member_once(tmp_path):
    """Its certificate is genuine, but it does not know the key that the cluster took when it was shut out."""
    asked = []
    async with door(tmp_path, [ADMITTED], asked) as token:
        newer = replace(token, proof_key=joining.proof_key(b"n" * 32, token.hash))
        with pytest.raises(ConfigError, match="could not prove that it is a member"):
            await ask_to_join(newer, request)
    assert asked == []


async def test_a_proof_is_of_one_certificate_and_one_nonce():
    key = joining.proof_key(KEY, hash_of(SECRET))
    proofs = {joining.proof(key, nonce, der) for nonce in (b"1" * 32, b"2" * 32) for der in (b"a", b"b")}
    assert len(proofs) == 4 and joining.proof_key(KEY, hash_of(b"t" * 32)) != key


async def test_a_genuine_authority_shown_by_an_impostor_is_no_proof(tmp_path):
    asked = []
    async with door(tmp_path, [ADMITTED], asked) as token:
        impostor, _ = make_files(tmp_path / "impostor", "n1", certificates.make_authority("test"))
        genuine = (tmp_path / "door" / "ca.pem").read_bytes()
        certificates.write_file(impostor.authority, genuine)
        listening = open_port("127.0.0.1", 0)
        false_door = JoinDoor(CLUSTER, impostor, {}, lambda: KEY)
        async with trio.open_nursery() as nursery:
            @nursery.start_soon
            async def serve():
                await trio.lowlevel.wait_readable(listening)
                stream, _ = await false_door.listen(listening.accept()[0])
            with pytest.raises(ConfigError, match="another cluster"):
                await ask_to_join(token, request, f"127.0.0.1:{listening.getsockname()[1]}")
            nursery.cancel_scope.cancel()
        listening.close()
    assert asked == []


@pytest.mark.parametrize("off_ms", [-YEAR_MS, YEAR_MS, 6 * 60_000])
async def test_a_wrong_clock_is_called_by_its_name(tmp_path, off_ms):
    asked = []
    async with door(tmp_path, [ADMITTED], asked) as token:
        with pytest.raises(ConfigError, match="this host's clock differs.*set it \\(NTP\\) and try again"):
            await ask_to_join(token, request, clock_ms=lambda: now_ms() + off_ms)
    assert asked == []


async def test_no_quorum_and_unknown_are_asked_again_with_the_same_key(tmp_path):
    asked = []
    async with door(tmp_path, [NoQuorum("no quorum"), OutcomeUnknown("unknown"), ADMITTED], asked) as token:
        assert (await ask_to_join(token, request))[0] == ADMITTED
    assert [r.public_key for r in asked] == [b"key"] * 3


@pytest.mark.parametrize(("outcome", "error", "limit"), [
    (NoQuorum("no quorum"), NoQuorum, "NO_QUORUM_LIMIT_S"), (OutcomeUnknown("x"), OutcomeUnknown, "UNKNOWN_LIMIT_S")])
async def test_it_gives_up_in_time(tmp_path, monkeypatch, outcome, error, limit):
    asked = []
    monkeypatch.setattr(ways, limit, 0.5)
    async with door(tmp_path, [outcome], asked) as token:
        with trio.fail_after(4), pytest.raises(error):  # the other limit is longer than that
            await ask_to_join(token, request)
    assert len(asked) > 1


async def test_a_member_that_falls_silent_when_asked_may_have_done_it(tmp_path, monkeypatch):
    monkeypatch.setattr(ways, "ANSWER_WAIT_S", 0.2)
    monkeypatch.setattr(ways, "UNKNOWN_LIMIT_S", 0.5)
    asked = []
    async with door(tmp_path, [None], asked) as token:
        with pytest.raises(OutcomeUnknown, match="was asked and did not answer"):
            await ask_to_join(token, request)
    assert asked


async def test_a_refusal_is_final_and_nobody_is_unreachable(tmp_path):
    asked = []
    async with door(tmp_path, [RaftmftError("the token was used already")], asked) as token:
        with pytest.raises(RaftmftError, match="used already"):
            await ask_to_join(token, request)
    assert len(asked) == 1
    with pytest.raises(NodeUnreachable):
        await ask_to_join(token, request)


@pytest.mark.parametrize("data", [b"\x8aRMFTJ9\n" + b"x" * 100, b"\x8a", joining.MAGIC + b"GET / HTTP/1.1\r\n\r\n",
                                  joining.MAGIC + b"\x16\x03\x01\x01\xf0" + b"\xff" * 500])
async def test_strangers_at_the_door_are_closed(tmp_path, data):
    async with door(tmp_path, [ADMITTED], []) as token:
        host, port = token.addresses[0].split(":")
        stream = await trio.open_tcp_stream(host, int(port))
        async with stream:
            with trio.fail_after(8):
                try:
                    await stream.send_all(data)
                    stream.socket.shutdown(socket.SHUT_WR)
                    while await stream.receive_some(1000):
                        pass
                except trio.BrokenResourceError:
                    pass
        assert (await ask_to_join(token, request))[0] == ADMITTED
