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
from raftmft.raft import journal as journal_module
from raftmft.raft.configuration import Configuration
from raftmft.raft.disk import OsDisk
from raftmft.raft.journal import Journal, JournalFailed
from tests.sim.disk import SimDisk, tear

HEADER = 32
FIRST = ".00000001"


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
    assert again.durable_index == 4 and (tmp_path / f"j{FIRST}").stat().st_mode & 0o777 == 0o600
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
    filled(tmp_path / "j").close()
    path = tmp_path / f"j{FIRST}"
    whole = path.read_bytes()
    last = whole.rindex(b"RMFB")
    for length in range(last, len(whole)):
        path.write_bytes(whole[:length])
        journal = Journal(str(tmp_path / "j"))
        assert len(journal) == 4 and journal.getVotedForNodeId() == "a"
        journal.add(b"after", 5, 1)
        save(journal)
        journal.close()
        again = Journal(str(tmp_path / "j"))
        assert log(again)[-1][0] == b"after"
        again.close()


@pytest.mark.parametrize("zeros", [1, 10, 200, 5000])
def test_a_zeroed_tail_is_cut_off(tmp_path: Path, zeros: int) -> None:
    filled(tmp_path / "j").close()
    path = tmp_path / f"j{FIRST}"
    path.write_bytes(path.read_bytes() + bytes(zeros))
    journal = Journal(str(tmp_path / "j"))
    assert len(journal) == 5
    journal.close()


def test_a_flipped_bit_before_the_last_batch_is_refused_and_nothing_changed(tmp_path: Path) -> None:
    filled(tmp_path / "j").close()
    path = tmp_path / f"j{FIRST}"
    whole = path.read_bytes()
    last = whole.rindex(b"RMFB")
    for at in range(HEADER, last):  # the base included: it was whole when the file got its name
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        with pytest.raises(CorruptFile, match="damaged at byte") as caught:
            Journal(str(tmp_path / "j"))
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
        assert path.read_bytes() == damaged


def test_bytes_of_a_command_are_never_taken_for_a_batch(tmp_path: Path) -> None:
    """A command that holds a copy of a sound batch must not make a torn tail look like damage."""
    path = tmp_path / f"j{FIRST}"
    journal = filled(tmp_path / "j")
    batch = path.read_bytes()[HEADER:]
    journal.add(batch * 3, 6, 1)
    save(journal)
    journal.close()
    path.write_bytes(path.read_bytes()[:-1])
    again = Journal(str(tmp_path / "j"))
    assert len(again) == 5
    again.close()


def test_an_empty_or_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / f"j{FIRST}"
    for content, text in ((b"", "is empty"), (b"PYSYNCOBJ" + bytes(100), "does not begin")):
        path.write_bytes(content)
        with pytest.raises(CorruptFile, match=text):
            Journal(str(tmp_path / "j"))
        assert path.read_bytes() == content


def test_an_unknown_version_is_refused_with_both_versions_named(tmp_path: Path) -> None:
    filled(tmp_path / "j").close()
    path = tmp_path / f"j{FIRST}"
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, 16, 9)
    path.write_bytes(content)
    with pytest.raises(CorruptFile, match="format 9 .* format 2"):
        Journal(str(tmp_path / "j"))


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
    setattr(disk.last("j"), what, True)
    with pytest.raises(JournalFailed):
        journal.put(batch)
    setattr(disk.last("j"), what, False)
    with pytest.raises(JournalFailed):
        journal.put(batch)
    before = bytes(disk.last("j").content)
    journal.add(b"y", 2, 1)
    journal.close()
    assert bytes(disk.last("j").content) == before, "a second fsync would report success for pages already lost"
    assert journal.durable_index == 0


def test_a_crash_while_creating_leaves_no_half_file(tmp_path: Path) -> None:
    (tmp_path / "j.00000001.new").write_bytes(b"half of a hea")
    journal = Journal(str(tmp_path / "j"))
    journal.add(b"x", 1, 0)
    save(journal)
    journal.close()
    assert sorted(os.listdir(tmp_path)) == ["j.00000001"]


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
                tear(disk, batch, 1.0)
            disk.lose_power(rng)
            journal = Journal("j", disk=disk)
            found = (log(journal), journal.getCurrentTerm())
            assert found in (saved, unsaved)
            saved = found
            term = max(term, found[1])


# --- segments -------------------------------------------------------------------------------------------------------
@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments, stretches and memory so small that a short test sees many."""
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 700)
    monkeypatch.setattr(journal_module, "STRETCH_BYTES", 200)
    monkeypatch.setattr(journal_module, "MEMORY_BYTES", 1500)


def all_entries(journal: Journal) -> list[tuple[bytes, int, int]]:
    """The log as `slice` gives it, from the disk where memory has it no more."""
    found: list[tuple[bytes, int, int]] = []
    at = journal.base_index + 1
    while at <= journal.last_index:
        part = journal.slice(at, journal.last_index)
        assert part and part[0][1] == at
        found += part
        at = part[-1][1] + 1
    return found


def grown(path: Path, count: int = 60) -> Journal:
    journal = Journal(str(path))
    for index in range(1, count + 1):
        journal.add(b"command %d" % index, index, 1 + index // 10)
        journal.setRaftCommitIndex(index)
        save(journal)
    return journal


def test_old_entries_are_read_while_a_batch_behind_them_is_on_its_way(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader sends a lagging follower what stands before a batch that the disk does not have yet (seed 225)."""
    monkeypatch.setattr(journal_module, "MEMORY_BYTES", 1500)
    journal = grown(tmp_path / "j")
    journal.add(b"command 61", 61, 7)
    batch = journal.take()
    assert batch is not None and journal.slice(3, 40)[0] == (b"command 3", 3, 1)
    assert [entry[0] for entry in all_entries(journal)] == [b"command %d" % i for i in range(1, 62)]
    journal.put(batch)
    journal.settle(batch)
    assert [entry[0] for entry in all_entries(journal)] == [b"command %d" % i for i in range(1, 62)]
    journal.close()


def test_old_entries_are_read_from_the_disk(tmp_path: Path, tiny: None) -> None:
    journal = grown(tmp_path / "j")
    assert len(journal) < 20 and len(os.listdir(tmp_path)) > 3, "memory and segments are bounded"
    assert [entry[0] for entry in all_entries(journal)] == [b"command %d" % i for i in range(1, 61)]
    assert [journal.term_at(i) for i in (0, 1, 9, 10, 37, 60, 61)] == [None, 1, 1, 2, 4, 7, None]
    journal.close()
    again = Journal(str(tmp_path / "j"))
    assert len(again) < 20 and [entry[1] for entry in all_entries(again)] == list(range(1, 61))
    again.close()


def test_a_damaged_old_entry_is_never_sent(tmp_path: Path, tiny: None) -> None:
    journal = grown(tmp_path / "j")
    path = tmp_path / f"j{FIRST}"
    content = bytearray(path.read_bytes())
    content[content.index(b"command 3")] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptFile, match="00000001 is damaged at byte"):
        all_entries(journal)
    journal.close()
    with pytest.raises(CorruptFile, match="00000001 is damaged at byte"):
        Journal(str(tmp_path / "j"))


def test_compaction_drops_whole_segments_and_the_log_begins_behind_them(tmp_path: Path, tiny: None) -> None:
    journal = grown(tmp_path / "j")
    entries = all_entries(journal)
    journal.compact(40, keep_bytes=1 << 30)
    assert journal.base_index == 0, "all is kept that may be"
    journal.compact(40, keep_bytes=0)
    base = journal.base_index
    assert 30 < base <= 40 and journal.term_at(base) == 1 + base // 10 and journal.term_at(base - 1) is None
    assert all_entries(journal) == entries[base:]
    journal.add(b"more", 61, 9)
    save(journal)
    journal.close()
    again = Journal(str(tmp_path / "j"))
    assert again.base_index == base and all_entries(again)[:-1] == entries[base:]
    assert again.getRaftCommitIndex() == 60 and again.getCurrentTerm() == 0
    again.close()


def test_a_removal_that_power_undid_in_part_is_done_again(tmp_path: Path, tiny: None) -> None:
    journal = grown(tmp_path / "j")
    first = (tmp_path / f"j{FIRST}").read_bytes()
    journal.compact(40, keep_bytes=0)
    base = journal.base_index
    journal.close()
    (tmp_path / f"j{FIRST}").write_bytes(first)
    again = Journal(str(tmp_path / "j"))
    assert again.base_index == base and not (tmp_path / f"j{FIRST}").exists()
    again.close()


def test_a_missing_tail_of_a_segment_that_others_follow_is_damage(tmp_path: Path, tiny: None) -> None:
    grown(tmp_path / "j").close()
    second = tmp_path / "j.00000002"
    second.write_bytes(second.read_bytes()[:-5])
    with pytest.raises(CorruptFile, match="more segments follow"):
        Journal(str(tmp_path / "j"))


def test_a_reset_log_begins_behind_the_snapshot(tmp_path: Path, tiny: None) -> None:
    journal = grown(tmp_path / "j")
    configured = Configuration(("a", "b")).encode()
    journal.setCurrentTerm(12, "c")
    journal.reset_to(500, 11, configured)
    assert journal.durable_index == 0 and journal.last_index == 500 and journal.term_at(500) == 11
    journal.add(b"next", 501, 12)
    save(journal)
    assert journal.durable_index == 501 and len(os.listdir(tmp_path)) == 1
    journal.close()
    again = Journal(str(tmp_path / "j"))
    assert (again.base_index, again.term_at(500), again.configurations) == (500, 11, [(500, configured)])
    assert all_entries(again) == [(b"next", 501, 12)] and again.getVotedForNodeId() == "c"
    again.close()


def test_a_reset_counts_although_the_old_segments_are_still_there(tmp_path: Path, tiny: None) -> None:
    journal = grown(tmp_path / "j")
    old = {path: path.read_bytes() for path in tmp_path.iterdir()}
    journal.reset_to(500, 11, b"")
    save(journal)
    journal.close()
    for path, content in old.items():
        path.write_bytes(content)
    again = Journal(str(tmp_path / "j"))
    assert again.base_index == again.last_index == 500 and len(os.listdir(tmp_path)) == 1
    again.close()


def test_a_reset_while_a_batch_is_being_written_waits_for_its_own(tmp_path: Path) -> None:
    journal = filled(tmp_path / "j")
    journal.add(b"under way", 6, 1)
    batch = journal.take()
    assert batch is not None
    journal.put(batch)
    journal.reset_to(500, 11, b"")
    journal.settle(batch)
    assert journal.durable_index == 0, "the snapshot's index is not in this journal yet"
    save(journal)
    assert journal.durable_index == 500
    journal.close()


@pytest.mark.parametrize("seed", range(40))
def test_segments_behave_as_one_log(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model: the log is a list; whatever is rolled, trimmed, compacted or cut, `slice` gives what the list has."""
    for name, value in (("SEGMENT_BYTES", 400), ("STRETCH_BYTES", 120), ("MEMORY_BYTES", 700)):
        monkeypatch.setattr(journal_module, name, value)
    rng = Random(seed)
    kinds = ["add"] * 10 + ["cut"] * 3 + ["save"] * 8 + ["compact", "power", "reset"]
    _model([(rng.choice(kinds), rng.randrange(10)) for _ in range(400)], rng)


def _model(steps: list[tuple[str, int]], rng: Random) -> None:
    disk = SimDisk()
    journal = Journal("j", disk=disk)
    model: dict[int, tuple[bytes, int, int]] = {}
    commit, term = 0, 1

    def check(found: Journal, wanted: dict[int, tuple[bytes, int, int]]) -> None:
        assert found.last_index == max(wanted, default=found.base_index)
        assert {entry[1]: entry for entry in all_entries(found)} == {
            index: entry for index, entry in wanted.items() if index > found.base_index}

    journal.add(b"", 1, 1)
    model[1] = (b"", 1, 1)
    save(journal)
    saved = dict(model)
    for what, number in steps:
        last = journal.last_index
        if what == "add":
            model[last + 1] = (bytes([number]) * rng.randrange(90), last + 1, term)
            journal.add(*model[last + 1])
        elif what == "cut" and last - number > max(commit, 1):
            journal.truncate_from(last - number + 1) if number else None
            model = {index: entry for index, entry in model.items() if index <= last - number}
            term += 1
        elif what == "save":
            save(journal)
            saved = dict(model)
            commit = max(commit, journal.last_index - number)
            journal.setRaftCommitIndex(commit)
        elif what == "compact" and commit:
            journal.compact(min(commit, journal.durable_index), keep_bytes=number * 100)
        elif what == "reset" and number == 0:
            journal.reset_to(last + 5, term, b"")
            save(journal)
            model, commit = {}, last + 5
            saved = {}
            journal.setRaftCommitIndex(commit)
        elif what == "power":
            if batch := journal.take():
                tear(disk, batch, rng.random())
            disk.lose_power(rng)
            journal = Journal("j", disk=disk)
            model = dict(saved) if journal.last_index == max(saved, default=journal.base_index) and (
                all(entry == saved.get(entry[1]) for entry in all_entries(journal))) else model
            saved = dict(model)
        check(journal, model)
