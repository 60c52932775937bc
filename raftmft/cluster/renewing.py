"""A new key and certificate on disk in place of the old ones, so that a crash at any point leaves a pair that fits.

    1. the new pair is written beside the old one (node.next.key, node.next.crt), and listed by the cluster
    2. node.next.key becomes node.key, then node.next.crt becomes node.crt

A crash in 1 leaves the old pair, and the new one is forgotten. A crash in 2 leaves a key whose certificate still stands
beside it: `settle` finishes that. There is no moment at which neither pair is whole.
"""

from __future__ import annotations

import os
from datetime import datetime, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from raftmft.cluster.certificates import CertificateFiles, Issued, write_file


def next_to(files: CertificateFiles) -> tuple[Path, Path]:
    """Where a new pair waits: (certificate, key)."""
    return files.certificate.with_suffix(".next.crt"), files.key.with_suffix(".next.key")


def prepare(files: CertificateFiles, issued: Issued) -> None:
    """The new pair is durable beside the old one. OSError leaves the old one as it was."""
    certificate, key = next_to(files)
    write_file(key, issued.key)
    write_file(certificate, issued.certificate, mode=0o644)


def take(files: CertificateFiles) -> None:
    """The prepared pair takes the place of the old one."""
    certificate, key = next_to(files)
    if key.exists():
        os.rename(key, files.key)
        _sync(files.key.parent)
    os.rename(certificate, files.certificate)
    _sync(files.certificate.parent)


def settle(files: CertificateFiles) -> None:
    """To be called at start, before the pair is loaded: finishes or forgets a renewal that a crash cut short."""
    certificate, key = next_to(files)
    if certificate.exists() and not key.exists() and _fit(certificate, files.key):
        take(files)
    for left in (certificate, key):
        left.unlink(missing_ok=True)


def is_due(certificate: bytes, now: datetime) -> bool:
    """Whether two thirds of a certificate's life are over."""
    loaded = x509.load_pem_x509_certificate(certificate)
    begin, end = loaded.not_valid_before_utc, loaded.not_valid_after_utc
    return now >= begin + (end - begin) * 2 / 3


def utc(now_ms: int) -> datetime:
    """Milliseconds since 1970 as a time."""
    return datetime.fromtimestamp(now_ms / 1000, timezone.utc)


def _fit(certificate: Path, key: Path) -> bool:
    try:
        public = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
        private = serialization.load_pem_private_key(key.read_bytes(), password=None)
        form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        return public.public_bytes(*form) == private.public_key().public_bytes(*form)
    except (ValueError, TypeError, OSError):
        return False


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
