"""raftmft file"""

from __future__ import annotations

from typing import Any

import click

from raftmft.cli.client import Client, node_options
from raftmft.cli.output import print_json, print_table, size_text


@click.group(epilog="Example: raftmft file show /acme/reports/may.csv")
def file() -> None:
    """Show files and where their chunks are."""


@file.command(epilog="Example: raftmft file show /acme/reports/may.csv --limit 20")
@click.argument("path")
@click.option("--first", type=click.IntRange(min=0), default=0, show_default=True, help="The first chunk to show.")
@click.option("--limit", type=click.IntRange(0, 1000), default=100, show_default=True, help="How many to show.")
@node_options
def show(client: Client, output: str, path: str, first: int, limit: int) -> None:
    """Show a file, which members hold its chunks, and whether enough do.

    PATH is /USER/path/in/its/home, written as the audit log writes it: a backslash is doubled, a byte that is no text
    is \\xNN. Health tells of the chunks shown: ok, degraded (copies are missing), lost (no member has a chunk), unknown
    (some members did not answer).
    """
    path = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    value = client.get("/api/v1/file", path=path, first=first, limit=limit)
    if output == "json":
        print_json(value)
        return
    _tell(value)


def _tell(value: dict[str, Any]) -> None:
    silent = f"; no answer from {', '.join(value['silent'])}" if value["silent"] else ""
    for name, text in (
        ("file", f"{value['path']} of {value['user']}" + (", an unfinished upload" if value["partial"] else "")),
        ("size", f"{size_text(value['size'])} ({value['size']} bytes), {value['chunk_count']} chunks, "
                 f"manifest depth {value['depth']}"),
        ("digest", value["digest"] or "-"), ("version", value["version"]), ("modified", value["mtime"]),
        ("mode", value["mode"]), ("health", f"{value['health']}, {value['replicas']} copies wanted{silent}"),
    ):
        click.echo(f"{name + ':':10}{text}")
    print_table(("chunk", "id", "size", "owners", "held by"), [
        ("index" if chunk["number"] is None else str(chunk["number"]), chunk["id"][:16],
         "" if chunk["size"] is None else chunk["size"], " ".join(chunk["owners"]),
         " ".join(chunk["holders"]) or "nobody")
        for chunk in value["chunks"]])
