"""Batches, exactly once, time, totality, and the file the state lives in."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest
from machine_world import BOOTSTRAP, World, open_machine, path

from raftmft.core import commands as c
from raftmft.core.dedup import MAX_KEPT
from raftmft.core.errors import CorruptFile, RaftmftError
from raftmft.core.machine import Entry, Machine, discard, open_reader
from raftmft.core.outcome import Code, Outcome
from raftmft.core.schema import FORMAT_VERSION
from raftmft.core.state import Refuse
from raftmft.wire.commands import encode_outcome


def envelope(command: c.Command, seq: int, epoch: int, acked_below: int = 0) -> c.Envelope:
    return c.Envelope(command, c.CommandId("id-n1", epoch, seq), acked_below)


# --- batches and applied -----------------------------------------------------------------------------------------
def test_outcomes_stand_in_the_order_of_the_entries_and_name_their_index(world: World) -> None:
    start = world.index
    entries = [Entry(start + 1 + i, 5, c.Envelope(c.UserAdd(f"user{i}"))) for i in range(3)]
    outcomes = world.machine.apply_batch(entries)
    assert [o.index for o in outcomes] == [start + 1, start + 2, start + 3]
    assert [o.value["uid"] for o in outcomes] == [1000, 1001, 1002]
    assert world.machine.applied == start + 3


def test_an_empty_batch_changes_nothing(world: World) -> None:
    before = world.machine.digest()
    assert world.machine.apply_batch([]) == []
    assert world.machine.digest() == before


def test_applied_entries_are_skipped_and_never_claimed_to_have_succeeded(world: World) -> None:
    world.user()
    before = world.machine.digest()
    outcomes = world.machine.apply_batch(world.entries)
    assert len(outcomes) == len(world.entries)
    assert {o.rejection.code for o in outcomes if o.rejection} == {Code.STALE_COMMAND}
    assert world.machine.digest() == before


def test_a_skipped_entry_gives_its_stored_outcome_if_it_has_one(world: World) -> None:
    epoch = world.boot()
    first = world.apply(c.UserAdd("ann"), identity=c.CommandId("id-n1", epoch, 1))
    assert world.machine.apply_batch([world.entries[-1]]) == [first]


def test_indexes_may_have_gaps(world: World) -> None:
    world.index += 50
    world.user()
    assert world.machine.applied == world.index


def test_state_survives_close_and_reopen(world: World, tmp_path: Path) -> None:
    world.user()
    digest, applied = world.machine.digest(), world.machine.applied
    world.machine.close()
    again = open_machine(world.file)
    assert (again.digest(), again.applied) == (digest, applied)
    again.close()


def test_time_never_goes_back(world: World) -> None:
    world.now_ms = 5_000_000_000_000
    world.ok(c.NoOp())
    world.now_ms = 1
    world.user()
    assert world.machine.now_ms == 5_000_000_000_000
    assert world.last()["time"] == 5_000_000_000_000


def test_a_mad_stamp_does_not_stop_the_machine(world: World) -> None:
    world.now_ms = (1 << 64) - 1
    world.user()
    assert world.machine.now_ms == 1 << 53


# --- exactly once ------------------------------------------------------------------------------------------------
def test_a_retried_command_is_applied_once_and_gives_the_same_outcome_byte_for_byte(world: World) -> None:
    epoch = world.boot()
    identity = c.CommandId("id-n1", epoch, 7)
    first = world.apply(c.UserAdd("ann"), identity=identity)
    count = world.machine.audit.count
    again = world.apply(c.UserAdd("ann"), identity=identity)
    assert encode_outcome(again) == encode_outcome(first)
    assert again.index == first.index != world.index
    assert world.machine.audit.count == count


def test_a_retry_within_one_batch_is_applied_once(world: World) -> None:
    epoch = world.boot()
    one = envelope(c.UserAdd("ann"), 1, epoch)
    first, second = world.machine.apply_batch([Entry(world.index + 1, 1, one), Entry(world.index + 2, 1, one)])
    assert first == second and first.ok


def test_a_rejection_is_remembered_too(world: World) -> None:
    epoch = world.boot()
    identity = c.CommandId("id-n1", epoch, 1)
    first = world.apply(c.UserRemove("ann"), identity=identity)
    assert first.rejection is not None and first.rejection.code == Code.NO_USER
    world.user()
    assert world.apply(c.UserRemove("ann"), identity=identity) == first
    assert world.machine.users.get("ann") is not None


@pytest.mark.parametrize("offset", [-1, 1])
def test_a_command_of_another_epoch_is_rejected(world: World, offset: int) -> None:
    world.boot()
    epoch = world.boot()
    outcome = world.apply(c.UserAdd("ann"), identity=c.CommandId("id-n1", epoch + offset, 1))
    assert outcome.rejection is not None and outcome.rejection.code == Code.STALE_EPOCH
    assert world.machine.users.get("ann") is None


@pytest.mark.parametrize("identity", [c.CommandId("id-n1", 0, 1), c.CommandId("nobody", 0, 1)])
def test_a_command_of_a_member_that_never_booted_is_rejected(world: World, identity: c.CommandId) -> None:
    outcome = world.apply(c.UserAdd("ann"), identity=identity)
    assert outcome.rejection is not None and outcome.rejection.code == Code.STALE_EPOCH


def test_a_new_epoch_numbers_its_commands_from_the_start(world: World) -> None:
    for name in ("ann", "bob"):
        epoch = world.boot()
        assert world.apply(c.UserAdd(name), identity=c.CommandId("id-n1", epoch, 1)).ok


def test_a_repeated_boot_keeps_what_was_remembered_also_after_reopening(world: World) -> None:
    epoch = world.boot(nonce=b"once")
    identity = c.CommandId("id-n1", epoch, 1)
    first = world.apply(c.UserAdd("ann"), identity=identity)
    world.machine.close()
    world.machine = open_machine(world.file)
    assert world.boot(nonce=b"once") == epoch
    assert world.apply(c.UserAdd("ann"), identity=identity) == first


def test_below_the_acknowledged_mark_a_command_is_stale_and_its_outcome_forgotten(world: World) -> None:
    epoch = world.boot()
    world.apply(c.UserAdd("ann"), identity=c.CommandId("id-n1", epoch, 1))
    world.apply(c.NoOp(), identity=c.CommandId("id-n1", epoch, 5), acked_below=4)
    for seq in (1, 3):
        outcome = world.apply(c.UserAdd(f"late{seq}"), identity=c.CommandId("id-n1", epoch, seq))
        assert outcome.rejection is not None and outcome.rejection.code == Code.STALE_COMMAND
        assert world.machine.users.get(f"late{seq}") is None
    assert world.apply(c.UserAdd("bob"), identity=c.CommandId("id-n1", epoch, 4)).ok
    (kept,) = world.machine._db.execute("SELECT count(*) FROM outcomes").fetchone()
    assert kept == 2  # 4 and 5


def test_a_mark_beyond_the_commands_own_number_does_not_make_it_stale(world: World) -> None:
    epoch = world.boot()
    assert world.apply(c.UserAdd("ann"), identity=c.CommandId("id-n1", epoch, 3), acked_below=99).ok
    assert world.apply(c.UserAdd("bob"), identity=c.CommandId("id-n1", epoch, 4)).ok


def test_a_member_that_never_acknowledges_costs_a_bounded_room(world: World) -> None:
    epoch = world.boot()
    count = MAX_KEPT + 500
    entries = [Entry(world.index + 1 + i, 1, envelope(c.NoOp(), i, epoch)) for i in range(count)]
    for i in range(0, count, 1000):
        world.machine.apply_batch(entries[i : i + 1000])
    (kept,) = world.machine._db.execute("SELECT count(*) FROM outcomes").fetchone()
    assert kept == MAX_KEPT
    late = world.machine.apply_batch([Entry(world.index + count + 1, 1, envelope(c.UserAdd("ann"), 499, epoch))])
    assert late[0].rejection is not None and late[0].rejection.code == Code.STALE_COMMAND


def test_an_expiry_proposed_by_the_expired_member_itself_leaves_no_outcome_in_the_new_epoch(world: World) -> None:
    epoch = world.boot()
    assert world.apply(c.ExpireMember("id-n1", epoch), identity=c.CommandId("id-n1", epoch, 1)).ok
    assert world.machine._db.execute("SELECT count(*) FROM outcomes").fetchone() == (0,)
    assert world.apply(c.UserAdd("ann"), identity=c.CommandId("id-n1", epoch + 1, 1)).ok


# --- totality ----------------------------------------------------------------------------------------------------
def test_a_failing_handler_is_rolled_back_and_rejected_alike_everywhere(world: World, caplog) -> None:
    def broken(command: c.UserAdd) -> dict:
        world.machine.users.add(command)
        raise KeyError("a bug")

    before = world.state()
    world.machine._handlers[c.UserAdd] = broken
    outcome = world.apply(c.UserAdd("ann"))
    assert outcome.rejection is not None and outcome.rejection.code == Code.INTERNAL
    assert world.state() == before, "users, inodes, uid counter and audit chain are as before"
    assert "bug" in caplog.text and caplog.records[-1].levelname == "CRITICAL"
    world.machine._handlers[c.UserAdd] = world.machine.users.add
    assert world.user() == 1000
    assert world.machine.audit.verify() is None


def test_a_refusal_takes_back_what_was_written_before_it(world: World) -> None:
    def late(command: c.UserAdd) -> dict:
        world.machine.users.add(command)
        raise Refuse(Code.LIMIT, "too late")

    world.machine._handlers[c.UserAdd] = late
    assert world.refused(c.UserAdd("ann")) == Code.LIMIT
    world.machine._handlers[c.UserAdd] = world.machine.users.add
    assert world.user() == 1000


def test_a_failing_entry_does_not_touch_its_neighbours_in_the_batch(world: World) -> None:
    world.user()
    session = world.login()
    huge = c.SetStat(session, (), c.Attrs(), file=1 << 70)  # overflows SQLite's integers
    index = world.index
    outcomes = world.machine.apply_batch([
        Entry(index + 1, 1, c.Envelope(c.UserAdd("bob"))), Entry(index + 2, 1, c.Envelope(huge)),
        Entry(index + 3, 1, c.Envelope(c.UserAdd("cat")))])
    assert [o.rejection.code if o.rejection else None for o in outcomes] == [None, Code.INTERNAL, None]
    assert world.machine.users.get("bob") and world.machine.users.get("cat")


def test_an_outcome_that_cannot_be_encoded_is_an_internal_error_and_rolled_back(world: World) -> None:
    world.machine._handlers[c.UserAdd] = lambda command: {**world.machine.users.add(command), "bad": object()}
    outcome = world.apply(c.UserAdd("ann"))
    assert outcome.rejection is not None and outcome.rejection.code == Code.INTERNAL
    assert world.machine.users.get("ann") is None


@pytest.mark.parametrize("error", [OSError("disk"), MemoryError(), sqlite3.OperationalError("disk I/O error"),
                                   sqlite3.DatabaseError("malformed"), KeyboardInterrupt()])
def test_trouble_of_this_host_stops_the_machine_and_commits_nothing(world: World, error: BaseException) -> None:
    def failing(command: c.UserSet) -> dict:
        raise error

    applied, before = world.machine.applied, world.state()
    world.machine._handlers[c.UserSet] = failing
    with pytest.raises(type(error)):
        world.machine.apply_batch([Entry(applied + 1, 1, c.Envelope(c.UserAdd("ann"))),
                                   Entry(applied + 2, 1, c.Envelope(c.UserSet("ann")))])
    assert world.machine.applied == applied and world.state() == before
    with pytest.raises(RaftmftError, match="stop the node"):
        world.machine.apply_batch([Entry(applied + 1, 1, c.Envelope(c.NoOp()))])
    with pytest.raises(RaftmftError, match="discard"):
        world.machine.close()
    world.machine = open_machine(world.file)
    assert world.machine.applied == applied


# --- bootstrap ---------------------------------------------------------------------------------------------------
def test_the_cluster_is_made_once(tmp_path: Path) -> None:
    world = World(tmp_path / "s", bootstrap=False)
    assert not world.machine.is_bootstrapped and world.machine.settings.placement == 0
    assert world.refused(c.MemberBoot("id-n1", b"x", "1")) == Code.INVALID
    world.ok(BOOTSTRAP)
    settings = world.machine.settings
    assert world.machine.is_bootstrapped and settings.placement == world.index
    assert (settings.cluster, settings.cluster_id, settings.replicas) == ("test", "c0ffee", 3)
    assert (settings.host_public_key, settings.sealed_host_key, settings.sealed_ca_key) == (
        "ssh-ed25519 AAAA host", b"sealed host", b"sealed ca")
    assert [m.id for m in world.machine.members.list()] == ["id-n1", "id-n2", "id-n3"]
    assert world.refused(BOOTSTRAP) == Code.EXISTS


def test_a_bootstrap_that_fails_late_leaves_no_cluster(tmp_path: Path) -> None:
    world = World(tmp_path / "s", bootstrap=False)
    original = world.machine._handlers[c.Bootstrap]

    def broken(command: c.Bootstrap) -> dict:
        original(command)
        raise ValueError("a bug")

    world.machine._handlers[c.Bootstrap] = broken
    assert world.refused(BOOTSTRAP) == Code.INTERNAL
    assert not world.machine.is_bootstrapped
    world.machine._handlers[c.Bootstrap] = original
    world.ok(BOOTSTRAP)


@pytest.mark.parametrize("change", [
    {"members": ()}, {"members": (BOOTSTRAP.members[0],) * 2}, {"replicas": 0}, {"replicas": 99}, {"cluster": ""}])
def test_a_senseless_cluster_is_refused(tmp_path: Path, change: dict) -> None:
    world = World(tmp_path / "s", bootstrap=False)
    fields = {f: getattr(BOOTSTRAP, f) for f in BOOTSTRAP.__dataclass_fields__}
    assert world.refused(c.Bootstrap(**{**fields, **change})) == Code.INVALID
    assert not world.machine.is_bootstrapped


# --- the file ----------------------------------------------------------------------------------------------------
def open_plain(file: Path) -> Machine:
    return Machine(str(file), encode_outcome=encode_outcome, decode_outcome=lambda b: Outcome(0))


def test_a_file_of_another_format_is_refused_by_name_and_both_versions(world: World) -> None:
    world.machine._db.execute("PRAGMA user_version = 77")
    world.machine.close()
    line = rf"state\.db has state format 77, this program reads format {FORMAT_VERSION}"
    with pytest.raises(CorruptFile, match=line):
        open_machine(world.file)
    world.machine = open_machine(world.file + ".other")


def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "other.db"
    db = sqlite3.connect(file)
    db.execute("CREATE TABLE t (x)")
    db.commit()
    db.close()
    content = file.read_bytes()
    with pytest.raises(CorruptFile, match=r"other\.db"):
        open_plain(file)
    assert file.read_bytes() == content


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "junk.db"
    file.write_bytes(b"this is no database, however long it may be" * 100)
    with pytest.raises(CorruptFile, match=r"junk\.db"):
        open_plain(file)


def test_discard_removes_the_file_and_its_side_files_and_may_be_repeated(world: World, tmp_path: Path) -> None:
    world.user()
    names = {p.name for p in tmp_path.iterdir()}
    assert "state.db-wal" in names
    discard(world.file)
    discard(world.file)
    assert not list(tmp_path.iterdir())


def test_a_clean_close_leaves_everything_on_disk(world: World, tmp_path: Path, monkeypatch) -> None:
    """The node's mark of a clean stop says that the file may be trusted, so the file must be synced before."""
    synced: list[str] = []
    real_fsync = os.fsync

    def fsync(fd: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        real_fsync(fd)

    world.user()
    monkeypatch.setattr(os, "fsync", fsync)
    world.machine.close()
    assert synced == ["state.db", tmp_path.name]
    assert not (tmp_path / "state.db-wal").exists()
    world.machine = open_machine(world.file)
    world.user("bob")
    synced.clear()
    reader = open_reader(world.file)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM clock").fetchone()
    world.machine.close()
    reader.close()
    assert "state.db-wal" in synced, "a reader kept the WAL alive: it holds what was applied last"
    world.machine = open_machine(world.file)
    assert world.machine.users.get("bob") is not None


def test_a_kill_between_batches_loses_no_batch_that_returned(world: World, tmp_path: Path) -> None:
    """Copying the files of a live database is what a killed process leaves behind."""
    world.user()
    world.login()
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tmp_path.glob("state.db*"):
        (copy / file.name).write_bytes(file.read_bytes())
    again = open_machine(copy / "state.db")
    assert again.digest() == world.machine.digest()
    again.close()


def test_an_unknown_paths_rejection_says_what_was_not_found(world: World) -> None:
    world.user()
    answer = world.machine.namespace.stat("ann", path("missing.txt"))
    assert "missing.txt" in str(answer)
