"""raftmft status"""

from __future__ import annotations

import time
from typing import Any

import click

from raftmft.cli.client import Client, node_options
from raftmft.cli.output import print_json, print_table, size_text
from raftmft.core.errors import NodeUnreachable, RaftmftError

EXIT = {"ok": 0, "degraded": 3, "no-quorum": 4}
POLL_S = 0.2


@click.command(epilog="Example: raftmft status --wait ready --data-dir /var/lib/raftmft")
@click.option("--wait", type=click.Choice(["ready"]), help="Return when this node serves and holds all it should.")
@click.option(
    "--timeout", type=click.FloatRange(min=0), default=120.0, show_default=True, help="Seconds that --wait may take."
)
@click.option("--watch", is_flag=True, help="Show it again every second until Ctrl-C.")
@node_options
def status(client: Client, output: str, wait: str | None, timeout: float, watch: bool) -> int:
    """Show the cluster and what it can lose now. Exit code 0 ok, 3 degraded, 4 no quorum, 5 unreachable."""
    if wait:
        _wait_ready(client, timeout)
    while True:
        document = client.get("/api/v1/status")
        if watch and output == "table":
            click.clear()
        _show(document, output)
        if not watch:
            return EXIT[document["verdict"]]
        time.sleep(1)


def _wait_ready(client: Client, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            client.call("GET", "/readyz")
            return
        except (NodeUnreachable, RaftmftError) as trouble:
            if time.monotonic() >= deadline:
                if isinstance(trouble, NodeUnreachable):
                    raise
                raise RaftmftError(f"not ready after {timeout_s:.0f} s: {trouble}") from None
        time.sleep(POLL_S)


def _level(document: dict[str, Any]) -> str:
    level, known = document["feature_level"], {m["name"]: m["feature_level"] for m in document["members"]}
    newest = max(known.values())
    if newest <= level:
        return f"feature level {level}"
    behind = ", ".join(name for name, knows in known.items() if knows < newest)
    return f"feature level {level}, and {newest} once {behind} runs a version that knows it"


def _show(document: dict[str, Any], output: str) -> None:
    if output == "json":
        print_json(document)
        return
    lose = document["can_lose"]
    click.echo(
        f"cluster {document['cluster']}: {document['verdict']}"
        + "".join(f"; {reason}" for reason in document["reasons"])
    )
    click.echo(
        f"leader {document['leader'] or '(none)'}, term {document['term']}, commit index {document['commit_index']}; "
        f"can lose {lose['members']} members, {lose['disks']} disks; "
        f"{document['under_replicated']} chunks under-replicated; {_level(document)}"
    )
    print_table(
        ("name", "mode", "role", "state", "applied", "sessions", "load", "disk free", "version"),
        [
            (
                m["name"],
                m["mode"],
                m["role"],
                m["state"],
                m["applied_index"],
                m["sessions"],
                m["load"],
                size_text(m["disk_free_bytes"]),
                m["version"],
            )
            for m in document["members"]
        ],
    )
