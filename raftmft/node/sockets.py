"""All ports of a node, opened before anything else begins: a port in use is one line and nothing was changed."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from raftmft.cluster.listener import open_port
from raftmft.core.addresses import address_text
from raftmft.core.errors import ConfigError
from raftmft.node.admin import listen_unix
from raftmft.node.datadir import DataDir
from raftmft.node.settings import Settings


@dataclass(frozen=True, slots=True)
class Listeners:
    """Listening sockets."""

    sftp: socket.socket
    peer: socket.socket
    admin: socket.socket
    admin_unix: socket.socket


def open_listeners(settings: Settings, data_dir: DataDir) -> Listeners:
    """Opens them all. Raises ConfigError that names the setting and the port."""
    def tcp(setting: str, host: str, port: int) -> socket.socket:
        try:
            return open_port(host, port)
        except OSError as error:
            raise ConfigError(f"{setting} {address_text(host, port)} cannot be opened: {error.strerror}; choose "
                              f"another in {data_dir.path}/raftmft.toml or stop what uses it") from None

    return Listeners(tcp("sftp_port", settings.listen, settings.sftp_port),
                     tcp("peer_port", settings.listen, settings.peer_port),
                     tcp("admin_port", settings.admin_listen, settings.admin_port),
                     listen_unix(data_dir.admin_socket))
