"""A machine with a bootstrapped cluster, driven command by command, for tests of the state machine."""

from __future__ import annotations

import base64
import struct
from pathlib import Path
from typing import Any

from raftmft.core import commands as c
from raftmft.core.machine import Entry, Machine
from raftmft.core.manifest import CHUNK_SIZE, ID_SIZE, IDS_PER_INDEX, INLINE_IDS, Manifest, chunk_count
from raftmft.core.outcome import Code, Outcome
from raftmft.wire.commands import decode_outcome, encode_outcome

HOUR_MS = 3_600_000
MEMBERS = tuple(
    c.MemberSpec(f"id-{name}", name, "127.0.0.1", 7400 + i, 7400 + i, 2222 + i, f"{i:064x}")
    for i, name in enumerate(("n1", "n2", "n3")))
BOOTSTRAP = c.Bootstrap("test", "c0ffee", MEMBERS, "ssh-ed25519 AAAA host", b"sealed host", b"sealed ca")


def open_machine(path: Path | str) -> Machine:
    """A machine with the real codecs."""
    return Machine(str(path), encode_outcome=encode_outcome, decode_outcome=decode_outcome)


def content(size: int, seed: int = 1) -> Manifest:
    """A well-formed manifest of `size` bytes with made-up ids."""
    count = chunk_count(size)
    depth = int(count > INLINE_IDS)
    if depth:
        count = -(-count // IDS_PER_INDEX)
    return Manifest(size, depth, b"".join(bytes([seed % 256, i % 256]).ljust(ID_SIZE, b"\1") for i in range(count)))


def key_line(seed: int = 0, kind: str = "ssh-ed25519", comment: str = "someone@example") -> str:
    """A well-formed ed25519 public key line."""
    blob = b"".join(struct.pack(">I", len(f)) + f for f in (kind.encode(), bytes([seed]) * 32))
    return f"{kind} {base64.b64encode(blob).decode()} {comment}"


def path(text: str) -> c.Path:
    """ "a/b" as a path; "" is the home."""
    return tuple(name.encode() for name in text.split("/") if name)


class World:
    """Applies one command per entry; each command must succeed unless `refused` is used."""

    def __init__(self, file: Path | str, *, bootstrap: bool = True) -> None:
        self.file = str(file)
        self.machine = open_machine(file)
        self.index = self.machine.applied
        self.now_ms = 1_700_000_000_000
        self.entries: list[Entry] = []
        if bootstrap:
            self.ok(BOOTSTRAP)

    def apply(self, command: c.Command, *, identity: c.CommandId | None = None, acked_below: int = 0) -> Outcome:
        """One entry in its own batch."""
        self.index += 1
        entry = Entry(self.index, self.now_ms, c.Envelope(command, identity, acked_below))
        self.entries.append(entry)
        (outcome,) = self.machine.apply_batch([entry])
        return outcome

    def ok(self, command: c.Command) -> dict[str, Any]:
        """The value of a command that must succeed."""
        outcome = self.apply(command)
        assert outcome.rejection is None, outcome
        return outcome.value

    def refused(self, command: c.Command) -> Code:
        """The code of a command that must be rejected; and it must not have changed anything."""
        before = self.state()
        outcome = self.apply(command)
        assert outcome.rejection is not None, outcome
        assert outcome.rejection.text and "\n" not in outcome.rejection.text
        assert outcome.value == {}
        assert self.state() == before, "a rejected command changed the state"
        return outcome.rejection.code

    def state(self) -> list[Any]:
        """All rows of all tables but the clock's applied index and time."""
        db = self.machine._db
        tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type='table'")]
        rows = {table: sorted(map(repr, db.execute(f"SELECT * FROM {table}"))) for table in tables if table != "clock"}
        return [rows, *db.execute("SELECT next_uid, audit_count, audit_head FROM clock")]

    # --- shorthands ----------------------------------------------------------------------------------------------
    def user(self, name: str = "ann", **options: Any) -> int:
        """A user's uid."""
        return self.ok(c.UserAdd(name, **options))["uid"]

    def boot(self, member: str = "id-n1", nonce: bytes | None = None) -> int:
        """A new epoch of a member."""
        return self.ok(c.MemberBoot(member, nonce or b"nonce %d" % self.index, "1.0"))["epoch"]

    def login(self, user: str = "ann", member: str = "id-n1") -> int:
        """A session of an existing user; the member is booted if it never was."""
        row = self.machine.users.get(user)
        assert row is not None
        epoch = self.machine.members.epoch(member) or self.boot(member)
        return self.ok(c.Login(member, epoch, user, "192.0.2.1:5000", "publickey", row.credential))["session"]

    def begin(self, session: int, name: str, **options: Any) -> dict[str, Any]:
        """BeginUpload's value."""
        return self.ok(c.BeginUpload(session, path(name), **options))

    def checkpoint(self, session: int, upload: int, size: int, seed: int = 1) -> dict[str, Any]:
        """A durable prefix."""
        return self.ok(c.Checkpoint(session, upload, content(size, seed), self.placement))

    def publish(self, session: int, upload: int, size: int = 10, seed: int = 1, **options: Any) -> dict[str, Any]:
        """Publish's value."""
        return self.ok(c.Publish(session, upload, content(size, seed), self.placement, **options))

    def put(self, session: int, name: str, size: int = 10, seed: int = 1) -> dict[str, Any]:
        """A whole upload that truncates."""
        return self.publish(session, self.begin(session, name, truncate=True)["upload"], size, seed)

    def stat(self, name: str, user: str = "ann") -> Any:
        """An entry, or the code of the rejection."""
        answer = self.machine.namespace.stat(user, path(name))
        return answer if isinstance(answer, dict) else answer.code

    def names(self, name: str = "", user: str = "ann") -> list[bytes]:
        """The published names in a directory."""
        answer = self.machine.namespace.list(user, path(name), None, 1000)
        assert isinstance(answer, list), answer
        return [entry["name"] for entry in answer]

    def kinds(self, **filters: Any) -> list[str]:
        """The kinds of the audit records that fit."""
        return [record["kind"] for record in self.machine.audit.query(**filters)]

    def last(self) -> dict[str, Any]:
        """The last audit record."""
        return self.machine.audit.query(limit=10_000)[-1]

    @property
    def placement(self) -> int:
        """The present placement epoch."""
        return self.machine.settings.placement


SIZE = CHUNK_SIZE
