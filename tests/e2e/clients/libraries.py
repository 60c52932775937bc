"""Clients that are Python libraries."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncssh
import paramiko

from tests.e2e.clients.base import LIMIT_S, Client, Door


class Paramiko(Client):
    """paramiko: pipelined puts with a stat behind them, prefetching gets; password and key."""

    @contextmanager
    def _session(self, door: Door, **login: Any) -> Iterator[paramiko.SFTPClient]:
        client = paramiko.SSHClient()
        client.load_host_keys(str(door.known_hosts))
        client.connect(door.host, door.port, door.user, allow_agent=False, look_for_keys=False, timeout=LIMIT_S,
                       **(login or {"key_filename": str(door.key)}))
        try:
            with client.open_sftp() as sftp:
                yield sftp
        finally:
            client.close()

    def put(self, door: Door, local: Path, remote: str) -> None:
        with self._session(door) as sftp:
            sftp.put(str(local), remote)

    def get(self, door: Door, remote: str, local: Path) -> None:
        with self._session(door) as sftp:
            sftp.get(remote, str(local))

    def names(self, door: Door, remote: str) -> set[str]:
        with self._session(door) as sftp:
            return set(sftp.listdir(remote))

    def make(self, door: Door, remote: str) -> None:
        with self._session(door) as sftp:
            sftp.mkdir(remote)

    def rename(self, door: Door, old: str, new: str) -> None:
        with self._session(door) as sftp:
            sftp.rename(old, new)

    def remove(self, door: Door, remote: str) -> None:
        with self._session(door) as sftp:
            sftp.remove(remote)

    def unmake(self, door: Door, remote: str) -> None:
        with self._session(door) as sftp:
            sftp.rmdir(remote)

    def go_on_putting(self, door: Door, local: Path, remote: str) -> None:
        with self._session(door) as sftp, sftp.open(remote, "ab") as file:
            file.set_pipelined(True)
            file.write(local.read_bytes()[sftp.stat(remote).st_size:])

    def go_on_getting(self, door: Door, remote: str, local: Path) -> None:
        with self._session(door) as sftp, sftp.open(remote, "rb") as file, open(local, "ab") as target:
            file.seek(target.tell())
            target.write(file.read())

    def login(self, door: Door) -> None:
        with self._session(door, password=door.password) as sftp:
            sftp.listdir("/")


class Asyncssh(Client):
    """asyncssh: parallel requests, trees, times."""

    keeps_times = True

    def _do(self, door: Door, work: Callable[[asyncssh.SFTPClient], Awaitable[Any]], **login: Any) -> Any:
        async def session() -> Any:
            async with (asyncssh.connect(door.host, door.port, username=door.user, known_hosts=str(door.known_hosts),
                                         config=None, agent_path=None,
                                         **(login or {"client_keys": [str(door.key)]})) as connection,
                        connection.start_sftp_client() as sftp):
                return await asyncio.wait_for(work(sftp), LIMIT_S)
        return asyncio.run(session())

    def put(self, door: Door, local: Path, remote: str) -> None:
        self._do(door, lambda sftp: sftp.put(str(local), remote, preserve=True))

    def get(self, door: Door, remote: str, local: Path) -> None:
        self._do(door, lambda sftp: sftp.get(remote, str(local), preserve=True))

    def put_tree(self, door: Door, local: Path, remote: str) -> None:
        self._do(door, lambda sftp: sftp.put(str(local), remote, recurse=True))

    def get_tree(self, door: Door, remote: str, local: Path) -> None:
        self._do(door, lambda sftp: sftp.get(remote, str(local), recurse=True))

    def names(self, door: Door, remote: str) -> set[str]:
        return set(self._do(door, lambda sftp: sftp.listdir(remote))) - {".", ".."}

    def make(self, door: Door, remote: str) -> None:
        self._do(door, lambda sftp: sftp.mkdir(remote))

    def rename(self, door: Door, old: str, new: str) -> None:
        self._do(door, lambda sftp: sftp.rename(old, new))

    def remove(self, door: Door, remote: str) -> None:
        self._do(door, lambda sftp: sftp.remove(remote))

    def unmake(self, door: Door, remote: str) -> None:
        self._do(door, lambda sftp: sftp.rmdir(remote))

    def login(self, door: Door) -> None:
        self._do(door, lambda sftp: sftp.listdir("/"), password=door.password, client_keys=None)
