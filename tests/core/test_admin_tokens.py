"""Admin tokens: a name, a role and a hash; what is wrong is refused; revoked is gone."""

from __future__ import annotations

import hashlib

import pytest
from machine_world import World

from raftmft.core import commands as c
from raftmft.core.outcome import Code

HASH = hashlib.sha256(b"secret").hexdigest()


def test_a_token_is_found_by_its_hash_until_it_is_revoked(world: World) -> None:
    world.ok(c.AdminTokenAdd("grafana", "viewer", HASH, "root"))
    row = world.machine.admin_tokens.find(HASH)
    assert row is not None and (row.name, row.role, row.added_by) == ("grafana", "viewer", "root")
    assert world.machine.admin_tokens.list() == [row]
    assert world.machine.admin_tokens.find(HASH[:-1] + "0") is None
    assert world.last()["target"] == "admin-token create grafana viewer" and world.last()["user"] == "root"
    world.ok(c.AdminTokenRemove("grafana", "root"))
    assert world.machine.admin_tokens.find(HASH) is None and world.machine.admin_tokens.list() == []
    assert world.last()["target"] == "admin-token revoke grafana"


@pytest.mark.parametrize(("name", "role", "token_hash", "code"), [
    ("", "viewer", HASH, Code.BAD_NAME), ("a/b", "viewer", HASH, Code.BAD_NAME), ("x" * 65, "viewer", HASH,
                                                                                 Code.BAD_NAME),
    ("a", "owner", HASH, Code.INVALID), ("a", "", HASH, Code.INVALID), ("a", "viewer", HASH.upper(), Code.INVALID),
    ("a", "viewer", HASH[1:], Code.INVALID), ("taken", "viewer", "0" * 64, Code.EXISTS),
    ("other", "viewer", HASH, Code.EXISTS)])
def test_what_is_wrong_is_refused(world: World, name: str, role: str, token_hash: str, code: Code) -> None:
    world.ok(c.AdminTokenAdd("taken", "admin", HASH))
    assert world.refused(c.AdminTokenAdd(name, role, token_hash)) == code


def test_revoking_what_is_not_there_is_refused(world: World) -> None:
    assert world.refused(c.AdminTokenRemove("nobody")) == Code.NOT_FOUND


def test_there_is_a_bound(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftmft.core.admin_tokens.MAX_ADMIN_TOKENS", 2)
    for number in range(2):
        world.ok(c.AdminTokenAdd(f"t{number}", "viewer", f"{number:064x}"))
    assert world.refused(c.AdminTokenAdd("t2", "viewer", f"{2:064x}")) == Code.LIMIT
