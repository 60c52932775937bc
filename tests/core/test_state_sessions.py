"""Logins, ends of sessions, epochs, open reads."""

from __future__ import annotations

import pytest
from machine_world import World, path

from raftmft.core import commands as c
from raftmft.core.manifest import EMPTY
from raftmft.core.opens import MAX_OPENS_PER_SESSION, REPORT_LIMIT_MS
from raftmft.core.outcome import Code


def login(user: str = "ann", member: str = "id-n1", epoch: int = 1, credential: int = 1) -> c.Login:
    return c.Login(member, epoch, user, "192.0.2.1:5000", "password", credential)


def test_a_login_makes_a_session_named_by_its_index(world: World) -> None:
    uid = world.user(read_only=True)
    world.boot()
    value = world.ok(login())
    assert value == {"session": world.index, "read_only": True, "uid": uid}
    row = world.machine.sessions.get(world.index)
    assert row is not None and (row.user, row.member, row.epoch, row.started_ms) == ("ann", "id-n1", 1, world.now_ms)
    record = world.last()
    assert (record["kind"], record["user"], record["session"], record["address"]) == (
        "login", "ann", world.index, "192.0.2.1:5000")


def test_logins_are_refused_by_rule(world: World) -> None:
    world.user()
    assert world.refused(login()) == Code.STALE_EPOCH, "the member never booted"
    assert world.refused(login(epoch=0)) == Code.STALE_EPOCH
    world.boot()
    assert world.refused(login(member="stranger")) == Code.STALE_EPOCH
    assert world.refused(login(user="bob")) == Code.NO_USER
    assert world.refused(login(credential=2)) == Code.STALE_CREDENTIAL
    world.ok(c.UserSet("ann", enabled=False))
    assert world.refused(login(credential=2)) == Code.DISABLED
    world.boot()
    assert world.refused(login()) == Code.STALE_EPOCH


def test_max_sessions_holds_across_members(world: World) -> None:
    world.user(max_sessions=2)
    first = world.login(member="id-n1")
    world.login(member="id-n2")
    world.boot("id-n3")
    assert world.refused(login(member="id-n3")) == Code.LIMIT
    world.ok(c.Logout(first))
    world.ok(login(member="id-n3"))
    assert world.machine.sessions.count() == 2
    assert world.machine.sessions.count("id-n3") == 1
    assert [s.member for s in world.machine.sessions.list()] == ["id-n2", "id-n3"]
    assert [s.member for s in world.machine.sessions.list("id-n2")] == ["id-n2"]


def test_a_session_ends_once(world: World) -> None:
    world.user()
    session = world.login()
    world.ok(c.Logout(session, "killed"))
    assert world.last()["kind"] == "session_killed"
    assert world.refused(c.Logout(session)) == Code.NO_SESSION
    world.ok(c.Logout(world.login(), "worker died"))
    assert (world.last()["kind"], world.last()["outcome"]) == ("logout", "worker died")


def test_every_command_of_an_ended_session_is_refused(world: World) -> None:
    world.user()
    session = world.login()
    upload = world.begin(session, "f")["upload"]
    world.ok(c.Logout(session))
    manifest, placement = EMPTY, world.placement
    for command in (c.OpenRead(session, path("f")), c.BeginUpload(session, path("f")), c.Mkdir(session, path("d")),
                    c.Checkpoint(session, upload, manifest, placement), c.Publish(session, upload, manifest, placement),
                    c.EndUpload(session, upload), c.Rmdir(session, path("d")), c.Remove(session, path("f")),
                    c.Rename(session, path("f"), path("g")), c.SetStat(session, path("f"), c.Attrs(mode=0))):
        assert world.refused(command) == Code.NO_SESSION, command


def test_a_disabled_users_session_can_do_nothing_but_end(world: World) -> None:
    world.user()
    session = world.login()
    upload = world.begin(session, "f")["upload"]
    world.ok(c.UserSet("ann", enabled=False))
    assert world.refused(c.OpenRead(session, path("f"))) == Code.DISABLED
    assert world.refused(c.Mkdir(session, path("d"))) == Code.DISABLED
    world.ok(c.EndUpload(session, upload))
    world.ok(c.Logout(session))


# --- epochs ------------------------------------------------------------------------------------------------------
def test_a_boot_gives_a_new_epoch_for_a_new_nonce_only(world: World) -> None:
    assert world.boot(nonce=b"a") == 1
    assert world.boot(nonce=b"a") == 1
    assert world.boot(nonce=b"b") == 2
    assert world.machine.members.epoch("id-n1") == 2
    row = world.machine.members.get("id-n1")
    assert row is not None and (row.epoch, row.version, row.name) == (2, "1.0", "n1")
    assert world.refused(c.MemberBoot("stranger", b"a", "1")) == Code.NOT_FOUND
    assert world.refused(c.MemberBoot("id-n1", b"", "1")) == Code.INVALID


def test_a_late_duplicate_of_a_boot_does_not_revive_an_expired_epoch(world: World) -> None:
    epoch = world.boot(nonce=b"a")
    world.ok(c.ExpireMember("id-n1", epoch))
    assert world.boot(nonce=b"a") == epoch
    assert world.machine.members.epoch("id-n1") == epoch + 1


def test_a_boot_ends_the_sessions_of_earlier_epochs_of_that_member_only(world: World) -> None:
    world.user()
    old, other = world.login(member="id-n1"), world.login(member="id-n2")
    world.boot("id-n1", nonce=b"restarted")
    assert world.machine.sessions.get(old) is None and world.machine.sessions.get(other) is not None
    new = world.login(member="id-n1")
    world.boot("id-n1", nonce=b"restarted")
    assert world.machine.sessions.get(new) is not None
    (record,) = world.machine.audit.query(kind="session_expired")
    assert (record["session"], record["user"], record["outcome"]) == (old, "ann", "member restarted")


def test_expiry_needs_the_present_epoch(world: World) -> None:
    world.user()
    session = world.login()
    epoch = world.machine.members.epoch("id-n1")
    assert world.refused(c.ExpireMember("id-n1", epoch + 1)) == Code.STALE_EPOCH
    assert world.refused(c.ExpireMember("id-n2", 0)) == Code.STALE_EPOCH
    assert world.refused(c.ExpireMember("stranger", 0)) == Code.STALE_EPOCH
    world.ok(c.ExpireMember("id-n1", epoch))
    assert world.machine.sessions.get(session) is None
    assert world.machine.members.epoch("id-n1") == epoch + 1
    assert world.refused(c.ExpireMember("id-n1", epoch)) == Code.STALE_EPOCH


# --- open reads --------------------------------------------------------------------------------------------------
def test_an_open_pins_the_published_version_and_is_audited(world: World) -> None:
    world.user()
    session = world.login()
    published = world.put(session, "f", 3_000_000, seed=4)
    value = world.ok(c.OpenRead(session, path("f")))
    assert (value["open"], value["file"], value["version"], value["size"], value["depth"]) == (
        world.index, published["file"], published["version"], 3_000_000, 0)
    assert len(value["ids"]) == 3 * 32 and value["attrs"] == world.stat("f")
    record = world.last()
    assert (record["kind"], record["path"], record["size"], record["session"]) == ("open", "/f", 3_000_000, session)


def test_opens_are_refused_by_rule(world: World) -> None:
    world.user()
    session = world.login()
    world.ok(c.Mkdir(session, path("d")))
    world.checkpoint(session, world.begin(session, "part")["upload"], 5)
    assert world.refused(c.OpenRead(session, ())) == Code.IS_A_DIRECTORY
    assert world.refused(c.OpenRead(session, path("d"))) == Code.IS_A_DIRECTORY
    assert world.refused(c.OpenRead(session, path("none"))) == Code.NOT_FOUND
    assert world.refused(c.OpenRead(session, path("part"))) == Code.NOT_FOUND, "a partial is never read by others"


def test_the_end_of_a_read_is_recorded_once(world: World) -> None:
    world.user()
    session = world.login()
    world.put(session, "f")
    opened = world.ok(c.OpenRead(session, path("f")))["open"]
    world.ok(c.ReadEnd(((session + 1, opened, 1, True),)))
    assert world.kinds(kind="read_end") == [], "an open belongs to its session"
    ends = ((session, opened, 10, True), (session, 999, 1, True))
    world.ok(c.ReadEnd(ends))
    (record,) = world.machine.audit.query(kind="read_end")
    assert (record["size"], record["outcome"], record["path"], record["user"]) == (10, "ok", "/f", "ann")
    world.ok(c.ReadEnd(ends))
    assert len(world.machine.audit.query(kind="read_end")) == 1
    again = world.ok(c.OpenRead(session, path("f")))["open"]
    world.ok(c.ReadEnd(((session, again, 4, False),)))
    assert world.last()["outcome"] == "failed"


@pytest.mark.parametrize("how", ["expire", "boot"])
def test_reads_of_a_dead_member_finish_unknown(world: World, how: str) -> None:
    world.user()
    session, other = world.login(member="id-n1"), world.login(member="id-n2")
    world.put(session, "f")
    dead, alive = (world.ok(c.OpenRead(s, path("f")))["open"] for s in (session, other))
    if how == "expire":
        world.ok(c.ExpireMember("id-n1", world.machine.members.epoch("id-n1")))
    else:
        world.boot("id-n1")
    (record,) = world.machine.audit.query(kind="read_end")
    assert (record["outcome"], record["session"], record["size"]) == ("finish unknown", session, None)
    world.ok(c.ReadEnd(((session, dead, 10, True), (other, alive, 10, True))))
    assert [r["outcome"] for r in world.machine.audit.query(kind="read_end")] == ["finish unknown", "ok"]


def test_a_report_may_come_after_its_sessions_logout(world: World) -> None:
    world.user()
    session = world.login()
    world.put(session, "f")
    opened = world.ok(c.OpenRead(session, path("f")))["open"]
    world.ok(c.Logout(session))
    world.ok(c.ReadEnd(((session, opened, 10, True),)))
    assert [r["outcome"] for r in world.machine.audit.query(kind="read_end")] == ["ok"]
    assert world.machine.opens.count() == 0


def test_a_read_nobody_reports_after_logout_finishes_unknown(world: World) -> None:
    world.user()
    session = world.login()
    world.put(session, "f")
    world.ok(c.OpenRead(session, path("f")))
    still = world.login()
    world.ok(c.OpenRead(still, path("f")))
    world.ok(c.Logout(session))
    world.now_ms += 3 * REPORT_LIMIT_MS
    world.ok(c.NoOp())
    (record,) = world.machine.audit.query(kind="read_end")
    assert (record["outcome"], record["session"]) == ("finish unknown", session)
    assert world.machine.opens.count() == 1, "the live session's read goes on"


def test_a_removed_file_stays_until_its_last_reader_ends(world: World) -> None:
    world.user()
    session = world.login()
    file = world.put(session, "f")["file"]
    opens = [world.ok(c.OpenRead(session, path("f")))["open"] for _ in range(2)]
    world.ok(c.Remove(session, path("f")))
    assert world.stat("f") == Code.NOT_FOUND

    def exists() -> bool:
        return world.machine._db.execute("SELECT 1 FROM inodes WHERE id = ?", (file,)).fetchone() is not None

    assert exists()
    world.ok(c.SetStat(session, path("f"), c.Attrs(mode=0o600), file=file))
    world.ok(c.ReadEnd(((session, opens[0], 10, True),)))
    assert exists()
    world.ok(c.ReadEnd(((session, opens[1], 10, True),)))
    assert not exists()


def test_a_session_has_a_bounded_number_of_files_open(world: World, monkeypatch) -> None:
    monkeypatch.setattr("raftmft.core.opens.MAX_OPENS_PER_SESSION", 3)
    assert MAX_OPENS_PER_SESSION > 3
    world.user()
    session = world.login()
    world.put(session, "f")
    for _ in range(3):
        world.ok(c.OpenRead(session, path("f")))
    assert world.refused(c.OpenRead(session, path("f"))) == Code.LIMIT


def test_very_many_unknown_ends_are_folded_into_one_record(world: World, monkeypatch) -> None:
    monkeypatch.setattr("raftmft.core.opens.MAX_UNKNOWN_ENDS", 2)
    world.user()
    session = world.login()
    world.put(session, "f")
    for _ in range(5):
        world.ok(c.OpenRead(session, path("f")))
    world.boot("id-n1")
    assert [r["outcome"] for r in world.machine.audit.query(kind="read_end")] == [
        "finish unknown", "finish unknown", "finish unknown, 3 more reads"]
    assert world.machine.opens.count() == 0


def test_refused_logins_are_recorded_with_their_counts(world: World) -> None:
    world.ok(c.LoginRefused("id-n1", (("192.0.2.9", "root", "unknown user", 1), ("192.0.2.9", "x" * 999, "bad", 40))))
    one, two = world.machine.audit.query(kind="login_refused")
    assert (one["address"], one["user"], one["outcome"], one["member"]) == (
        "192.0.2.9", "root", "unknown user", "id-n1")
    assert two["outcome"] == "bad, 40 times" and len(two["user"]) <= 256


def test_a_killed_session_is_over_its_partials_stay_and_who_did_it_is_recorded(world: World) -> None:
    world.user()
    session = world.login(member="id-n2")
    upload = world.begin(session, "a")["upload"]
    world.checkpoint(session, upload, 1000)
    assert world.ok(c.SessionKill(session, "root")) == {"user": "ann", "member": "id-n2"}
    record = world.machine.audit.query(kind="session_killed")[-1]
    assert (record["user"], record["session"], record["outcome"]) == ("ann", session, "killed by root")
    assert world.machine.sessions.list() == [] and world.stat("a")["partial"]
    assert world.refused(c.Mkdir(session, (b"d",))) == Code.NO_SESSION
    assert world.refused(c.SessionKill(session)) == Code.NO_SESSION
    other = world.login()
    world.ok(c.SessionKill(other))
    assert world.last()["outcome"] == "killed"
