"""Claims about digests come through; what no member sends is refused."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftmft.core.divergence import KEPT_POINTS, Claim
from raftmft.wire.digests import MAX_BODY_BYTES, decode_claims, encode_claims
from raftmft.wire.frames import FrameError

FULL = [Claim(10_000 * at, bytes([at]) * 32, b"r" * 32 if at % 2 else b"") for at in range(1, KEPT_POINTS + 1)]


@pytest.mark.parametrize("claims", [[], FULL[:1], FULL], ids=len)
def test_claims_come_through(claims: list[Claim]) -> None:
    assert decode_claims(encode_claims(claims)) == claims


@pytest.mark.parametrize("value", [
    [], [0, []], [True, []], [1], [1, {}], [1, [[1, b"x" * 32]]], [1, [[0, b"x" * 32, b""]]],
    [1, [[1 << 60, b"x" * 32, b""]]], [1, [[1, b"x" * 31, b""]]], [1, [["1", b"x" * 32, b""]]],
    [1, [[1, b"x" * 32, b"y"]]], [1, [[1, "x" * 32, b""]]], [1, [[1, b"x" * 32, b""]] * (KEPT_POINTS + 1)],
], ids=lambda value: repr(value)[:30])
def test_what_no_member_sends_is_refused(value: Any) -> None:
    with pytest.raises(FrameError):
        decode_claims(msgpack.packb(value))


def test_an_oversized_body_is_refused_before_it_is_parsed() -> None:
    assert len(encode_claims([Claim(1 << 52, b"x" * 32, b"y" * 32)] * KEPT_POINTS)) <= MAX_BODY_BYTES
    with pytest.raises(FrameError, match="over the limit"):
        decode_claims(bytes(MAX_BODY_BYTES + 1))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=120))
def test_noise_is_refused_or_means_something(body: bytes) -> None:
    try:
        decode_claims(body)
    except FrameError:
        pass


def test_what_a_later_version_may_send_is_passed_over() -> None:
    assert decode_claims(msgpack.packb([2, {"anything": 1}, 3])) == []
