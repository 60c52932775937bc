"""raftmft member"""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

import click

from raftmft.cli.client import Client, node_options
from raftmft.cli.output import print_json, print_table
from raftmft.core.errors import RaftmftError

POLL_S = 0.2
JOIN_MODES = ("active", "standby", "witness")


@click.group(epilog="Example: raftmft member list --data-dir /var/lib/raftmft")
def member() -> None:
    """Look at members and steer them. What is acknowledged is true on every node at once."""


@member.command("list", epilog="Example: raftmft member list -o json")
@node_options
def list_members(client: Client, output: str) -> None:
    """List the members with their addresses, and the version and feature level of what they run."""
    members = client.get("/api/v1/members")["members"]
    if output == "json":
        print_json(members)
        return
    print_table(
        ("name", "id", "mode", "weight", "host", "sftp", "peer", "gossip", "version", "feature level"),
        [
            (m["name"], m["id"], m["mode"], m["weight"], m["host"], m["sftp_port"], m["peer_port"], m["gossip_port"],
             m["version"], m["feature_level"])
            for m in members
        ],
    )


@member.command(epilog="Example: raftmft member drain n2")
@click.argument("name")
@node_options
def drain(client: Client, output: str, name: str) -> None:
    """Send new sessions to other members; it keeps its vote and its chunks."""
    _say(output, _set(client, name, mode="draining"), f"new sessions go to other members than {name}")


@member.command(epilog="Example: raftmft member undrain n2")
@click.argument("name")
@node_options
def undrain(client: Client, output: str, name: str) -> None:
    """Let a drained or leaving member take part again as before."""
    _say(output, _set(client, name, mode="undrain"), f"{name} takes part again")


@member.command("set-mode", epilog="Example: raftmft member set-mode n3 witness")
@click.argument("name")
@click.argument("mode", type=click.Choice(JOIN_MODES))
@node_options
def set_mode(client: Client, output: str, name: str, mode: str) -> None:
    """Make it active, standby (sessions only when no active member can) or witness (votes, stores nothing)."""
    _say(output, _set(client, name, mode=mode), f"{name} is {mode}")


@member.command("set-weight", epilog="Example: raftmft member set-weight n3 200")
@click.argument("name")
@click.argument("weight", type=click.IntRange(0, 10_000))
@node_options
def set_weight(client: Client, output: str, name: str, weight: int) -> None:
    """Set its share of chunks and sessions; 100 is usual."""
    _say(output, _set(client, name, weight=weight), f"{name} has weight {weight}")


@member.command("transfer-leader", epilog="Example: raftmft member transfer-leader n3")
@click.argument("name")
@node_options
def transfer_leader(client: Client, output: str, name: str) -> None:
    """Have a member lead."""
    _say(output, client.call("POST", f"{_path(name)}/lead"), f"{name} leads")


@member.command(epilog="Example: raftmft member remove n3    (a stolen or dead host: raftmft member remove n3 --force)")
@click.argument("name")
@click.option("--force", is_flag=True,
              help="At once, for a stolen or dead host: its chunks are copied again afterwards.")
@click.option("--timeout", type=click.FloatRange(min=0), default=3600.0, show_default=True,
              help="Seconds to wait for its chunks to be copied.")
@click.option("--drain-timeout", type=click.FloatRange(min=0), default=20.0, show_default=True,
              help="Seconds that its sessions get to end by themselves.")
@node_options
def remove(client: Client, output: str, name: str, force: bool, timeout: float, drain_timeout: float) -> None:
    """Take a member out for good. Without --force its chunks are copied to the others first; an interrupted removal
    goes on when it is asked for again, or is taken back by undrain.
    """
    if not force:
        _set(client, name, mode="leaving")
        _wait_until_copied(client, name, timeout, drain_timeout)
    _say(output, client.call("DELETE", _path(name)), f"{name} is removed: nothing that it shows is accepted any more")


def _wait_until_copied(client: Client, name: str, timeout_s: float, drain_timeout_s: float) -> None:
    from rich.console import Console

    drained = time.monotonic() + drain_timeout_s
    deadline = time.monotonic() + timeout_s
    console = Console(stderr=True)
    with console.status(f"copying what {name} holds") as shown:
        while True:
            leaving = client.get(f"{_path(name)}/leaving")
            waiting = leaving["waiting_for"]
            if not waiting and (not leaving["sessions"] or time.monotonic() >= drained):
                return
            if not waiting:
                shown.update(f"{leaving['sessions']} sessions on {name} may end by themselves")
                time.sleep(POLL_S)
                continue
            shown.update(f"copying what {name} holds; waiting for {', '.join(waiting)}")
            if time.monotonic() >= deadline:
                raise RaftmftError(
                    f"after {timeout_s:g} s still waiting for {', '.join(waiting)}; {name} is leaving and still a "
                    f"member: ask again, take it back (raftmft member undrain {name}), or use --force")
            time.sleep(POLL_S)


def _set(client: Client, name: str, **fields: Any) -> Any:
    return client.call("PATCH", _path(name), fields)


def _path(name: str) -> str:
    return f"/api/v1/members/{quote(name, safe='')}"


def _say(output: str, value: Any, text: str) -> None:
    if output == "json":
        print_json(value)
    else:
        click.echo(text)
