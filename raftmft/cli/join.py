"""raftmft join"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import click

from raftmft import __version__
from raftmft.cli.host_options import host_options
from raftmft.cli.output import print_json
from raftmft.core import features
from raftmft.core.addresses import address_of
from raftmft.core.commands import MemberSpec
from raftmft.core.errors import ConfigError, RaftmftError
from raftmft.node.datadir import DataDir, Seed
from raftmft.node.genesis import write_member
from raftmft.node.preflight import check_host
from raftmft.node.settings import Settings
from raftmft.wire.joining import Admitted, JoinRequest
from raftmft.wire.token import MOST_CHARS, JoinToken, decode_token


@click.command(epilog="Example: raftmft join --token-file join.token --data-dir /var/lib/raftmft --advertise 10.0.0.2")
@click.argument("member", metavar="[HOST:PEERPORT]", required=False)
@click.option("--token", "text", metavar="T", help="The token; others may see it in the list of processes.")
@click.option("--token-file", envvar="RAFTMFT_TOKEN_FILE", type=click.Path(), help="A file that holds the token.")
@click.option("--replace", is_flag=True, help="Take the place of the dead member of this name, if there is one. A "
              "member's directory is made anew, but for its chunks and settings, once this host is admitted.")
@host_options
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def join(data_dir: Path, settings: Settings, member: str | None, text: str | None, token_file: str | None,
         replace: bool, output: str) -> None:
    """Have this host admitted to a cluster; returns when it is. HOST:PEERPORT is asked before the token's addresses.

    With --replace also a host whose member lost its disk, or whose journal or state is damaged, or whose cluster was
    recovered without it: it comes back as another member of the same name, so that it never votes with forgotten state.
    """
    token = _token(text, token_file)
    if member is not None:
        address_of(member)
    made = DataDir(data_dir)
    check_host(settings, made)
    if replace and made.path.is_dir() and any(made.path.iterdir()):
        with made.made_anew() as clear:
            admitted = _ask(token, settings, member, made, replace, clear)
    else:
        with made.made():
            admitted = _ask(token, settings, member, made, replace, lambda: None)
    if output == "json":
        print_json({"cluster": admitted.cluster, "name": settings.name, "id": admitted.member, "mode": admitted.mode,
                    "data_dir": str(data_dir)})
        return
    click.echo(f"{settings.name} is admitted to the cluster {admitted.cluster} (mode {admitted.mode}).")
    click.echo(f"Run it: raftmft node --data-dir {data_dir}")


def _token(text: str | None, token_file: str | None) -> JoinToken:
    if text is None:
        if not token_file:
            raise click.UsageError("which token? Give --token-file or --token; raftmft token create makes one.")
        try:
            with open(token_file, encoding="utf-8") as file:
                lines = file.read(4 * MOST_CHARS).split("\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise ConfigError(f"the token file {token_file} cannot be read: {reason}") from None
        text = next((line for line in reversed(lines) if line.strip()), "")
    return decode_token(text)


def _spec(row: dict[str, Any]) -> MemberSpec:
    """A member as it was told of; a later version may tell more."""
    return MemberSpec(**{field.name: row[field.name] for field in fields(MemberSpec)})


def _ask(token: JoinToken, settings: Settings, member: str | None, data_dir: DataDir, replace: bool,
         clear: Callable[[], None]) -> Admitted:
    import trio

    from raftmft.cluster.certificates import Issued, make_key, public_key_of
    from raftmft.cluster.joining import ask_to_join

    key = make_key()
    public_key = public_key_of(key)

    def request() -> JoinRequest:
        return JoinRequest(token.secret, settings.name, settings.advertise, settings.peer_port, settings.gossip_port,
                           settings.sftp_port, public_key, time.time_ns() // 1_000_000, __version__,
                           features.CURRENT.newest, replace)

    admitted, authority = trio.run(partial(ask_to_join, token, request, member))
    try:
        clear()
        seed = Seed(admitted.cluster, admitted.cluster_id, admitted.member,
                    tuple(_spec(row) for row in admitted.members), admitted.replicas, admitted.host_public_key,
                    admitted.sealed_host_key.hex(), admitted.sealed_ca_key.hex(), founder=False)
        write_member(data_dir, settings, authority, Issued(admitted.certificate, key), admitted.cluster_key, seed,
                     key_name=admitted.key_name)
    except (OSError, TypeError, ValueError, KeyError) as error:
        raise RaftmftError(f"this host was admitted as {settings.name}, but {data_dir.path} could not be filled "
                           f"({getattr(error, 'strerror', None) or error}); mend that, make another token, and "
                           "join again with --replace") from None
    return admitted
