"""A relay preface is exactly what a member signed, and its length is known before anything behind it is read."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftmft.wire import preface
from raftmft.wire.frames import FrameError
from raftmft.wire.preface import (
    HEAD_SIZE,
    LIMIT_MOST_MS,
    MAGIC,
    Preface,
    decode_preface,
    encode_preface,
    preface_key,
    rest_length,
)

KEY = preface_key(b"k" * 32)
texts = st.text(st.characters(max_codepoint=0x7F), min_size=1, max_size=60)
prefaces = st.builds(Preface, texts, st.integers(0, 65535), texts, texts, st.integers(0, (1 << 63) - 1),
                     st.binary(min_size=16, max_size=16), st.integers(0, LIMIT_MOST_MS))
SAMPLE = Preface("192.0.2.7", 50022, "n1", "n2", 1_700_000_000_000, b"n" * 16, 29_500)


@given(prefaces)
def test_survives_and_its_length_is_in_its_head(value):
    data = encode_preface(KEY, value)
    assert decode_preface(KEY, data) == value
    assert HEAD_SIZE + rest_length(data[:HEAD_SIZE]) == len(data)


@given(st.data())
def test_any_flipped_bit_is_found(data):
    signed = bytearray(encode_preface(KEY, SAMPLE))
    signed[data.draw(st.integers(0, len(signed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(FrameError):
        decode_preface(KEY, signed)


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(data):
    for bytes_ in (data, MAGIC + data):
        with pytest.raises(FrameError):
            decode_preface(KEY, bytes_)


@pytest.mark.parametrize("limit", [-1, LIMIT_MOST_MS + 1, 1.5, None])
def test_an_impossible_limit_is_refused(limit):
    with pytest.raises(FrameError, match="malformed"):
        decode_preface(KEY, encode_preface(KEY, replace(SAMPLE, limit_ms=limit)))


def test_another_clusters_key_is_refused():
    with pytest.raises(FrameError, match="forged"):
        decode_preface(preface_key(b"o" * 32), encode_preface(KEY, SAMPLE))


def test_the_magic_is_neither_tls_nor_text():
    assert MAGIC[0] not in (0x16, 0x80) and MAGIC[0] > 0x7F


def test_an_endless_preface_is_refused_by_its_head():
    with pytest.raises(FrameError):
        rest_length(preface._HEAD.pack(MAGIC, 1, preface.BODY_LIMIT + 1))
    with pytest.raises(FrameError):
        rest_length(preface._HEAD.pack(MAGIC, 2, 100))
    with pytest.raises(ValueError):
        encode_preface(KEY, Preface("a" * 120, 1, "b" * 128, "c" * 300, 1, b"n" * 16, 1))
