"""Names and directories: resolution, mkdir, rmdir, remove, rename, setstat, list."""

from __future__ import annotations

import pytest
from machine_world import World, path

from raftmft.core import commands as c
from raftmft.core.manifest import EMPTY
from raftmft.core.names import path_text, text_of
from raftmft.core.outcome import Code, Rejection


@pytest.fixture
def session(world: World) -> int:
    """A session of ann, whose home holds d/e/f.txt and g.txt; an hour later."""
    world.user()
    session = world.login()
    world.ok(c.Mkdir(session, path("d")))
    world.ok(c.Mkdir(session, path("d/e")))
    world.put(session, "d/e/f.txt", 10)
    world.put(session, "g.txt", 20)
    world.now_ms += 3_600_000
    return session


# --- resolution --------------------------------------------------------------------------------------------------
def test_a_path_leads_through_directories_only(world: World, session: int) -> None:
    assert world.stat("d/e/f.txt")["kind"] == "file"
    assert world.stat("d/none/f.txt") == Code.NOT_FOUND
    assert world.stat("g.txt/x") == Code.NOT_A_DIRECTORY
    assert world.stat("d/e/f.txt/x/y") == Code.NOT_A_DIRECTORY
    assert world.stat("none", user="nobody") == Code.NO_USER


@pytest.mark.parametrize(("name", "code"), [
    (b"", Code.BAD_NAME), (b".", Code.BAD_NAME), (b"..", Code.BAD_NAME), (b"a/b", Code.BAD_NAME),
    (b"a\0", Code.BAD_NAME), (b"x" * 256, Code.NAME_TOO_LONG)])
@pytest.mark.parametrize("where", ["last", "middle"])
def test_bad_names_lead_nowhere(world: World, session: int, name: bytes, code: Code, where: str) -> None:
    bad = (name,) if where == "last" else (b"d", name, b"x")
    for command in (c.Mkdir(session, bad), c.BeginUpload(session, bad), c.Remove(session, bad), c.Rmdir(session, bad),
                    c.Rename(session, bad, path("new")), c.Rename(session, path("g.txt"), bad),
                    c.OpenRead(session, bad), c.SetStat(session, bad, c.Attrs(mode=0))):
        assert world.refused(command) == code
    answer = world.machine.namespace.stat("ann", bad)
    assert isinstance(answer, Rejection) and answer.code == code


def test_the_dots_are_the_directory_and_its_parent_and_the_home_is_its_own(world: World, session: int) -> None:
    world.ok(c.SetStat(session, path("d"), c.Attrs(mode=0o711)))
    world.ok(c.SetStat(session, path("d/e"), c.Attrs(mode=0o700)))
    world.ok(c.Symlink(session, path("l"), b"d/e"))

    def dots(of: str) -> list[tuple[bytes, int]]:
        return [(entry["name"], entry["id"]) for entry in world.machine.namespace.dots("ann", path(of))]

    home, d, e = (world.stat(name)["id"] for name in ("", "d", "d/e"))
    assert dots("") == [(b".", home), (b"..", home)]
    assert dots("d") == [(b".", d), (b"..", home)]
    assert dots("d/e") == dots("l") == [(b".", e), (b"..", d)]
    assert [entry["mode"] & 0o777 for entry in world.machine.namespace.dots("ann", path("l"))] == [0o700, 0o711]


def test_names_are_any_other_bytes(world: World, session: int) -> None:
    for name in (b"x" * 255, b"\xff\xfe", b" ", b"...", "Übersicht".encode(), b"\n", b"\\"):
        world.ok(c.Mkdir(session, (name,)))
        assert name in world.names()


def test_a_path_has_a_bounded_length(world: World, session: int) -> None:
    name = b"n" * 255
    deep: tuple[bytes, ...] = ()
    for _ in range(16):
        deep += (name,)
        world.ok(c.Mkdir(session, deep))
    assert world.refused(c.Mkdir(session, (*deep, b"x"))) == Code.NAME_TOO_LONG


def test_rejections_of_odd_names_are_one_line(world: World, session: int) -> None:
    name = (b"a\nb\x1b",)
    world.ok(c.Mkdir(session, name))
    assert world.refused(c.Mkdir(session, name)) == Code.EXISTS
    assert world.refused(c.OpenRead(session, name)) == Code.IS_A_DIRECTORY
    assert world.refused(c.Remove(session, (b"a\n",))) == Code.NOT_FOUND


def test_users_cannot_see_each_other(world: World, session: int) -> None:
    world.user("bob")
    assert world.stat("g.txt", user="bob") == Code.NOT_FOUND
    assert world.refused(c.OpenRead(world.login("bob"), path("g.txt"))) == Code.NOT_FOUND


def test_names_become_text_without_two_alike(world: World) -> None:
    assert text_of("ü".encode()) == "ü"
    assert text_of(b"a\xffb") == "a\\xffb"
    assert text_of(b"a\\xffb") == "a\\\\xffb"
    assert text_of("a\n\x1b[2J\u202eb".encode()) == "a\\u000a\\u001b[2J\\u202eb"
    assert path_text((b"a", b"b")) == "/a/b" and path_text(()) == "/"


# --- list --------------------------------------------------------------------------------------------------------
def test_a_directory_is_listed_in_pages_by_name_bytes(world: World, session: int) -> None:
    world.ok(c.Mkdir(session, path("many")))
    names = [bytes([i]) + b"n" for i in (200, 65, 97, 48, 255, 1)]
    for name in names:
        world.ok(c.Mkdir(session, (b"many", name)))
    seen: list[bytes] = []
    after = None
    while page := world.machine.namespace.list("ann", path("many"), after, 4):
        assert isinstance(page, list) and len(page) <= 4
        seen += [entry["name"] for entry in page]
        after = seen[-1]
    assert seen == sorted(names)
    answer = world.machine.namespace.list("ann", path("g.txt"), None, 4)
    assert isinstance(answer, Rejection) and answer.code == Code.NOT_A_DIRECTORY
    answer = world.machine.namespace.list("ann", path("none"), None, 4)
    assert isinstance(answer, Rejection) and answer.code == Code.NOT_FOUND


def test_an_entry_has_all_that_sftp_asks_for(world: World, session: int) -> None:
    entry = world.stat("g.txt")
    then = world.now_ms // 1000 - 3600
    assert entry == {"id": entry["id"], "kind": "file", "size": 20, "mode": 0o100644, "uid": 1000, "gid": 1000,
                     "atime": then, "mtime": then, "nlink": 1, "version": entry["id"]}
    assert world.stat("d")["mode"] == 0o040755


# --- mkdir, rmdir, remove ----------------------------------------------------------------------------------------
def test_mkdir(world: World, session: int) -> None:
    world.ok(c.Mkdir(session, path("new"), 0o041700))
    assert world.stat("new")["mode"] == 0o041700
    assert world.refused(c.Mkdir(session, path("new"))) == Code.EXISTS
    assert world.refused(c.Mkdir(session, path("g.txt"))) == Code.EXISTS
    assert world.refused(c.Mkdir(session, ())) == Code.EXISTS
    assert world.refused(c.Mkdir(session, path("none/x"))) == Code.NOT_FOUND


def test_rmdir(world: World, session: int) -> None:
    assert world.refused(c.Rmdir(session, path("d"))) == Code.NOT_EMPTY
    assert world.refused(c.Rmdir(session, path("g.txt"))) == Code.NOT_A_DIRECTORY
    assert world.refused(c.Rmdir(session, path("none"))) == Code.NOT_FOUND
    assert world.refused(c.Rmdir(session, ())) == Code.PERMISSION
    world.ok(c.Remove(session, path("d/e/f.txt")))
    world.ok(c.Rmdir(session, path("d/e")))
    world.ok(c.Rmdir(session, path("d")))
    assert world.names() == [b"g.txt"]


def test_remove(world: World, session: int) -> None:
    assert world.refused(c.Remove(session, path("d"))) == Code.IS_A_DIRECTORY
    assert world.refused(c.Remove(session, ())) == Code.IS_A_DIRECTORY
    assert world.refused(c.Remove(session, path("none"))) == Code.NOT_FOUND
    assert world.ok(c.Remove(session, path("g.txt"))) == {"uploads": []}
    assert world.names() == [b"d"]
    row = world.machine.users.get("ann")
    assert row is not None and (row.files, row.file_bytes) == (1, 10)


def test_a_change_of_names_is_the_directorys_change(world: World, session: int) -> None:
    def mtime(name: str) -> int:
        return world.stat(name)["mtime"]

    now = world.now_ms // 1000
    assert mtime("d/e") < now and mtime("") < now
    world.ok(c.Rename(session, path("d/e/f.txt"), path("f.txt")))
    assert mtime("d/e") == now == mtime("") and mtime("d") < now
    world.put(session, "d/new")
    assert mtime("d") == now


# --- rename ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("replace", [False, True])
def test_rename_to_a_free_name(world: World, session: int, replace: bool) -> None:
    before = world.stat("g.txt")
    world.ok(c.Rename(session, path("g.txt"), path("d/h.txt"), replace))
    assert world.stat("g.txt") == Code.NOT_FOUND and world.stat("d/h.txt") == before
    world.ok(c.Rename(session, path("d"), path("moved"), replace))
    assert world.stat("moved/e/f.txt")["size"] == 10
    record = world.last()
    assert (record["kind"], record["path"], record["target"]) == ("rename", "/d", "/moved")


def test_plain_rename_never_replaces(world: World, session: int) -> None:
    world.put(session, "other")
    world.ok(c.Mkdir(session, path("empty")))
    for source, target in (("g.txt", "other"), ("g.txt", "empty"), ("d", "empty"), ("d", "other")):
        assert world.refused(c.Rename(session, path(source), path(target))) == Code.EXISTS


def test_posix_rename_replaces_like_by_like(world: World, session: int) -> None:
    world.put(session, "other", 70)
    world.ok(c.Mkdir(session, path("empty")))
    assert world.refused(c.Rename(session, path("g.txt"), path("empty"), True)) == Code.IS_A_DIRECTORY
    assert world.refused(c.Rename(session, path("d"), path("other"), True)) == Code.NOT_A_DIRECTORY
    assert world.refused(c.Rename(session, path("empty"), path("d"), True)) == Code.NOT_EMPTY
    world.ok(c.Rename(session, path("g.txt"), path("other"), True))
    assert world.stat("other")["size"] == 20 and world.stat("g.txt") == Code.NOT_FOUND
    world.ok(c.Rename(session, path("d"), path("empty"), True))
    assert world.names() == [b"empty", b"other"] and world.stat("empty/e/f.txt")["size"] == 10
    row = world.machine.users.get("ann")
    assert row is not None and (row.files, row.file_bytes) == (2, 30)


@pytest.mark.parametrize("replace", [False, True])
def test_a_directory_never_moves_into_itself(world: World, session: int, replace: bool) -> None:
    assert world.refused(c.Rename(session, path("d"), path("d/x"), replace)) == Code.INVALID
    assert world.refused(c.Rename(session, path("d"), path("d/e"), replace)) == Code.INVALID
    assert world.refused(c.Rename(session, path("d"), path("d/e/x"), replace)) == Code.INVALID
    code = world.refused(c.Rename(session, path("d/e"), path("d"), replace))
    assert code == (Code.NOT_EMPTY if replace else Code.EXISTS)


@pytest.mark.parametrize("replace", [False, True])
def test_a_rename_to_itself_does_nothing(world: World, session: int, replace: bool) -> None:
    before = world.stat("d")
    world.ok(c.Rename(session, path("d"), path("d"), replace))
    world.ok(c.Rename(session, path("g.txt"), path("g.txt"), replace))
    assert world.stat("d") == before and world.names() == [b"d", b"g.txt"]


def test_rename_needs_both_ends(world: World, session: int) -> None:
    assert world.refused(c.Rename(session, path("none"), path("x"))) == Code.NOT_FOUND
    assert world.refused(c.Rename(session, path("g.txt"), path("none/x"))) == Code.NOT_FOUND
    assert world.refused(c.Rename(session, path("g.txt"), path("d/e/f.txt/x"))) == Code.NOT_A_DIRECTORY
    for replace in (False, True):
        assert world.refused(c.Rename(session, (), path("x"), replace)) == Code.PERMISSION
        assert world.refused(c.Rename(session, path("d"), (), replace)) == Code.PERMISSION


# --- setstat -----------------------------------------------------------------------------------------------------
def test_setstat_sets_what_is_given(world: World, session: int) -> None:
    before = world.stat("g.txt")
    world.ok(c.SetStat(session, path("g.txt"), c.Attrs(mode=0o100600, atime=5, mtime=6, uid=1000, gid=1000, size=20)))
    assert world.stat("g.txt") == {**before, "mode": 0o100600, "atime": 5, "mtime": 6}
    world.ok(c.SetStat(session, (), c.Attrs(mode=0o700)))
    assert world.stat("")["mode"] == 0o040700
    world.ok(c.SetStat(session, path("g.txt"), c.Attrs()))


def test_setstat_has_bounds(world: World, session: int) -> None:
    for attrs, code in ((c.Attrs(size=19), Code.INVALID), (c.Attrs(uid=0), Code.PERMISSION),
                        (c.Attrs(gid=0), Code.PERMISSION), (c.Attrs(mtime=-1), Code.INVALID),
                        (c.Attrs(atime=1 << 62), Code.INVALID), (c.Attrs(mode=-1), Code.INVALID)):
        assert world.refused(c.SetStat(session, path("g.txt"), attrs)) == code
    assert world.refused(c.SetStat(session, path("d"), c.Attrs(size=0))) == Code.INVALID
    assert world.refused(c.SetStat(session, path("none"), c.Attrs(mode=0))) == Code.NOT_FOUND


def test_setstat_by_id_reaches_only_what_the_session_has_open(world: World, session: int) -> None:
    file = world.stat("g.txt")["id"]
    command = c.SetStat(session, path("g.txt"), c.Attrs(mode=0o600), file=file)
    assert world.refused(command) == Code.NOT_FOUND
    world.user("bob")
    stranger = world.login("bob")
    opened = world.ok(c.OpenRead(session, path("g.txt")))["open"]
    assert world.refused(c.SetStat(stranger, path("g.txt"), c.Attrs(mode=0o600), file=file)) == Code.NOT_FOUND
    world.ok(c.Rename(session, path("g.txt"), path("h.txt")))
    world.ok(command)
    assert world.stat("h.txt")["mode"] == 0o100600
    world.ok(c.ReadEnd(((session, opened, 1, True),)))
    assert world.refused(command) == Code.NOT_FOUND
    world.begin(session, "h.txt")
    world.ok(command)


def test_a_read_only_user_changes_nothing(world: World, session: int) -> None:
    upload = world.begin(session, "up")["upload"]
    world.ok(c.UserSet("ann", read_only=True))
    for command in (c.Mkdir(session, path("x")), c.Rmdir(session, path("d")), c.Remove(session, path("g.txt")),
                    c.Rename(session, path("g.txt"), path("x")), c.SetStat(session, path("g.txt"), c.Attrs(mode=0)),
                    c.BeginUpload(session, path("x")), c.Publish(session, upload, EMPTY, world.placement),
                    c.Checkpoint(session, upload, EMPTY, world.placement)):
        assert world.refused(command) == Code.READ_ONLY
    world.ok(c.OpenRead(session, path("g.txt")))
    world.ok(c.EndUpload(session, upload))


# --- catching up -------------------------------------------------------------------------------------------------
def test_manifests_since_tells_what_a_member_that_was_away_must_get(world: World, session: int) -> None:
    since = world.index
    assert [m.size for _, _, m in world.machine.namespace.manifests_since(0, 10)] == [10, 20]
    new = world.put(session, "new", 30, seed=9)
    world.put(session, "g.txt", 40)
    world.put(session, "gone", 50)
    world.ok(c.Remove(session, path("gone")))
    world.ok(c.Rename(session, path("new"), path("renamed")))
    found = world.machine.namespace.manifests_since(since, 10)
    assert [(index, m.size) for index, _, m in found] == [(new["version"], 30), (world.stat("g.txt")["version"], 40)]
    assert world.machine.namespace.manifests_since(found[0][0], 10) == found[1:]
    assert world.machine.namespace.manifests_since(since, 1) == found[:1]
    assert world.machine.namespace.all_chunk_totals() == (3, 80)
