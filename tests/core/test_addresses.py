"""Hosts and ports as people write them."""

from __future__ import annotations

import pytest

from raftmft.core.addresses import address_of, address_text, host_of
from raftmft.core.errors import ConfigError


@pytest.mark.parametrize(("text", "host", "port"), [
    ("10.0.0.1:7400", "10.0.0.1", 7400), ("[::1]:7400", "::1", 7400),
    ("files-1.example.org:1", "files-1.example.org", 1),
    ("[2001:DB8::1]:65535", "2001:db8::1", 65535), ("n_1:22", "n_1", 22)])
def test_an_address_is_read_and_written(text: str, host: str, port: int) -> None:
    assert address_of(text) == (host, port)
    assert address_of(address_text(host, port)) == (host, port)


@pytest.mark.parametrize("text", ["", "host", "host:", ":1", "::1:7400", "host:0", "host:65536", "host:+1", "host: 1",
                                  "[::1]", "a b:1", "host:1:1", "-x:1", "[host]:1", "0.0.0.0:1", "[::]:1",
                                  "host:\u0661", "256.1.1.1:5", "a\n:1", "x" * 254 + ":1"])
def test_what_is_no_address_gets_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        address_of(text)
    assert "give" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "224.0.0.1", "[]", "a..b", "1.2.3", "host:1", "ä.example"])
def test_nobody_could_dial_it(host: str) -> None:
    with pytest.raises(ConfigError, match="give"):
        host_of(host)
