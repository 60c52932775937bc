"""The admin API in this process: a real state machine, commands applied at once, and a client that speaks ASGI."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from raftmft.core import commands as c
from raftmft.core.machine import Entry, Machine
from raftmft.core.outcome import Outcome
from raftmft.node.admin import App, Authenticate, Guard
from raftmft.node.api import Caller, Operation, build
from raftmft.node.link import value_of
from raftmft.node.state import ReplicatedState
from raftmft.wire.commands import decode_envelope, decode_outcome, encode_envelope, encode_outcome

MEMBERS = tuple(c.MemberSpec(f"id-{name}", name, "127.0.0.1", 7400 + i, 7400 + i, 2222 + i, f"{i:064x}")
                for i, name in enumerate(("n1", "n2", "n3")))
NOW_MS = 1_700_000_000_000


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The decoded body."""
        return json.loads(self.body)


class World:
    """A bootstrapped cluster's state, and an epoch that applies what it is given."""

    number = 1

    def __init__(self, folder: Path) -> None:
        machine = Machine(str(folder / "state.db"), encode_outcome=encode_outcome, decode_outcome=decode_outcome)
        self.state = ReplicatedState(machine)
        self.machine = machine
        self.commands: list[c.Command] = []
        self.barriers = 0
        self.trouble: Exception | None = None
        self.apply(c.Bootstrap("test", "c0ffee", MEMBERS, "ssh-ed25519 AAAA host", b"sealed", b"sealed"))

    def apply(self, command: c.Command) -> Outcome:
        """One committed entry."""
        envelope = decode_envelope(encode_envelope(c.Envelope(command)))
        (outcome,) = self.state.apply_batch([Entry(self.machine.applied + 1, NOW_MS, envelope)])
        return outcome

    def ok(self, command: c.Command) -> dict[str, Any]:
        """The value of a command that must succeed."""
        return value_of(self.apply(command))

    def login(self, user: str, member: str = "id-n1", address: str = "192.0.2.1:5000") -> int:
        """A session of an existing user."""
        row = self.machine.users.get(user)
        assert row is not None
        epoch = self.machine.members.epoch(member) or self.ok(c.MemberBoot(member, member.encode(), "1"))["epoch"]
        return int(self.ok(c.Login(member, epoch, user, address, "publickey", row.credential))["session"])

    # --- as Epoch has it -----------------------------------------------------------------------------------------
    async def execute(self, command: c.Command) -> Outcome:
        if self.trouble is not None:
            raise self.trouble
        self.commands.append(command)
        return self.apply(command)

    async def value(self, command: c.Command) -> dict[str, Any]:
        return value_of(await self.execute(command))

    async def barrier(self) -> None:
        if self.trouble is not None:
            raise self.trouble
        self.barriers += 1


def bearer(role: str) -> Authenticate:
    """Knows the token "secret", which has this role."""
    async def authenticate(given: bytes) -> Caller | None:
        return Caller("someone", role) if given == b"secret" else None

    return authenticate


class Client:
    """Asks an ASGI application."""

    def __init__(self, operations: Sequence[Operation] | App, authenticate: Authenticate | None = None) -> None:
        app = build(operations) if isinstance(operations, Sequence) else operations
        self._app = Guard(app, authenticate)
        self.token = ""

    async def get(self, path: str, /, **query: Any) -> Any:
        """The JSON of an answer that must be 200."""
        answer = await self.ask("GET", path + ("?" + urlencode(query) if query else ""))
        assert answer.status == 200, answer
        return answer.json

    async def do(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of an answer that must be 200."""
        answer = await self.ask(method, path, body)
        assert answer.status == 200, answer
        return answer.json

    async def refused(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        """Status and the one line of an error, whose shape is checked."""
        answer = await self.ask(method, path, body)
        assert answer.status >= 400 and answer.headers["content-type"] == "application/json", answer
        assert set(answer.json) == {"error", "code"} and "\n" not in answer.json["error"], answer
        assert all(type(value) is str and value for value in answer.json.values())
        return answer.status, answer.json["error"]

    async def ask(self, method: str, target: str, body: Any = None) -> Answer:
        """One request; `body` is bytes as they are, or a value for JSON."""
        path, _, query = target.partition("?")
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        sent = [{"type": "http.request", "body": data, "more_body": False}]
        answer = Answer(0, {}, b"")

        async def receive() -> dict[str, Any]:
            return sent.pop() if sent else {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                answer.body += message.get("body", b"")

        headers = [(b"authorization", f"Bearer {self.token}".encode())] if self.token else []
        await self._app(
            {"type": "http", "method": method, "path": path, "raw_path": quote(path).encode(), "root_path": "",
             "query_string": query.encode(), "headers": headers, "http_version": "1.1", "scheme": "http"},
            receive, send)
        return answer
