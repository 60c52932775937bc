"""Opens that are recorded after they were answered: once each, in their order, and what they read stays meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
from machine_world import World, path

from raftmft.core import commands as c
from raftmft.core.opens import REPORT_LIMIT_MS
from raftmft.core.outcome import Code, Rejection

ME, OTHER = "id-n1", "id-n2"


@pytest.fixture
def relaxed(world: World) -> World:
    """Members booted, opens relaxed, and /f published by the first session there is."""
    world.user()
    for member in (ME, OTHER):
        world.boot(member)
    world.put(world.login(), "f")
    world.ok(c.ConfigSet("audit.opens", "relaxed"))
    return world


def answered(world: World, session: int, number: int, name: str = "f") -> tuple[Any, ...]:
    """What a member keeps of an open that it answers now."""
    found = world.machine.opens.look(session, path(name))
    assert not isinstance(found, Rejection)
    value, who, where = found
    return (number, session, who.user, who.address, value["file"], value["version"], where, value["size"],
            value["digest"], world.machine.applied)


def opened(world: World) -> list[tuple[str, int, str]]:
    return [(r["path"], r["session"], r["outcome"]) for r in world.machine.audit.query(kind="open")
            if r["outcome"].startswith("ok, as of")]


# --- what is answered and recorded -----------------------------------------------------------------------------------
def test_an_answer_is_what_the_command_would_give_and_changes_nothing(relaxed: World) -> None:
    session = relaxed.login()
    before = relaxed.state()
    found = relaxed.machine.opens.look(session, path("f"))
    assert not isinstance(found, Rejection) and relaxed.state() == before
    value = relaxed.ok(c.OpenRead(session, path("f")))
    assert {"open": relaxed.index, **found[0]} == value
    for name, code in (("none", Code.NOT_FOUND), ("", Code.IS_A_DIRECTORY)):
        refused = relaxed.machine.opens.look(session, path(name))
        assert isinstance(refused, Rejection) and refused.code == code
    relaxed.ok(c.UserSet("ann", enabled=False))
    refused = relaxed.machine.opens.look(session, path("f"))
    assert isinstance(refused, Rejection) and refused.code in (Code.DISABLED, Code.NO_SESSION)


def test_a_batch_is_recorded_in_its_order_and_once(relaxed: World) -> None:
    one, two = relaxed.login(), relaxed.login()
    first = answered(relaxed, one, 1)
    relaxed.put(one, "g")
    second = answered(relaxed, two, 2, "g")
    relaxed.ok(c.RecordOpens(ME, (first, second), relaxed.index))
    expected = [("/f", one, f"ok, as of index {first[-1]}"), ("/g", two, f"ok, as of index {second[-1]}")]
    assert opened(relaxed) == expected
    record = relaxed.last()
    assert (record["user"], record["member"], record["address"], record["size"]) == ("ann", ME, "192.0.2.1:5000", 10)
    third = answered(relaxed, one, 3)
    relaxed.ok(c.RecordOpens(ME, (first, second, third), relaxed.index))
    assert opened(relaxed) == [*expected, ("/f", one, f"ok, as of index {third[-1]}")]
    assert relaxed.machine.opens.count() == 3 and relaxed.machine.audit.verify() is None
    relaxed.ok(c.RecordOpens(OTHER, (answered(relaxed, relaxed.login(member=OTHER), 1),), relaxed.index))
    assert len(opened(relaxed)) == 4, "each member counts its own"


def test_ends_of_such_reads_are_recorded_and_a_copy_finds_them(relaxed: World) -> None:
    session = relaxed.login()
    relaxed.ok(c.RecordOpens(ME, (answered(relaxed, session, 7),), relaxed.index))
    upload = relaxed.begin(session, "copy")["upload"]
    relaxed.ok(c.CopyData(session, upload, -7, c.Manifest(10, 0, b"\1" * 32), 10))
    relaxed.ok(c.ReadEnd(((session, -7, 10, True), (session + 1, -7, 10, True))))
    (record,) = relaxed.machine.audit.query(kind="read_end")
    assert (record["path"], record["size"], record["outcome"]) == ("/f", 10, "ok")
    assert relaxed.machine.opens.count() == 0


def test_what_was_opened_by_a_session_that_is_over_is_recorded_and_finishes(relaxed: World) -> None:
    session = relaxed.login()
    opens = answered(relaxed, session, 1), answered(relaxed, session, 2)
    relaxed.ok(c.Logout(session))
    relaxed.ok(c.RecordOpens(ME, opens, relaxed.index))
    assert [r["session"] for r in relaxed.machine.audit.query(kind="open")][-2:] == [session, session]
    relaxed.ok(c.ReadEnd(((session, -1, 10, True),)))
    relaxed.now_ms += 2 * REPORT_LIMIT_MS
    relaxed.ok(c.NoOp())
    assert [r["outcome"] for r in relaxed.machine.audit.query(kind="read_end")] == ["ok", "finish unknown"]


def test_opens_are_recorded_over_a_new_epoch_but_not_twice(relaxed: World) -> None:
    session = relaxed.login()
    opens = answered(relaxed, session, 1), answered(relaxed, session, 2)
    relaxed.ok(c.RecordOpens(ME, opens[:1], relaxed.index))
    relaxed.boot(ME)
    relaxed.ok(c.RecordOpens(ME, opens, relaxed.index))
    assert len(opened(relaxed)) == 2 and relaxed.machine.opens.recorded(ME) == 2


def test_nonsense_is_refused(relaxed: World, monkeypatch: pytest.MonkeyPatch) -> None:
    session = relaxed.login()
    good = answered(relaxed, session, 1)
    assert relaxed.refused(c.RecordOpens("stranger", (), relaxed.index)) == Code.NOT_FOUND
    for at in (0, -1, relaxed.index + 100):
        assert relaxed.refused(c.RecordOpens(ME, ((*good[:-1], at),), relaxed.index)) == Code.INVALID
    monkeypatch.setattr("raftmft.core.opens.MAX_RECORDS", 1)
    assert relaxed.refused(c.RecordOpens(ME, (good, (2, *good[1:])), relaxed.index)) == Code.INVALID


def test_a_file_that_was_removed_before_its_open_was_recorded(relaxed: World) -> None:
    session = relaxed.login()
    kept = answered(relaxed, session, 1)
    relaxed.ok(c.Remove(session, path("f")))
    relaxed.ok(c.RecordOpens(ME, (kept,), kept[-1]))
    assert relaxed.machine.opens.oldest(ME) == kept[-1], "its chunks were dereferenced after what is still read"
    relaxed.ok(c.ReadEnd(((session, -1, 10, True),)))
    assert relaxed.machine.opens.count() == 0


# --- what may be deleted ---------------------------------------------------------------------------------------------
def test_strict_opens_tell_of_the_oldest_read_themselves(world: World) -> None:
    world.user()
    session = world.login()
    world.put(session, "f")
    assert world.machine.opens.oldest(ME) is None
    first = world.ok(c.OpenRead(session, path("f")))["open"]
    second = world.ok(c.OpenRead(session, path("f")))["open"]
    assert world.machine.opens.oldest(ME) == first
    world.ok(c.ReadEnd(((session, first, 1, True),)))
    assert world.machine.opens.oldest(ME) == second


def test_no_member_reads_an_older_state_than_its_mark_says(relaxed: World) -> None:
    since, oldest = relaxed.index, relaxed.machine.opens.oldest
    assert oldest(ME) == oldest(OTHER) == since and oldest("id-n3") is None, "id-n3 never booted"
    session = relaxed.login()
    one = answered(relaxed, session, 1)
    relaxed.put(session, "g")
    two = answered(relaxed, session, 2)
    assert oldest(ME) == since
    relaxed.ok(c.RecordOpens(ME, (one,), two[-1]))  # `two` still waits
    assert oldest(ME) == one[-1]
    relaxed.ok(c.ReadEnd(((session, -1, 1, True),)))
    assert oldest(ME) == two[-1]
    relaxed.ok(c.RecordOpens(ME, (two,), relaxed.index))
    relaxed.ok(c.ReadEnd(((session, -2, 1, True),)))
    assert oldest(ME) == relaxed.index - 2 and oldest(OTHER) == since
    relaxed.ok(c.RecordOpens(ME, (), 5))  # a batch that came late
    assert oldest(ME) == relaxed.index - 3


def test_a_mark_goes_only_when_the_member_has_applied_that_opens_are_strict(relaxed: World) -> None:
    oldest = relaxed.machine.opens.oldest
    session = relaxed.login()
    waiting = answered(relaxed, session, 1)
    relaxed.ok(c.ConfigSet("audit.opens", "strict"))
    strict = relaxed.index
    relaxed.ok(c.RecordOpens(ME, (), waiting[-1]))
    assert oldest(ME) == waiting[-1], "one waits that was answered before"
    relaxed.ok(c.RecordOpens(ME, (waiting,), strict - 1))
    relaxed.ok(c.ReadEnd(((session, -1, 1, True),)))
    assert oldest(ME) == strict - 1, "it had not applied the entry yet"
    relaxed.ok(c.RecordOpens(ME, (), strict))
    assert oldest(ME) is None and oldest(OTHER) is not None
    relaxed.ok(c.ConfigSet("audit.opens", "relaxed"))
    again = relaxed.index
    relaxed.ok(c.ConfigSet("audit.opens", "strict"))
    relaxed.ok(c.RecordOpens(ME, (), strict))  # proposed long ago: of what it answered since it says nothing
    assert oldest(ME) == again


@pytest.mark.parametrize("how", ["expire", "boot", "remove"])
def test_a_dead_member_holds_nothing_up(relaxed: World, how: str) -> None:
    relaxed.ok(c.RecordOpens(ME, (answered(relaxed, relaxed.login(), 1),), relaxed.index))
    epoch = relaxed.machine.members.epoch(ME)
    if how == "expire":
        relaxed.ok(c.ExpireMember(ME, epoch))
        assert relaxed.machine.opens.oldest(ME) is None
        relaxed.ok(c.ConfigSet("audit.opens", "relaxed"))
        assert relaxed.machine.opens.oldest(ME) is None, "and is not asked for anything before it boots"
    elif how == "boot":
        relaxed.boot(ME)
        assert relaxed.machine.opens.oldest(ME) == relaxed.index
    else:
        relaxed.ok(c.MemberRemove(ME))
        assert relaxed.machine.opens.oldest(ME) is None
    assert [r["outcome"] for r in relaxed.machine.audit.query(kind="read_end")] == ["finish unknown"]
