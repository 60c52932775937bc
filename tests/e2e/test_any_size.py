"""A file of 1 TiB: everything that clients do with one, and no process ever takes it whole into memory."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from pathlib import Path

from bench.anysize import GIB, MIB, connect, life
from tests.e2e.harness import Cluster
from tests.sftp.raw_client import PUT, RESUME

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


def test_an_upload_with_index_chunks_goes_on_through_another_node(shared_cluster: Cluster) -> None:
    first, other = shared_cluster.names[:2]
    key = shared_cluster.about["users"][0]["key"]
    shared_cluster.run("user", "add", "grows", "--key", key + ".pub")
    data = random.Random(5).randbytes(70 * MIB + 500)

    async def run() -> None:
        sftp = await connect(shared_cluster, first, "grows", key)
        handle = await sftp.open_file("f", PUT)
        await sftp.write(handle, 0, data[: 66 * MIB + 9])
        await sftp.fsync(handle)
        sftp.connection.abort()
        shown = json.loads((await asyncio.to_thread(
            shared_cluster.run, "file", "show", "/grows/f", "--first", "60", "-o", "json")).stdout)
        assert (shown["partial"], shown["size"], shown["depth"]) == (True, 66 * MIB + 9, 2)
        assert [chunk["number"] for chunk in shown["chunks"]] == [None, *range(60, 67)]
        sftp = await connect(shared_cluster, other, "grows", key)
        assert (await sftp.stat("f")).size == 66 * MIB + 9
        handle = await sftp.open_file("f", RESUME)
        await sftp.write(handle, 66 * MIB + 9, data[66 * MIB + 9 :])
        await sftp.close_handle(handle)
        await sftp.close()
        sftp = await connect(shared_cluster, first, "grows", key)
        assert hashlib.sha256(await sftp.read_all("f")).digest() == hashlib.sha256(data).digest()
        await sftp.remove("f")
        await sftp.close()

    asyncio.run(run())
