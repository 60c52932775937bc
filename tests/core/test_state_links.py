"""Symbolic and hard links: where they lead, what is changed through them, what is stored and charged once."""

from __future__ import annotations

from typing import Any

import pytest
from machine_world import World, path

from raftmft.core import commands as c
from raftmft.core.outcome import Code, Rejection


@pytest.fixture
def session(world: World) -> int:
    """A session of ann, whose home holds d/e/f.txt (10 bytes) and g.txt (20)."""
    world.user()
    session = world.login()
    world.ok(c.Mkdir(session, path("d")))
    world.ok(c.Mkdir(session, path("d/e")))
    world.put(session, "d/e/f.txt", 10)
    world.put(session, "g.txt", 20)
    return session


def lstat(world: World, name: str) -> Any:
    answer = world.machine.namespace.stat("ann", path(name), follow=False)
    return answer if isinstance(answer, dict) else answer.code


def used(world: World) -> tuple[int, int]:
    row = world.machine.users.get("ann")
    assert row is not None
    return row.files, row.file_bytes


# --- where links lead --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("where", "target", "leads_to"), [
    ("l", b"g.txt", "g.txt"), ("l", b"/g.txt", "g.txt"), ("l", b"./d//e/./f.txt", "d/e/f.txt"),
    ("d/l", b"../g.txt", "g.txt"), ("d/l", b"e/f.txt", "d/e/f.txt"), ("d/e/l", b"../../g.txt", "g.txt"),
    ("d/l", b"../../../../g.txt", "g.txt"), ("l", b"/../../etc/../g.txt", None), ("l", b"/../g.txt", "g.txt"),
    ("l", b"..", ""), ("l", b"/", ""), ("l", b".", ""), ("l", b"d/e/..", "d"), ("d/e/l", b"..", "d"),
    ("d/l", b"/d/e", "d/e"), ("l", b"none/../g.txt", None), ("l", b"g.txt/../g.txt", Code.NOT_A_DIRECTORY),
    ("l", b"/etc/passwd", None), ("l", b"\xff", None), ("l", b"x" * 300, None)])
def test_a_target_is_followed_inside_the_home(world: World, session: int, where: str, target: bytes,
                                              leads_to: Any) -> None:
    world.ok(c.Symlink(session, path(where), target))
    if leads_to is None:
        assert world.stat(where) in (Code.NOT_FOUND, Code.NAME_TOO_LONG)
    elif isinstance(leads_to, Code):
        assert world.stat(where) == leads_to
    else:
        assert world.stat(where) == world.stat(leads_to)
        look = world.machine.namespace.look("ann", path(where))
        assert isinstance(look, dict) and tuple(look["path"]) == path(leads_to)
    entry = lstat(world, where)
    assert (entry["kind"], entry["mode"], entry["size"], entry["target"], entry["nlink"]) == (
        "link", 0o120777, len(target), target, 1)
    record = world.last()
    assert (record["kind"], record["path"]) == ("symlink", "/" + where)


def test_links_stand_in_the_middle_of_paths(world: World, session: int) -> None:
    world.ok(c.Symlink(session, path("one"), b"d"))
    world.ok(c.Symlink(session, path("d/two"), b"/one/e"))
    assert world.stat("one/two/f.txt") == world.stat("d/e/f.txt")
    assert world.names("one/two") == [b"f.txt"]
    assert [entry["kind"] for entry in world.machine.namespace.list("ann", ())] == ["dir", "file", "link"]
    world.ok(c.Mkdir(session, path("one/two/new")))
    assert (world.last()["path"], world.stat("d/e/new")["kind"]) == ("/d/e/new", "dir")
    # The parent of what a link leads to is the directory that it stands in.
    world.ok(c.Symlink(session, path("d/e/up"), b"../../g.txt"))
    assert world.stat("one/two/up")["size"] == 20


def test_a_link_that_holds_no_way_out(world: World, session: int) -> None:
    world.user("bob")
    world.put(world.login("bob"), "secret", 7)
    for number, target in enumerate((b"../bob/secret", b"/../bob/secret", b"/bob/secret", b"../../secret")):
        world.ok(c.Symlink(session, path(f"way{number}"), target))
        assert world.stat(f"way{number}") == Code.NOT_FOUND


def test_circles_and_endless_targets_are_refused(world: World, session: int) -> None:
    world.ok(c.Symlink(session, path("a"), b"b"))
    world.ok(c.Symlink(session, path("b"), b"a"))
    world.ok(c.Symlink(session, path("self"), b"self/x"))
    for name in ("a", "b/x", "self"):
        assert world.stat(name) == Code.LOOP
        for command in (c.OpenRead(session, path(name)), c.BeginUpload(session, path(name)),
                        c.SetStat(session, path(name), c.Attrs(mode=0)), c.Link(session, path(name), path("new"))):
            assert world.refused(command) == Code.LOOP
    world.ok(c.Symlink(session, path("l0"), b"g.txt"))
    for number in range(1, 41):
        world.ok(c.Symlink(session, path(f"l{number}"), b"l%d" % (number - 1)))
    assert world.stat("l39")["size"] == 20, "40 links are followed"
    assert world.stat("l40") == Code.LOOP
    world.ok(c.Symlink(session, path("w0"), b"d/../" * 800 + b"g.txt"))
    for number in range(1, 4):
        world.ok(c.Symlink(session, path(f"w{number}"), b"d/../" * 800 + b"w%d" % (number - 1)))
    assert world.stat("w1")["size"] == 20
    assert world.stat("w3") == Code.LOOP, "a lookup has a bound"


@pytest.mark.parametrize(("target", "code"), [
    (b"", Code.BAD_NAME), (b"a\0b", Code.BAD_NAME), (b"x" * 4097, Code.NAME_TOO_LONG)])
def test_targets_that_cannot_be(world: World, session: int, target: bytes, code: Code) -> None:
    assert world.refused(c.Symlink(session, path("l"), target)) == code


def test_a_link_takes_a_free_name(world: World, session: int) -> None:
    for name in ("", "d", "g.txt"):
        assert world.refused(c.Symlink(session, path(name), b"x")) == Code.EXISTS
    world.ok(c.Symlink(session, path("l"), b"x"))
    assert world.refused(c.Symlink(session, path("l"), b"x")) == Code.EXISTS
    assert world.refused(c.Symlink(session, path("none/l"), b"x")) == Code.NOT_FOUND
    assert world.refused(c.Mkdir(session, path("l"))) == Code.EXISTS
    world.ok(c.UserSet("ann", read_only=True))
    assert world.refused(c.Symlink(session, path("m"), b"x")) == Code.READ_ONLY


# --- what acts on the link, what on its target -------------------------------------------------------------------
def test_remove_and_rename_act_on_the_link(world: World, session: int) -> None:
    world.ok(c.Symlink(session, path("l"), b"g.txt"))
    world.ok(c.Rename(session, path("l"), path("d/m")))
    assert lstat(world, "d/m")["target"] == b"g.txt" and world.stat("g.txt")["size"] == 20
    assert world.stat("d/m") == Code.NOT_FOUND, "a relative target is looked up where the link stands now"
    world.ok(c.Symlink(session, path("n"), b"d"))
    assert world.refused(c.Rmdir(session, path("n"))) == Code.NOT_A_DIRECTORY
    assert world.refused(c.Rename(session, path("g.txt"), path("n"))) == Code.EXISTS
    assert world.refused(c.Rename(session, path("d/e"), path("n"), True)) == Code.NOT_A_DIRECTORY
    world.ok(c.Rename(session, path("g.txt"), path("n"), True))
    assert lstat(world, "n")["kind"] == "file" and world.stat("d/e/f.txt")["size"] == 10
    world.ok(c.Remove(session, path("d/m")))
    assert lstat(world, "d/m") == Code.NOT_FOUND
    assert used(world) == (2, 30)
    world.ok(c.Symlink(session, path("o"), b"n"))
    world.ok(c.Rename(session, path("o"), path("n"), True))
    assert lstat(world, "n")["kind"] == "link" and used(world) == (1, 10), "a link replaces a file, which is paid back"


def test_a_rename_through_links_is_told_of_without_them(world: World, session: int) -> None:
    world.ok(c.Symlink(session, path("l"), b"d/e"))
    world.ok(c.Rename(session, path("l/f.txt"), path("l/x")))
    assert (world.last()["path"], world.last()["target"]) == ("/d/e/f.txt", "/d/e/x")
    assert world.refused(c.Rename(session, path("d"), path("l/d"))) == Code.INVALID, "into itself, by a link"


def test_setstat_follows_and_lsetstat_does_not(world: World, session: int) -> None:
    world.ok(c.Symlink(session, path("l"), b"g.txt"))
    world.ok(c.SetStat(session, path("l"), c.Attrs(mode=0o600)))
    assert (world.stat("g.txt")["mode"], lstat(world, "l")["mode"]) == (0o100600, 0o120777)
    assert world.last()["path"] == "/g.txt"
    world.ok(c.SetStat(session, path("l"), c.Attrs(atime=1, mtime=2), follow=False))
    assert (lstat(world, "l")["mtime"], world.stat("g.txt")["mtime"] > 2) == (2, True)
    assert world.last()["path"] == "/l"
    world.ok(c.Symlink(session, path("dangling"), b"none"))
    assert world.refused(c.SetStat(session, path("dangling"), c.Attrs(mode=0))) == Code.NOT_FOUND


def test_open_follows(world: World, session: int) -> None:
    world.ok(c.Symlink(session, path("l"), b"d/e/f.txt"))
    value = world.ok(c.OpenRead(session, path("l")))
    assert value["size"] == 10 and world.last()["path"] == "/d/e/f.txt"
    begun = world.begin(session, "l", truncate=True)
    assert begun["file"] == value["file"]
    world.publish(session, begun["upload"], 33)
    assert world.stat("d/e/f.txt")["size"] == 33 and lstat(world, "l")["kind"] == "link"
    world.ok(c.Symlink(session, path("dir"), b"d"))
    assert world.refused(c.OpenRead(session, path("dir"))) == Code.IS_A_DIRECTORY
    assert world.refused(c.BeginUpload(session, path("dir"))) == Code.IS_A_DIRECTORY
    world.ok(c.Symlink(session, path("home"), b"/"))
    assert world.refused(c.BeginUpload(session, path("home"))) == Code.IS_A_DIRECTORY


def test_creating_through_a_dangling_link_makes_what_it_points_to(world: World, session: int) -> None:
    world.ok(c.Symlink(session, path("l"), b"d/new"))
    assert world.stat("l") == Code.NOT_FOUND
    assert world.refused(c.OpenRead(session, path("l"))) == Code.NOT_FOUND
    assert world.refused(c.BeginUpload(session, path("l"), create=False)) == Code.NOT_FOUND
    assert world.refused(c.BeginUpload(session, path("l"), exclusive=True)) == Code.EXISTS
    begun = world.begin(session, "l")
    assert world.machine.uploads.seen_at("ann", session, path("d/new")) == begun["upload"]
    world.checkpoint(session, begun["upload"], 5)
    assert (world.stat("l")["partial"], world.stat("d/new")["size"]) == (True, 5)
    world.publish(session, begun["upload"])
    assert world.stat("l") == world.stat("d/new") and world.last()["path"] == "/d/new"
    world.ok(c.Symlink(session, path("far"), b"none/new"))
    assert world.refused(c.BeginUpload(session, path("far"))) == Code.NOT_FOUND
    world.ok(c.Symlink(session, path("long"), b"n" * 256))
    assert world.refused(c.BeginUpload(session, path("long"))) == Code.NAME_TOO_LONG


def test_a_link_that_is_made_at_an_uploads_name_gives_way(world: World, session: int) -> None:
    upload = world.begin(session, "f")["upload"]
    world.checkpoint(session, upload, 5)
    world.ok(c.Symlink(session, path("f"), b"g.txt"))
    world.ok(c.Checkpoint(session, upload, c.Manifest(0), world.placement))
    world.publish(session, upload, 7)
    assert lstat(world, "f")["kind"] == "file" and world.stat("f")["size"] == 7 and world.stat("g.txt")["size"] == 20
    exclusive = world.begin(session, "x", exclusive=True)["upload"]
    world.ok(c.Symlink(session, path("x"), b"g.txt"))
    assert world.refused(c.Publish(session, exclusive, c.Manifest(0), world.placement)) == Code.EXISTS


def test_a_removed_user_takes_its_links_along(world: World, session: int) -> None:
    world.ok(c.Symlink(session, path("d/l"), b"e"))
    world.ok(c.Link(session, path("g.txt"), path("d/h")))
    world.ok(c.UserRemove("ann"))
    db = world.machine._db
    assert db.execute("SELECT count(*) FROM inodes").fetchone() == (0,)
    assert db.execute("SELECT count(*) FROM dentries").fetchone() == (0,)


# --- hard links --------------------------------------------------------------------------------------------------
def test_a_second_name_shares_everything_and_is_charged_once(world: World, session: int) -> None:
    before = used(world)
    world.ok(c.Link(session, path("g.txt"), path("d/h")))
    record = world.last()
    assert (record["kind"], record["path"], record["target"]) == ("link", "/g.txt", "/d/h")
    assert world.stat("g.txt") == world.stat("d/h") and world.stat("d/h")["nlink"] == 2
    assert used(world) == before
    world.ok(c.SetStat(session, path("d/h"), c.Attrs(mode=0o600)))
    assert world.stat("g.txt")["mode"] == 0o100600
    world.put(session, "d/h", 100)
    assert world.stat("g.txt")["size"] == 100 and world.last()["path"] == "/d/h", "told of by the name it was opened by"
    assert used(world) == (2, 110)
    world.ok(c.Remove(session, path("g.txt")))
    assert world.stat("d/h")["nlink"] == 1 and used(world) == (2, 110)
    assert len(world.machine.namespace.manifests_since(0, 9)) == 2, "it is still to be repaired"
    world.ok(c.Remove(session, path("d/h")))
    assert used(world) == (1, 10)


def test_what_can_have_a_second_name(world: World, session: int, monkeypatch: pytest.MonkeyPatch) -> None:
    world.ok(c.Symlink(session, path("l"), b"g.txt"))
    for source, code in (("d", Code.PERMISSION), ("", Code.PERMISSION), ("none", Code.NOT_FOUND)):
        assert world.refused(c.Link(session, path(source), path("new"))) == code
    for target, code in (("l", Code.EXISTS), ("d", Code.EXISTS), ("", Code.EXISTS), ("g.txt", Code.EXISTS),
                         ("none/x", Code.NOT_FOUND)):
        assert world.refused(c.Link(session, path("d/e/f.txt"), path(target))) == code
    world.ok(c.Link(session, path("l"), path("new")))
    assert lstat(world, "new")["kind"] == "file", "a link is followed to the file"
    monkeypatch.setattr("raftmft.core.tree.MAX_NAMES_PER_FILE", 2)
    assert world.refused(c.Link(session, path("g.txt"), path("more"))) == Code.LIMIT
    upload = world.begin(session, "up")["upload"]
    world.checkpoint(session, upload, 5)
    assert world.refused(c.Link(session, path("up"), path("more"))) == Code.NOT_FOUND, "partials have no second name"


def test_a_rename_between_names_of_one_file_changes_nothing(world: World, session: int) -> None:
    world.ok(c.Link(session, path("g.txt"), path("h")))
    world.ok(c.Rename(session, path("g.txt"), path("h"), True))
    assert world.stat("g.txt") == world.stat("h") and world.stat("h")["nlink"] == 2
    assert world.refused(c.Rename(session, path("g.txt"), path("h"))) == Code.EXISTS
    world.ok(c.Rename(session, path("d/e/f.txt"), path("h"), True))
    assert (world.stat("h")["size"], world.stat("g.txt")["nlink"], used(world)) == (10, 1, (2, 30))


def test_writing_goes_on_when_one_of_two_names_is_removed(world: World, session: int) -> None:
    world.ok(c.Link(session, path("g.txt"), path("h")))
    upload = world.begin(session, "g.txt", truncate=True)["upload"]
    assert world.ok(c.Remove(session, path("g.txt"))) == {"uploads": []}
    world.publish(session, upload, 50)
    assert (world.stat("h")["size"], world.last()["path"], used(world)) == (50, "/h", (2, 60))
    last = world.begin(session, "h", truncate=True)["upload"]
    assert world.ok(c.Remove(session, path("h"))) == {"uploads": [last]}


def test_a_name_that_replaces_a_partial_removes_it(world: World, session: int) -> None:
    for name, command in (("a", c.Link(session, path("g.txt"), path("a"))), ("b", c.Symlink(session, path("b"), b"x"))):
        world.checkpoint(session, world.begin(session, name)["upload"], 5)
        world.ok(command)
        row = world.machine.users.get("ann")
        assert row is not None and row.partial_bytes == 0


def test_reads_of_a_link_are_its_own(world: World, session: int) -> None:
    answer = world.machine.namespace.look("ann", path("none"))
    assert answer == {"path": [b"none"], "entry": None}
    answer = world.machine.namespace.look("ann", path("none/x"))
    assert isinstance(answer, Rejection) and answer.code == Code.NOT_FOUND
