"""The one SSH message that the node itself speaks."""

from __future__ import annotations

import struct

from raftmft.node.refusal import refusal


def test_it_is_an_identification_and_a_disconnect_packet() -> None:
    identification, _, packet = refusal("no quorum: later").partition(b"\r\n")
    assert identification.startswith(b"SSH-2.0-raftmft_")
    length, padding = struct.unpack_from(">IB", packet)
    assert len(packet) == 4 + length and len(packet) % 8 == 0 and 4 <= padding < 16
    payload = packet[5 : 4 + length - padding]
    code, reason, size = struct.unpack_from(">BII", payload)
    assert (code, reason) == (1, 7) and payload[9 : 9 + size] == b"no quorum: later"
    assert payload[9 + size :] == b"\0\0\0\0", "an empty language tag ends it"
