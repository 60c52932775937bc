"""Certificates, key files and sealed secrets."""

from __future__ import annotations

import os
import stat
from datetime import datetime, timedelta, timezone

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st
from peer_nodes import make_files

from raftmft.cluster import certificates
from raftmft.cluster.certificates import SealBroken, seal, unseal
from raftmft.core.errors import ConfigError, CorruptFile

KEY = b"k" * 32


def test_a_members_certificate_lives_90_days_and_began_yesterday():
    now = datetime(2026, 3, 1, tzinfo=timezone.utc)
    authority = certificates.make_authority("c", now=now)
    issued = certificates.issue_member(authority, "n1", now=now)
    certificate = x509.load_pem_x509_certificate(issued.certificate)
    assert certificate.not_valid_before_utc == now - timedelta(days=1)
    assert certificate.not_valid_after_utc == certificates.expires_at(issued.certificate) == now + timedelta(days=90)
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.certificate))
    assert len(issued.fingerprint) == 64
    assert issued.fingerprint != certificates.issue_member(authority, "n1", now=now).fingerprint


def test_a_joining_host_has_only_its_public_key_signed():
    authority, key = certificates.make_authority("c"), certificates.make_key()
    signed = certificates.sign_member(authority, "n9", certificates.public_key_of(key))
    assert b"PRIVATE" not in signed
    for wrong in (b"junk", key, authority.certificate):
        with pytest.raises(ConfigError):
            certificates.sign_member(authority, "n9", wrong)


def test_key_files_are_private_and_whole(tmp_path):
    files, fingerprint = make_files(tmp_path, "n1", certificates.make_authority("c"))
    assert stat.S_IMODE(files.key.stat().st_mode) == 0o600
    assert certificates.load_member(files).fingerprint == fingerprint
    assert sorted(os.listdir(tmp_path)) == ["ca.pem", "node.key", "node.pem"]
    files.key.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        certificates.load_member(files)


def test_a_key_that_is_not_the_certificates_is_found(tmp_path):
    files, _ = make_files(tmp_path, "n1", certificates.make_authority("c"))
    certificates.write_file(files.key, certificates.make_key())
    with pytest.raises(CorruptFile, match="is not the key of"):
        certificates.load_member(files)
    certificates.write_file(files.key, b"junk")
    with pytest.raises(CorruptFile, match="no PEM"):
        certificates.load_member(files)


def test_a_failed_write_leaves_the_old_file_and_no_debris(tmp_path, monkeypatch):
    path = tmp_path / "secret"
    certificates.write_file(path, b"old")
    monkeypatch.setattr(os, "rename", lambda *a: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError):
        certificates.write_file(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["secret"]


@given(st.binary(max_size=200), st.text(max_size=20))
def test_sealed_secrets_open_only_as_they_were_sealed(plaintext, name):
    sealed = seal(KEY, name, plaintext)
    assert unseal(KEY, name, sealed) == plaintext
    assert sealed != seal(KEY, name, plaintext)
    for key, other, data in ((b"o" * 32, name, sealed), (KEY, name + "x", sealed), (KEY, name, sealed[:-1]),
                             (KEY, name, b""), (KEY, name, b"\x02" + sealed[1:]),
                             (KEY, name, sealed[:-1] + bytes([sealed[-1] ^ 1]))):
        with pytest.raises(SealBroken):
            unseal(key, other, data)


def test_a_short_cluster_key_is_refused():
    with pytest.raises(ConfigError):
        seal(b"short", "x", b"")
