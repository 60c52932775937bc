"""Audit exports: written whole or not at all, and checked without a cluster.

An export holds one JSON record a line, as core/audit.py hashes it, and its hash in hex.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import IO, Any

from raftmft.cli.client import Client
from raftmft.cli.output import progress
from raftmft.core.audit import FIELDS, GENESIS, chain
from raftmft.core.errors import RaftmftError

PAGE = 5000
MOST_LINE_BYTES = 1 << 20


def export_to(client: Client, target: str | None, after: int) -> dict[str, int]:
    """All records after an index, as of now, into the file or to standard output; how many, and the last one's index.

    The file gets its name only when it is whole and on disk.
    """
    if target is None:
        return _write(client, sys.stdout.buffer, after, lambda text: None)
    part = f"{target}.part"
    try:
        with (open(part, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as stream,
              progress("exporting the audit log") as tell):
            done = _write(client, stream, after, tell)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, target)
    except BaseException:
        if os.path.exists(part):
            os.remove(part)
        raise
    return done


def _write(client: Client, stream: IO[bytes], after: int, tell: Callable[[str], None]) -> dict[str, int]:
    through, count, at = -1, 0, after
    while True:
        page = client.get("/api/v1/audit/chain", after=at, limit=PAGE)
        through = page["through"] if through < 0 else through
        records = [record for record in page["records"] if record["index"] <= through]
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=True, separators=(",", ":")).encode() + b"\n")
        count += len(records)
        tell(f"{count} records")
        if len(records) < PAGE:
            stream.flush()
            return {"records": count, "last_index": records[-1]["index"] if records else at}
        at = records[-1]["index"]


def verify_file(stream: IO[bytes]) -> dict[str, Any]:
    """As the API's verify says it, of an export; RaftmftError, naming the line, for what is none.

    An export that does not begin at the beginning is believed its first record.
    """
    previous, count, index, from_beginning = GENESIS, 0, 0, True
    while line := stream.readline(MOST_LINE_BYTES):
        count += 1
        fields, stored = _record(line, count)
        expected = chain(previous, fields)
        if count == 1 and expected != stored:
            from_beginning, expected = False, stored
        index, previous = fields[0], expected
        if expected != stored:
            return {"ok": False, "bad_index": index, "count": count, "head": stored.hex(),
                    "from_beginning": from_beginning}
    return {"ok": True, "bad_index": None, "count": count, "head": previous.hex(), "from_beginning": from_beginning}


def _record(line: bytes, number: int) -> tuple[tuple[Any, ...], bytes]:
    try:
        record = json.loads(line)
        fields = tuple(record.pop(field) for field in FIELDS)
        stored = bytes.fromhex(record.pop("hash"))
        if record or len(stored) != len(GENESIS) or type(fields[0]) is not int:
            raise ValueError
        return fields, stored
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise RaftmftError(
            f"line {number} is no record of an audit export; make one with raftmft audit export") from None
