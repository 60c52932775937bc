"""raftmft token"""

from __future__ import annotations

import re

import click

from raftmft.cli.client import Client, node_options
from raftmft.cli.output import print_json
from raftmft.core.admission import JOIN_MODES, MAX_TTL_MS

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Duration(click.ParamType):
    """A time like 30m, 1h or 2d."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Seconds, or a usage error that says what is taken."""
        match = re.fullmatch(r"([0-9]{1,7})([smhd])", str(value).strip())
        seconds = int(match[1]) * _UNITS[match[2]] if match else 0
        if not 1 <= seconds <= MAX_TTL_MS // 1000:
            self.fail(f"{str(value)[:32]!r} is no time that a token may live; write for example 30m, 1h or 2d, at most "
                      "30d", param, ctx)
        return seconds


@click.group(epilog="Example: raftmft token create --ttl 30m")
def token() -> None:
    """Make tokens by which hosts join."""


@token.command(epilog="Example: raftmft token create --ttl 30m > join.token")
@click.option("--ttl", type=Duration(), default="1h", show_default=True, help="How long it is good, like 30m or 2d.")
@click.option("--mode", type=click.Choice(JOIN_MODES), default="active", show_default=True,
              help="standby takes sessions only when no active member can; a witness votes and stores nothing.")
@node_options
def create(client: Client, output: str, ttl: int, mode: str) -> None:
    """Make a token that lets one host join, once; it is printed alone on the last line, and kept nowhere."""
    value = client.call("POST", "/api/v1/join-tokens", {"ttl_s": ttl, "mode": mode})
    if output == "json":
        print_json(value)
        return
    click.echo(f"For one host, until {value['expires']}:", err=True)
    click.echo(value["token"])
