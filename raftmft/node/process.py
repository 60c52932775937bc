"""The life of the node process around the node: lock, pid file, signals, exit code."""

from __future__ import annotations

import gc
import logging
import os
import signal

import trio

from raftmft.core.errors import RaftmftError
from raftmft.node.app import Node
from raftmft.node.datadir import DataDir
from raftmft.node.logs import LogFile, set_up
from raftmft.node.preflight import raise_file_limit
from raftmft.node.settings import Settings, load
from raftmft.node.sockets import Listeners, open_listeners

log = logging.getLogger(__name__)


def run_node(data_dir_path: str, drain_timeout_s: int | None) -> int:
    """Runs the member of a data directory until it is told to stop; gives the exit code. Raises RaftmftError for what a
    person must mend, with nothing changed.
    """
    data_dir = DataDir(data_dir_path)
    data_dir.check_owner()
    settings = load(data_dir.path)
    raise_file_limit()
    data_dir.lock()
    log_file = LogFile(data_dir.path / settings.log_file) if settings.log_file else None
    set_up(settings.log_level, settings.log_format, log_file)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a rotation of logs while this node starts must not end it
    data_dir.pid_file.write_text(f"{os.getpid()}\n")
    try:
        listeners = open_listeners(settings, data_dir)
        # What stands now stands until the end. Else each full collection walks through it all, 20-30 ms in which nobody
        # is served.
        gc.collect()
        gc.freeze()
        trio.run(_serve, data_dir, settings, listeners, drain_timeout_s, log_file)
        return 0
    except BaseExceptionGroup as group:
        known, other = group.split((RaftmftError, OSError))
        if other is not None or known is None:
            raise
        raise _first(known) from None
    finally:
        data_dir.pid_file.unlink(missing_ok=True)
        data_dir.admin_socket.unlink(missing_ok=True)


async def _serve(data_dir: DataDir, settings: Settings, listeners: Listeners, drain_timeout_s: int | None,
                 log_file: LogFile | None) -> None:
    node = Node(data_dir, settings, listeners, None if log_file is None else log_file.fd)
    if drain_timeout_s is not None:
        node.drain_s = float(drain_timeout_s)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch_signals, node)
        nursery.start_soon(_watch_rotation, node, log_file)
        await node.run()
        nursery.cancel_scope.cancel()


async def _watch_signals(node: Node) -> None:
    """The first SIGTERM or SIGINT drains; a second SIGTERM, or a second SIGINT, ends the process at once."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            if node.stop.is_set():
                log.warning("%s again: ending at once", signal.Signals(number).name)
                os._exit(1)
            log.info("%s: draining", signal.Signals(number).name)
            node.stop.set()


async def _watch_rotation(node: Node, log_file: LogFile | None) -> None:
    """SIGHUP opens the log file again, here and in the workers. Without a log file it changes nothing."""
    with trio.open_signal_receiver(signal.SIGHUP) as signals:
        async for _ in signals:
            if log_file is not None and log_file.reopen():
                await node.workers.log_reopened()
                log.info("SIGHUP: the log file is opened again")


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
