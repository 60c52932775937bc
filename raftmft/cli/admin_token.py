"""raftmft admin-token"""

from __future__ import annotations

from urllib.parse import quote

import click

from raftmft.cli.client import Client, node_options
from raftmft.cli.output import print_json, print_table
from raftmft.core.admin_tokens import ADMIN_ROLES


@click.group(epilog="Example: raftmft admin-token create grafana --role viewer")
def admin_token() -> None:
    """Manage tokens for the admin API over TCP; the Unix socket needs none."""


@admin_token.command(epilog="Example: raftmft admin-token create ops --role operator > ops.token")
@click.argument("name")
@click.option("--role", type=click.Choice(ADMIN_ROLES), required=True,
              help="viewer looks; operator also steers users, sessions and bans; admin does everything.")
@node_options
def create(client: Client, output: str, name: str, role: str) -> None:
    """Make a token; it is printed this once, alone on its line, and kept nowhere."""
    value = client.call("POST", "/api/v1/admin-tokens", {"name": name, "role": role})
    print_json(value) if output == "json" else click.echo(value["token"])


@admin_token.command("list", epilog="Example: raftmft admin-token list -o json")
@node_options
def list_tokens(client: Client, output: str) -> None:
    """List the tokens, without their secrets."""
    tokens = client.get("/api/v1/admin-tokens")["tokens"]
    if output == "json":
        print_json(tokens)
        return
    print_table(("name", "role", "since", "by"), [(t["name"], t["role"], t["since"], t["by"]) for t in tokens])


@admin_token.command(epilog="Example: raftmft admin-token revoke grafana")
@click.argument("name")
@node_options
def revoke(client: Client, output: str, name: str) -> None:
    """Revoke a token; from now on no node takes it."""
    value = client.call("DELETE", f"/api/v1/admin-tokens/{quote(name, safe='')}")
    print_json(value) if output == "json" else click.echo(f"admin token {name} revoked")
