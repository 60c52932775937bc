"""The audit log: complete, chained, and not to be tampered with unnoticed."""

from __future__ import annotations

import hashlib
import json

import pytest
from machine_world import World, key_line, path

from raftmft.core import commands as c
from raftmft.core.audit import FIELDS, KINDS, AuditLog
from raftmft.core.machine import open_reader


@pytest.fixture
def busy(world: World) -> World:
    """A world in which a good deal happened."""
    world.user("ann")
    world.user("bob")
    for user in ("ann", "bob"):
        session = world.login(user)
        world.ok(c.Mkdir(session, path("d")))
        world.put(session, "d/f", 10)
        opened = world.ok(c.OpenRead(session, path("d/f")))["open"]
        world.now_ms += 1000
        world.ok(c.ReadEnd(((session, opened, 10, True),)))
        world.ok(c.Rename(session, path("d/f"), path("d/g")))
        world.ok(c.Remove(session, path("d/g")))
        world.ok(c.Rmdir(session, path("d")))
        world.ok(c.Logout(session))
    return world


def test_every_change_login_and_open_has_its_record_in_log_order(busy: World) -> None:
    records = busy.machine.audit.query(user="ann")
    assert [r["kind"] for r in records] == [
        "login", "mkdir", "open", "publish", "open", "read_end", "rename", "remove", "rmdir", "logout"]
    indexes = [r["index"] for r in busy.machine.audit.query()]
    assert indexes == sorted(indexes)
    assert {r["kind"] for r in busy.machine.audit.query()} <= set(KINDS)
    assert list(records[0]) == [*FIELDS, "hash"]
    assert [r["outcome"] for r in records if r["kind"] == "open"] == ["ok, to write", "ok"]


def test_admin_commands_are_recorded_each(world: World) -> None:
    before = world.machine.audit.count
    world.user()
    world.ok(c.UserSet("ann", quota_bytes=1))
    fingerprint = world.ok(c.UserKeyAdd("ann", key_line()))["fingerprint"]
    world.ok(c.UserKeyRemove("ann", fingerprint))
    world.ok(c.UserRemove("ann"))
    records = world.machine.audit.query()[before:]
    assert [r["target"].split(":")[0].split(" SHA")[0] for r in records] == [
        "user add ann", "user set ann", "user key add ann", "user key remove ann", "user remove ann"]


def test_rejected_and_retried_commands_leave_no_record(world: World) -> None:
    epoch = world.boot()
    count = world.machine.audit.count
    world.apply(c.UserRemove("nobody"))
    assert world.machine.audit.count == count
    for _ in range(2):
        world.apply(c.UserAdd("ann"), identity=c.CommandId("id-n1", epoch, 1))
    assert world.machine.audit.count == count + 1


def test_anyone_can_check_the_chain_from_an_export(busy: World) -> None:
    previous = bytes(32)
    for record in busy.machine.audit.query(limit=10_000):
        line = json.dumps([record[f] for f in FIELDS], separators=(",", ":"))
        previous = hashlib.sha256(previous + line.encode()).digest()
        assert record["hash"] == previous.hex()
    assert busy.machine.audit.head == previous.hex()
    assert busy.machine.audit.verify() is None


@pytest.mark.parametrize("column", ["time", "kind", "user", "path", "target", "member", "address", "session", "size",
                                    "digest", "outcome", "hash", "idx", "n"])
def test_a_changed_record_is_found(busy: World, column: str) -> None:
    audit, db = busy.machine.audit, busy.machine._db
    victim = audit.query(kind="publish")[0]["index"]
    value = b"x" * 32 if column == "hash" else 12 if column in ("time", "session", "size", "n") else "other"
    if column == "idx":
        value = victim + 10_000
    db.execute(f"UPDATE audit SET {column} = ? WHERE idx = ?", (value, victim))
    found = audit.verify()
    assert found is not None and found >= victim
    if column != "idx":
        assert found == victim


def test_removed_added_and_swapped_records_are_found(busy: World) -> None:
    audit, db = busy.machine.audit, busy.machine._db
    indexes = [r["index"] for r in audit.query()]
    for victim, expected in ((indexes[3], indexes[4]), (indexes[-1], indexes[-2] + 1), (indexes[0], indexes[1])):
        row = db.execute("SELECT * FROM audit WHERE idx = ?", (victim,)).fetchone()
        db.execute("DELETE FROM audit WHERE idx = ?", (victim,))
        assert audit.verify() == expected
        db.execute(f"INSERT INTO audit VALUES ({','.join('?' * len(row))})", row)
        assert audit.verify() is None
    db.execute("INSERT INTO audit SELECT idx, n + 1, time, kind, user, path, target, member, address, session, size, "
               "digest, outcome, hash FROM audit WHERE idx = ?", (indexes[2],))
    assert audit.verify() == indexes[2]


def test_verify_may_begin_anywhere(busy: World) -> None:
    audit = busy.machine.audit
    indexes = [r["index"] for r in audit.query()]
    assert all(audit.verify(index) is None for index in (*indexes, indexes[-1] + 5))
    busy.machine._db.execute("UPDATE audit SET user = 'eve' WHERE idx = ?", (indexes[2],))
    assert audit.verify(indexes[2]) is None, "what lies before is believed"
    assert audit.verify(indexes[1]) == indexes[2]


def test_queries_filter(busy: World) -> None:
    audit = busy.machine.audit
    everything = audit.query()
    for filters in ({"user": "bob"}, {"kind": "open"}, {"user": "ann", "kind": "publish"}):
        want = [r for r in everything if all(r[k] == v for k, v in filters.items())]
        assert audit.query(**filters) == want and want
    assert [r["kind"] for r in audit.query(path="d/g", user="ann")] == ["rename", "remove"], "by path and by target"
    assert audit.query(path="/d/g") == audit.query(path="d/g") == audit.query(path="d/g/")
    assert audit.query(path="d/none") == []
    middle = everything[len(everything) // 2]
    assert audit.query(after_index=middle["index"]) == [r for r in everything if r["index"] > middle["index"]]
    assert audit.query(since_ms=middle["time"]) == [r for r in everything if r["time"] >= middle["time"]]
    assert audit.query(until_ms=middle["time"]) == [r for r in everything if r["time"] < middle["time"]]


def test_paging_by_index_loses_nothing_when_an_entry_has_many_records(world: World) -> None:
    world.ok(c.LoginRefused("id-n1", tuple((f"a{i}", "u", "r", 1) for i in range(7))))
    world.ok(c.LoginRefused("id-n1", tuple((f"b{i}", "u", "r", 1) for i in range(3))))
    seen, after = [], 0
    while page := world.machine.audit.query(kind="login_refused", after_index=after, limit=2):
        seen += [r["address"] for r in page]
        after = page[-1]["index"]
    assert seen == [f"a{i}" for i in range(7)] + [f"b{i}" for i in range(3)]


def test_names_that_are_no_text_are_escaped_without_ambiguity(world: World) -> None:
    world.user()
    session = world.login()
    world.ok(c.Mkdir(session, (b"a\xff",)))
    world.ok(c.Mkdir(session, (b"a\\xff",)))
    one, two = world.machine.audit.query(kind="mkdir")
    assert (one["path"], two["path"]) == ("/a\\xff", "/a\\\\xff")
    assert world.machine.audit.query(path="a\\xff") == [one]


def test_a_reader_in_another_connection_sees_whole_batches_only(busy: World) -> None:
    reader = open_reader(busy.file)
    log = AuditLog(reader)
    reader.execute("BEGIN")
    count = log.count
    busy.user("cat")
    assert log.count == count and log.verify() is None
    reader.execute("COMMIT")
    assert log.count == count + 1 and log.verify() is None
    reader.close()


def test_the_newest_records_that_fit_oldest_first(world: World) -> None:
    for number in range(6):
        world.user(f"u{number}")
    every = world.machine.audit.query()
    assert world.machine.audit.query(newest=True, limit=2) == every[-2:]
    assert world.machine.audit.query(newest=True, limit=1000) == every
    assert world.machine.audit.query(newest=True, limit=0) == []
    assert world.machine.audit.query(newest=True, limit=1, kind="admin", after_index=every[-1]["index"]) == []
