"""raftmft ban"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlencode

import click

from raftmft.cli.client import Client, node_options
from raftmft.cli.output import print_json, print_table

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
MOST_TTL_S = 10 * 366 * 86400


class Ttl(click.ParamType):
    """A time like 90s, 30m, 12h or 7d."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Seconds, or a usage error that says what is taken."""
        match = re.fullmatch(r"([0-9]{1,9})([smhd])", str(value))
        seconds = int(match[1]) * _UNITS[match[2]] if match else 0
        if not 1 <= seconds <= MOST_TTL_S:
            self.fail(f"{value!r} is not a time; write for example 90s, 30m, 12h or 7d, at most 10 years", param, ctx)
        return seconds


@click.group(epilog="Example: raftmft ban add 192.0.2.7 --ttl 12h")
def ban() -> None:
    """Ban addresses, in the whole cluster at once."""


@ban.command("list", epilog="Example: raftmft ban list -o json")
@node_options
def list_bans(client: Client, output: str) -> None:
    """List the bans in force."""
    bans = client.get("/api/v1/bans")["bans"]
    if output == "json":
        print_json(bans)
        return
    print_table(("network", "until", "since", "by", "reason"),
                [(b["network"], b["until"] or "for ever", b["since"], b["by"], b["reason"]) for b in bans])


@ban.command(epilog="Example: raftmft ban add 192.0.2.0/24 --ttl 7d --reason scans")
@click.argument("network")
@click.option("--ttl", type=Ttl(), help="When it ends by itself, like 90s, 30m, 12h, 7d.  [default: never]")
@click.option("--reason", default="", help="Why; shown in the list.")
@click.option("--force", is_flag=True, help="Also if NETWORK covers loopback or every address.")
@node_options
def add(client: Client, output: str, network: str, ttl: int | None, reason: str, force: bool) -> None:
    """Ban NETWORK, an address or a network like 192.0.2.0/24; its live sessions end."""
    body: dict[str, Any] = {"network": network, "reason": reason, "force": force}
    if ttl is not None:
        body["ttl_s"] = ttl
    done = client.call("POST", "/api/v1/bans", body)
    print_json(done) if output == "json" else click.echo(
        f"{done['network']} is banned; {len(done['sessions'])} sessions ended")


@ban.command(epilog="Example: raftmft ban remove 192.0.2.0/24")
@click.argument("network")
@node_options
def remove(client: Client, output: str, network: str) -> None:
    """Lift the ban of NETWORK, written as in the list."""
    done = client.call("DELETE", f"/api/v1/bans?{urlencode({'network': network})}")
    print_json(done) if output == "json" else click.echo(f"{done['network']} is no longer banned")
