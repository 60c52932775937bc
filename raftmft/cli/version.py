"""raftmft version"""

from __future__ import annotations

import platform

import click

from raftmft import __version__
from raftmft.cli.output import print_json
from raftmft.core import features


@click.command(epilog="Example: raftmft version -o json")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def version(output: str) -> None:
    """Show the version of this program, and the feature level that it knows."""
    if output == "json":
        print_json({"version": __version__, "feature_level": features.CURRENT.newest,
                    "python": platform.python_version()})
    else:
        click.echo(f"raftmft {__version__}, feature level {features.CURRENT.newest} "
                   f"(Python {platform.python_version()})")
