"""raftmft audit"""

from __future__ import annotations

import sys
import time
from typing import IO, Any

import click

from raftmft.cli.audit_export import export_to, verify_file
from raftmft.cli.client import Client, node_options
from raftmft.cli.output import print_json, print_table, progress
from raftmft.core.audit import KINDS, MAX_QUERY_RECORDS
from raftmft.core.errors import NoQuorum

POLL_S = 0.5
VERIFY_LIMIT_S = 3600.0
COLUMNS = ("index", "time", "kind", "user", "path", "target", "member", "address", "size", "outcome")


@click.group(epilog="Example: raftmft audit query --user acme --kind publish")
def audit() -> None:
    """Ask who transferred what."""


def _filters(command: Any) -> Any:
    for option in (
        click.option("--path", help="Only this path in the user's home, like reports/may.csv."),
        click.option("--kind", type=click.Choice(KINDS), metavar="KIND", help=f"Only this kind: {', '.join(KINDS)}."),
        click.option("--user", help="Only this user's records."),
    ):
        command = option(command)
    return command


def _rooted(path: str | None) -> str | None:
    return path if path is None or path.startswith("/") else f"/{path}"


@audit.command(epilog="Example: raftmft audit query --user acme --since 2026-01-31T08:00:00Z -o json")
@_filters
@click.option("--since", help="Not before this time.")
@click.option("--until", help="Before this time.")
@click.option("--after", type=click.IntRange(min=0), help="Only records after this index.")
@click.option("--limit", type=click.IntRange(1, MAX_QUERY_RECORDS), default=1000, show_default=True)
@node_options
def query(
    client: Client,
    output: str,
    user: str | None,
    kind: str | None,
    path: str | None,
    since: str | None,
    until: str | None,
    after: int | None,
    limit: int,
) -> None:
    """Print audit records, oldest first; as JSON, one record a line."""
    records = client.get("/api/v1/audit", user=user, kind=kind, path=_rooted(path), since=since, until=until,
                         after=after, limit=limit)["records"]
    if output == "json":
        for record in records:
            print_json(record)
        return
    print_table(COLUMNS, [[record[column] for column in COLUMNS] for record in records])


@audit.command(epilog="Example: raftmft audit tail --follow --kind publish")
@_filters
@click.option("-n", "--lines", type=click.IntRange(0, MAX_QUERY_RECORDS), default=10, show_default=True,
              help="How many of the last records to print first.")
@click.option("-f", "--follow", is_flag=True, help="Go on with new records until Ctrl-C.")
@node_options
def tail(
    client: Client, output: str, user: str | None, kind: str | None, path: str | None, lines: int, follow: bool
) -> None:
    """Print the last audit records, one a line, and with --follow those that come."""
    wanted = {"user": user, "kind": kind, "path": _rooted(path)}
    try:
        last = client.get("/api/v1/audit", limit=1, newest="true")["records"]  # of any kind: from there on it is new
        records = client.get("/api/v1/audit", **wanted, limit=lines, newest="true")["records"] if lines else []
        at = max(record["index"] for record in [*last, *records]) if last else 0
        while True:
            for record in records:
                _print_line(record, output)
            sys.stdout.flush()
            if not follow:
                return
            records = _next(client, at, wanted)
            at = records[-1]["index"] if records else at
    except KeyboardInterrupt:
        return


def _next(client: Client, at: int, wanted: dict[str, str | None]) -> list[dict[str, Any]]:
    """What came after index `at`; waits POLL_S first. Without a quorum there is nothing new."""
    time.sleep(POLL_S)
    try:
        records: list[dict[str, Any]] = client.get("/api/v1/audit", **wanted, after=at)["records"]
        return records
    except NoQuorum:
        return []


def _print_line(record: dict[str, Any], output: str) -> None:
    if output == "json":
        print_json(record)
    else:
        click.echo("  ".join(str(record[column]) for column in COLUMNS if record[column] is not None))


@audit.command(epilog="Example: raftmft audit export --file audit.jsonl")
@click.option("--file", "target", type=click.Path(dir_okay=False), help="Where to; standard output unless given.")
@click.option("--after", type=click.IntRange(min=0), default=0, show_default=True, help="Only after this index.")
@node_options
def export(client: Client, output: str, target: str | None, after: int) -> None:
    """Write the audit log as it is hashed, one JSON record a line: times in milliseconds, members by id.

    FILE stands only when all is in it. `raftmft audit verify --file FILE` checks it anywhere, without a cluster.
    """
    done = export_to(client, target, after)
    if target is None:
        return
    print_json(done) if output == "json" else click.echo(
        f"{done['records']} records in {target}, through index {done['last_index']}")


@audit.command(epilog="Example: raftmft audit verify --file audit.jsonl")
@click.option("--file", "source", type=click.File("rb"), help="An export to check; no node is asked.  [- is a pipe]")
@node_options(required=False)
def verify(client: Client | None, output: str, source: IO[bytes] | None) -> int:
    """Check the chain of hashes: of a node, all records; of an export, that nothing in it was changed or left out."""
    if source is not None:
        result = verify_file(source)
    elif client is None:
        raise click.UsageError("which node? Give --data-dir or --admin, or a file with --file.")
    else:
        with progress("checking the audit log"):
            result = client.call("GET", "/api/v1/audit/verify", timeout_s=VERIFY_LIMIT_S)
    if output == "json":
        print_json(result)
    elif result["ok"]:
        click.echo(f"{result['count']} records hold together; the last hash is {result['head']}"
                   + ("" if result.get("from_beginning", True) else "; what came before the first is not here"))
    else:
        click.echo(f"the record at index {result['bad_index']} does not fit those before it: compare the members'"
                   " chains and restore from a good one", err=True)
    return 0 if result["ok"] else 1
