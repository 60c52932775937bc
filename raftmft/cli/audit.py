"""raftmft audit"""

from __future__ import annotations

import click

from raftmft.cli.client import Client, node_options
from raftmft.cli.output import print_json, print_table


@click.group(epilog="Example: raftmft audit query --user acme --kind publish")
def audit() -> None:
    """Ask who transferred what."""


@audit.command(epilog="Example: raftmft audit query --user acme --since 2026-01-31T08:00:00Z -o json")
@click.option("--user", help="Only this user's records.")
@click.option("--kind", help="Only this kind: login, publish, open, rename, ...")
@click.option("--path", help="Only this path in the user's home, like reports/may.csv.")
@click.option("--since", help="Not before this time.")
@click.option("--until", help="Not after this time.")
@click.option("--after", type=click.IntRange(min=0), help="Only records after this index.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=1000, show_default=True)
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
    path = path if path is None or path.startswith("/") else f"/{path}"
    records = client.get(
        "/api/v1/audit", user=user, kind=kind, path=path, since=since, until=until, after=after, limit=limit
    )["records"]
    if output == "json":
        for record in records:
            print_json(record)
        return
    print_table(
        ("index", "time", "kind", "user", "path", "target", "member", "address", "size", "outcome"),
        [
            (
                r["index"],
                r["time"],
                r["kind"],
                r["user"],
                r["path"],
                r["target"],
                r["member"],
                r["address"],
                r["size"],
                r["outcome"],
            )
            for r in records
        ],
    )
