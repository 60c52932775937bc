"""The journal: what was synced is there after any crash, damage is refused, and a failed sync is final."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftmft.core.errors import ConfigError, CorruptFile
from raftmft.raft.disk import OsDisk
from raftmft.raft.journal import Journal, JournalFailed
from tests.sim.disk import SimDisk

HEADER = 32


def save(journal: Journal) -> None:
    if batch := journal.take():
        journal.put(batch)
        journal.settle(batch)


def filled(path: Path, batches: int = 5) -> Journal:
    journal = Journal(str(path))
    journal.setCurrentTerm(7, "a")
    for index in range(1, batches + 1):
        journal.add(b"command %d" % index, index, 1)
        save(journal)
    return journal


def log(journal: Journal) -> list[tuple[bytes, int, int]]:
    return journal[:]


def test_everything_saved_is_there_again(tmp_path: Path) -> None:
    journal = filled(tmp_path / "j")
    journal.truncate_from(4)
    journal.add(b"other", 4, 2)
    journal.setRaftCommitIndex(4)
    journal.close()
    again = Journal(str(tmp_path / "j"))
    assert [entry[0] for entry in log(again)] == [b"command 1", b"command 2", b"command 3", b"other"]
    assert (again.getCurrentTerm(), again.getVotedForNodeId(), again.getRaftCommitIndex()) == (7, "a", 4)
    assert again.durable_index == 4 and (tmp_path / "j").stat().st_mode & 0o777 == 0o600
    again.close()


def test_nothing_is_durable_before_it_is_settled(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "j"))
    journal.extend([(b"x", index, 1) for index in range(1, 4)])
    assert journal.durable_index == 0
    batch = journal.take()
    assert batch is not None
    journal.put(batch)
    journal.truncate_from(3)
    journal.add(b"y", 3, 2)
    journal.settle(batch)
    assert journal.durable_index == 2, "entry 3 was replaced while its first form was being synced"
    save(journal)
    assert journal.durable_index == 3
    journal.close()


def test_a_torn_tail_is_cut_off_at_every_length(tmp_path: Path) -> None:
    path = tmp_path / "j"
    filled(path).close()
    whole = path.read_bytes()
    last = whole.rindex(b"RMFB")
    for length in range(last, len(whole)):
        path.write_bytes(whole[:length])
        journal = Journal(str(path))
        assert len(journal) == 4 and journal.getVotedForNodeId() == "a"
        journal.add(b"after", 5, 1)
        save(journal)
        journal.close()
        again = Journal(str(path))
        assert log(again)[-1][0] == b"after"
        again.close()


@pytest.mark.parametrize("zeros", [1, 10, 200, 5000])
def test_a_zeroed_tail_is_cut_off(tmp_path: Path, zeros: int) -> None:
    path = tmp_path / "j"
    filled(path).close()
    path.write_bytes(path.read_bytes() + bytes(zeros))
    journal = Journal(str(path))
    assert len(journal) == 5
    journal.close()


def test_a_flipped_bit_before_the_last_batch_is_refused_and_nothing_changed(tmp_path: Path) -> None:
    path = tmp_path / "j"
    filled(path).close()
    whole = path.read_bytes()
    last = whole.rindex(b"RMFB")
    for at in range(HEADER, last):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        with pytest.raises(CorruptFile, match="damaged at byte") as caught:
            Journal(str(path))
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
        assert path.read_bytes() == damaged


def test_bytes_of_a_command_are_never_taken_for_a_batch(tmp_path: Path) -> None:
    """A command that holds a copy of a sound batch must not make a torn tail look like damage."""
    path = tmp_path / "j"
    journal = filled(path)
    batch = path.read_bytes()[HEADER:]
    journal.add(batch * 3, 6, 1)
    save(journal)
    journal.close()
    path.write_bytes(path.read_bytes()[:-1])
    again = Journal(str(path))
    assert len(again) == 5
    again.close()


def test_an_empty_or_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j"
    for content, text in ((b"", "is empty"), (b"PYSYNCOBJ" + bytes(100), "does not begin")):
        path.write_bytes(content)
        with pytest.raises(CorruptFile, match=text):
            Journal(str(path))
        assert path.read_bytes() == content


def test_an_unknown_version_is_refused_with_both_versions_named(tmp_path: Path) -> None:
    path = tmp_path / "j"
    filled(path).close()
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, 16, 9)
    path.write_bytes(content)
    with pytest.raises(CorruptFile, match="format 9 .* format 1"):
        Journal(str(path))


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    journal = filled(tmp_path / "j")
    with pytest.raises(ConfigError, match="in use"):
        Journal(str(tmp_path / "j"))
    journal.close()


@pytest.mark.parametrize("what", ["fail_sync", "fail_append"])
def test_after_a_failed_write_or_sync_it_refuses_for_ever(what: str) -> None:
    disk = SimDisk()
    journal = Journal("j", disk=disk)
    journal.add(b"x", 1, 1)
    batch = journal.take()
    assert batch is not None
    setattr(disk.files["j"], what, True)
    with pytest.raises(JournalFailed):
        journal.put(batch)
    setattr(disk.files["j"], what, False)
    with pytest.raises(JournalFailed):
        journal.put(batch)
    before = bytes(disk.files["j"].content)
    journal.add(b"y", 2, 1)
    journal.close()
    assert bytes(disk.files["j"].content) == before, "a second fsync would report success for pages already lost"
    assert journal.durable_index == 0


def test_a_crash_while_creating_leaves_no_half_file(tmp_path: Path) -> None:
    path = tmp_path / "j"
    (tmp_path / "j.new").write_bytes(b"half of a hea")
    journal = Journal(str(path))
    journal.add(b"x", 1, 0)
    save(journal)
    journal.close()
    assert sorted(os.listdir(tmp_path)) == ["j"]


def test_the_real_disk_loses_nothing_on_a_kill(tmp_path: Path) -> None:
    """A child that is killed right after `put` has left everything it had put."""
    code = (
        "import os, sys; from raftmft.raft.journal import Journal; j = Journal(sys.argv[1])\n"
        "for i in range(1, 50):\n"
        "    j.add(b'x' * i, i, 1); b = j.take(); j.put(b); j.settle(b)\n"
        "j.add(b'never taken', 50, 1); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "j")], check=False).returncode == -9
    journal = Journal(str(tmp_path / "j"))
    assert [len(entry[0]) for entry in log(journal)] == list(range(1, 50))
    journal.close()


def test_an_unwritable_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        OsDisk().create(str(tmp_path / "nowhere" / "j"), b"x")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["add", "add", "cut", "term", "save", "save", "power"]), st.integers(0, 9)),
                max_size=40), st.integers(0, 1 << 30))
def test_what_was_settled_survives_any_power_cut(steps: list[tuple[str, int]], seed: int) -> None:
    """A model: after a power cut the log is a whole number of saves, and no fewer than were settled."""
    rng, disk = Random(seed), SimDisk()
    journal = Journal("j", disk=disk)
    journal.add(b"", 1, 0)
    save(journal)
    term = 1
    saved = (log(journal), 0)
    for what, number in steps:
        if what == "add":
            journal.add(bytes([number]) * rng.randrange(200), journal.last_index + 1, max(term, log(journal)[-1][2]))
        elif what == "cut" and journal.last_index > 1 + number:
            journal.truncate_from(journal.last_index - number)
        elif what == "term":
            term += 1
            journal.setCurrentTerm(term, "m")
        elif what == "save":
            save(journal)
            saved = (log(journal), journal.getCurrentTerm())
        elif what == "power":
            unsaved = (log(journal), journal.getCurrentTerm())
            if batch := journal.take():
                disk.files["j"].append(batch.data)
            disk.lose_power(rng)
            journal = Journal("j", disk=disk)
            found = (log(journal), journal.getCurrentTerm())
            assert found in (saved, unsaved)
            saved = found
            term = max(term, found[1])
