"""The feature level: one entry raises it once all know it; nothing of it shows below; too old a program stops."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machine_world import BOOTSTRAP, HOUR_MS, MEMBERS, World, open_machine
from test_state_properties import STEPS, Author

from raftmft.core import commands as c
from raftmft.core import features
from raftmft.core.errors import ProgramTooOld
from raftmft.core.features import FIRST, LEVELS, Features, Level
from raftmft.core.machine import Entry, Machine
from raftmft.core.outcome import Code, Outcome
from raftmft.wire.commands import decode_outcome, encode_outcome
from tests.next_level import FEATURES, NEXT, MarkedMkdir, NextMachine, teach

BEFORE = NEXT - 1
LINE = f"the cluster is at feature level {NEXT} and this program knows level {BEFORE} only: run a version that knows"


def next_machine(path: Path | str) -> Machine:
    return NextMachine(str(path), encode_outcome=encode_outcome, decode_outcome=decode_outcome)


class NextWorld(World):
    """Three members, all of which run the next version."""

    def __init__(self, file: Path, *, boots: int = 3) -> None:
        super().__init__(file, bootstrap=False)
        self.machine.close()
        self.machine = next_machine(file)
        self.ok(BOOTSTRAP)
        for member in MEMBERS[:boots]:
            self.ok(c.MemberBoot(member.id, b"begun", "99", NEXT))

    def rise(self) -> None:
        assert self.ok(c.FeatureRaise(NEXT)) == {"level": NEXT}


@pytest.fixture
def risen(tmp_path: Path) -> NextWorld:
    world = NextWorld(tmp_path / "state.db")
    world.rise()
    return world


def tables(machine: Machine) -> set[str]:
    return {name for (name,) in machine._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


# --- raising ---------------------------------------------------------------------------------------------------------
def test_a_cluster_begins_with_the_first_level(world: World) -> None:
    assert world.machine.settings.level == FIRST
    assert features.CURRENT.newest == LEVELS[-1].number, "what this program knows"


def test_the_level_rises_once_all_that_are_listed_know_it(tmp_path: Path) -> None:
    world = NextWorld(tmp_path / "s", boots=2)
    assert world.refused(c.FeatureRaise(NEXT)) == Code.CONFLICT, "nothing was heard of n3 yet"
    world.ok(c.MemberBoot("id-n3", b"old", "1", BEFORE))
    assert world.refused(c.FeatureRaise(NEXT)) == Code.CONFLICT, "n3 runs an older version"
    world.ok(c.MemberBoot("id-n3", b"new", "99", NEXT))
    world.ok(c.MemberBoot("id-n1", b"rolled back", "1", BEFORE))
    assert world.refused(c.FeatureRaise(NEXT)) == Code.CONFLICT, "n1 was rolled back"
    world.ok(c.MemberBoot("id-n1", b"and forth", "99", NEXT))
    assert "marks" not in tables(world.machine)
    world.rise()
    assert world.machine.settings.level == NEXT and "marks" in tables(world.machine)
    assert world.machine.audit.verify() is None
    before = world.state()
    for level in (NEXT, BEFORE):
        assert world.ok(c.FeatureRaise(level)) == {"level": NEXT}
    assert world.state() == before, "said twice, and asked to fall: nothing changes"


def test_a_host_that_was_admitted_and_never_ran_counts(tmp_path: Path) -> None:
    world = NextWorld(tmp_path / "s")
    world.ok(c.TokenCreate("ab" * 32, "active", HOUR_MS))
    spec = c.MemberSpec("id-n4", "n4", "10.0.0.4", 1, 2, 3, "4" * 64)
    world.ok(c.MemberAdmit("ab" * 32, "key", spec, 5, "1", BEFORE))
    assert world.refused(c.FeatureRaise(NEXT)) == Code.CONFLICT
    world.ok(c.MemberAdmit("ab" * 32, "key", spec, 5, "99", NEXT))
    row = world.machine.members.get("id-n4")
    assert row is not None and (row.version, row.supports) == ("99", NEXT)
    world.rise()


def test_nobody_raises_the_level_of_a_cluster_that_is_not_made(tmp_path: Path) -> None:
    world = World(tmp_path / "s", bootstrap=False)
    assert world.refused(c.FeatureRaise(NEXT)) == Code.INVALID


def test_levels_have_no_gap_and_the_first_brings_nothing() -> None:
    for wrong in ([Level(2, "x")], [Level(1, "x"), Level(3, "y")], [Level(1, "x", (c.NoOp,))]):
        with pytest.raises(AssertionError):
            Features(wrong)


# --- below -----------------------------------------------------------------------------------------------------------
def test_a_command_of_a_later_level_leaves_no_trace(tmp_path: Path) -> None:
    world = NextWorld(tmp_path / "s")
    world.user()
    session = world.login()
    digest, applied = world.machine.digest(), world.machine.applied
    command = MarkedMkdir(session, (b"d",), None, "m")
    world.now_ms += HOUR_MS
    identity = c.CommandId("id-n1", world.machine.members.epoch("id-n1"), 1)
    for _ in range(2):
        outcome = world.apply(command, identity=identity)
        assert outcome.rejection is not None and outcome.rejection.code == Code.CONFLICT
        assert f"this needs feature level {NEXT} and the cluster is at level {BEFORE}" in outcome.rejection.text
    assert (world.machine.digest(), world.machine.applied) == (digest, applied), "not even the time, or the id"
    world.rise()
    assert world.apply(command, identity=identity).rejection is None


# --- too old ---------------------------------------------------------------------------------------------------------
def test_too_old_a_program_stops_at_the_entry_that_raises_the_level(tmp_path: Path) -> None:
    world = NextWorld(tmp_path / "s")
    entries = [*world.entries]
    world.rise()
    old = open_machine(tmp_path / "old")
    old.apply_batch(entries)
    with pytest.raises(ProgramTooOld, match=LINE):
        old.apply_batch(world.entries[len(entries):])
    assert old.applied == entries[-1].index, "and does not apply it"


def test_too_old_a_program_gets_no_epoch_and_is_not_admitted(risen: NextWorld) -> None:
    risen.ok(c.TokenCreate("ab" * 32, "active", HOUR_MS))
    spec = c.MemberSpec("id-n4", "n4", "10.0.0.4", 1, 2, 3, "4" * 64)
    for command in (c.MemberBoot("id-n1", b"again", "1", BEFORE), c.MemberAdmit("ab" * 32, "k", spec, 5, "1", BEFORE)):
        assert risen.refused(command) == Code.CONFLICT
        rejection = risen.apply(command).rejection
        assert rejection is not None and LINE in rejection.text
    risen.ok(c.MemberAdmit("ab" * 32, "k", spec, 5, "99", NEXT))
    assert risen.refused(c.MemberAdmit("ab" * 32, "k", spec, 5, "1", BEFORE)) == Code.CONFLICT, "nor a second time"


def test_too_old_a_program_refuses_the_state_and_a_snapshot_of_it(risen: NextWorld, tmp_path: Path) -> None:
    risen.machine.copy_to(str(tmp_path / "copy"))
    digest = risen.machine.digest()
    risen.machine.close()
    with pytest.raises(ProgramTooOld, match=rf"state\.db: {LINE}"):
        open_machine(risen.file)
    old = open_machine(tmp_path / "old")
    for attempt in (old.check, old.load):
        with pytest.raises(ProgramTooOld, match=rf"copy: {LINE}"):
            attempt(str(tmp_path / "copy"))
    old.apply_batch([Entry(1, 1, c.Envelope(BOOTSTRAP))])  # it still holds its own state
    again = next_machine(risen.file)
    assert again.digest() == digest and again.settings.level == NEXT


def test_a_newer_program_takes_an_older_state_and_changes_nothing_in_it(world: World, tmp_path: Path) -> None:
    world.user()
    world.machine.copy_to(str(tmp_path / "copy"))
    digest = world.machine.digest()
    world.machine.close()
    newer = next_machine(world.file)
    assert newer.digest() == digest and "marks" not in tables(newer)
    other = next_machine(tmp_path / "other")
    other.load(str(tmp_path / "copy"))
    assert other.digest() == digest and "marks" not in tables(other)
    newer.close()
    world.machine = open_machine(world.file)
    assert world.machine.digest() == digest, "and an older program may go on with it"


def test_the_level_comes_with_a_snapshot(risen: NextWorld, tmp_path: Path) -> None:
    risen.machine.copy_to(str(tmp_path / "copy"))
    behind = next_machine(tmp_path / "behind")
    assert behind.settings.level == BEFORE
    behind.load(str(tmp_path / "copy"))
    assert behind.settings.level == NEXT and behind.digest() == risen.machine.digest()


# --- two versions side by side ---------------------------------------------------------------------------------------
class BusyAuthor(Author):
    """An author whose members run the version that knows `level`, and who asks for what the next level brings."""

    def __init__(self, world: World, level: int) -> None:
        self.level, self.tried = level, list[Entry]()
        super().__init__(world)
        if level == NEXT:
            self.send(c.FeatureRaise(NEXT), False)

    def send(self, command: c.Command, has_id: bool) -> Outcome:
        if isinstance(command, c.MemberBoot):
            command = replace(command, supports=self.level)
        elif isinstance(command, c.Mkdir) and (len(self.outcomes) % 2 or not self.tried):
            marked = MarkedMkdir(command.session, command.path, None, "m")
            if self.world.machine.settings.level == NEXT:
                return super().send(marked, has_id)
            self.world.index += 1  # only who knows the command can decode it
            self.tried.append(Entry(self.world.index, self.world.now_ms + HOUR_MS, c.Envelope(marked)))
        return super().send(command, has_id)


@pytest.mark.parametrize("level", [BEFORE, NEXT])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS, cuts=st.lists(st.integers(0, 120), max_size=6))
def test_at_one_level_two_versions_have_the_same_state(
        level: int, steps: list[tuple[str, int, int, bool]], cuts: list[int]) -> None:
    with tempfile.TemporaryDirectory() as name:
        world = World(Path(name) / "author", bootstrap=False)
        if level == NEXT:
            world.machine.close()
            world.machine = next_machine(world.file)
        author = BusyAuthor(world, level)
        for step in steps:
            author.step(*step)
        later = Level(NEXT + 1, "later", (), ("CREATE TABLE later (x)",))
        known = Features((*LEVELS, *FEATURES.between(BEFORE, NEXT), later))
        newer = Machine(f"{name}/newer", encode_outcome=encode_outcome, decode_outcome=decode_outcome, known=known)
        teach(newer)
        entries = sorted([*world.entries, *author.tried], key=lambda entry: entry.index)
        outcomes, at = {}, 0
        for cut in [*sorted(cut % (len(entries) + 1) for cut in cuts), len(entries)]:
            outcomes |= {outcome.index: outcome for outcome in newer.apply_batch(entries[at:cut])}
            at = max(at, cut)
        assert newer.settings.level == world.machine.settings.level == level
        assert newer.digest() == world.machine.digest()
        for outcome in author.outcomes:
            assert encode_outcome(outcomes[outcome.index]) == encode_outcome(outcome)
        assert author.tried, "the newer one met what the older one cannot decode"
        assert all(outcomes[entry.index].rejection.code == Code.CONFLICT for entry in author.tried)
        world.machine.close()
        newer.close()
