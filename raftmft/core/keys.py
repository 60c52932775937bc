"""OpenSSH public key lines: checked for shape, named by their SHA-256 fingerprint (RFC 4253 6.6, RFC 4251 5).

Only what can be said without cryptography is checked: that the blob is of the type the line says and is cut into the
right number of fields of sane lengths. Whether a client holds the key is proven at login.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct

from raftmft.core.names import one_line
from raftmft.core.outcome import Code
from raftmft.core.state import Refuse

MAX_LINE_CHARS = 16_384
MIN_RSA_BITS = 2048
MAX_RSA_BITS = 16_384
_CURVE_POINT_BYTES = {"nistp256": 65, "nistp384": 97, "nistp521": 133}
_FIELDS = {
    "ssh-ed25519": 2, "ssh-rsa": 3, "ecdsa-sha2-nistp256": 3, "ecdsa-sha2-nistp384": 3, "ecdsa-sha2-nistp521": 3,
    "sk-ssh-ed25519@openssh.com": 3, "sk-ecdsa-sha2-nistp256@openssh.com": 4,
}


def parse_key(line: str) -> tuple[str, str]:
    """The line tidied (one space between type, blob and comment) and its "SHA256:..." fingerprint.

    Raises Refuse(INVALID) with one line that says what is wrong.
    """
    if len(line) > MAX_LINE_CHARS:
        raise Refuse(Code.INVALID, f"a public key line has at most {MAX_LINE_CHARS} characters")
    if "\n" in line.strip("\r\n") or "\r" in line.strip("\r\n") or "\0" in line:
        raise Refuse(Code.INVALID, "give one public key line at a time")
    words = line.strip(" \t\r\n").replace("\t", " ").split(" ", 2)
    if len(words) < 2 or words[0] not in _FIELDS:
        raise Refuse(Code.INVALID, f"a public key line is 'type base64 comment' with a type of {', '.join(_FIELDS)}; "
                                   "options before the type are not taken")
    kind, text = words[0], words[1]
    try:
        blob = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise Refuse(Code.INVALID, "the key's base64 is damaged; copy the whole line") from None
    problem = _blob_problem(kind, blob)
    if problem is not None:
        raise Refuse(Code.INVALID, problem)
    comment = one_line(words[2].strip()) if len(words) > 2 else ""
    fingerprint = base64.b64encode(hashlib.sha256(blob).digest()).rstrip(b"=").decode()
    return f"{kind} {text} {comment}".rstrip(" "), f"SHA256:{fingerprint}"


def _blob_problem(kind: str, blob: bytes) -> str | None:
    fields = _split(blob)
    if fields is None or not fields:
        return "the key's blob is damaged; copy the whole line"
    if fields[0] != kind.encode():
        return f"the line says {kind}, but the key inside is of another type"
    if len(fields) != _FIELDS[kind]:
        return "the key's blob is damaged; copy the whole line"
    if kind == "ssh-rsa":
        bits = int.from_bytes(fields[2], "big").bit_length()
        if not MIN_RSA_BITS <= bits <= MAX_RSA_BITS or fields[2][0] & 0x80:
            return f"an RSA key must have {MIN_RSA_BITS} to {MAX_RSA_BITS} bits, not {bits}; make an ed25519 key"
    elif "ed25519" in kind:
        if len(fields[1]) != 32:
            return "an ed25519 key has 32 bytes"
    else:
        points = _CURVE_POINT_BYTES.get(fields[1].decode("ascii", "replace"))
        if not kind.split("@")[0].endswith(fields[1].decode("ascii", "replace")) or len(fields[2]) != points:
            return "the key's curve does not fit its type"
    return None


def _split(blob: bytes) -> list[bytes] | None:
    fields: list[bytes] = []
    offset = 0
    while offset < len(blob):
        if len(blob) - offset < 4:
            return None
        (size,) = struct.unpack_from(">I", blob, offset)
        offset += 4
        if size > len(blob) - offset or len(fields) > 4:
            return None
        fields.append(blob[offset : offset + size])
        offset += size
    return fields
