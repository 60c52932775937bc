"""The admin API's routes: JSON in, JSON out, one error line. Each change is a command; each read follows a barrier."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from raftmft import __version__
from raftmft.core import commands as c
from raftmft.core.audit import AuditLog
from raftmft.core.errors import NoQuorum, NotApplied, OutcomeUnknown, RaftmftError
from raftmft.core.machine import open_reader
from raftmft.core.outcome import Code
from raftmft.node.epoch import Epoch
from raftmft.node.link import Rejected
from raftmft.node.logins import MOST_PASSWORD_BYTES, hash_password
from raftmft.node.state import ReplicatedState

MOST_BODY_BYTES = 256 * 1024
MOST_RECORDS = 10_000
HASHING = 2
SEARCHING = 2
_STATUS = {Code.NOT_FOUND: 404, Code.NO_USER: 404, Code.EXISTS: 409, Code.CONFLICT: 409}


class BadRequest(RaftmftError):
    """The request is wrong; the text says what."""


class Api:
    """`status` gives the status document; `ready` None when this node serves, else why not."""

    def __init__(
        self,
        state: ReplicatedState,
        epoch: Epoch,
        status: Callable[[], dict[str, Any]],
        ready: Callable[[], str | None],
        members: Callable[[], list[dict[str, Any]]],
    ) -> None:
        self._state, self._epoch = state, epoch
        self._status, self._ready, self._members = status, ready, members
        self._hashing = trio.CapacityLimiter(HASHING)
        self._searching = trio.CapacityLimiter(SEARCHING)

    def open_routes(self) -> list[Route]:
        """Routes for anybody who can connect."""
        return [Route("/healthz", self._healthz), Route("/readyz", self._readyz)]

    def routes(self) -> list[Route]:
        """Routes for those who hold the token, or may open the Unix socket."""
        v1 = "/api/v1"
        return [
            Route(f"{v1}/status", _json(self._get_status)),
            Route(f"{v1}/version", _json(self._get_version)),
            Route(f"{v1}/members", _json(self._get_members)),
            Route(f"{v1}/users", _json(self._list_users)),
            Route(f"{v1}/users", _json(self._add_user), methods=["POST"]),
            Route(f"{v1}/users/{{name}}", _json(self._show_user)),
            Route(f"{v1}/users/{{name}}", _json(self._set_user), methods=["PATCH"]),
            Route(f"{v1}/users/{{name}}", _json(self._remove_user), methods=["DELETE"]),
            Route(f"{v1}/users/{{name}}/keys", _json(self._list_keys)),
            Route(f"{v1}/users/{{name}}/keys", _json(self._add_key), methods=["POST"]),
            Route(f"{v1}/users/{{name}}/keys", _json(self._remove_key), methods=["DELETE"]),
            Route(f"{v1}/audit", _json(self._audit)),
        ]

    async def _healthz(self, _: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def _readyz(self, _: Request) -> Response:
        reason = self._ready()
        return PlainTextResponse(f"{reason or 'ready'}\n", 503 if reason else 200)

    async def _get_status(self, _: Request) -> Any:
        return self._status()

    async def _get_version(self, _: Request) -> Any:
        return {"version": __version__}

    async def _get_members(self, _: Request) -> Any:
        return {"members": self._members()}

    async def _list_users(self, _: Request) -> Any:
        await self._epoch.barrier()
        return {"users": [self._user(row) for row in self._state.machine.users.list()]}

    async def _show_user(self, request: Request) -> Any:
        await self._epoch.barrier()
        row = self._state.machine.users.get(request.path_params["name"])
        if row is None:
            raise Rejected(Code.NO_USER, f"there is no user {request.path_params['name']!r}; see raftmft user list")
        return self._user(row)

    async def _add_user(self, request: Request) -> Any:
        body = await _body(
            request,
            {"name": str, "password": str, "keys": list, "quota_bytes": int, "max_sessions": int, "read_only": bool},
        )
        if "name" not in body:
            raise BadRequest("name is missing")
        keys = body.get("keys", [])
        if not all(isinstance(key, str) for key in keys):
            raise BadRequest("keys must be OpenSSH public key lines")
        return await self._epoch.value(
            c.UserAdd(
                body["name"],
                await self._hash(body.get("password")),
                tuple(keys),
                _positive(body, "quota_bytes") or 0,
                _positive(body, "max_sessions") or 0,
                body.get("read_only", False),
                _actor(request),
            )
        )

    async def _set_user(self, request: Request) -> Any:
        body = await _body(
            request, {"password": str, "quota_bytes": int, "max_sessions": int, "read_only": bool, "enabled": bool}
        )
        if not body:
            raise BadRequest(
                "nothing to set; give at least one of password, quota_bytes, max_sessions, read_only, enabled"
            )
        return await self._epoch.value(
            c.UserSet(
                request.path_params["name"],
                await self._hash(body.get("password")),
                _positive(body, "quota_bytes"),
                _positive(body, "max_sessions"),
                body.get("read_only"),
                body.get("enabled"),
                _actor(request),
            )
        )

    async def _remove_user(self, request: Request) -> Any:
        return await self._epoch.value(c.UserRemove(request.path_params["name"], _actor(request)))

    async def _list_keys(self, request: Request) -> Any:
        return {"keys": (await self._show_user(request))["keys"]}

    async def _add_key(self, request: Request) -> Any:
        body = await _body(request, {"key": str})
        if "key" not in body:
            raise BadRequest("key is missing")
        return await self._epoch.value(c.UserKeyAdd(request.path_params["name"], body["key"], _actor(request)))

    async def _remove_key(self, request: Request) -> Any:
        fingerprint = request.query_params.get("fingerprint", "")
        return await self._epoch.value(c.UserKeyRemove(request.path_params["name"], fingerprint, _actor(request)))

    async def _audit(self, request: Request) -> Any:
        query = request.query_params
        known = {"user", "kind", "path", "after", "since", "until", "limit"}
        if set(query) - known:
            raise BadRequest(
                f"unknown parameter {sorted(set(query) - known)[0]!r}; known are {', '.join(sorted(known))}"
            )
        await self._epoch.barrier()
        search = partial(
            search_audit,
            self._state.machine.path,
            user=query.get("user"),
            kind=query.get("kind"),
            path=query.get("path"),
            after_index=_whole(query.get("after"), "after") or 0,
            since_ms=_time(query.get("since"), "since"),
            until_ms=_time(query.get("until"), "until"),
            limit=min(_whole(query.get("limit"), "limit") or 1000, MOST_RECORDS),
        )
        # A rare record in a long log takes its time: in a thread, on a connection of its own.
        records = await trio.to_thread.run_sync(search, limiter=self._searching)
        names = {m.id: m.name for m in self._state.machine.members.list()}
        return {
            "records": [
                {**record, "time": _iso(record["time"]), "member": names.get(record["member"], record["member"])}
                for record in records
            ]
        }

    def _user(self, row: Any) -> dict[str, Any]:
        return {
            "name": row.name,
            "uid": row.uid,
            "enabled": row.enabled,
            "read_only": row.read_only,
            "quota_bytes": row.quota_bytes,
            "max_sessions": row.max_sessions,
            "has_password": bool(row.password_hash),
            "keys": [
                {"fingerprint": key.fingerprint, "key": key.line} for key in self._state.machine.users.keys(row.name)
            ],
        }

    async def _hash(self, password: str | None) -> str | None:
        if not password:
            return password
        if len(password.encode("utf-8", "surrogatepass")) > MOST_PASSWORD_BYTES:
            raise BadRequest(f"a password has at most {MOST_PASSWORD_BYTES} bytes")
        return await trio.to_thread.run_sync(hash_password, password, limiter=self._hashing)


def search_audit(state: str, /, **query: Any) -> list[dict[str, Any]]:
    """Audit records of the state file `state`, as of now. Blocks: call it in a thread."""
    reader = open_reader(state)
    try:
        return AuditLog(reader).query(**query)
    finally:
        reader.close()


def build(routes: list[Route]) -> Starlette:
    """The ASGI application of these routes."""
    return Starlette(routes=routes)


def _json(endpoint: Callable[[Request], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        try:
            return JSONResponse(await endpoint(request))
        except Rejected as refusal:
            return _error(_STATUS.get(Code(refusal.code), 400), str(refusal), refusal.code)
        except BadRequest as trouble:
            return _error(400, str(trouble), "invalid")
        except NoQuorum as trouble:
            return _error(503, str(trouble), "no_quorum")
        except OutcomeUnknown as trouble:
            return _error(504, str(trouble), "unknown")
        except NotApplied as trouble:
            return _error(503, str(trouble), "unavailable")

    return answer


def _error(status: int, text: str, code: str) -> Response:
    return JSONResponse({"error": text, "code": code}, status)


def _actor(request: Request) -> str:
    return "local administrator" if request.scope.get("raftmft.local") else "administrator by token"


async def _body(request: Request, shape: dict[str, type]) -> dict[str, Any]:
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > MOST_BODY_BYTES:
            raise BadRequest(f"the body is over {MOST_BODY_BYTES} bytes")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise BadRequest("the body is not JSON") from None
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    for key, value in body.items():
        if key not in shape:
            raise BadRequest(f"unknown field {key!r}; known are {', '.join(sorted(shape))}")
        if type(value) is not shape[key]:
            raise BadRequest(f"{key} must be {_NAMES[shape[key]]}")
    return body


_NAMES: dict[type, str] = {str: "a string", int: "a whole number", bool: "true or false", list: "a list"}


def _positive(body: dict[str, Any], key: str) -> int | None:
    value = body.get(key)
    if value is not None and not 0 <= value < 1 << 62:
        raise BadRequest(f"{key} must be 0 (no limit) or more")
    return value


def _whole(text: str | None, name: str) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BadRequest(f"{name} must be a whole number, not {text[:40]!r}")
    return int(text)


def _time(text: str | None, name: str) -> int | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise BadRequest(f"{name} must be a time like 2026-01-31T08:00:00Z, not {text[:40]!r}") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _iso(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
