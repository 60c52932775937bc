"""raftmft member"""

from __future__ import annotations

import click

from raftmft.cli.client import Client, node_options
from raftmft.cli.output import print_json, print_table


@click.group(epilog="Example: raftmft member list --data-dir /var/lib/raftmft")
def member() -> None:
    """List members."""


@member.command("list", epilog="Example: raftmft member list -o json")
@node_options
def list_members(client: Client, output: str) -> None:
    """List the members with their addresses."""
    members = client.get("/api/v1/members")["members"]
    if output == "json":
        print_json(members)
        return
    print_table(
        ("name", "id", "mode", "weight", "host", "sftp", "peer", "gossip"),
        [
            (m["name"], m["id"], m["mode"], m["weight"], m["host"], m["sftp_port"], m["peer_port"], m["gossip_port"])
            for m in members
        ],
    )
