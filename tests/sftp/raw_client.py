"""An SFTP client that sends exactly the packets a test wants, pipelined as it wants, over asyncssh."""

from __future__ import annotations

import struct
from typing import Any

from raftmft.sftp import packets as p
from raftmft.sftp.attrs import FileAttrs, decode_attrs, encode_attrs

RW_CREAT = p.FXF_READ | p.FXF_WRITE | p.FXF_CREAT
PUT = p.FXF_WRITE | p.FXF_CREAT | p.FXF_TRUNC
RESUME = p.FXF_WRITE | p.FXF_CREAT


class Status(Exception):
    """The server answered with a status other than OK."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code, self.text = code, text


class RawSftp:
    """One channel. `send` gives a request id, `answer` the next reply; `call` does both and checks the id."""

    def __init__(self, connection: Any, stdin: Any, stdout: Any, channel: Any) -> None:
        self.connection, self.stdin, self.stdout, self.channel = connection, stdin, stdout, channel
        self.count = 0

    @classmethod
    async def open(cls, node: Any, connection: Any = None, **options: Any) -> RawSftp:
        """A channel, on a connection of its own unless one is given, after INIT. `node` need only have `connect`."""
        if connection is None:
            connection = await node.connect(**options)
        stdin, stdout, _ = await connection.open_session(subsystem="sftp", encoding=None)
        self = cls(connection, stdin, stdout, stdin.channel)
        self.raw(b"\x01\x00\x00\x00\x03")
        kind, body = await self._packet()
        assert kind == p.VERSION_REPLY and body[:4] == b"\x00\x00\x00\x03"
        self.extensions = body[4:]
        return self

    async def close(self) -> None:
        """Ends the connection."""
        self.connection.close()
        await self.connection.wait_closed()

    def raw(self, body: bytes) -> None:
        """Sends a packet with this body."""
        self.stdin.write(struct.pack(">I", len(body)) + body)

    def send(self, kind: int, *fields: bytes) -> int:
        """Sends a request; gives its id."""
        self.count += 1
        self.raw(struct.pack(">BI", kind, self.count) + b"".join(fields))
        return self.count

    async def _packet(self) -> tuple[int, bytes]:
        (length,) = struct.unpack(">I", await self.stdout.readexactly(4))
        body = await self.stdout.readexactly(length)
        return body[0], body[1:]

    async def answer(self, number: int) -> Any:
        """The next reply, which must have this id. Raises Status unless it is a success."""
        kind, body = await self._packet()
        assert struct.unpack(">I", body[:4])[0] == number, "a reply out of order"
        body = body[4:]
        if kind == p.STATUS:
            (code, size) = struct.unpack(">II", body[:8])
            if code:
                raise Status(code, body[8 : 8 + size].decode())
            return None
        if kind in (p.HANDLE, p.DATA):
            return body[4:]
        if kind == p.ATTRS:
            return decode_attrs(memoryview(body), 0)
        if kind == p.NAME:
            return _names(body)
        return body

    async def call(self, kind: int, *fields: bytes) -> Any:
        """Sends a request and waits for its answer."""
        return await self.answer(self.send(kind, *fields))

    # --- requests --------------------------------------------------------------------------------
    async def open_file(self, path: str, flags: int, attrs: FileAttrs | None = None) -> bytes:
        """OPEN."""
        return await self.call(p.OPEN, s(path), struct.pack(">I", flags), encode_attrs(attrs or FileAttrs()))

    def send_write(self, handle: bytes, offset: int, data: bytes) -> int:
        """WRITE, without waiting."""
        return self.send(p.WRITE, s(handle), struct.pack(">Q", offset), s(data))

    async def write(self, handle: bytes, offset: int, data: bytes) -> None:
        """WRITE of any length, cut to what a packet takes, all sent before the first answer is read."""
        numbers = [self.send_write(handle, offset + i, data[i : i + p.MAX_DATA])
                   for i in range(0, len(data), p.MAX_DATA)]
        for number in numbers:
            await self.answer(number)

    async def read(self, handle: bytes, offset: int, length: int) -> bytes:
        """READ."""
        return await self.call(p.READ, s(handle), struct.pack(">QI", offset, length))

    async def read_all(self, path: str) -> bytes:
        """A whole file."""
        handle, data = await self.open_file(path, p.FXF_READ), bytearray()
        while True:
            try:
                data += await self.read(handle, len(data), p.MAX_DATA)
            except Status as end:
                assert end.code == 1, end
                break
        await self.close_handle(handle)
        return bytes(data)

    async def close_handle(self, handle: bytes) -> None:
        """CLOSE."""
        await self.call(p.CLOSE, s(handle))

    async def stat(self, path: str) -> FileAttrs:
        """STAT."""
        return await self.call(p.STAT, s(path))

    async def setstat(self, path: str, attrs: FileAttrs) -> None:
        """SETSTAT."""
        await self.call(p.SETSTAT, s(path), encode_attrs(attrs))

    async def fsetstat(self, handle: bytes, attrs: FileAttrs) -> None:
        """FSETSTAT."""
        await self.call(p.FSETSTAT, s(handle), encode_attrs(attrs))

    async def names(self, path: str) -> dict[bytes, FileAttrs]:
        """A directory's names but the dots."""
        handle, found = await self.call(p.OPENDIR, s(path)), {}
        while True:
            try:
                found.update(await self.call(p.READDIR, s(handle)))
            except Status as end:
                assert end.code == 1
                break
        await self.close_handle(handle)
        return {name: attrs for name, attrs in found.items() if name not in (b".", b"..")}

    async def rename(self, source: str, target: str, *, replace: bool = False) -> None:
        """RENAME, or posix-rename."""
        if replace:
            await self.call(p.EXTENDED, s("posix-rename@openssh.com"), s(source), s(target))
        else:
            await self.call(p.RENAME, s(source), s(target))

    async def extended(self, name: str, *fields: bytes) -> Any:
        """EXTENDED."""
        return await self.call(p.EXTENDED, s(name), *fields)

    async def lstat(self, path: str) -> FileAttrs:
        """LSTAT."""
        return await self.call(p.LSTAT, s(path))

    async def symlink(self, target: str, link: str) -> None:
        """SYMLINK, in OpenSSH's order."""
        await self.call(p.SYMLINK, s(target), s(link))

    async def readlink(self, path: str) -> bytes:
        """READLINK."""
        (target,) = await self.call(p.READLINK, s(path))
        return target

    async def realpath(self, path: str) -> bytes:
        """REALPATH."""
        (found,) = await self.call(p.REALPATH, s(path))
        return found

    async def hardlink(self, source: str, target: str) -> None:
        """hardlink@openssh.com."""
        await self.extended("hardlink@openssh.com", s(source), s(target))

    async def copy(self, source: bytes, target: bytes, offset: int = 0, length: int = 0, to: int = 0) -> None:
        """copy-data."""
        await self.extended("copy-data", s(source), struct.pack(">QQ", offset, length), s(target),
                            struct.pack(">Q", to))

    async def put(self, path: str, data: bytes, flags: int = PUT) -> None:
        """A whole file."""
        handle = await self.open_file(path, flags)
        await self.write(handle, 0, data)
        await self.close_handle(handle)

    async def remove(self, path: str) -> None:
        """REMOVE."""
        await self.call(p.REMOVE, s(path))

    async def fsync(self, handle: bytes) -> None:
        """fsync@openssh.com."""
        await self.call(p.EXTENDED, s("fsync@openssh.com"), s(handle))


def s(text: str | bytes) -> bytes:
    """A string field."""
    data = text.encode() if isinstance(text, str) else text
    return struct.pack(">I", len(data)) + data


def _names(body: bytes) -> dict[bytes, FileAttrs]:
    (count,) = struct.unpack(">I", body[:4])
    view, offset, found = memoryview(body), 4, {}
    for _ in range(count):
        fields = []
        for _ in range(2):
            (size,) = struct.unpack_from(">I", body, offset)
            fields.append(body[offset + 4 : offset + 4 + size])
            offset += 4 + size
        attrs = decode_attrs(view, offset)
        found[fields[0]] = attrs
        offset += len(encode_attrs(attrs))
    return found
