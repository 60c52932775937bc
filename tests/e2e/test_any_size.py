"""A file of 1 TiB: everything that clients do with one, and no process ever takes it whole into memory."""

from __future__ import annotations

import asyncio
from pathlib import Path

from bench.anysize import GIB, life
from tests.e2e.harness import Cluster

MOST_GROWN_MIB = 48.0
"""Its ids alone are 32 MiB, three times as much as Python objects; the bytes of its chunks would be a million MiB."""
MOST_MS = 8_000.0


def test_a_file_of_1_tib(shared_cluster: Cluster) -> None:
    user = "anysize"
    key = shared_cluster.about["users"][0]["key"]
    shared_cluster.run("user", "add", user, "--key", str(Path(key + ".pub")))
    for row in asyncio.run(life(shared_cluster, 1024 * GIB, user, key, is_short=True)):
        assert max(row["node_mib"], row["worker_mib"]) < MOST_GROWN_MIB, row
        assert row["ms"] < MOST_MS, row
