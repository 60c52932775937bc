"""The options of `init` and `join`: where this host's member lives, how it is called, and where others find it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from raftmft.core.addresses import host_of, is_ipv6
from raftmft.core.errors import ConfigError
from raftmft.core.names import user_name_problem
from raftmft.node.settings import FILE_NAME, Settings, load, parse, render

F = TypeVar("F", bound=Callable[..., Any])
PORT = click.IntRange(1, 65535)


def host_options(command: F) -> F:
    """Adds the options; the command gets `data_dir: Path` and `settings: Settings`. With its option `replace` those of
    a member's directory are taken, unless --advertise is given.
    """

    @click.option("--data-dir", envvar="RAFTMFT_DATA_DIR", required=True, type=click.Path(),
                  help="An empty or new directory for this member.")
    @click.option("--name", help="The member's name.  [default: the advertised host]")
    @click.option("--advertise", metavar="HOST",
                  help="The IP address or DNS name under which the other members find this host.  [required]")
    @click.option("--listen", metavar="ADDR", help="The address to listen on.  [default: 0.0.0.0, or :: for IPv6]")
    @click.option("--sftp-port", type=PORT, default=2222, show_default=True)
    @click.option("--peer-port", type=PORT, default=7400, show_default=True, help="TCP, between members.")
    @click.option("--gossip-port", type=PORT, default=7400, show_default=True, help="UDP, between members.")
    @click.option("--admin-port", type=PORT, default=7480, show_default=True, help="On loopback.")
    @functools.wraps(command)
    def wrapped(data_dir: str, name: str | None, advertise: str | None, listen: str | None, sftp_port: int,
                peer_port: int, gossip_port: int, admin_port: int, **rest: Any) -> Any:
        if advertise is None:
            if not rest.get("replace") or not (Path(data_dir) / FILE_NAME).exists():
                raise click.UsageError("Missing option '--advertise'.")
            return command(data_dir=Path(data_dir).absolute(), settings=load(Path(data_dir)), **rest)
        settings = host_settings(name, advertise, listen, sftp_port=sftp_port, peer_port=peer_port,
                                 gossip_port=gossip_port, admin_port=admin_port)
        return command(data_dir=Path(data_dir).absolute(), settings=settings, **rest)

    return wrapped  # type: ignore[return-value]


def host_settings(name: str | None, advertise: str, listen: str | None, *, sftp_port: int, peer_port: int,
                  gossip_port: int, admin_port: int) -> Settings:
    """The settings that these options mean. Raises ConfigError."""
    host = host_of(advertise)
    name = name if name is not None else "ip6-" + host.replace(":", "-") if is_ipv6(host) else host
    if user_name_problem(name):
        raise ConfigError(f"--name {ascii(name[:64])} cannot be: give 1 to 64 printable characters without slash or "
                          "colon, not beginning with a dot or dash")
    if listen is not None:
        listen = listen[1:-1] if listen.startswith("[") and listen.endswith("]") else listen
    settings = Settings(name, host, listen or ("::" if is_ipv6(host) else "0.0.0.0"), sftp_port, peer_port,
                        gossip_port, admin_port=admin_port)
    return parse(render(settings), "these options")
