"""The cluster's certificates, key files and sealed secrets.

One authority (CA) per cluster signs one certificate per member. A member's identity is its certificate's
*fingerprint*, as Raft lists it: the CA's signature alone admits nobody, and names in certificates are for people. Keys
are P-256: Ed25519 is as fast, but P-256 is what every TLS 1.3 stack speaks.

Secrets that stand in the replicated state are *sealed* with a key derived from the cluster key, under the secret's
name, so that one sealed secret cannot be passed off as another.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from blake3 import blake3
from cryptography import x509
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from raftmft.core.errors import ConfigError, CorruptFile, RaftmftError

NODE_DAYS = 90
AUTHORITY_DAYS = 3650
BACKDATED = timedelta(days=1)
CLUSTER_KEY_SIZE = 32
_SEAL_VERSION = b"\x01"
_NONCE_SIZE = 12
_SEAL_CONTEXT = "raftmft 2026-01 sealed secret v1"


class SealBroken(RaftmftError):
    """A sealed secret was not sealed with this cluster key under this name, or was changed."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its private key, PEM."""

    certificate: bytes
    key: bytes

    @property
    def fingerprint(self) -> str:
        """The certificate's fingerprint, as Raft lists it."""
        return fingerprint_of_pem(self.certificate)


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Where a member's TLS files stand: the CA's certificate, the member's own certificate, its private key (0600)."""

    authority: Path
    certificate: Path
    key: Path


def make_authority(cluster: str, *, now: datetime | None = None) -> Issued:
    """A new, self-signed CA for the cluster of this name."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"raftmft CA {cluster}"[:64])
    begin = (now or datetime.now(timezone.utc)) - BACKDATED
    certificate = (
        _builder(name, name, key.public_key(), begin, AUTHORITY_DAYS, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Issued(_certificate_pem(certificate), _key_pem(key))


def make_key() -> bytes:
    """A new private key for a member, PEM."""
    return _key_pem(ec.generate_private_key(ec.SECP256R1()))


def public_key_of(key: bytes) -> bytes:
    """The public half of a private key, both PEM: what a joining host shows to have signed."""
    return _load_key(key).public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def sign_member(authority: Issued, member: str, public_key: bytes, *, now: datetime | None = None) -> bytes:
    """The certificate (PEM) of `member` (its id) for a public key (PEM): NODE_DAYS from now, backdated a day.

    ConfigError if the public key is none that members may have.
    """
    try:
        subject_key = serialization.load_pem_public_key(public_key)
    except ValueError:
        raise ConfigError("the key to be signed is no PEM public key; make it with make_key") from None
    if not isinstance(subject_key, ec.EllipticCurvePublicKey) or subject_key.curve.name != "secp256r1":
        raise ConfigError("the key to be signed is no P-256 key; make it with make_key")
    signer = _load_key(authority.key)
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    begin = (now or datetime.now(timezone.utc)) - BACKDATED
    days = NODE_DAYS + BACKDATED.days
    certificate = (
        _builder(_name(member), issuer.subject, subject_key, begin, days, signer.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return _certificate_pem(certificate)


def issue_member(authority: Issued, member: str, *, now: datetime | None = None) -> Issued:
    """A new key and its certificate for `member`."""
    key = make_key()
    return Issued(sign_member(authority, member, public_key_of(key), now=now), key)


def fingerprint(der: bytes) -> str:
    """The SHA-256 of a certificate's DER, in hex."""
    return hashlib.sha256(der).hexdigest()


def fingerprint_of_pem(certificate: bytes) -> str:
    """The fingerprint of a PEM certificate."""
    return fingerprint(der_of_pem(certificate))


def der_of_pem(certificate: bytes) -> bytes:
    """A PEM certificate as DER."""
    return x509.load_pem_x509_certificate(certificate).public_bytes(serialization.Encoding.DER)


def expires_at(certificate: bytes) -> datetime:
    """When a PEM certificate ends (UTC)."""
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc


def write_file(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """`path` holds exactly `data` with `mode`, durably, or is as it was.

    By a temporary file, fsync, rename, fsync of the folder. The file is never readable by others, not for a moment.
    OSError as the system gives it; a killed process may leave a `.NAME.<random>` file beside it.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_member_files(files: CertificateFiles, authority_certificate: bytes, issued: Issued) -> None:
    """Writes a member's three TLS files; the key first, since a certificate without its key is of no use."""
    write_file(files.key, issued.key)
    write_file(files.certificate, issued.certificate, mode=0o644)
    write_file(files.authority, authority_certificate, mode=0o644)


def load_member(files: CertificateFiles) -> Issued:
    """A member's own certificate and key. CorruptFile if they are unreadable or do not belong together; ConfigError if
    others may read the key.
    """
    mode = files.key.stat().st_mode
    if mode & 0o077:
        raise ConfigError(f"{files.key} can be read by others (mode {mode & 0o777:o}): chmod 600 it and renew the key")
    issued = Issued(files.certificate.read_bytes(), files.key.read_bytes())
    try:
        certificate = x509.load_pem_x509_certificate(issued.certificate)
        matches = certificate.public_key() == _load_key(issued.key).public_key()
    except ValueError:
        raise CorruptFile(f"{files.certificate} or {files.key} is no PEM: restore them, or join anew by "
                          "raftmft join --replace") from None
    if not matches:
        raise CorruptFile(f"{files.key} is not the key of {files.certificate}: restore them, or join anew "
                          "by raftmft join --replace")
    return issued


def server_context(files: CertificateFiles) -> ssl.SSLContext:
    """TLS for links that peers open to us: 1.3 only, a certificate of this cluster's CA demanded, no tickets.

    No tickets: a resumed session would outlive the certificate check that let it in.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0
    return _harden(context, files)


def client_context(files: CertificateFiles) -> ssl.SSLContext:
    """TLS for links that we open to peers. Host names are not checked: identity is the fingerprint."""
    return _harden(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), files)


def sign(key: bytes, data: bytes) -> bytes:
    """`data` signed with a member's private key (PEM): ECDSA over SHA-256, DER."""
    return _load_key(key).sign(data, ec.ECDSA(hashes.SHA256()))


def is_signed_by(certificate: bytes, authority: bytes, data: bytes, signature: bytes) -> bool:
    """Whether `data` was signed with the key of a certificate (PEM) which that authority (PEM) issued, whenever."""
    try:
        loaded = x509.load_pem_x509_certificate(certificate)
        loaded.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
        public_key = loaded.public_key()
        if not isinstance(public_key, ec.EllipticCurvePublicKey):
            return False
        public_key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        return True
    except (ValueError, TypeError, InvalidSignature):
        return False


def seal(cluster_key: bytes, name: str, plaintext: bytes) -> bytes:
    """`plaintext` readable and changeable only with the cluster key, and only under the same `name`."""
    nonce = secrets.token_bytes(_NONCE_SIZE)
    return _SEAL_VERSION + nonce + _cipher(cluster_key).encrypt(nonce, plaintext, name.encode())


def unseal(cluster_key: bytes, name: str, sealed: bytes) -> bytes:
    """What was sealed under `name`. SealBroken if the key, the name or a bit differs."""
    if sealed[:1] == _SEAL_VERSION and len(sealed) > 1 + _NONCE_SIZE:
        nonce, text = sealed[1 : 1 + _NONCE_SIZE], sealed[1 + _NONCE_SIZE :]
        try:
            return _cipher(cluster_key).decrypt(nonce, text, name.encode())
        except InvalidTag:
            pass
    raise SealBroken(f"the sealed secret {name!r} does not open with this cluster key: restore the member's key file")


def _cipher(cluster_key: bytes) -> ChaCha20Poly1305:
    if len(cluster_key) != CLUSTER_KEY_SIZE:
        raise ConfigError(f"a cluster key has {CLUSTER_KEY_SIZE} bytes, not {len(cluster_key)}: restore the key file")
    return ChaCha20Poly1305(blake3(cluster_key, derive_key_context=_SEAL_CONTEXT).digest())


def _harden(context: ssl.SSLContext, files: CertificateFiles) -> ssl.SSLContext:
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(files.certificate, files.key)
    context.load_verify_locations(files.authority)
    return context


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, begin: datetime, days: int,
             signer: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=signs_certificates, crl_sign=signs_certificates,
        encipher_only=False, decipher_only=False)


def _certificate_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("the private key is no P-256 key; make it with make_key")
    return key
