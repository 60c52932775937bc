"""Whom a chain of endorsements makes believable, and whom it does not: forged, cut, looped and borrowed ones."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftmft.cluster import certificates as certs
from raftmft.cluster.succession import chain_of, objection, succeed
from raftmft.wire.peer import CERTIFICATE_LIMIT, MOST_ENDORSEMENTS, SIGNATURE_LIMIT

NOW = datetime(2026, 3, 1, tzinfo=timezone.utc)
AUTHORITY = certs.make_authority("c", now=NOW)
CLUSTER, MEMBER = "c0ffee", "id-n1"


def after(old: certs.Issued, member: str = MEMBER, cluster: str = CLUSTER, now: datetime = NOW,
          new: certs.Issued | None = None) -> certs.Issued:
    """`old`, renewed once."""
    new = new or certs.issue_member(AUTHORITY, member, now=now)
    return certs.Issued(succeed(old, new.certificate, cluster, member, now), new.key)


def line_of(count: int) -> list[certs.Issued]:
    """A member's certificates, each but the first with its chain."""
    line = [certs.issue_member(AUTHORITY, MEMBER, now=NOW)]
    while len(line) < count:
        line.append(after(line[-1]))
    return line


LINE = line_of(4)
OTHER = certs.issue_member(AUTHORITY, "id-n2", now=NOW)


def judge(shown: certs.Issued, known: dict[str, bool], member: str = MEMBER, cluster: str = CLUSTER,
          now: datetime = NOW, chain: tuple[tuple[bytes, bytes], ...] | None = None) -> str:
    return objection(cluster, member, certs.der_of_pem(shown.certificate),
                     chain_of(shown.certificate) if chain is None else chain, known.get, now)


@pytest.mark.parametrize("missed", [1, 2, 3])
def test_who_lists_a_predecessor_believes_however_many_renewals_it_missed(missed: int) -> None:
    assert judge(LINE[3], {LINE[3 - missed].fingerprint: True}) == ""


def test_who_lists_nobody_of_the_line_believes_nobody() -> None:
    assert "none that is listed" in judge(LINE[3], {OTHER.fingerprint: True})
    assert "none that is listed" in judge(LINE[0], {OTHER.fingerprint: True}), "the authority's signature alone"


def test_of_what_is_known_the_newest_decides() -> None:
    for bad in (3, 2, 1):
        known = {LINE[0].fingerprint: True, LINE[bad].fingerprint: False}
        assert "retired, revoked" in judge(LINE[3], known), bad
    assert judge(LINE[3], {LINE[0].fingerprint: False, LINE[2].fingerprint: True}) == "", "retired, as it goes"
    stolen = after(LINE[1])
    assert judge(stolen, {LINE[0].fingerprint: True}) == ""
    assert "revoked" in judge(stolen, {LINE[0].fingerprint: True, LINE[1].fingerprint: False})


def test_a_chain_that_was_forged_cut_or_put_together_convinces_nobody() -> None:
    known, chain = {LINE[0].fingerprint: True}, chain_of(LINE[3].certificate)
    assert judge(LINE[3], known, chain=chain) == ""
    flipped = bytearray(chain[0][1])
    flipped[-1] ^= 1
    for what, bad, reason in [
        ("none", (), "none that is listed"),
        ("without its begin", chain[1:], "none that is listed"),
        ("without its end", chain[:-1], "forged"),
        ("without its middle", (chain[0], chain[2]), "forged"),
        ("in another order", (chain[1], chain[0], chain[2]), "forged"),
        ("signature damaged", ((chain[0][0], bytes(flipped)), *chain[1:]), "forged"),
        ("signature empty", ((chain[0][0], b""), *chain[1:]), "forged"),
        ("signature of another", ((chain[0][0], chain[1][1]), *chain[1:]), "forged"),
        ("certificate damaged", ((chain[0][0][:-1], chain[0][1]), *chain[1:]), "forged"),
        ("no certificate", ((b"junk", chain[0][1]), *chain[1:]), "forged"),
    ]:
        assert reason in judge(LINE[3], known, chain=bad), what
    thief = after(certs.Issued(LINE[0].certificate, OTHER.key))
    assert "forged" in judge(thief, known), "the listed certificate without its key"
    assert "none that is listed" in judge(after(OTHER), known), "a key of the authority's that is not this member's"


def test_a_chain_is_of_one_member_of_one_cluster() -> None:
    known = {LINE[0].fingerprint: True}
    assert "another member or cluster" in judge(LINE[1], known, member="id-n2")
    assert "another member or cluster" in judge(LINE[1], known, cluster="f00d")
    taken = after(OTHER, MEMBER)  # a member vouches for a certificate in another's name
    assert "of another member" in judge(taken, {OTHER.fingerprint: False})
    assert "another member" in judge(taken, {OTHER.fingerprint: True}, member="id-n2")


def test_loops_and_too_long_chains_end() -> None:
    one, two = (certs.issue_member(AUTHORITY, MEMBER, now=NOW) for _ in range(2))
    (forth,), (back,) = chain_of(after(one, new=two).certificate), chain_of(after(two, new=one).certificate)
    assert "circle" in judge(two, {}, chain=(forth, back, forth))
    myself = chain_of(after(one, new=one).certificate)
    assert "circle" in judge(one, {LINE[0].fingerprint: True}, chain=myself)
    line = line_of(MOST_ENDORSEMENTS + 3)
    chain = chain_of(line[-1].certificate)
    assert len(chain) == MOST_ENDORSEMENTS, "a member keeps the last few"
    assert judge(line[-1], {line[2].fingerprint: True}) == ""
    assert "none that is listed" in judge(line[-1], {line[1].fingerprint: True})
    whole = (*chain_of(line[3].certificate)[:1], *chain)
    assert "more than" in judge(line[-1], {line[0].fingerprint: True}, chain=whole)


def test_an_expired_certificate_vouches_for_nobody_and_leaves_the_chain() -> None:
    second = after(LINE[0], now=NOW + timedelta(days=60))
    known, end = {LINE[0].fingerprint: True}, certs.expires_at(LINE[0].certificate)
    assert judge(second, known, now=end) == ""
    assert "has expired" in judge(second, known, now=end + timedelta(seconds=1))
    third = after(second, now=NOW + timedelta(days=120))
    assert [der for der, _ in chain_of(third.certificate)] == [certs.der_of_pem(second.certificate)]
    assert chain_of(after(LINE[0], now=NOW + timedelta(days=120)).certificate) == ()


def test_a_chain_stands_behind_its_certificate_and_disturbs_nobody(tmp_path: Path) -> None:
    files = certs.CertificateFiles(tmp_path / "ca.crt", tmp_path / "node.crt", tmp_path / "node.key")
    certs.write_member_files(files, AUTHORITY.certificate, LINE[3])
    assert certs.load_member(files) == LINE[3] and len(chain_of(files.certificate.read_bytes())) == 3
    certs.server_context(files)
    alone = LINE[3].certificate.split(b"-----BEGIN RAFTMFT")[0]
    assert certs.fingerprint_of_pem(alone) == LINE[3].fingerprint and chain_of(alone) == ()
    assert all(len(der) <= CERTIFICATE_LIMIT * 0.7 and len(signature) <= SIGNATURE_LIMIT
               for der, signature in chain_of(LINE[3].certificate)), "with room for longer names"


@pytest.mark.parametrize("junk", [b"", b"!!!!", b"AAAA", b"kcQBYQ==", b"ksQBYcQBYg==", b"wA=="])
def test_a_damaged_chain_is_none(junk: bytes) -> None:
    block = b"-----BEGIN RAFTMFT ENDORSEMENT-----\n" + junk + b"\n-----END RAFTMFT ENDORSEMENT-----\n"
    assert chain_of(LINE[1].certificate + block) == ()
    assert len(chain_of(LINE[1].certificate)) == 1
    assert chain_of(LINE[0].certificate + LINE[1].certificate[len(LINE[0].certificate):] * 9) == ()


@given(st.lists(st.tuples(st.binary(max_size=200), st.binary(max_size=100)), max_size=MOST_ENDORSEMENTS + 2))
def test_random_chains_are_refused(chain: list[tuple[bytes, bytes]]) -> None:
    assert judge(LINE[1], {LINE[0].fingerprint: True}, chain=tuple(chain))
