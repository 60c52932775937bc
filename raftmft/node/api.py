"""The admin API's frame: operations as values in, one ASGI application out. JSON in, JSON out, one error line.

An `Operation` says all that the outside may know of a route: method, path, who may call it, which fields it takes and
what it answers. Requests are checked against it before its handler runs, and the OpenAPI document is made of it, so
that neither can drift from the other. The operations stand in api_*.py by theme; node/app.py lists the themes.

Handlers: each change is a command, each read follows a barrier. They raise Rejected, BadRequest or a RaftmftError, and
answer what JSON can carry.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from raftmft.core.errors import NoQuorum, NotApplied, OutcomeUnknown, RaftmftError
from raftmft.core.outcome import Code
from raftmft.node.api_fields import BadRequest, Field, from_body, from_query
from raftmft.node.link import Rejected
from raftmft.wire.loglines import fields

log = logging.getLogger(__name__)

V1 = "/api/v1"
MOST_BODY_BYTES = 256 * 1024
BODY_LIMIT_S = 30.0
VIEWER, OPERATOR, ADMIN = ROLES = ("viewer", "operator", "admin")
"""What a caller may do, each more than the one before: look; steer users, sessions and bans; everything."""
_STATUS = {Code.NOT_FOUND: 404, Code.NO_USER: 404, Code.NO_SESSION: 404, Code.EXISTS: 409, Code.CONFLICT: 409,
           Code.PERMISSION: 403, Code.INTERNAL: 500}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as the guard of the listener found out: the name for the audit log, and the role."""

    actor: str
    role: str


@dataclass(frozen=True, slots=True)
class Call:
    """One checked request. Fields that were not given are not in `query` and `body`."""

    path: dict[str, Any]
    query: dict[str, Any]
    body: dict[str, Any]
    caller: Caller

    @property
    def actor(self) -> str:
        """Who asks, for the audit log."""
        return self.caller.actor


Handler = Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One route. `role` is the least that may call it: by default everybody with a token may GET, and only an admin
    do anything else. {names} in `path` are text unless `where` says otherwise. `answer` is the shape of the answer,
    as node/openapi.py reads it.
    """

    method: str
    path: str
    summary: str
    handler: Handler
    answer: Any = None
    role: str = ""
    where: tuple[Field, ...] = ()
    query: tuple[Field, ...] = ()
    body: tuple[Field, ...] = ()

    @property
    def needs(self) -> str:
        """The least role that may call it."""
        return self.role or (VIEWER if self.method == "GET" else ADMIN)


def build(operations: Sequence[Operation], routes: Iterable[Route] = ()) -> Starlette:
    """The ASGI application of these operations, and of `routes` that need no caller."""
    by_path: dict[str, dict[str, Operation]] = {}
    for operation in operations:
        methods = by_path.setdefault(operation.path, {})
        assert operation.method not in methods, f"{operation.method} {operation.path} stands twice"
        methods[operation.method] = operation
    # Fixed paths before those with {names}: /users/x before /users/{name}.
    paths = sorted(by_path, key=lambda path: [("{" in part, part) for part in path.split("/")])
    return Starlette(
        routes=[*routes, *(Route(path, _endpoint(by_path[path]), methods=list(by_path[path])) for path in paths)],
        exception_handlers={HTTPException: _http_error, Exception: _our_bug})


def error(status: int, text: str, code: str, headers: dict[str, str] | None = None) -> Response:
    """The one shape of an error: {"error": one line, "code": one word}."""
    # It may repeat what was asked, lone surrogates too.
    line = " ".join(text.split()).encode("utf-8", "replace").decode()
    return JSONResponse({"error": line, "code": code}, status, headers)


def _endpoint(methods: dict[str, Operation]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        operation = methods["GET" if request.method == "HEAD" else request.method]
        caller: Caller = request.scope["raftmft.caller"]
        if ROLES.index(caller.role) < ROLES.index(operation.needs):
            return error(403, f"this needs the role {operation.needs}; the token's is {caller.role}", Code.PERMISSION)
        try:
            return JSONResponse(await operation.handler(await _checked(operation, request, caller)))
        except Rejected as refusal:
            return error(_STATUS.get(Code(refusal.code), 400), str(refusal), refusal.code)
        except BadRequest as trouble:
            return error(400, str(trouble), Code.INVALID)
        except NoQuorum as trouble:
            return error(503, str(trouble), "no_quorum")
        except OutcomeUnknown as trouble:
            return error(504, str(trouble), "unknown")
        except NotApplied as trouble:
            return error(503, str(trouble), "unavailable")
        except RaftmftError as trouble:
            log.warning("%s %s: %s", request.method, operation.path, trouble,
                        extra=fields(request=f"{request.method} {operation.path}", actor=caller.actor))
            return error(503, str(trouble), "failed")
        except ClientDisconnect:
            return error(400, "the request was cut off", Code.INVALID)  # nobody reads it

    return answer


async def _checked(operation: Operation, request: Request, caller: Caller) -> Call:
    kinds = {field.name: field for field in operation.where}
    path = {name: kinds[name].of_text(text) if name in kinds else text for name, text in request.path_params.items()}
    query = from_query(operation.query, request.query_params.multi_items())
    return Call(path, query, from_body(operation.body, await _json(request)) if operation.body else {}, caller)


async def _json(request: Request) -> Any:
    data = bytearray()
    with trio.move_on_after(BODY_LIMIT_S) as limit:
        async for part in request.stream():
            data += part
            if len(data) > MOST_BODY_BYTES:
                raise BadRequest(f"the body is over {MOST_BODY_BYTES} bytes")
    if limit.cancelled_caught:
        raise BadRequest(f"the body did not come within {BODY_LIMIT_S:.0f} s")
    try:
        return json.loads(bytes(data)) if data.strip() else {}
    except (ValueError, RecursionError):  # UnicodeDecodeError and over-long numbers are ValueErrors
        raise BadRequest("the body is not JSON") from None


async def _http_error(request: Request, trouble: Exception) -> Response:
    assert isinstance(trouble, HTTPException)
    texts = {404: f"there is no {request.url.path[:200]}; see {V1}/openapi.json",
             405: f"{request.method[:20]} is not possible here"}
    codes = {404: str(Code.NOT_FOUND), 405: "method"}
    return error(trouble.status_code, texts.get(trouble.status_code, trouble.detail),
                 codes.get(trouble.status_code, Code.INVALID), dict(trouble.headers or {}))


async def _our_bug(request: Request, trouble: Exception) -> Response:
    # Starlette raises it again after this answer, and the server logs it.
    return error(500, "internal error; see the node's log", Code.INTERNAL)
