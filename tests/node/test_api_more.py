"""Sessions, files, admin tokens and the document of the admin API."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from api_world import MEMBERS, Client, World

from raftmft.core import commands as c
from raftmft.core.errors import NoQuorum, RaftmftError
from raftmft.core.manifest import CHUNK_SIZE, IDS_PER_INDEX, Manifest
from raftmft.node.api import ADMIN, Caller, Operation
from raftmft.node.api_config import ConfigApi
from raftmft.node.api_files import FilesApi, Placing
from raftmft.node.api_sessions import SessionsApi
from raftmft.node.api_tokens import TokensApi
from raftmft.node.api_users import UsersApi
from raftmft.node.openapi import document, shape, with_document
from raftmft.node.tokens import Tokens, make_secret, render

IDS = [bytes([n]) * 32 for n in range(1, 200)]
ALL = ["id-n1", "id-n2", "id-n3"]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# --- sessions --------------------------------------------------------------------------------------------------------
async def test_sessions_of_all_members_are_listed_and_killed(world: World) -> None:
    client = Client(SessionsApi(world.state, world).operations())  # type: ignore[arg-type]
    for user in ("ann", "bob"):
        world.ok(c.UserAdd(user))
    one, two = world.login("ann"), world.login("bob", "id-n2", "192.0.2.9:7")
    sessions = (await client.get("/api/v1/sessions"))["sessions"]
    assert [(s["id"], s["member"]) for s in sessions] == [(one, "n1"), (two, "n2")]
    assert sessions[1] == {"id": two, "user": "bob", "address": "192.0.2.9:7", "member": "n2", "method": "publickey",
                           "since": "2023-11-14T22:13:20.000Z"}
    assert (await client.get("/api/v1/sessions", user="bob"))["sessions"] == sessions[1:]
    assert await client.do("DELETE", f"/api/v1/sessions/{two}") == {"user": "bob", "member": "n2"}
    assert [s.id for s in world.machine.sessions.list()] == [one]
    assert world.machine.audit.query(kind="session_killed")[0]["outcome"] == "killed by local administrator"
    for wrong, status in ((two, 404), (10**18, 404), ("x", 400), (0, 400), (10**30, 400)):
        assert (await client.refused("DELETE", f"/api/v1/sessions/{wrong}"))[0] == status


# --- files -----------------------------------------------------------------------------------------------------------
class Files:
    """The files' routes over made-up holders."""

    def __init__(self, world: World, holders: dict[bytes, list[str]], silent: Sequence[str] = (),
                 index: dict[bytes, bytes] | None = None, replicas: int = 2, storing: Sequence[str] = ALL) -> None:
        async def who(ids: Sequence[bytes], members: Sequence[str]) -> dict[str, list[bool] | None]:
            return {m: None if m in silent else [m in holders.get(i, ()) for i in ids] for m in members}

        async def read(chunk_id: bytes) -> bytes:
            if index is None or chunk_id not in index:
                raise RaftmftError("nobody has it")
            return index[chunk_id]

        placing = Placing(MEMBERS, [(member, 100) for member in storing], replicas)
        self.client = Client(FilesApi(world.state, world, lambda: placing, who, read).operations())  # type: ignore[arg-type]

    async def show(self, path: str = "/ann/f", **query: Any) -> Any:
        return await self.client.get("/api/v1/file", path=path, **query)


def put(world: World, manifest: Manifest) -> None:
    world.ok(c.UserAdd("ann"))
    session = world.login("ann")
    upload = world.ok(c.BeginUpload(session, (b"f",)))["upload"]
    world.ok(c.Publish(session, upload, manifest, world.machine.settings.placement, "d1"))


@pytest.mark.parametrize(("held", "silent", "health"), [
    ([ALL[:2], ALL[1:]], [], "ok"), ([ALL, ALL[:1]], [], "degraded"), ([ALL, []], [], "lost"),
    ([ALL, []], ["id-n3"], "unknown"), ([ALL[:2], ALL[:2]], ["id-n3"], "ok"), ([ALL[1:], ALL], ["id-n3"], "degraded")])
async def test_a_files_health(world: World, held: list[list[str]], silent: list[str], health: str) -> None:
    put(world, Manifest(CHUNK_SIZE + 5, 0, b"".join(IDS[:2])))
    value = await Files(world, dict(zip(IDS, held, strict=False)), silent).show()
    assert value["health"] == health and value["silent"] == (["n3"] if silent else [])
    assert (value["size"], value["digest"], value["depth"], value["chunk_count"]) == (CHUNK_SIZE + 5, "d1", 0, 2)
    assert [chunk["size"] for chunk in value["chunks"]] == [CHUNK_SIZE, 5]
    assert all(len(chunk["owners"]) == 2 for chunk in value["chunks"])


@pytest.mark.parametrize(("held", "silent", "health"), [
    (["id-n3"], [], "degraded"), (["id-n1", "id-n3"], [], "degraded"), (ALL, [], "ok"), (ALL[:2], ["id-n3"], "ok"),
    ([], [], "lost"), ([], ["id-n3"], "unknown")])
async def test_what_a_leaving_member_still_has_is_shown_and_not_lost_but_no_copy_that_stays(
        world: World, held: list[str], silent: list[str], health: str) -> None:
    put(world, Manifest(5, 0, IDS[0]))
    value = await Files(world, {IDS[0]: held}, silent, storing=ALL[:2]).show()
    (chunk,) = value["chunks"]
    assert (value["health"], chunk["holders"]) == (health, [member.removeprefix("id-") for member in held])
    assert chunk["owners"] and "n3" not in chunk["owners"]


async def test_an_empty_file_is_well(world: World) -> None:
    put(world, Manifest(0))
    value = await Files(world, {}).show()
    assert value["chunks"] == [] and value["health"] == "ok"


async def test_a_page_of_chunks(world: World) -> None:
    put(world, Manifest(5 * CHUNK_SIZE, 0, b"".join(IDS[:5])))
    files = Files(world, dict.fromkeys(IDS, ALL))
    assert [c["number"] for c in (await files.show(first=1, limit=3))["chunks"]] == [1, 2, 3]
    assert (await files.show(first=4, limit=3))["chunks"][0]["id"] == IDS[4].hex()
    assert (await files.show(first=5, limit=3))["chunks"] == (await files.show(limit=0))["chunks"] == []
    for wrong in ("first=-1", "limit=1001", "limit=x", "more=1"):
        assert (await files.client.refused("GET", f"/api/v1/file?path=/ann/f&{wrong}"))[0] == 400
    for wrong, status in (("", 400), ("?path=/ann/none", 404), ("?path=/bob/f", 404), ("?path=ann", 400)):
        assert (await files.client.refused("GET", f"/api/v1/file{wrong}"))[0] == status


async def test_a_large_file_is_looked_up_in_its_index_chunks(world: World) -> None:
    chunks = IDS_PER_INDEX + 3
    first, second = IDS[0] * IDS_PER_INDEX, b"".join(IDS[10:13])
    put(world, Manifest(chunks * CHUNK_SIZE, 1, IDS[100] + IDS[101]))
    files = Files(world, dict.fromkeys(IDS, ALL), index={IDS[100]: first, IDS[101]: second})
    value = await files.show(first=IDS_PER_INDEX - 1, limit=3)
    assert [(chunk["number"], chunk["kind"]) for chunk in value["chunks"]] == [
        (None, "index"), (None, "index"), (IDS_PER_INDEX - 1, "data"), (IDS_PER_INDEX, "data"),
        (IDS_PER_INDEX + 1, "data")]
    assert value["chunks"][-1]["id"] == IDS[11].hex() and value["health"] == "ok"
    value = await files.show(first=IDS_PER_INDEX + 1, limit=100)
    assert [chunk["id"] for chunk in value["chunks"][2:]] == [chunk_id.hex() for chunk_id in IDS[11:13]]
    assert value["health"] == "ok"
    assert len(value["chunks"][0]["owners"]) == 3, "index chunks belong to every member"
    for index in (None, {IDS[100]: b""}):
        assert (await Files(world, dict.fromkeys(IDS, ALL), index=index).show())["health"] == "lost"


@pytest.mark.parametrize(("held", "silent", "health"), [
    ([], [], "lost"), ([], ["id-n3"], "unknown"), (ALL[:2], ["id-n3"], "unknown"), (ALL, [], "lost")])
async def test_an_index_that_cannot_be_read_is_not_lost_while_members_are_silent(
        world: World, held: list[str], silent: list[str], health: str) -> None:
    put(world, Manifest(100 * CHUNK_SIZE, 1, IDS[100]))
    value = await Files(world, {IDS[100]: held}, silent).show()
    assert (value["health"], [chunk["kind"] for chunk in value["chunks"]]) == (health, ["index"])


@pytest.mark.parametrize(("held", "health"), [(ALL, "ok"), (ALL[:2], "degraded")])
async def test_an_index_chunk_that_a_member_lacks_makes_the_file_degraded(
        world: World, held: list[str], health: str) -> None:
    put(world, Manifest(65 * CHUNK_SIZE, 1, IDS[100]))
    value = await Files(world, {**dict.fromkeys(IDS, ALL), IDS[100]: held}, index={IDS[100]: b"".join(IDS[:65])}).show()
    assert value["health"] == health and len(value["chunks"]) == 66


async def test_a_checkpoints_last_chunks_are_shown_after_those_of_its_index(world: World) -> None:
    world.ok(c.UserAdd("ann"))
    session = world.login("ann")
    upload = world.ok(c.BeginUpload(session, (b"f",)))["upload"]
    content = Manifest(66 * CHUNK_SIZE + 7, 2, IDS[100] + b"".join(IDS[20:23]))
    world.ok(c.Checkpoint(session, upload, content, world.machine.settings.placement))
    files = Files(world, dict.fromkeys(IDS, ALL), index={IDS[100]: b"".join(IDS[30:94])})
    for first, ids in ((0, [*IDS[30:94], *IDS[20:23]]), (63, [IDS[93], *IDS[20:23]]), (64, IDS[20:23]),
                       (65, IDS[21:23]), (67, [])):
        value = await files.show(first=first)
        assert [chunk["id"] for chunk in value["chunks"]] == [i.hex() for i in [IDS[100], *ids]]
        assert [chunk["number"] for chunk in value["chunks"]] == [None, *range(first, 67)]
        assert value["partial"] and value["health"] == "ok"
    assert len((await files.show(first=62, limit=4))["chunks"]) == 5 and len((await files.show(limit=0))["chunks"]) == 1


# --- tokens ----------------------------------------------------------------------------------------------------------
async def test_a_token_is_made_used_and_revoked(world: World) -> None:
    client = Client(TokensApi(world.state, world).operations())  # type: ignore[arg-type]
    made = await client.do("POST", "/api/v1/admin-tokens", {"name": "ops", "role": "operator"})
    tokens = Tokens(b"own", world.state, world.barrier)
    assert await tokens.authenticate(made["token"].encode()) == Caller("admin token ops", "operator")
    assert await tokens.authenticate(b"own") == Caller("administrator by token", ADMIN)
    assert [(t["name"], t["by"]) for t in (await client.get("/api/v1/admin-tokens"))["tokens"]] == [
        ("ops", "local administrator")]
    dump = repr(world.machine._db.execute("SELECT * FROM admin_tokens").fetchall()) + repr(world.commands)
    assert made["token"].split("-", 2)[2] not in dump, "the secret is kept nowhere"
    assert (await client.refused("POST", "/api/v1/admin-tokens", {"name": "ops", "role": "admin"}))[0] == 409
    assert (await client.refused("POST", "/api/v1/admin-tokens", {"name": "x", "role": "root"}))[0] == 400
    await client.do("DELETE", "/api/v1/admin-tokens/ops")
    assert (await client.refused("DELETE", "/api/v1/admin-tokens/ops"))[0] == 404
    assert await tokens.authenticate(made["token"].encode()) is None


async def test_strange_tokens_are_nobodys_and_cost_the_cluster_nothing(world: World, autojump_clock: Any) -> None:
    begun = trio.current_time()
    tokens = Tokens(b"own", world.state, world.barrier)
    secret, _ = make_secret()
    for given in (b"", b"own ", b"ow", b"\xff" * 90, b"raftmft-1-" + b"x" * 43, b"raftmft-99999999999999999999-x",
                  render(10**17, secret).encode(), render(1, secret).encode(), render(-1, secret).encode(),
                  (render(1, secret) + "\n").encode()):
        assert await tokens.authenticate(given) is None
    assert world.barriers == 0 and trio.current_time() == begun
    assert await Tokens(b"", world.state, world.barrier).authenticate(b"") is None, "an empty file is no token"


async def test_a_node_that_lags_waits_for_a_token_made_elsewhere(world: World, autojump_clock: Any) -> None:
    tokens = Tokens(b"own", world.state, world.barrier)
    secret, token_hash = make_secret()
    index = world.state.applied + 1

    async def apply_later() -> None:
        await trio.sleep(0.5)
        world.ok(c.AdminTokenAdd("late", "viewer", token_hash))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(apply_later)
        assert await tokens.authenticate(render(index, secret).encode()) == Caller("admin token late", "viewer")
    begun = trio.current_time()
    assert await tokens.authenticate(render(index + 50, make_secret()[0]).encode()) is None
    assert trio.current_time() - begun == pytest.approx(1.0, abs=0.1)


async def test_a_token_revoked_elsewhere_is_not_taken_and_without_a_quorum_what_is_known_counts(world: World) -> None:
    secret, token_hash = make_secret()
    world.ok(c.AdminTokenAdd("t", "viewer", token_hash))
    token = render(world.state.applied, secret).encode()

    async def hear_of_revocation() -> None:
        world.ok(c.AdminTokenRemove("t"))

    async def no_quorum() -> None:
        raise NoQuorum("no quorum")

    assert await Tokens(b"own", world.state, no_quorum).authenticate(token) is not None
    assert await Tokens(b"own", world.state, hear_of_revocation).authenticate(token) is None


# --- the document ----------------------------------------------------------------------------------------------------
def operations(world: World) -> list[Operation]:
    return with_document([*UsersApi(world.state, world).operations(),  # type: ignore[arg-type]
                          *ConfigApi(world.state, world).operations()])  # type: ignore[arg-type]


async def test_every_route_is_in_the_document_with_its_fields_and_errors(world: World) -> None:
    described = operations(world)
    value = await Client(described).get("/api/v1/openapi.json")
    assert value["openapi"].startswith("3.")
    for operation in described:
        told = value["paths"][operation.path][operation.method.lower()]
        names = {(p["name"], p["in"]) for p in told["parameters"]}
        assert names == {(f.name, "query") for f in operation.query} | {
            (name, "path") for name in re.findall(r"{(\w+)}", operation.path)}
        body = told.get("requestBody", {"content": {"application/json": {"schema": {"properties": {}}}}})
        assert set(body["content"]["application/json"]["schema"]["properties"]) == {f.name for f in operation.body}
        assert {"200", "400", "401", "403", "404", "405", "409", "503", "504"} <= set(told["responses"])
        assert operation.needs in told["description"]
    assert sum(len(methods) for methods in value["paths"].values()) == len(described)
    error = value["components"]["schemas"]["Error"]
    assert set(error["properties"]) == set(error["required"]) == {"error", "code"}
    assert "/api/v1/openapi.json" in value["paths"]


def test_shapes() -> None:
    assert shape([{"a": (str, None)}]) == {"type": "array", "items": {
        "type": "object", "required": ["a"], "additionalProperties": False,
        "properties": {"a": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}}
    assert shape(None) == {}


def test_ids_of_operations_are_unique(world: World) -> None:
    made = document(operations(world))
    ids = [told["operationId"] for methods in made["paths"].values() for told in methods.values()]
    assert len(set(ids)) == len(ids)
