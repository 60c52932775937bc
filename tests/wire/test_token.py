"""A join token's text: read back exactly, and each kind of damage answered by one line that quotes nothing."""

from __future__ import annotations

import pytest

from raftmft.core.errors import ConfigError
from raftmft.wire.token import JoinToken, decode_token, encode_token

TOKEN = JoinToken("c0ffee", "ab" * 32, bytes(range(32)), 1_700_000_000_000, ("10.0.0.1:7400", "[::1]:7400"))


def test_it_is_read_back_and_its_secret_is_not_shown() -> None:
    text = encode_token(TOKEN)
    assert decode_token(f"  {text}\n") == TOKEN and text.startswith("rmft1.")
    assert "secret" not in repr(TOKEN)


def test_every_truncation_and_every_changed_character_is_refused() -> None:
    text = encode_token(TOKEN)
    for cut in range(len(text)):
        with pytest.raises(ConfigError) as caught:
            decode_token(text[:cut])
        assert "\n" not in str(caught.value) and "token" in str(caught.value)
    for at in range(6, len(text) - 1):
        with pytest.raises(ConfigError, match="cut off or changed"):
            decode_token(text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1:])


@pytest.mark.parametrize("text", ["", "rmft2.abc", "rmft1.", "rmft1.\u00e4", "hello", "rmft1." + "A" * 5000])
def test_what_is_no_token(text: str) -> None:
    with pytest.raises(ConfigError, match="token"):
        decode_token(text)
