"""raftmft sessions"""

from __future__ import annotations

import click

from raftmft.cli.client import Client, node_options
from raftmft.cli.output import print_json, print_table


@click.group(epilog="Example: raftmft sessions list")
def sessions() -> None:
    """List and end sessions, on whatever member they are."""


@sessions.command("list", epilog="Example: raftmft sessions list --user acme -o json")
@click.option("--user", help="Only this user's sessions.")
@node_options
def list_sessions(client: Client, output: str, user: str | None) -> None:
    """List the live sessions of all members, oldest first."""
    found = client.get("/api/v1/sessions", user=user)["sessions"]
    if output == "json":
        print_json(found)
        return
    print_table(("id", "user", "address", "member", "since", "method"),
                [(s["id"], s["user"], s["address"], s["member"], s["since"], s["method"]) for s in found])


@sessions.command(epilog="Example: raftmft sessions kill 4711")
@click.argument("session", metavar="ID", type=click.IntRange(min=1))
@node_options
def kill(client: Client, output: str, session: int) -> None:
    """End the session ID; what it has uploaded in part can be continued."""
    value = client.call("DELETE", f"/api/v1/sessions/{session}")
    print_json(value) if output == "json" else click.echo(
        f"session {session} of {value['user']} on {value['member']} is ended")
