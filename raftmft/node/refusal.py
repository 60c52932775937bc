"""An SSH disconnect before key exchange (RFC 4253, 4.2 and 11.1): the one SSH message that the node itself speaks."""

from __future__ import annotations

import struct

from raftmft import __version__

SERVICE_NOT_AVAILABLE = 7
_MSG_DISCONNECT = 1


def refusal(text: str = "no quorum: this cluster cannot serve now, try again later") -> bytes:
    """Identification string and an unencrypted SSH_MSG_DISCONNECT, as one write."""
    reason = text.encode()
    payload = struct.pack(">BII", _MSG_DISCONNECT, SERVICE_NOT_AVAILABLE, len(reason)) + reason + struct.pack(">I", 0)
    padding = 8 - (5 + len(payload)) % 8
    padding += 8 if padding < 4 else 0
    packet = struct.pack(">IB", 1 + len(payload) + padding, padding) + payload + bytes(padding)
    return f"SSH-2.0-raftmft_{__version__}\r\n".encode() + packet
