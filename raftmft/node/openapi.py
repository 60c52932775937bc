"""The OpenAPI document of the admin API, made of the same operations that are served.

The shape of an answer is written in Python's own words: str, int, float and bool for themselves, [x] for a list of x,
(x, None) for x or null, {"name": x} for an object with exactly these names. None: anything.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from raftmft import __version__
from raftmft.node.api import V1, Call, Operation
from raftmft.node.api_fields import MOST_TEXTS, Field

ERRORS = {
    "400": "The request is wrong, or the cluster rejects it", "401": "No valid token", "403": "The role is too small",
    "404": "There is no such thing", "405": "The method is not possible here", "409": "It exists already, or conflicts",
    "500": "A bug", "503": "No quorum, or not ready: it certainly did not happen",
    "504": "The outcome is unknown: it may have happened",
}
_NAMES: dict[type, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}


def with_document(operations: Sequence[Operation]) -> list[Operation]:
    """These operations, and one more that gives the document of them all."""
    async def give(_: Call) -> Any:
        return made

    described = [*operations, Operation("GET", f"{V1}/openapi.json", "This document", give)]
    made = document(described)
    return described


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """OpenAPI 3.1."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "raftmft admin API", "version": __version__},
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": {
                "type": "object", "required": ["error", "code"], "additionalProperties": False,
                "properties": {"error": {"type": "string", "description": "one line: what was wrong, what to do"},
                               "code": {"type": "string", "description": "one word for programs"}}}},
        },
    }


def shape(answer: Any) -> dict[str, Any]:
    """JSON Schema of an answer's shape."""
    if answer is None:
        return {}
    if isinstance(answer, list):
        return {"type": "array", "items": shape(answer[0])}
    if isinstance(answer, tuple):
        return {"anyOf": [shape(answer[0]), {"type": "null"}]}
    if isinstance(answer, dict):
        return {"type": "object", "required": list(answer), "additionalProperties": False,
                "properties": {name: shape(value) for name, value in answer.items()}}
    return {"type": _NAMES[answer]}


def _operation(operation: Operation) -> dict[str, Any]:
    errors = {status: {"description": text, "content": {"application/json": {"schema": {
        "$ref": "#/components/schemas/Error"}}}} for status, text in ERRORS.items()}
    told: dict[str, Any] = {
        "operationId": f"{operation.method.lower()} {operation.path.removeprefix(V1)}",
        "summary": operation.summary,
        "description": f"Needs the role {operation.needs}.",
        "parameters": [*_path_parameters(operation), *(_parameter(field, "query") for field in operation.query)],
        "responses": {"200": {"description": "Done", "content": {"application/json": {
            "schema": shape(operation.answer)}}}, **errors},
    }
    if operation.body:
        told["requestBody"] = {
            "required": any(field.required for field in operation.body),
            "content": {"application/json": {"schema": {
                "type": "object", "additionalProperties": False,
                "required": [field.name for field in operation.body if field.required],
                "properties": {field.name: _value(field) for field in operation.body}}}}}
    return told


def _path_parameters(operation: Operation) -> list[dict[str, Any]]:
    known = {field.name: field for field in operation.where}
    names = re.findall(r"{(\w+)}", operation.path)
    return [{**_parameter(known.get(name) or Field(name, "text", ""), "path"), "required": True} for name in names]


def _parameter(field: Field, where: str) -> dict[str, Any]:
    return {"name": field.name, "in": where, "required": field.required, "schema": _value(field)}


def _value(field: Field) -> dict[str, Any]:
    told: dict[str, Any] = {"description": field.help}
    match field.kind:
        case "whole":
            told |= {"type": "integer", "minimum": field.low, "maximum": field.high}
        case "flag":
            told |= {"type": "boolean"}
        case "texts":
            told |= {"type": "array", "maxItems": MOST_TEXTS, "items": {"type": "string", "maxLength": field.most}}
        case "time":
            told |= {"type": "string", "format": "date-time"}
        case _:
            told |= {"type": "string", "maxLength": field.most}
    if field.choices:
        told["enum"] = list(field.choices)
    return told
