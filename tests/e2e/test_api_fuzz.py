"""schemathesis asks a real node whatever its OpenAPI document allows and forbids, and finds nothing wrong."""

from __future__ import annotations

import http.client
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.e2e.harness import Cluster

EXAMPLES = 20
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
          negative_data_rejection, unsupported_method, ignored_auth]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    cluster = Cluster(tmp_path_factory.mktemp("fuzz") / "c", nodes=1)
    try:
        cluster.start()
        token = Path(cluster.about["admin_token_file"]).read_text().strip()
        headers = {"authorization": f"Bearer {token}"}
        yield schemathesis.openapi.from_url(
            f"{cluster.node(cluster.names[0])['admin']}/api/v1/openapi.json", headers=headers), headers, cluster
        assert cluster.status()["verdict"] == "ok"
    finally:
        cluster.stop()


def test_no_request_is_answered_wrongly(api: Any) -> None:
    schema, headers, _ = api
    asked: Counter[int] = Counter()
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in GenerationMode:
            try:
                cases = operation.as_strategy(generation_mode=mode)
            except Unsatisfiable:
                continue

            @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None,
                      phases=[Phase.explicit, Phase.generate], derandomize=True)
            @given(cases)
            def ask(case: Any) -> None:
                response = case.call(headers=headers)
                asked[response.status_code] += 1
                case.validate_response(response, checks=CHECKS, headers=headers)
                if response.status_code >= 400 and response.content:
                    assert "\n" not in response.json()["error"]

            try:
                ask()
            except Unsatisfiable:  # nothing can be wrong about a request that takes nothing
                assert mode is GenerationMode.NEGATIVE, operation.label
    assert asked[200] > 50 and asked[400] > 50, asked


def test_malformed_bodies_get_one_line_everywhere(api: Any) -> None:
    schema, headers, cluster = api
    host, port = cluster.node(cluster.names[0])["admin"].removeprefix("http://").rsplit(":", 1)
    bodies = (b"{", b"\0", b"[]", b"null", b'"x"', b"1e999", b"\xff\xfe", b"[" * 50_000, b"9" * 5000, b'{"\\ud800": 1}',
              b'{"name": NaN}', b'{"a":' * 20_000, b"x" * 300_000)
    with_body = [(path, method) for path, methods in schema.raw_schema["paths"].items()
                 for method, told in methods.items() if "requestBody" in told]
    assert len(with_body) >= 5
    for path, method in with_body:
        for body in bodies:
            connection = http.client.HTTPConnection(host, int(port), timeout=10)
            try:
                connection.request(method.upper(), path.replace("{", "").replace("}", ""), body, headers)
                answer = connection.getresponse()
                text = answer.read()
            finally:
                connection.close()
            assert answer.status == 400 and text.count(b"\n") == 0, (path, method, body[:20], answer.status, text)
            assert set(json.loads(text)) == {"error", "code"}
