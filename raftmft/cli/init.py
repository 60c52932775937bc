"""raftmft init"""

from __future__ import annotations

from pathlib import Path

import click

from raftmft.cli.host_options import host_options
from raftmft.cli.output import print_json
from raftmft.core.errors import ConfigError
from raftmft.core.names import user_name_problem
from raftmft.node.datadir import DataDir
from raftmft.node.genesis import FirstMember, make_cluster
from raftmft.node.preflight import check_host
from raftmft.node.settings import Settings


@click.command(epilog="Example: raftmft init --data-dir /var/lib/raftmft --cluster-name files --advertise 10.0.0.1")
@click.option("--cluster-name", required=True, help="The new cluster's name.")
@host_options
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def init(data_dir: Path, settings: Settings, cluster_name: str, output: str) -> None:
    """Make a new cluster of one on this host. Other hosts are let in by raftmft token create and raftmft join."""
    if user_name_problem(cluster_name):
        raise ConfigError(f"--cluster-name {ascii(cluster_name[:64])} cannot be: give 1 to 64 printable characters "
                          "without slash or colon")
    check_host(settings, DataDir(data_dir))
    host_key = make_cluster(cluster_name, [FirstMember(data_dir, settings)])
    if output == "json":
        print_json({"cluster": cluster_name, "name": settings.name, "data_dir": str(data_dir), "host_key": host_key})
        return
    click.echo(f"The cluster {cluster_name} is made, with {settings.name} as its first member.")
    click.echo(f"SSH host key: {host_key}")
    click.echo(f"Run it: raftmft node --data-dir {data_dir}")
