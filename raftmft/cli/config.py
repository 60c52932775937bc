"""raftmft config"""

from __future__ import annotations

from urllib.parse import quote

import click

from raftmft.cli.client import Client, node_options
from raftmft.cli.output import print_json, print_table


@click.group(epilog="Example: raftmft config list")
def config() -> None:
    """Show and set cluster-wide options. What is acknowledged holds on every node."""


@config.command("list", epilog="Example: raftmft config list -o json")
@node_options
def list_options(client: Client, output: str) -> None:
    """List the options with their values."""
    options = client.get("/api/v1/config")["options"]
    if output == "json":
        print_json(options)
        return
    print_table(("key", "value", "default", "what"),
                [(o["key"], o["value"], o["default"] if o["is_set"] else "(as it is)", o["help"]) for o in options])


@config.command(epilog="Example: raftmft config get login.limit_s")
@click.argument("key")
@node_options
def get(client: Client, output: str, key: str) -> None:
    """Print an option's value, alone on a line."""
    option = client.get(f"/api/v1/config/{quote(key, safe='')}")
    print_json(option) if output == "json" else click.echo(option["value"])


@config.command("set", epilog="Example: raftmft config set login.limit_s 20")
@click.argument("key")
@click.argument("value")
@node_options
def set_option(client: Client, output: str, key: str, value: str) -> None:
    """Set an option in the whole cluster; an empty VALUE ("") gives it its default back."""
    done = client.call("PUT", f"/api/v1/config/{quote(key, safe='')}", {"value": value})
    print_json(done) if output == "json" else click.echo(f"{key} is {done['value'] or '(empty)'}")
