"""Metrics: every number that is named is told, in Prometheus' own words."""

from __future__ import annotations

from api_world import Client
from prometheus_client.parser import text_string_to_metric_families

from raftmft.node.api import build
from raftmft.node.metrics import COUNTERS, GAUGES, Metrics


async def test_every_number_is_told_as_of_now_and_without_a_token() -> None:
    values = {name: float(number) for number, name in enumerate((*GAUGES, *COUNTERS))}

    async def nobody(_: bytes) -> None:
        return None

    client = Client(build([], Metrics(lambda: values).open_routes()), nobody)
    for _ in range(2):
        answer = await client.ask("GET", "/metrics")
        assert answer.status == 200 and answer.headers["content-type"].startswith("text/plain")
        told = {sample.name: sample.value for family in text_string_to_metric_families(answer.body.decode())
                for sample in family.samples}
        assert told == {**{f"raftmft_{name}": values[name] for name in GAUGES},
                        **{f"raftmft_{name}_total": values[name] for name in COUNTERS}}
        values["sessions"] += 5
