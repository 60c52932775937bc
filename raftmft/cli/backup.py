"""raftmft backup"""

from __future__ import annotations

import base64
import binascii
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from raftmft.cli.client import Client, node_options, output_option
from raftmft.cli.output import print_json, progress, size_text
from raftmft.core.errors import ConfigError, RaftmftError
from raftmft.node.api_audit import iso
from raftmft.node.backups import examine
from raftmft.raft.snapshots import Snapshot, SnapshotFolder, SnapshotWriter, digest, read_header
from raftmft.wire.frames import FrameError

CREATE_LIMIT_S = 600.0


@click.group(epilog="Example: raftmft backup create --out files.backup")
def backup() -> None:
    """Back up the replicated state: users, names, settings, the audit log. Not the files' content.

    Content lies on several members and is not in a backup. Secrets are in it only sealed with the cluster key, which
    is not in it: keep a key export beside (raftmft key export), made after the last change of the key.
    """


@backup.command(epilog="Example: raftmft backup create --out files.backup")
@click.option("--out", type=click.Path(), help="The new file, 0600.  [default: CLUSTER-INDEX.backup here]")
@node_options
def create(client: Client, output: str, out: str | None) -> None:
    """Write a backup of the replicated state, as of this moment, from a running node; what exists is not touched."""
    if out is not None:
        _check_new(Path(out))
    with progress("making a backup") as tell:
        made = client.call("POST", "/api/v1/backups", timeout_s=CREATE_LIMIT_S)
        target = Path(out if out is not None else f"{made['cluster']}-{made['index']}.backup").absolute()
        _check_new(target)
        _fetch(client, made, target, tell)
    told = {"file": str(target), **{name: made[name] for name in ("cluster", "cluster_id", "index", "time", "root")},
            "bytes": target.stat().st_size}
    if output == "json":
        print_json(told)
        return
    click.echo(f"{target}: the state of {made['cluster']} as of entry {made['index']}, {size_text(told['bytes'])}, "
               f"root {made['root']}")


def _check_new(path: Path) -> None:
    if os.path.lexists(path):
        raise ConfigError(f"{path} exists and is not overwritten; give another file by --out")


def _fetch(client: Client, made: dict[str, Any], target: Path, tell: Callable[[str], None]) -> None:
    """The file gets its name only when it is whole, checked and on disk."""
    wrong = RaftmftError("the node gave another backup than it told of; try again")
    try:
        header = base64.b64decode(made["header"], validate=True)
        wanted = read_header(header)
        if digest(header).hex() != made["root"]:
            raise wrong
        with SnapshotWriter(SnapshotFolder(f"{target}.part"), wanted.index) as writer:
            for number, (_, block_id) in enumerate(wanted.blocks):
                data = base64.b64decode(client.get("/api/v1/backups/block", root=made["root"], number=number)["data"],
                                        validate=True)
                if digest(data) != block_id:
                    raise wrong
                writer.add(data, block_id)
                tell(f"block {number + 1} of {len(wanted.blocks)}")
            part = _finished(writer, wanted, target)
    except (FrameError, binascii.Error, KeyError, TypeError):
        raise wrong from None
    try:
        os.link(part, target)  # unlike a rename it replaces nothing
    except FileExistsError:
        _check_new(target)
    finally:
        os.unlink(part)


def _finished(writer: SnapshotWriter, wanted: Snapshot, target: Path) -> str:
    writer.finish(wanted.term, wanted.configuration, wanted.raw_bytes)
    return SnapshotFolder(f"{target}.part").name(wanted)


@backup.command(epilog="Example: raftmft backup verify files.backup")
@click.argument("file", type=click.Path())
@output_option
def verify(file: str, output: str) -> None:
    """Check a backup: every hash, the database, the whole chain of the audit log. No node is asked.

    The state is unpacked for it into the folder for temporary files (TMPDIR).
    """
    with progress("checking the backup"), tempfile.TemporaryDirectory(prefix="raftmft-") as folder:
        found = examine(Path(file), Path(folder) / "state.db")
    told = {"file": str(Path(file).absolute()), "ok": True, **found.told(), "time": iso(found.time_ms)}
    del told["time_ms"]
    if output == "json":
        print_json(told)
        return
    click.echo(f"{file} is sound: {found.cluster} (id {found.cluster_id}) as of entry {found.index}, "
               f"{iso(found.time_ms)}; members {', '.join(found.members)}; {found.users} users, {found.files} files, "
               f"{size_text(found.file_bytes)}; {found.audit_records} audit records, head {found.audit_head}; root "
               f"{found.root}")
