"""What can be known to be wrong with a host before anything is made or asked: ports, limits, paths. One line each."""

from __future__ import annotations

import resource
import socket
from contextlib import ExitStack

from raftmft.cluster.listener import open_port
from raftmft.core.addresses import address_text
from raftmft.core.errors import ConfigError
from raftmft.node.admin import MAX_SOCKET_PATH_BYTES
from raftmft.node.datadir import DataDir
from raftmft.node.settings import Settings

LEAST_FILES = 256


def check_host(settings: Settings, data_dir: DataDir) -> None:
    """A member with these settings could run here now. Nothing is changed. Raises ConfigError."""
    raise_file_limit()
    if len(bytes(data_dir.admin_socket)) > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(f"{data_dir.path} is too long a path for the socket in it; use a shorter data directory")
    with ExitStack() as opened:  # all at once, so that no port serves for two
        for what, host, port, kind in (("sftp-port", settings.listen, settings.sftp_port, socket.SOCK_STREAM),
                                       ("peer-port", settings.listen, settings.peer_port, socket.SOCK_STREAM),
                                       ("admin-port", settings.admin_listen, settings.admin_port, socket.SOCK_STREAM),
                                       ("gossip-port", settings.listen, settings.gossip_port, socket.SOCK_DGRAM)):
            try:
                opened.enter_context(open_port(host, port, kind))
            except OSError as error:
                protocol = " (UDP)" if kind == socket.SOCK_DGRAM else ""
                raise ConfigError(f"{address_text(host, port)}{protocol} cannot be opened: {error.strerror}; give "
                                  f"another --{what} or --listen, or stop what uses it") from None


def raise_file_limit() -> None:
    """As many open files as the system lets us have. ConfigError if that is too few to serve."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < LEAST_FILES:
        raise ConfigError(
            f"at most {hard} open files are allowed; raise the limit to {LEAST_FILES} or more (ulimit -n, "
            f"or LimitNOFILE= in the unit)"
        )
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
