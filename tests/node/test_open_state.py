"""At start: a state or snapshot of a level that this program does not know is refused, and left as it is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from raftmft.core import commands as c
from raftmft.core.errors import ProgramTooOld
from raftmft.node.datadir import DataDir
from raftmft.node.state import open_state
from raftmft.raft.configuration import Configuration
from raftmft.raft.snapshots import SnapshotFolder
from raftmft.wire.commands import decode_outcome, encode_outcome
from tests.core.machine_world import BOOTSTRAP, MEMBERS, World
from tests.next_level import NEXT, NextMachine

LINE = f"the cluster is at feature level {NEXT} and this program knows level {NEXT - 1} only"
JOURNAL = SimpleNamespace(base_index=0)


def made(tmp_path: Path) -> tuple[DataDir, SnapshotFolder]:
    """A directory whose member was at the next level: a state stopped cleanly, and two snapshots of it."""
    data_dir = DataDir(tmp_path / "d")
    for folder in (data_dir.state.parent, data_dir.snapshots.parent):
        folder.mkdir(parents=True)
    world = World(data_dir.state, bootstrap=False)
    world.machine.close()
    world.machine = NextMachine(str(data_dir.state), encode_outcome=encode_outcome, decode_outcome=decode_outcome)
    for command in (BOOTSTRAP, *(c.MemberBoot(m.id, b"n", "99", NEXT) for m in MEMBERS), c.FeatureRaise(NEXT)):
        world.ok(command)
    snapshots = SnapshotFolder(str(data_dir.snapshots))
    for _ in range(2):
        world.user(f"u{world.index}")
        index = world.machine.copy_to(str(tmp_path / "copy"))
        snapshots.adopt(snapshots.make(str(tmp_path / "copy"), index, 1, Configuration(("a",)).encode()))
    world.machine.close()
    data_dir.leave_clean_mark()
    return data_dir, snapshots


def files(data_dir: DataDir) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in data_dir.path.rglob("*") if path.is_file()}


def test_a_state_that_was_stopped_cleanly(tmp_path: Path) -> None:
    data_dir, snapshots = made(tmp_path)
    before = files(data_dir)
    with pytest.raises(ProgramTooOld, match=LINE):
        open_state(data_dir, JOURNAL, snapshots)  # type: ignore[arg-type]
    assert files(data_dir) == before, "not even the mark of the clean stop is used up"


def test_a_snapshot_from_which_the_state_is_made_again(tmp_path: Path) -> None:
    data_dir, snapshots = made(tmp_path)
    data_dir.clean_mark.unlink()
    before = files(data_dir)
    for _ in range(2):
        with pytest.raises(ProgramTooOld, match=LINE):
            open_state(data_dir, JOURNAL, snapshots)  # type: ignore[arg-type]
        left = files(data_dir)
        assert left == {name: before[name] for name in before if name != str(data_dir.state)}
