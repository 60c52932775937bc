"""raftmft version"""

from __future__ import annotations

import platform

import click

from raftmft import __version__
from raftmft.cli.output import print_json


@click.command(epilog="Example: raftmft version -o json")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def version(output: str) -> None:
    """Show the version of this program."""
    if output == "json":
        print_json({"version": __version__, "python": platform.python_version()})
    else:
        click.echo(f"raftmft {__version__} (Python {platform.python_version()})")
