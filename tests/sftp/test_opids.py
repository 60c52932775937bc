"""Each operation of a client has an id that goes with all that the node is asked for it."""

from __future__ import annotations

import asyncio

from tests.sftp.fake_node import FakeNode, wait_for


def test_an_operation_has_one_id_and_each_its_own(own_node: FakeNode, tmp_path) -> None:
    (tmp_path / "x").write_bytes(b"y" * 10)
    own_node.sftp(f"mkdir a\nput {tmp_path / 'x'} a/x\nrename a/x a/z\n")
    own_node.sftp("mkdir b\n")
    ids = {op: number for op, number in own_node.op_ids if op in ("fs.begin", "fs.publish", "fs.rename")}
    made = [number for op, number in own_node.op_ids if op == "fs.mkdir"]
    assert len({*ids.values(), *made}) == 5 and all(number.count(".") == 1 for number in (*ids.values(), *made))
    (tag,) = {number.split(".")[0] for number in (*ids.values(), made[0])}
    assert made[1].split(".")[0] != tag, "another channel has another tag"


def test_what_an_upload_does_by_itself_goes_under_the_open_that_began_it(own_node: FakeNode) -> None:
    async def run() -> None:
        connection = await own_node.connect()
        client = await connection.start_sftp_client()
        file = await client.open("p", "wb")
        await file.write(b"z" * 5000)
        await client.mkdir("later")
        await asyncio.to_thread(wait_for, "a checkpoint", lambda: own_node.ops("fs.checkpoint"))
        connection.abort()
        await asyncio.to_thread(wait_for, "its end", lambda: own_node.ops("fs.end"))

    asyncio.run(run())
    ids = dict(own_node.op_ids)
    assert ids["fs.begin"] == ids["fs.checkpoint"] == ids["fs.end"] != ids["fs.mkdir"]
