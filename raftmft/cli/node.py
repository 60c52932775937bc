"""raftmft node"""

from __future__ import annotations

import click


@click.command(epilog="Example: raftmft node --data-dir /var/lib/raftmft")
@click.option(
    "--data-dir", envvar="RAFTMFT_DATA_DIR", required=True, type=click.Path(), help="The member's data directory."
)
@click.option(
    "--drain-timeout",
    type=click.IntRange(0, 3600),
    help="Seconds that sessions get to end at SIGTERM.  [default: as in raftmft.toml, 20]",
)
def node(data_dir: str, drain_timeout: int | None) -> int:
    """Run the member in the foreground, until SIGTERM or SIGINT."""
    from raftmft.node.process import run_node

    return run_node(data_dir, drain_timeout)
