"""raftmft key"""

from __future__ import annotations

import time
from datetime import datetime, timezone
from pathlib import Path

import click

from raftmft.cli.output import print_json
from raftmft.cluster.keyexport import KeyExport, read_export, read_passphrase, write_export
from raftmft.cluster.keyring import KeyRing
from raftmft.core.errors import ConfigError, RaftmftError
from raftmft.node.datadir import DataDir

passphrase_option = click.option(
    "--passphrase-file", "passphrase_file", envvar="RAFTMFT_PASSPHRASE_FILE", required=True, type=click.Path(),
    help="A file (0600) with the passphrase on one line; there is no option for the passphrase itself.")
output_option = click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)


@click.group(epilog="Example: raftmft key export --data-dir /var/lib/raftmft --passphrase-file pass --out cluster.key")
def key() -> None:
    """Export the cluster key, which opens the secrets in the cluster's state, and check an export."""


@key.command(epilog="Example: raftmft key export --data-dir /var/lib/raftmft --passphrase-file pass --out my.export")
@click.option("--data-dir", envvar="RAFTMFT_DATA_DIR", required=True, type=click.Path(),
              help="A member's data directory; its node may run or not.")
@passphrase_option
@click.option("--out", required=True, type=click.Path(), help="The new file, 0600; one that exists is not touched.")
@output_option
def export(data_dir: str, passphrase_file: str, out: str, output: str) -> None:
    """Write this member's cluster key under a passphrase. Do it again after a member was removed: the key changes."""
    member = DataDir(data_dir)
    member.check_owner()
    seed = member.read_seed()
    keys = KeyRing.load(member.cluster_key).keys()
    if not keys:
        raise ConfigError(f"{member.cluster_key} holds no key at this moment: the cluster's was changed while this "
                          "member was away; run its node until it has the new one, or export on another member")
    passphrase = read_passphrase(Path(passphrase_file))
    made = KeyExport(seed.cluster, seed.cluster_id, time.time_ns() // 1_000_000, keys)
    write_export(Path(out).absolute(), made, passphrase)
    _show(out, made, output)
    if output == "table":
        click.echo("Keep it and the passphrase apart from each other, and both off these hosts.")


@key.command(epilog="Example: raftmft key verify cluster.export --passphrase-file pass --against /var/lib/raftmft")
@click.argument("file", type=click.Path())
@passphrase_option
@click.option("--against", metavar="DATA_DIR", type=click.Path(),
              help="Also check that it has every key that this member holds now.")
@output_option
def verify(file: str, passphrase_file: str, against: str | None, output: str) -> None:
    """Check that an export opens with the passphrase, and show what it is of; the keys themselves are not shown."""
    found = read_export(Path(file), read_passphrase(Path(passphrase_file)))
    if against is not None:
        _compare(file, found, DataDir(against))
    _show(file, found, output)


def _compare(file: str, found: KeyExport, member: DataDir) -> None:
    member.check_owner()
    seed = member.read_seed()
    if seed.cluster_id != found.cluster_id:
        raise RaftmftError(f"{file} is of the cluster {found.cluster} (id {found.cluster_id}), and {member.path} of "
                           f"{seed.cluster} (id {seed.cluster_id}); give an export of that one")
    exported = {entry.name: entry.key for entry in found.keys}
    if any(exported.get(entry.name) != entry.key for entry in KeyRing.load(member.cluster_key).keys()):
        raise RaftmftError(f"{file} lacks a cluster key that {member.path} holds: the key was changed after it was "
                           "made; make a new one with raftmft key export")


def _show(file: str, found: KeyExport, output: str) -> None:
    made = datetime.fromtimestamp(found.made_ms / 1000, timezone.utc).isoformat(timespec="seconds")
    names = [entry.name or "first" for entry in found.keys]
    if output == "json":
        print_json({"file": str(Path(file).absolute()), "cluster": found.cluster, "cluster_id": found.cluster_id,
                    "made": made.replace("+00:00", "Z"), "keys": names})
        return
    click.echo(f"{file}: {', '.join(names)} cluster key of {found.cluster} (id {found.cluster_id}), made "
               f"{made.replace('+00:00', 'Z')}")
