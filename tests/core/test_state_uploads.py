"""Uploads and partials, as the contract's table "What each session sees of a name" has them."""

from __future__ import annotations

import pytest
from machine_world import HOUR_MS, SIZE, World, content, path

from raftmft.core import commands as c
from raftmft.core.manifest import Manifest
from raftmft.core.outcome import Code


@pytest.fixture
def session(world: World) -> int:
    """A session of ann on the first member."""
    world.user()
    return world.login()


def used(world: World) -> tuple[int, int, int]:
    row = world.machine.users.get("ann")
    assert row is not None
    return row.files, row.file_bytes, row.partial_bytes


# --- begin and publish -------------------------------------------------------------------------------------------
def test_a_new_file_is_seen_by_nobody_until_it_is_published_whole(world: World, session: int) -> None:
    value = world.begin(session, "f", truncate=True, mode=0o100600)
    upload = world.index
    assert value == {"upload": upload, "file": 0, "version": 0, "size": 0, "depth": 0, "ids": b"", "partial": False,
                     "digest": "", "placement": world.placement, "mode": 0o100600}
    assert world.stat("f") == Code.NOT_FOUND and world.names() == []
    assert world.refused(c.OpenRead(session, path("f"))) == Code.NOT_FOUND
    published = world.publish(session, upload, 3 * SIZE, digest="ab" * 32)
    assert published == {"file": world.index, "version": world.index, "mtime": world.now_ms // 1000}
    entry = world.stat("f")
    assert (entry["id"], entry["size"], entry["mode"], entry["version"]) == (
        world.index, 3 * SIZE, 0o100600, world.index)
    record = world.last()
    assert (record["kind"], record["path"], record["size"], record["digest"], record["session"]) == (
        "publish", "/f", 3 * SIZE, "ab" * 32, session)


def test_publish_sets_the_attributes_it_carries(world: World, session: int) -> None:
    upload = world.begin(session, "f", truncate=True)["upload"]
    value = world.publish(session, upload, attrs=c.Attrs(mode=0o640, atime=7, mtime=8, size=10))
    entry = world.stat("f")
    assert (entry["mode"], entry["atime"], entry["mtime"], value["mtime"]) == (0o100640, 7, 8, 8)


def test_an_upload_is_published_once(world: World, session: int) -> None:
    upload = world.begin(session, "f", truncate=True)["upload"]
    world.publish(session, upload)
    assert world.refused(c.Publish(session, upload, content(10), world.placement)) == Code.STALE_UPLOAD
    assert world.refused(c.Checkpoint(session, upload, content(10), world.placement)) == Code.STALE_UPLOAD
    assert world.refused(c.EndUpload(session, upload)) == Code.STALE_UPLOAD
    assert world.kinds(kind="publish") == ["publish"]


def test_an_upload_belongs_to_its_session(world: World, session: int) -> None:
    upload = world.begin(session, "f", truncate=True)["upload"]
    other = world.login()
    assert world.refused(c.Publish(other, upload, content(10), world.placement)) == Code.STALE_UPLOAD
    assert world.refused(c.EndUpload(other, upload)) == Code.STALE_UPLOAD


@pytest.mark.parametrize("command", [c.Publish, c.Checkpoint])
def test_content_must_be_well_formed_and_of_the_present_placement(world: World, session: int, command) -> None:
    upload = world.begin(session, "f", truncate=True)["upload"]
    assert world.refused(command(session, upload, content(10), world.placement + 1)) == Code.STALE_PLACEMENT
    for bad in (Manifest(10), Manifest(-1), Manifest(0, 2), Manifest(1, 0, b"x" * 31),
                Manifest(65 * SIZE, 0, b"x" * 65 * 32)):
        assert world.refused(command(session, upload, bad, world.placement)) == Code.INVALID
    world.publish(session, upload)


def test_a_checkpoint_may_hold_the_ids_of_its_last_chunks_and_what_is_published_may_not(
        world: World, session: int) -> None:
    upload = world.begin(session, "f")["upload"]
    grows = Manifest(66 * SIZE, 2, b"i" * 32 + b"x" * 64)
    world.ok(c.Checkpoint(session, upload, grows, world.placement))
    assert world.refused(c.Publish(session, upload, grows, world.placement)) == Code.INVALID
    begun = world.begin(world.login(), "f")
    assert (begun["size"], begun["depth"], begun["ids"]) == (grows.size, 2, grows.ids)


def test_a_rejected_publish_leaves_the_upload_live(world: World, session: int) -> None:
    upload = world.begin(session, "f", truncate=True)["upload"]
    for attrs, code in ((c.Attrs(size=9), Code.INVALID), (c.Attrs(uid=0), Code.PERMISSION)):
        assert world.refused(c.Publish(session, upload, content(10), world.placement, "", attrs)) == code
    assert world.refused(c.Publish(session, upload, content(10), world.placement, "x" * 999)) == Code.INVALID
    world.publish(session, upload)


def test_open_to_write_by_flags(world: World, session: int) -> None:
    assert world.refused(c.BeginUpload(session, path("f"), create=False)) == Code.NOT_FOUND
    assert world.refused(c.BeginUpload(session, path("f"), create=False, truncate=True)) == Code.NOT_FOUND
    assert world.refused(c.BeginUpload(session, path("none/f"))) == Code.NOT_FOUND
    assert world.refused(c.BeginUpload(session, ())) == Code.IS_A_DIRECTORY
    world.ok(c.Mkdir(session, path("d")))
    assert world.refused(c.BeginUpload(session, path("d"))) == Code.IS_A_DIRECTORY
    world.put(session, "f")
    assert world.refused(c.BeginUpload(session, path("f"), exclusive=True)) == Code.EXISTS
    assert world.begin(session, "f", create=False)["size"] == 10
    assert world.begin(session, "f", exclusive=True, create=False)["size"] == 10, "EXCL means nothing without CREAT"


def test_what_a_session_is_writing_is_there_for_it_even_without_a_byte(world: World, session: int) -> None:
    world.begin(session, "f", truncate=True)
    other = world.login()
    for truncate in (False, True):
        assert world.refused(c.BeginUpload(other, path("f"), create=False, truncate=truncate)) == Code.NOT_FOUND
        assert world.begin(session, "f", create=False, truncate=truncate)["size"] == 0


def test_a_session_has_a_bounded_number_of_uploads(world: World, session: int, monkeypatch) -> None:
    monkeypatch.setattr("raftmft.core.uploads.MAX_UPLOADS_PER_SESSION", 2)
    for name in "ab":
        world.begin(session, name)
    assert world.refused(c.BeginUpload(session, path("c"))) == Code.LIMIT
    world.begin(world.login(), "c")


# --- overwriting -------------------------------------------------------------------------------------------------
def test_overwriting_is_atomic_and_keeps_id_and_mode(world: World, session: int) -> None:
    first = world.publish(session, world.begin(session, "f", truncate=True, mode=0o600)["upload"], 10)
    value = world.begin(session, "f", truncate=True, mode=0o777)
    assert (value["file"], value["version"], value["size"], value["ids"], value["mode"]) == (
        first["file"], first["version"], 0, b"", 0o100600)
    assert world.stat("f")["size"] == 10
    second = world.publish(session, value["upload"], 30)
    assert second["file"] == first["file"] and second["version"] > first["version"]
    assert (world.stat("f")["size"], world.stat("f")["mode"]) == (30, 0o100600)
    assert used(world) == (1, 30, 0)


def test_without_truncation_the_base_version_is_continued(world: World, session: int) -> None:
    world.publish(session, world.begin(session, "f", truncate=True)["upload"], 2 * SIZE, seed=3, digest="d1")
    value = world.begin(session, "f")
    assert (value["size"], value["ids"], value["digest"]) == (2 * SIZE, content(2 * SIZE, 3).ids, "d1")
    world.publish(session, value["upload"], 3 * SIZE)


def test_a_changed_base_is_a_conflict_unless_truncated(world: World, session: int) -> None:
    world.put(session, "f")
    view, cut = world.begin(session, "f")["upload"], world.begin(session, "f", truncate=True)["upload"]
    world.put(session, "f", 20)
    assert world.refused(c.Publish(session, view, content(30), world.placement)) == Code.CONFLICT
    world.ok(c.EndUpload(session, view))
    assert world.stat("f")["size"] == 20
    world.publish(session, cut, 40)
    assert world.stat("f")["size"] == 40


def test_a_change_of_attributes_is_no_conflict(world: World, session: int) -> None:
    world.put(session, "f")
    upload = world.begin(session, "f")["upload"]
    world.ok(c.SetStat(session, path("f"), c.Attrs(mode=0o600)))
    world.publish(session, upload, 30)
    assert world.stat("f")["mode"] == 0o100600


def test_an_overwrite_follows_its_file_through_a_rename(world: World, session: int) -> None:
    world.put(session, "f")
    upload = world.begin(session, "f", truncate=True)["upload"]
    world.ok(c.Mkdir(session, path("d")))
    world.ok(c.Rename(session, path("f"), path("d/g")))
    world.put(session, "f", 77)
    world.publish(session, upload, 20)
    assert (world.stat("d/g")["size"], world.stat("f")["size"]) == (20, 77)
    assert world.last()["path"] == "/d/g"


def test_an_overwritten_file_that_was_removed_is_not_found_at_close(world: World, session: int) -> None:
    file = world.put(session, "f")["file"]
    upload = world.begin(session, "f", truncate=True)["upload"]
    world.ok(c.Remove(world.login(), path("f")))
    assert world.refused(c.Publish(session, upload, content(10), world.placement)) == Code.NOT_FOUND
    assert world.machine._db.execute("SELECT nlink FROM inodes WHERE id=?", (file,)).fetchone() == (0,)
    world.ok(c.EndUpload(session, upload))
    assert world.machine._db.execute("SELECT nlink FROM inodes WHERE id=?", (file,)).fetchone() is None


def test_an_interrupted_overwrite_leaves_the_old_file_and_no_partial(world: World, session: int) -> None:
    world.put(session, "f", 10)
    for keep in (True, False):
        upload = world.begin(session, "f", truncate=True)["upload"]
        world.checkpoint(session, upload, 5 * SIZE)
        world.ok(c.EndUpload(session, upload, keep))
    assert world.stat("f")["size"] == 10 and used(world) == (1, 10, 0)
    assert world.kinds(kind="partial") == []


# --- several writers of one new name -----------------------------------------------------------------------------
def test_of_several_new_uploads_the_last_close_wins_whole(world: World, session: int) -> None:
    other = world.login(member="id-n2")
    one, two = world.begin(session, "f", truncate=True)["upload"], world.begin(other, "f", truncate=True)["upload"]
    world.publish(other, two, 20, seed=2)
    assert world.stat("f")["size"] == 20
    world.publish(session, one, 10, seed=1)
    assert world.stat("f")["size"] == 10 and world.names() == [b"f"]
    assert used(world) == (1, 10, 0)


def test_an_exclusive_upload_does_not_replace_what_came_first(world: World, session: int) -> None:
    one = world.begin(session, "f", exclusive=True)["upload"]
    two = world.begin(session, "f", exclusive=True)["upload"]
    world.publish(session, two, 20)
    assert world.refused(c.Publish(session, one, content(10), world.placement)) == Code.EXISTS
    assert world.stat("f")["size"] == 20


def test_a_name_that_became_a_directory_refuses_the_file(world: World, session: int) -> None:
    upload = world.begin(session, "f", truncate=True)["upload"]
    world.ok(c.Mkdir(session, path("f")))
    assert world.refused(c.Publish(session, upload, content(10), world.placement)) == Code.IS_A_DIRECTORY


def test_a_new_upload_follows_its_directory_and_dies_with_it(world: World, session: int) -> None:
    world.ok(c.Mkdir(session, path("d")))
    upload = world.begin(session, "d/f", truncate=True)["upload"]
    world.ok(c.Rename(session, path("d"), path("e")))
    world.publish(session, upload)
    assert world.stat("e/f")["size"] == 10 and world.last()["path"] == "/e/f"
    upload = world.begin(session, "e/g", truncate=True)["upload"]
    world.checkpoint(session, upload, 100)
    world.ok(c.Remove(session, path("e/f")))
    world.ok(c.Rmdir(session, path("e")))
    assert used(world) == (0, 0, 0), "the partial went with its directory"
    for command in (c.Publish, c.Checkpoint):
        assert world.refused(command(session, upload, content(10), world.placement)) == Code.NOT_FOUND
    world.ok(c.EndUpload(session, upload))


# --- partials ----------------------------------------------------------------------------------------------------
def test_an_interrupted_upload_leaves_its_last_checkpoint_to_its_user(world: World, session: int) -> None:
    upload = world.begin(session, "f", truncate=True, mode=0o600)["upload"]
    world.checkpoint(session, upload, 2 * SIZE)
    world.checkpoint(session, upload, 5 * SIZE, seed=2)
    world.ok(c.EndUpload(session, upload))
    entry = world.stat("f")
    assert (entry["size"], entry["partial"], entry["mode"], entry["id"]) == (5 * SIZE, True, 0o100600, 0)
    assert world.names() == [], "no listing shows it"
    assert world.refused(c.OpenRead(session, path("f"))) == Code.NOT_FOUND
    record = world.last()
    assert (record["kind"], record["path"], record["size"], record["outcome"]) == ("partial", "/f", 5 * SIZE, "kept")
    value = world.begin(world.login(member="id-n2"), "f", append=True)
    assert (value["partial"], value["size"], value["ids"], value["file"], value["mode"]) == (
        True, 5 * SIZE, content(5 * SIZE, 2).ids, 0, 0o100600)


@pytest.mark.parametrize("end", ["logout", "expire", "boot"])
def test_the_end_of_a_session_keeps_its_partials(world: World, session: int, end: str) -> None:
    upload = world.begin(session, "f", truncate=True)["upload"]
    world.checkpoint(session, upload, 100)
    empty = world.begin(session, "g", truncate=True)["upload"]
    if end == "logout":
        world.ok(c.Logout(session))
    elif end == "expire":
        world.ok(c.ExpireMember("id-n1", world.machine.members.epoch("id-n1")))
    else:
        world.boot("id-n1")
    assert world.stat("f")["size"] == 100 and world.stat("g") == Code.NOT_FOUND
    assert world.machine.uploads.get(upload) is None and world.machine.uploads.get(empty) is None
    assert world.kinds(kind="partial") == ["partial"]


def test_a_live_uploads_checkpoint_is_what_its_user_sees_by_stat(world: World, session: int) -> None:
    upload = world.begin(session, "f", truncate=True)["upload"]
    world.checkpoint(session, upload, 100)
    assert world.stat("f")["size"] == 100
    world.user("bob")
    assert world.stat("f", user="bob") == Code.NOT_FOUND


def test_taking_over_revokes_the_old_upload(world: World, session: int) -> None:
    old = world.begin(session, "f", truncate=True)["upload"]
    world.checkpoint(session, old, 100)
    other = world.login(member="id-n2")
    new = world.begin(other, "f")
    assert new["partial"] and new["size"] == 100
    for command in (c.Checkpoint(session, old, content(200), world.placement),
                    c.Publish(session, old, content(200), world.placement), c.EndUpload(session, old)):
        assert world.refused(command) == Code.STALE_UPLOAD
    world.ok(c.Logout(session))
    assert world.stat("f")["size"] == 100
    world.publish(other, new["upload"], 300)
    assert world.stat("f")["size"] == 300 and used(world) == (1, 300, 0)


def test_ending_without_keeping_drops_the_prefix(world: World, session: int) -> None:
    upload = world.begin(session, "f", truncate=True)["upload"]
    world.checkpoint(session, upload, 100)
    world.ok(c.EndUpload(session, upload, keep=False))
    assert world.stat("f") == Code.NOT_FOUND and used(world) == (0, 0, 0)
    assert world.last()["outcome"] == "dropped"


def test_nothing_checkpointed_nothing_kept(world: World, session: int) -> None:
    upload = world.begin(session, "f", truncate=True)["upload"]
    world.checkpoint(session, upload, 0)
    world.ok(c.EndUpload(session, upload))
    assert world.stat("f") == Code.NOT_FOUND
    upload = world.begin(session, "f", truncate=True)["upload"]
    world.checkpoint(session, upload, 100)
    world.checkpoint(session, upload, 0)
    world.ok(c.EndUpload(session, upload))
    assert world.stat("f") == Code.NOT_FOUND and used(world) == (0, 0, 0)


@pytest.mark.parametrize("options", [{"truncate": True}, {"truncate": True, "create": False}, {"exclusive": True}])
def test_truncating_forgets_the_partial_at_once(world: World, session: int, options: dict) -> None:
    """Else a later resume would join one file's head to another's tail."""
    upload = world.begin(session, "f", truncate=True)["upload"]
    world.checkpoint(session, upload, 100)
    world.ok(c.EndUpload(session, upload))
    value = world.begin(session, "f", **options)
    assert (value["size"], value["partial"]) == (0, False)
    assert world.stat("f") == Code.NOT_FOUND and used(world) == (0, 0, 0)


def test_a_later_uploads_prefix_is_not_replaced_by_an_earlier_ones(world: World, session: int) -> None:
    one, two = (world.begin(session, "f", truncate=True)["upload"] for _ in range(2))
    world.checkpoint(session, one, 100, seed=1)
    world.checkpoint(session, two, 50, seed=2)
    world.checkpoint(session, one, 200, seed=1)
    assert world.stat("f")["size"] == 50
    world.ok(c.EndUpload(session, one))
    assert world.stat("f")["size"] == 50
    world.ok(c.EndUpload(session, two))
    assert world.begin(session, "f")["ids"] == content(50, 2).ids


def test_a_published_file_leaves_no_partial_of_its_name(world: World, session: int) -> None:
    """By publish, rename or mkdir: a partial never stands beside a published name."""
    def partial(name: str) -> int:
        upload = world.begin(session, name, truncate=True)["upload"]
        world.checkpoint(session, upload, 100)
        return upload

    old = partial("f")
    world.put(session, "f", 10)
    assert used(world) == (1, 10, 0)
    world.checkpoint(session, old, 200)
    world.ok(c.EndUpload(session, old))
    assert used(world) == (1, 10, 0), "a checkpoint beside a published name is not kept"
    partial("g")
    world.ok(c.Rename(session, path("f"), path("g")))
    partial("h")
    world.ok(c.Mkdir(session, path("h")))
    assert used(world) == (1, 10, 0)


def test_remove_takes_published_file_and_partial_and_says_whose_upload_went(world: World, session: int) -> None:
    upload = world.begin(session, "f", truncate=True)["upload"]
    world.checkpoint(session, upload, 100)
    other = world.login(member="id-n2")
    assert world.ok(c.Remove(other, path("f"))) == {"uploads": [upload]}
    assert world.stat("f") == Code.NOT_FOUND and used(world) == (0, 0, 0)
    assert world.refused(c.Publish(session, upload, content(10), world.placement)) == Code.STALE_UPLOAD
    upload = world.begin(session, "f", truncate=True)["upload"]
    world.checkpoint(session, upload, 100)
    world.ok(c.EndUpload(session, upload))
    assert world.ok(c.Remove(session, path("f"))) == {"uploads": []}
    assert world.refused(c.Remove(session, path("f"))) == Code.NOT_FOUND


def test_the_writing_session_removes_what_it_is_writing_others_do_not_see_it(world: World, session: int) -> None:
    upload = world.begin(session, "f", truncate=True)["upload"]
    assert world.refused(c.Remove(world.login(), path("f"))) == Code.NOT_FOUND
    assert world.ok(c.Remove(session, path("f"))) == {"uploads": [upload]}
    world.put(session, "g")
    over = world.begin(session, "g", truncate=True)["upload"]
    assert world.ok(c.Remove(session, path("g"))) == {"uploads": [over]}
    assert world.machine.uploads.count() == 0
    assert world.machine._db.execute("SELECT count(*) FROM inodes WHERE kind = 1").fetchone() == (0,)


def test_a_take_over_tells_whose_upload_it_revoked(world: World, session: int) -> None:
    upload = world.begin(session, "f")["upload"]
    world.checkpoint(session, upload, 100)
    value = world.begin(world.login(), "f")
    assert value["revoked"] == upload
    world.ok(c.EndUpload(world.machine.uploads.get(value["upload"]).session, value["upload"]))
    assert "revoked" not in world.begin(session, "f"), "nobody was writing"


def test_a_renamed_partial_stays_a_partial_and_its_upload_goes_along(world: World, session: int) -> None:
    upload = world.begin(session, "f.filepart", truncate=True)["upload"]
    world.checkpoint(session, upload, 100)
    world.ok(c.Mkdir(session, path("d")))
    other = world.login()
    assert world.refused(c.Rename(other, path("f.filepart"), path("d/f"))) == Code.NOT_FOUND, "only what is published"
    world.ok(c.Rename(session, path("f.filepart"), path("d/f")))
    assert world.stat("f.filepart") == Code.NOT_FOUND and world.stat("d/f")["size"] == 100
    assert world.names("d") == [] and world.begin(other, "d/f")["partial"]


def test_a_partial_that_nobody_writes_is_renamed_by_who_takes_it_over(world: World, session: int) -> None:
    world.checkpoint(session, world.begin(session, "f")["upload"], 100)
    world.ok(c.Logout(session))
    other = world.login()
    assert world.refused(c.Rename(other, path("f"), path("g"))) == Code.NOT_FOUND
    world.begin(other, "f")
    world.ok(c.Rename(other, path("f"), path("g")))
    assert world.stat("g")["size"] == 100


def test_a_live_upload_is_published_under_the_name_its_session_gave_it(world: World, session: int) -> None:
    with_prefix = world.begin(session, "a", truncate=True)["upload"]
    world.checkpoint(session, with_prefix, 100)
    without = world.begin(session, "b", truncate=True)["upload"]
    assert world.refused(c.Rename(world.login(), path("b"), path("x"))) == Code.NOT_FOUND
    for name in "ab":
        world.ok(c.Rename(session, path(name), path(f"{name}2")))
    world.publish(session, with_prefix)
    world.publish(session, without)
    assert world.names() == [b"a2", b"b2"] and used(world) == (2, 20, 0)


@pytest.mark.parametrize("replace", [False, True])
def test_a_partial_never_takes_a_files_place(world: World, session: int, replace: bool) -> None:
    upload = world.begin(session, "part", truncate=True)["upload"]
    world.checkpoint(session, upload, 100)
    world.put(session, "f")
    assert world.refused(c.Rename(session, path("part"), path("f"), replace)) == Code.EXISTS
    world.ok(c.Rename(session, path("part"), path("part"), replace))
    assert world.stat("part")["size"] == 100


def test_a_partial_renamed_onto_another_takes_its_place(world: World, session: int) -> None:
    for name, size in (("a", 100), ("b", 30)):
        world.checkpoint(session, world.begin(session, name, truncate=True)["upload"], size)
    world.ok(c.Rename(session, path("a"), path("b")))
    assert world.stat("b")["size"] == 100 and used(world) == (0, 0, 100)


def test_partials_expire_a_day_after_they_were_last_touched(world: World, session: int) -> None:
    for name in ("old", "taken", "live"):
        upload = world.begin(session, name, truncate=True)["upload"]
        world.checkpoint(session, upload, 100)
        if name != "live":
            world.ok(c.EndUpload(session, upload))
    world.now_ms += 23 * HOUR_MS
    world.ok(c.EndUpload(session, world.begin(session, "taken")["upload"]))
    world.now_ms += 1 * HOUR_MS
    world.ok(c.NoOp())
    assert world.stat("old") == Code.NOT_FOUND
    assert world.stat("taken")["size"] == 100 and world.stat("live")["size"] == 100
    record = world.last()
    assert (record["kind"], record["path"], record["user"], record["outcome"]) == ("partial", "/old", "ann", "expired")
    assert used(world) == (0, 0, 200)
    world.now_ms += 25 * HOUR_MS
    world.ok(c.NoOp())
    assert world.stat("taken") == Code.NOT_FOUND and world.stat("live")["size"] == 100


def test_expiry_goes_on_entry_by_entry_when_there_is_much(world: World, session: int, monkeypatch) -> None:
    monkeypatch.setattr("raftmft.core.partials.EXPIRE_AT_ONCE", 2)
    for i in range(5):
        upload = world.begin(session, f"p{i}", truncate=True)["upload"]
        world.checkpoint(session, upload, 100)
        world.ok(c.EndUpload(session, upload))
    world.now_ms += 25 * HOUR_MS
    left = []
    for _ in range(3):
        world.ok(c.NoOp())
        left.append(used(world)[2])
    assert left == [300, 100, 0]


def test_partials_are_told_to_a_member_that_was_away(world: World, session: int) -> None:
    upload = world.begin(session, "f", truncate=True)["upload"]
    world.checkpoint(session, upload, 100)
    assert world.machine.partials.manifests_since(0, 10) == [(world.index, content(100))]
    assert world.machine.partials.manifests_since(world.index, 10) == []


# --- quota -------------------------------------------------------------------------------------------------------
def test_the_quota_counts_files_and_partials(world: World, session: int) -> None:
    world.ok(c.UserSet("ann", quota_bytes=100))
    world.put(session, "a", 60)
    part = world.begin(session, "p", truncate=True)["upload"]
    world.checkpoint(session, part, 30)
    big = world.begin(session, "b", truncate=True)["upload"]
    assert world.refused(c.Publish(session, big, content(11), world.placement)) == Code.QUOTA
    assert world.refused(c.Checkpoint(session, big, content(11), world.placement)) == Code.QUOTA
    assert world.refused(c.Checkpoint(session, part, content(41), world.placement)) == Code.QUOTA
    world.checkpoint(session, part, 40)
    world.publish(session, part, 40)
    assert used(world) == (2, 100, 0), "a partial's bytes are not counted twice when it is published"
    over = world.begin(session, "a", truncate=True)["upload"]
    assert world.refused(c.Publish(session, over, content(61), world.placement)) == Code.QUOTA
    world.publish(session, over, 50)
    world.publish(session, big, 10)
    assert used(world) == (3, 100, 0)


def test_over_quota_one_can_still_shrink_and_remove(world: World, session: int) -> None:
    world.put(session, "a", 60)
    world.ok(c.UserSet("ann", quota_bytes=10))
    world.put(session, "a", 50)
    world.put(session, "empty", 0)
    world.ok(c.Remove(session, path("a")))
    world.put(session, "b", 10)


# --- appending over a newer version, copying ----------------------------------------------------------------------
def test_what_is_appended_may_be_published_over_a_newer_version(world: World, session: int) -> None:
    base = world.put(session, "f", 10)
    upload = world.begin(session, "f", append=True)["upload"]
    newer = world.put(world.login(), "f", 20)
    assert world.machine.namespace.content(base["file"]) == (newer["version"], content(20), "")
    assert world.refused(c.Publish(session, upload, content(13), world.placement)) == Code.CONFLICT
    for wrong in (base["version"] + 1, newer["version"] + 1):
        assert world.refused(c.Publish(session, upload, content(23), world.placement, base=wrong)) == Code.CONFLICT
    world.publish(session, upload, 23, base=newer["version"])
    assert world.stat("f")["size"] == 23


def test_only_appending_may_change_its_base(world: World, session: int) -> None:
    world.put(session, "f", 10)
    upload = world.begin(session, "f")["upload"]
    newer = world.put(world.login(), "f", 20)
    for name, number in (("f", upload), ("new", world.begin(session, "new", append=True)["upload"])):
        command = c.Publish(session, number, content(23), world.placement, base=newer["version"])
        assert world.refused(command) == Code.INVALID, name


def test_a_copy_is_audited_and_keeps_its_source_until_the_upload_ends(world: World, session: int) -> None:
    world.ok(c.Mkdir(session, path("d")))
    world.publish(session, world.begin(session, "from", truncate=True)["upload"], 2 * SIZE, digest="ab")
    opened = world.ok(c.OpenRead(session, path("from")))
    upload = world.begin(session, "d/to")["upload"]
    for _ in range(2):
        told = world.ok(c.CopyData(session, upload, opened["open"], content(2 * SIZE), SIZE))
        assert told == {"version": opened["version"]}, "what may tell under which placement it was acknowledged"
        record = world.last()
        assert (record["kind"], record["path"], record["target"], record["size"], record["digest"]) == (
            "copy", "/from", "/d/to", SIZE, "ab")
    world.ok(c.Remove(session, path("from")))
    world.ok(c.ReadEnd(((session, opened["open"], 5, True),)))
    assert world.machine.uploads.sources() == [content(2 * SIZE)], "removed and closed, and still in use"
    world.publish(session, upload, 2 * SIZE)
    assert world.machine.uploads.sources() == []


@pytest.mark.parametrize("end", ["end", "logout", "remove", "taken over"])
def test_sources_are_let_go_however_the_upload_ends(world: World, session: int, end: str) -> None:
    world.put(session, "from", 20)
    opened = world.ok(c.OpenRead(session, path("from")))["open"]
    upload = world.begin(session, "to")["upload"]
    world.ok(c.CopyData(session, upload, opened, content(20), 20))
    world.checkpoint(session, upload, 20)
    {"end": lambda: world.ok(c.EndUpload(session, upload)), "logout": lambda: world.ok(c.Logout(session)),
     "remove": lambda: world.ok(c.Remove(session, path("to"))),
     "taken over": lambda: world.begin(world.login(), "to")}[end]()
    assert world.machine.uploads.sources() == []


def test_what_cannot_be_copied(world: World, session: int, monkeypatch: pytest.MonkeyPatch) -> None:
    world.put(session, "from", 20)
    other = world.login()
    opened = world.ok(c.OpenRead(session, path("from")))["open"]
    upload = world.begin(session, "to")["upload"]
    assert world.refused(c.CopyData(session, upload, opened + 99, content(20), 1)) == Code.NOT_FOUND
    assert world.refused(c.CopyData(other, upload, opened, content(20), 1)) == Code.STALE_UPLOAD
    theirs = world.begin(other, "to")["upload"]
    assert world.refused(c.CopyData(other, theirs, opened, content(20), 1)) == Code.NOT_FOUND
    for manifest, size in ((Manifest(10), 1), (content(20), 21), (content(20), -1)):
        assert world.refused(c.CopyData(session, upload, opened, manifest, size)) == Code.INVALID
    world.ok(c.UserSet("ann", quota_bytes=45))
    world.checkpoint(session, upload, 15)
    world.ok(c.CopyData(session, upload, opened, content(20), 20))
    world.ok(c.UserSet("ann", quota_bytes=39))
    assert world.refused(c.CopyData(session, upload, opened, content(20), 20)) == Code.QUOTA
    over = world.begin(session, "from", truncate=True)["upload"]
    world.ok(c.CopyData(session, over, opened, content(20), 20))
    world.ok(c.UserSet("ann", quota_bytes=0))
    monkeypatch.setattr("raftmft.core.uploads.MAX_SOURCES_PER_UPLOAD", 1)
    world.ok(c.CopyData(session, upload, opened, content(20), 1))
    world.put(other, "from", 20)
    newer = world.ok(c.OpenRead(session, path("from")))["open"]
    assert world.refused(c.CopyData(session, upload, newer, content(20), 1)) == Code.LIMIT
    world.ok(c.UserSet("ann", read_only=True))
    assert world.refused(c.CopyData(session, upload, opened, content(20), 1)) == Code.READ_ONLY


# --- what a session sees of its own ------------------------------------------------------------------------------
def test_a_sessions_own_uploads_are_found_wherever_their_names_lead(world: World, session: int) -> None:
    uploads, other = world.machine.uploads, world.login()
    world.ok(c.Mkdir(session, path("d")))
    world.put(session, "d/old")
    over, new = world.begin(session, "d/old", truncate=True)["upload"], world.begin(session, "d/new")["upload"]
    world.ok(c.Symlink(session, path("l"), b"d/new"))
    world.ok(c.Link(session, path("d/old"), path("second")))
    for name, upload in (("d/old", over), ("d/new", new), ("l", new), ("second", over), ("d", 0), ("none", 0),
                         ("none/x", 0)):
        assert uploads.seen_at("ann", session, path(name)) == upload, name
        assert uploads.seen_at("ann", other, path(name)) == 0
    assert uploads.seen_at("ann", session, path("l"), follow=False) == 0
    assert uploads.seen_in("ann", session, path("d")) == [[b"old", over], [b"new", new]]
    assert uploads.seen_in("ann", session, ()) == [[b"second", over]]
    world.ok(c.Rename(other, path("d"), path("e")))
    world.ok(c.Rename(other, path("e/old"), path("moved")))
    later = world.begin(session, "e/new", truncate=True)["upload"]
    assert uploads.seen_at("ann", session, path("moved")) == over
    assert uploads.seen_at("ann", session, path("e/new")) == later, "the one begun last"
    assert uploads.seen_in("ann", session, path("e")) == [[b"new", new], [b"new", later]]
    assert uploads.seen_in("ann", other, path("e")) == uploads.seen_in("ann", session, path("none/x")) == []
    assert uploads.seen_at("nobody", session, path("e/new")) == 0 and uploads.seen_in("nobody", session, ()) == []
