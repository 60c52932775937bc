"""The admin API's frame: what is asked is checked, what is wrong gets one line, roles hold, and the routes work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from api_world import Answer, Client, World, bearer

from raftmft.core.errors import NoQuorum, NotApplied, OutcomeUnknown, RaftmftError
from raftmft.node.admin import LOCAL
from raftmft.node.api import ADMIN, OPERATOR, ROLES, VIEWER, Call, Operation, build
from raftmft.node.api_audit import AuditApi, iso
from raftmft.node.api_config import ConfigApi
from raftmft.node.api_fields import BadRequest, Field
from raftmft.node.api_users import UsersApi
from raftmft.node.link import Rejected

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA me@here"


async def echo(call: Call) -> Any:
    return {"path": call.path, "query": call.query, "body": call.body, "actor": call.actor}


ECHO = Operation("POST", "/api/v1/echo/{id}", "Echo", echo, where=(Field("id", "whole", "", high=99),), query=(
    Field("at", "time", ""), Field("loud", "flag", ""), Field("many", "whole", "", low=1, high=5)), body=(
    Field("name", "text", "", required=True, most=8), Field("count", "whole", ""), Field("on", "flag", ""),
    Field("lines", "texts", ""), Field("kind", "text", "", choices=("a", "b"))))


async def test_a_good_request_arrives_typed() -> None:
    answer = await Client([ECHO]).do("POST", "/api/v1/echo/7?at=2026-01-31T08:00:00Z&loud=true&many=5",
                                     {"name": "x", "count": 4, "on": False, "lines": ["a"], "kind": "b"})
    assert answer == {"path": {"id": 7}, "query": {"at": 1769846400000, "loud": True, "many": 5}, "actor": LOCAL.actor,
                      "body": {"name": "x", "count": 4, "on": False, "lines": ["a"], "kind": "b"}}


@pytest.mark.parametrize(("target", "body", "says"), [
    ("/x", {"name": "x"}, "id must be a whole number"), ("/100", {"name": "x"}, "0 to 99"),
    ("/-1", {"name": "x"}, "id must be"), ("/\u0663", {"name": "x"}, "id must be"), ("/9" + "9" * 5000, {}, "id must"),
    ("/7?at=soon", {"name": "x"}, "a time like 2026"),
    ("/7?loud=yes", {"name": "x"}, "true or false"), ("/7?many=0", {"name": "x"}, "1 to 5"),
    ("/7?many=1e3", {"name": "x"}, "whole"), ("/7?other=1", {"name": "x"}, "known are at, loud, many"),
    ("/7?many=1&many=2", {"name": "x"}, "twice"), ("/7", {}, "name is missing"), ("/7", b"", "name is missing"),
    ("/7", [], "JSON object"), ("/7", b"{", "not JSON"), ("/7", b"\xff", "not JSON"),
    ("/7", b"[" * 100_000, "not JSON"),
    ("/7", b'{"name": 1' + b"0" * 5000 + b"}", "not JSON"), ("/7", b" " * 300_000, "262144 bytes"),
    ("/7", {"name": 5}, "text, not '5'"), ("/7", {"name": None}, "name must be text"), ("/7", {"name": ["x"]}, "text"),
    ("/7", {"name": "x" * 9}, "8 characters"), ("/7", b'{"name": "\\ud800"}', "Unicode"),
    ("/7", {"name": "x", "count": True}, "whole"), ("/7", {"name": "x", "count": 1.0}, "whole"),
    ("/7", {"name": "x", "count": 1 << 80}, "whole"), ("/7", b'{"name": "x", "count": 1e999}', "whole"),
    ("/7", {"name": "x", "count": -1}, "0 or more"), ("/7", {"name": "x", "on": 1}, "true or false"),
    ("/7", {"name": "x", "lines": "a"}, "a list"), ("/7", {"name": "x", "lines": [1]}, "a list"),
    ("/7", {"name": "x", "lines": ["a"] * 1025}, "1024"), ("/7", {"name": "x", "kind": "c"}, "one of a, b"),
    ("/7", {"name": "x", "\x1b[31m": 1}, "unknown field"), ("/7", b'{"\\ud800": 1}', "unknown field"),
])
async def test_a_bad_request_gets_one_line(target: str, body: Any, says: str) -> None:
    status, line = await Client([ECHO]).refused("POST", f"/api/v1/echo{target}", body)
    assert status == 400 and says in line and "\x1b" not in line


async def test_wrong_methods_and_paths_get_the_same_shape() -> None:
    client = Client([ECHO, Operation("GET", ECHO.path, "Get", echo, where=ECHO.where)])
    status, _ = await client.refused("DELETE", "/api/v1/echo/7")
    assert status == 405
    assert (await client.refused("GET", "/api/v1/nothing"))[0] == 404
    assert (await client.refused("GET", "/"))[0] == 404
    allowed = (await client.ask("PUT", "/api/v1/echo/7")).headers["allow"]
    assert {"GET", "POST"} <= {method.strip() for method in allowed.split(",")}
    assert (await client.ask("HEAD", "/api/v1/echo/7")).status == 200


@pytest.mark.parametrize(("trouble", "status", "code"), [
    (Rejected("not_found", "x"), 404, "not_found"), (Rejected("no_user", "x"), 404, "no_user"),
    (Rejected("exists", "x"), 409, "exists"), (Rejected("limit", "x"), 400, "limit"),
    (Rejected("no_session", "x"), 404, "no_session"), (Rejected("internal", "x"), 500, "internal"),
    (BadRequest("x"), 400, "invalid"), (NoQuorum("no quorum"), 503, "no_quorum"),
    (OutcomeUnknown("x"), 504, "unknown"), (NotApplied("x"), 503, "unavailable"),
    (RaftmftError("x\ny"), 503, "failed")])
async def test_every_trouble_has_its_status(trouble: Exception, status: int, code: str) -> None:
    async def fail(_: Call) -> Any:
        raise trouble

    client = Client([Operation("GET", "/x", "", fail)])
    assert (await client.refused("GET", "/x"))[0] == status
    assert (await client.ask("GET", "/x")).json["code"] == code


async def test_our_own_bugs_are_an_answer_too_and_are_raised_for_the_log() -> None:
    async def fail(_: Call) -> Any:
        raise ZeroDivisionError

    answers: list[Answer] = []
    app = build([Operation("GET", "/x", "", fail)])

    class Catching(Client):
        async def ask(self, *args: Any) -> Answer:
            answer = await super().ask(*args)
            answers.append(answer)
            return answer

    async def logged(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(ZeroDivisionError):
            await app(scope, receive, send)

    assert (await Catching(logged).refused("GET", "/x"))[0] == 500  # type: ignore[arg-type]
    assert answers[0].json["code"] == "internal"


@pytest.mark.parametrize("needs", ROLES)
@pytest.mark.parametrize("has", ROLES)
async def test_a_role_may_do_what_it_may_and_no_more(has: str, needs: str) -> None:
    operation = Operation("POST", "/x", "", echo, role=needs)
    client = Client([operation], bearer(has))
    client.token = "secret"
    status = (await client.ask("POST", "/x")).status
    assert status == (200 if ROLES.index(has) >= ROLES.index(needs) else 403)


def test_whoever_may_look_may_change_nothing() -> None:
    assert Operation("GET", "/x", "", echo).needs == VIEWER
    assert all(Operation(method, "/x", "", echo).needs == ADMIN for method in ("POST", "PUT", "PATCH", "DELETE"))


async def test_without_a_token_nothing_is_to_be_had() -> None:
    client = Client([ECHO], bearer(ADMIN))
    for token in ("", "wrong", "secret "):
        client.token = token
        for path in ("/api/v1/echo/7", "/api/v1/nothing", "/"):
            assert (await client.refused("POST", path))[0] == 401


async def test_users(tmp_path: Path) -> None:
    world = World(tmp_path)
    client = Client(UsersApi(world.state, world).operations())  # type: ignore[arg-type]
    assert await client.get("/api/v1/users") == {"users": []}
    await client.do("POST", "/api/v1/users", {"name": "ann", "password": "x", "keys": [KEY], "quota_bytes": 5})
    user = await client.get("/api/v1/users/ann")
    assert (user["quota_bytes"], user["has_password"], user["sessions"], user["enabled"]) == (5, True, 0, True)
    (key,) = user["keys"]
    world.login("ann")
    assert (await client.get("/api/v1/users/ann"))["sessions"] == 1
    await client.do("PATCH", "/api/v1/users/ann", {"enabled": False, "password": "", "quota_bytes": 0})
    user = await client.get("/api/v1/users/ann")
    assert (user["enabled"], user["has_password"], user["quota_bytes"]) == (False, False, 0)
    print_ = key["fingerprint"].replace("+", "%2B")
    await client.do("DELETE", f"/api/v1/users/ann/keys?fingerprint={print_}")
    assert await client.get("/api/v1/users/ann/keys") == {"keys": []}
    await client.do("POST", "/api/v1/users/ann/keys", {"key": KEY})
    assert (await client.refused("POST", "/api/v1/users/ann/keys", {"key": KEY}))[0] == 409
    assert (await client.refused("POST", "/api/v1/users/ann/keys", {"key": "nonsense"}))[0] == 400
    assert (await client.refused("PATCH", "/api/v1/users/ann", {}))[0] == 400
    assert (await client.refused("POST", "/api/v1/users", {"name": "ann"}))[0] == 409
    assert (await client.refused("POST", "/api/v1/users", {"name": "a", "password": "\u00e9" * 600}))[0] == 400
    await client.do("DELETE", "/api/v1/users/ann")
    for method, path, body in (("GET", "", None), ("PATCH", "", {"enabled": True}), ("DELETE", "", None),
                               ("GET", "/keys", None), ("POST", "/keys", {"key": KEY}),
                               ("DELETE", "/keys?fingerprint=x", None)):
        assert (await client.refused(method, f"/api/v1/users/ann{path}", body))[0] == 404
    assert {record["user"] for record in world.machine.audit.query(kind="admin")} == {None, LOCAL.actor}


async def test_config(tmp_path: Path) -> None:
    world = World(tmp_path)
    client = Client(ConfigApi(world.state, world).operations())  # type: ignore[arg-type]
    assert {row["key"]: row["value"] for row in (await client.get("/api/v1/config"))["options"]}["replicas"] == "3"
    assert await client.do("PUT", "/api/v1/config/replicas", {"value": "2"}) == {"value": "2"}
    row = await client.get("/api/v1/config/replicas")
    assert row["value"] == "2" and row["is_set"] and row["default"] == "3"
    assert world.barriers == 2, "reads are linearizable"
    assert (await client.refused("PUT", "/api/v1/config/replicas", {"value": "no"}))[0] == 400
    for method, body in (("GET", None), ("PUT", {"value": "1"})):
        status, line = await client.refused(method, "/api/v1/config/nothing", body)
        assert status == 404 and "login.limit_s" in line


async def test_audit(tmp_path: Path) -> None:
    world = World(tmp_path)
    users = Client(UsersApi(world.state, world).operations())  # type: ignore[arg-type]
    for name in ("ann", "bob"):
        await users.do("POST", "/api/v1/users", {"name": name})
    world.login("ann")
    client = Client(AuditApi(world.state, world).operations())  # type: ignore[arg-type]
    records = (await client.get("/api/v1/audit"))["records"]
    assert [r["kind"] for r in records] == ["admin"] * 4 + ["login"]
    assert records[-1]["member"] == "n1" and records[-1]["time"] == "2023-11-14T22:13:20.000Z"
    assert (await client.get("/api/v1/audit", user="ann", kind="login"))["records"] == records[-1:]
    assert (await client.get("/api/v1/audit", after=records[2]["index"], limit=1))["records"] == records[3:4]
    assert (await client.get("/api/v1/audit", since="2024-01-01"))["records"] == []
    assert "publish" in (await client.refused("GET", "/api/v1/audit?kind=nonsense"))[1]
    world.trouble = NoQuorum("no quorum")
    assert await client.refused("GET", "/api/v1/audit") == (503, "no quorum")


def test_any_time_of_the_state_can_be_written() -> None:
    assert iso(0) == "1970-01-01T00:00:00.000Z" and iso(1 << 53) == "9999-12-31T23:59:59.000Z"


def test_an_operation_stands_once() -> None:
    with pytest.raises(AssertionError, match="twice"):
        build([ECHO, ECHO])
    assert OPERATOR in ROLES
