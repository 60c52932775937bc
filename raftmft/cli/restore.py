"""raftmft restore"""

from __future__ import annotations

from pathlib import Path

import click

from raftmft.cli.host_options import host_options
from raftmft.cli.output import print_json, progress
from raftmft.cluster.keyexport import read_export, read_passphrase
from raftmft.node import backups
from raftmft.node.datadir import DataDir
from raftmft.node.preflight import check_host
from raftmft.node.settings import Settings


@click.command(epilog="Example: raftmft restore files.backup --key-export k.export --passphrase-file pass --data-dir "
                      "/var/lib/raftmft --advertise 10.0.0.1")
@click.argument("file", type=click.Path())
@click.option("--key-export", type=click.Path(), help="A key export of the time of the backup: keeps the SSH host key.")
@click.option("--passphrase-file", envvar="RAFTMFT_PASSPHRASE_FILE", type=click.Path(), help="The export's passphrase.")
@click.option("--new-host-key", is_flag=True, help="There is no export: make another SSH host key. Clients are warned.")
@host_options
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def restore(file: str, data_dir: Path, settings: Settings, key_export: str | None, passphrase_file: str | None,
            new_host_key: bool, output: str) -> None:
    """Make a new cluster of one out of a backup; other hosts join it as usual.

    Users, names, options, bans, admin tokens and the audit log come along; members, sessions and uploads under way do
    not. The files' content is in no backup: what no member holds is told as missing by status and file show, and
    reading it fails, until it is uploaded again. FILE is a backup, or a member's raft/snapshot.* file.
    """
    if new_host_key == (key_export is not None):
        raise click.UsageError("give --key-export with --passphrase-file, or --new-host-key if there is no export.")
    if key_export is not None and passphrase_file is None:
        raise click.UsageError("--key-export needs --passphrase-file.")
    keys = None
    if key_export is not None and passphrase_file is not None:
        keys = read_export(Path(key_export), read_passphrase(Path(passphrase_file))).keys
    made = DataDir(data_dir)
    check_host(settings, made)
    with progress("restoring"), made.made():
        restored = backups.restore(Path(file), made, settings, keys)
    if output == "json":
        print_json({"cluster": restored.cluster, "cluster_id": restored.cluster_id, "name": settings.name,
                    "data_dir": str(data_dir), "index": restored.index, "users": restored.users,
                    "files": restored.files, "host_key": restored.host_public_key})
        return
    click.echo(f"{restored.cluster} as of entry {restored.index} is restored, with {settings.name} as its only member: "
               f"{restored.users} users, {restored.files} files.")
    click.echo(f"SSH host key: {restored.host_public_key}")
    click.echo(f"Run it: raftmft node --data-dir {data_dir}")
