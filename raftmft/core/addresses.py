"""Hosts and ports as people write them: `host:port`, with IPv6 addresses in brackets. Nothing is resolved here."""

from __future__ import annotations

import ipaddress
import re

from raftmft.core.errors import ConfigError

MAX_HOST_CHARS = 253
_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")


def is_ipv6(host: str) -> bool:
    """Whether the host is an IPv6 literal (without brackets)."""
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def host_of(text: str) -> str:
    """A host that others can dial: an IP address, brackets taken off, or a DNS name. ConfigError says what is asked."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        if bare != text or len(text) > MAX_HOST_CHARS or not _NAME.fullmatch(text) or re.fullmatch(r"[\d.]+", text):
            raise ConfigError(f"{_shown(text)} is no host: give an IP address or a DNS name, without a port") from None
        return text
    if address.is_unspecified or address.is_multicast:
        raise ConfigError(f"{bare} is no address that other hosts could dial: give this host's own address")
    return str(address)


def address_of(text: str) -> tuple[str, int]:
    """(host, port) of `host:port` or `[IPv6]:port`. ConfigError says what is asked."""
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535 or (
            ":" in host and not host.startswith("[")):
        raise ConfigError(f"{_shown(text)} is no address: give HOST:PORT, for IPv6 [ADDRESS]:PORT")
    return host_of(host), int(port)


def address_text(host: str, port: int) -> str:
    """`host:port`, which `address_of` reads back."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _shown(text: str) -> str:
    return ascii(text[:64])
