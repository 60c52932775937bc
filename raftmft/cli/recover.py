"""raftmft recover"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from raftmft.cli.client import output_option
from raftmft.cli.output import print_json, size_text
from raftmft.core.errors import ConfigError, RaftmftError
from raftmft.node.stopped import Stopped, stopped


@click.command(epilog="Example: raftmft recover --data-dir /var/lib/raftmft --dry-run")
@click.option("--data-dir", envvar="RAFTMFT_DATA_DIR", required=True, type=click.Path(),
              help="The data directory of a survivor whose node does not run.")
@click.option("--dry-run", is_flag=True, help="Only tell what this survivor knows; compare survivors by it.")
@click.option("--i-accept-data-loss", "accepted", metavar="CLUSTER",
              help="The cluster's name, so that nobody is asked to type it.")
@click.option("--although-others-answer", is_flag=True,
              help="Go on although something answers at the peer port of another member.")
@click.option("--key-export", type=click.Path(), help="A key export, if this member lacks the cluster key.")
@click.option("--passphrase-file", envvar="RAFTMFT_PASSPHRASE_FILE", type=click.Path(), help="The export's passphrase.")
@output_option
def recover(data_dir: str, dry_run: bool, accepted: str | None, although_others_answer: bool, key_export: str | None,
            passphrase_file: str | None, output: str) -> None:
    """Go on with one member when a majority of the members is lost for good.

    Makes this member the only one of its cluster, under another cluster id. What was acknowledged and did not reach
    this member's log is lost; content that only lost members held is missing. All other members are given up for good:
    none of their directories may ever run again (raftmft join --replace makes such a host a member anew, and keeps its
    chunks). Of several survivors, recover the one with the greatest last term, and of those the greatest last entry.
    """
    with stopped(Path(data_dir)) as member:
        if output == "table":
            _tell(member)
        if dry_run:
            if output == "json":
                print_json(_document(member, None))
            return
        _check(member, although_others_answer, key_export, passphrase_file)
        _ask(member.survivor.cluster, accepted)
        cluster_id = member.recover()
        if output == "json":
            print_json(_document(member, cluster_id))
            return
        click.echo(f"Done: {member.survivor.me.name} is the only member of {member.survivor.cluster}, now with the "
                   f"cluster id {cluster_id}.")
        click.echo(f"Run it: raftmft node --data-dir {data_dir}. Then raftmft token create for each other host, there "
                   "raftmft join --replace; and make a new raftmft key export, since the cluster key changes.")


def _check(member: Stopped, although_others_answer: bool, key_export: str | None, passphrase_file: str | None) -> None:
    if not member.survivor.others and member.survivor.standing.configuration.voters == (member.seed.me,):
        raise ConfigError(f"{member.survivor.me.name} is the only member already: there is nothing to recover; run it "
                          "with raftmft node")
    if not although_others_answer and (answering := member.answering()):
        where = ", ".join(f"{row.name} at {row.host}:{row.peer_port}" for row in answering)
        raise ConfigError(f"other members answer ({where}): if a majority runs there is nothing to recover; else stop "
                          "them first, for they are given up, or say --although-others-answer if these are others")
    if (key_export is None) != (passphrase_file is None) and key_export is not None:
        raise click.UsageError("--key-export needs --passphrase-file")
    if key_export is None or passphrase_file is None:
        member.check_key()
        return
    from raftmft.cluster.keyexport import read_export, read_passphrase

    member.check_key(read_export(Path(key_export), read_passphrase(Path(passphrase_file))).keys)


def _ask(cluster: str, accepted: str | None) -> None:
    if accepted is None:
        if not sys.stdin.isatty():
            raise click.UsageError("nobody is there to confirm it: say --i-accept-data-loss with the cluster's name")
        accepted = click.prompt(f"Type the cluster's name ({cluster}) to go on", default="", show_default=False)
    if accepted != cluster:
        raise RaftmftError(f"the cluster's name is {cluster}; nothing was changed")


def _document(member: Stopped, cluster_id: str | None) -> dict[str, Any]:
    survivor = member.survivor
    at = survivor.standing
    return {"cluster": survivor.cluster, "cluster_id": cluster_id or survivor.cluster_id, "name": survivor.me.name,
            "recovered": cluster_id is not None, "term": at.term, "last_index": at.last_index,
            "last_term": at.last_term, "commit_index": at.commit_index, "given_up": [m.name for m in survivor.others],
            "users": survivor.users, "files": survivor.files, "file_bytes": survivor.file_bytes}


def _tell(member: Stopped) -> None:
    survivor = member.survivor
    at, me = survivor.standing, survivor.me
    about = me.mode if me.joined else f"{me.mode}, still learning: it may know much less than others"
    for name, text in (
        ("cluster", f"{survivor.cluster} (id {survivor.cluster_id})"), ("survivor", f"{me.name} ({about})"),
        ("log", f"ends at entry {at.last_index} of term {at.last_term}; term {at.term}; entries to {at.commit_index} "
                "are known as committed here"),
        ("lost", f"every acknowledged change after entry {at.last_index}, if there is any; content that only lost "
                 "members hold"),
        ("kept", f"{survivor.users} users, {survivor.files} files, {size_text(survivor.file_bytes)}, as of that entry"),
        ("given up", ", ".join(m.name for m in survivor.others) or "nobody"),
    ):
        click.echo(f"{name + ':':10}{text}")
