"""Tenants: names, credentials, keys, limits, removal."""

from __future__ import annotations

import base64
import struct

import pytest
from machine_world import World, key_line, path

from raftmft.core import commands as c
from raftmft.core.keys import parse_key
from raftmft.core.outcome import Code
from raftmft.core.state import Refuse

# RFC 8032's first test key, and what `ssh-keygen -lf` says of it.
KNOWN_LINE = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINdamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea"
KNOWN_FINGERPRINT = "SHA256:bbXpuKG6zhzdmnxq256TlqzFBzRl2f6OOg722cYNbU8"


def blob_line(kind: str, *fields: bytes) -> str:
    blob = b"".join(struct.pack(">I", len(f)) + f for f in fields)
    return f"{kind} {base64.b64encode(blob).decode()}"


def test_a_user_has_a_uid_from_1000_on_and_an_empty_home(world: World) -> None:
    assert [world.user("ann"), world.user("bob")] == [1000, 1001]
    row = world.machine.users.get("ann")
    assert row is not None and row.enabled and not row.read_only and row.credential == 1 and row.used_bytes == 0
    home = world.stat("")
    assert home["kind"] == "dir" and home["mode"] == 0o040755 and home["uid"] == 1000
    assert world.names() == []
    assert [u.name for u in world.machine.users.list()] == ["ann", "bob"]


def test_a_uid_is_never_used_twice(world: World) -> None:
    world.user("ann")
    world.ok(c.UserRemove("ann"))
    assert world.user("ann") == 1001


@pytest.mark.parametrize("name", ["a", "a" * 64, "ann.b-c_d", "Änne", "with space", "用户", "x@y"])
def test_good_names(world: World, name: str) -> None:
    world.user(name)
    assert world.machine.users.get(name) is not None


@pytest.mark.parametrize("name", ["", "a" * 65, "ä" * 33, "a/b", "a\\b", "a:b", ".", "..", ".ssh", "-rf", " a", "a ",
                                  "a\nb", "a\0b", "a\x7fb", "a\x85b", "a\u202eb", "a\u200bb", "\ufeffa", "a\ud800"])
def test_bad_names_are_refused_with_the_rule(world: World, name: str) -> None:
    assert world.refused(c.UserAdd(name)) == Code.BAD_NAME
    outcome = world.apply(c.UserAdd(name))
    assert outcome.rejection is not None and "1 to 64 bytes" in outcome.rejection.text


def test_a_second_user_of_a_name_is_refused(world: World) -> None:
    world.user()
    assert world.refused(c.UserAdd("ann")) == Code.EXISTS


@pytest.mark.parametrize("options", [{"quota_bytes": -1}, {"max_sessions": -1}, {"quota_bytes": 1 << 63},
                                     {"password_hash": "x" * 2000}])
def test_senseless_limits_are_refused(world: World, options: dict) -> None:
    assert world.refused(c.UserAdd("ann", **options)) == Code.INVALID


def test_set_changes_only_what_is_given(world: World) -> None:
    world.user(password_hash="h", quota_bytes=5, max_sessions=2)
    world.ok(c.UserSet("ann", read_only=True))
    row = world.machine.users.get("ann")
    assert row is not None
    assert (row.password_hash, row.quota_bytes, row.max_sessions, row.read_only) == ("h", 5, 2, True)
    world.ok(c.UserSet("ann", quota_bytes=0, max_sessions=0, read_only=False))
    row = world.machine.users.get("ann")
    assert row is not None and (row.quota_bytes, row.max_sessions, row.read_only) == (0, 0, False)
    assert world.refused(c.UserSet("bob", enabled=False)) == Code.NO_USER


def test_the_credential_number_counts_changes_of_password_keys_and_enabled(world: World) -> None:
    world.user()

    def credential() -> int:
        row = world.machine.users.get("ann")
        assert row is not None
        return row.credential

    steps = [c.UserSet("ann", password_hash="x"), c.UserSet("ann", password_hash=""), c.UserSet("ann", enabled=False),
             c.UserSet("ann", enabled=True), c.UserKeyAdd("ann", key_line(1))]
    for step in steps:
        before = credential()
        world.ok(step)
        assert credential() == before + 1, step
    before = credential()
    world.ok(c.UserKeyRemove("ann", world.machine.users.keys("ann")[0].fingerprint))
    assert credential() == before + 1
    world.ok(c.UserSet("ann", quota_bytes=7))
    world.ok(c.UserSet("ann", enabled=True))
    assert credential() == before + 1


def test_an_empty_password_hash_removes_the_password(world: World) -> None:
    world.user(password_hash="h")
    world.ok(c.UserSet("ann", password_hash=""))
    row = world.machine.users.get("ann")
    assert row is not None and row.password_hash is None


def test_keys_are_named_by_the_sha256_of_their_blob() -> None:
    line, fingerprint = parse_key(f"  {KNOWN_LINE}\tann's   laptop \n")
    assert line == f"{KNOWN_LINE} ann's   laptop"
    assert fingerprint == KNOWN_FINGERPRINT


def test_keys_are_added_listed_and_removed(world: World) -> None:
    world.user(keys=(key_line(1), key_line(1, comment="again")))
    assert len(world.machine.users.keys("ann")) == 1
    fingerprint = world.ok(c.UserKeyAdd("ann", key_line(2)))["fingerprint"]
    assert world.refused(c.UserKeyAdd("ann", key_line(2, comment="other"))) == Code.EXISTS
    assert {k.fingerprint for k in world.machine.users.keys("ann")} > {fingerprint}
    world.ok(c.UserKeyRemove("ann", fingerprint))
    assert world.refused(c.UserKeyRemove("ann", fingerprint)) == Code.NOT_FOUND
    assert world.refused(c.UserKeyAdd("bob", key_line(2))) == Code.NO_USER
    assert world.machine.users.keys("bob") == []
    for seed in range(10, 73):
        world.ok(c.UserKeyAdd("ann", key_line(seed)))
    assert world.refused(c.UserKeyAdd("ann", key_line(99))) == Code.LIMIT


RSA = [b"ssh-rsa", b"\1\0\1"]


@pytest.mark.parametrize("line", [
    blob_line("ssh-rsa", *RSA, b"\0" + b"\xff" * 256),
    blob_line("ecdsa-sha2-nistp256", b"ecdsa-sha2-nistp256", b"nistp256", b"\4" * 65),
    blob_line("sk-ssh-ed25519@openssh.com", b"sk-ssh-ed25519@openssh.com", b"k" * 32, b"ssh:"),
    blob_line("sk-ecdsa-sha2-nistp256@openssh.com", b"sk-ecdsa-sha2-nistp256@openssh.com", b"nistp256", b"\4" * 65,
              b"ssh:"),
])
def test_keys_of_all_common_types_are_taken(line: str) -> None:
    assert parse_key(line)[0] == line


@pytest.mark.parametrize("line", [
    "", "ssh-ed25519", "ssh-ed25519 !!!!", "ssh-ed25519 AAAA", "ssh-dss AAAA", f"no-pty {KNOWN_LINE}",
    KNOWN_LINE.replace("ssh-ed25519 ", "ssh-rsa "), KNOWN_LINE[:-4], KNOWN_LINE + "\n" + KNOWN_LINE,
    KNOWN_LINE + " " + "x" * 20_000, "ssh-ed25519 ÄÄÄÄ",
    blob_line("ssh-ed25519", b"ssh-rsa", b"k" * 32), blob_line("ssh-ed25519", b"ssh-ed25519", b"short"),
    blob_line("ssh-ed25519", b"ssh-ed25519", b"k" * 32, b"more"),
    blob_line("ssh-rsa", *RSA, b"\0" + b"\xff" * 128), blob_line("ssh-rsa", *RSA, b""),
    blob_line("ecdsa-sha2-nistp256", b"ecdsa-sha2-nistp256", b"nistp384", b"\4" * 97),
])
def test_damaged_weak_or_foreign_key_lines_are_refused(world: World, line: str) -> None:
    with pytest.raises(Refuse):
        parse_key(line)
    assert world.refused(c.UserAdd("ann", keys=(line,))) == Code.INVALID


def test_an_admins_change_is_audited_with_its_actor_and_without_secrets(world: World) -> None:
    world.user(password_hash="$argon2id$secret", actor="root@console")
    world.ok(c.UserSet("ann", password_hash="$argon2id$secret2", quota_bytes=9))
    first, second = world.machine.audit.query(kind="admin")[-2:]
    assert (first["user"], first["target"]) == ("root@console", "user add ann")
    assert second["user"] is None and second["target"] == "user set ann: password, quota_bytes=9"


def test_removing_a_user_takes_everything_it_had(world: World) -> None:
    world.user("ann")
    world.user("bob")
    session, other = world.login("ann"), world.login("bob")
    world.put(other, "b.txt")
    world.ok(c.Mkdir(session, path("d")))
    world.ok(c.Mkdir(session, path("d/e")))
    world.put(session, "d/e/f")
    world.checkpoint(session, world.begin(session, "part")["upload"], 100)
    world.ok(c.OpenRead(session, path("d/e/f")))
    assert world.ok(c.UserRemove("ann")) == {"sessions": [session]}
    assert world.stat("") == Code.NO_USER
    assert world.refused(c.Mkdir(session, path("x"))) == Code.NO_SESSION
    assert world.names(user="bob") == [b"b.txt"]
    db = world.machine._db
    left = {table: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("inodes", "dentries", "uploads", "partials", "users", "sessions")}
    assert left == {"inodes": 2, "dentries": 1, "uploads": 0, "partials": 0, "users": 1, "sessions": 1}
    assert world.refused(c.UserRemove("ann")) == Code.NO_USER
    assert "session_killed" in world.kinds(user="ann")
