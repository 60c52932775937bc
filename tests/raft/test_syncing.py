"""The sync thread: the loop goes on beside a step, errors come back, nothing is left behind."""

from __future__ import annotations

import os
import threading

import pytest
import trio

from raftmft.raft.syncing import SyncThread


async def test_the_loop_goes_on_while_a_step_blocks() -> None:
    thread, gate, turns = SyncThread(), threading.Event(), 0
    done = trio.Event()

    async def wait_for_it() -> None:
        await thread.run(lambda: gate.wait(30))
        done.set()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_it)
            while turns < 100:
                await trio.lowlevel.checkpoint()
                turns += 1
            assert not done.is_set()
            gate.set()
            with trio.fail_after(30):
                await done.wait()
    finally:
        gate.set()
        thread.close()


async def test_steps_run_in_one_thread_that_is_not_the_loops_and_their_errors_come_back() -> None:
    thread, ran = SyncThread(), list[int]()

    def fails() -> None:
        ran.append(threading.get_ident())
        raise OSError(5, "the disk is gone")

    try:
        for _ in range(2):
            with pytest.raises(OSError, match="the disk is gone"):
                await thread.run(fails)
        await thread.run(lambda: ran.append(threading.get_ident()))
        assert len(ran) == 3 and set(ran) == {ran[0]} and ran[0] != threading.get_ident()
    finally:
        thread.close()


async def test_closing_ends_the_thread_and_frees_its_descriptors() -> None:
    before = set(os.listdir("/proc/self/fd")), threading.active_count()
    thread = SyncThread()
    assert len(os.listdir("/proc/self/fd")) == len(before[0]) + 2
    await thread.run(lambda: None)
    thread.close()
    thread.close()
    assert (set(os.listdir("/proc/self/fd")), threading.active_count()) == before


async def test_what_was_broken_off_does_not_hold_up_the_end() -> None:
    thread, gate = SyncThread(), threading.Event()
    with trio.move_on_after(0.01):
        await thread.run(lambda: gate.wait(30))
    thread.close()  # returns though the step is stuck
    assert thread._thread.is_alive()
    gate.set()
