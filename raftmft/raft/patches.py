"""What must be true of pysyncobj before a node trusts it with anything.

pysyncobj is the engine, pinned to one version, because `engine.py` overrides names that are private to it. This module
checks the version and the names, takes pickle out of the library, lets a Journal object be handed in, and lets a
simulation replace its clock. All of it happens once, at import of `engine`, and is idempotent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import pysyncobj.journal
import pysyncobj.pickle
import pysyncobj.serializer
import pysyncobj.syncobj
import pysyncobj.tcp_connection
from pysyncobj import SyncObj
from pysyncobj.journal import Journal as PysyncobjJournal
from pysyncobj.version import VERSION

PINNED = "0.3.17"

METHODS = (
    "_SyncObj__applyLogEntries",
    "_SyncObj__generateRaftTimeout",
    "_SyncObj__onBecomeLeader",
    "_SyncObj__onLeaderChanged",
    "_SyncObj__onMessageReceived",
    "_SyncObj__onNodeConnected",
    "_SyncObj__onNodeDisconnected",
    "_SyncObj__sendAppendEntries",
    "_SyncObj__setCurrentTerm",
    "_SyncObj__setState",
    "_SyncObj__tryLogCompaction",
    "_checkCommandsToApply",
    "_onTick",
    "_isLeader",
)
"""Methods of SyncObj that engine.py overrides or calls."""

ATTRIBUTES = (
    "_SyncObj__connectedNodes",
    "_SyncObj__lastResponseTime",
    "_SyncObj__leaderCommitIndex",
    "_SyncObj__newAppendEntriesTime",
    "_SyncObj__otherNodes",
    "_SyncObj__raftCommitIndex",
    "_SyncObj__raftCurrentTerm",
    "_SyncObj__raftElectionDeadline",
    "_SyncObj__raftLastApplied",
    "_SyncObj__raftLeader",
    "_SyncObj__raftLog",
    "_SyncObj__raftMatchIndex",
    "_SyncObj__raftNextIndex",
    "_SyncObj__raftState",
    "_SyncObj__selfNode",
    "_SyncObj__transferInProgress",
    "_SyncObj__transport",
    "_SyncObj__votedForNodeId",
    "_SyncObj__votesCount",
    "_poller",
)
"""Attributes of a SyncObj that engine.py reads or writes."""


class _NoPickle:
    """Stands where pysyncobj had the pickle module. raftmft's messages, commands and files never come this way."""

    @staticmethod
    def _refuse(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise AssertionError("pysyncobj tried to pickle or unpickle: raftmft never does")

    dump = dumps = load = loads = _refuse
    Pickler = Unpickler = _Unpickler = _refuse

    @staticmethod
    def to_bytes(data: Any) -> bytes:
        """What pysyncobj's own helper does."""
        return data if isinstance(data, bytes) else data.encode("utf-8")


def install() -> None:
    """After this nothing inside pysyncobj can unpickle, and SyncObjConf(journalFile=<Journal object>) is taken.

    AssertionError names what is missing when the installed pysyncobj is not the one that engine.py was written for.
    """
    assert VERSION == PINNED, f"pysyncobj {VERSION} is installed, raftmft needs exactly {PINNED}"
    for name in METHODS:
        assert callable(getattr(SyncObj, name, None)), f"pysyncobj {VERSION} has no method {name}"
    for module in (pysyncobj.syncobj, pysyncobj.serializer, pysyncobj.tcp_connection, pysyncobj.pickle):
        assert hasattr(module, "pickle"), f"pysyncobj {VERSION}: {module.__name__} has no name 'pickle'"
        module.pickle = _NoPickle
    for module in (pysyncobj.pickle, pysyncobj.journal):
        for name in ("dump", "dumps", "load", "loads"):
            if hasattr(module, name):
                setattr(module, name, _NoPickle._refuse)
    pysyncobj.syncobj.createJournal = _given_journal


def _given_journal(journal: Any) -> PysyncobjJournal:
    assert isinstance(journal, PysyncobjJournal), "raftmft gives pysyncobj its own Journal"
    return journal


def check_attributes(engine: SyncObj) -> None:
    """AssertionError if a constructed SyncObj lacks an attribute that engine.py uses."""
    for name in ATTRIBUTES:
        assert name in engine.__dict__, f"pysyncobj {VERSION} has no attribute {name}"


def monotonic() -> float:
    """The clock pysyncobj goes by, in seconds: time.monotonic, or the simulation's."""
    return pysyncobj.syncobj.monotonicTime()


@contextmanager
def use_clock(clock: Callable[[], float]) -> Iterator[None]:
    """Within the block every engine of this process goes by `clock`. For simulations only: the name is global."""
    before = pysyncobj.syncobj.monotonicTime
    pysyncobj.syncobj.monotonicTime = clock
    try:
        yield
    finally:
        pysyncobj.syncobj.monotonicTime = before
