"""Run as a program, in a process of its own: shows stock pysyncobj fail where raftmft/raft must not. Prints JSON."""

from __future__ import annotations

import json
import logging
import os
import pickle
import struct
import sys
import tempfile
import zlib

import pysyncobj.syncobj as stock
from pysyncobj import SyncObj, SyncObjConf, replicated
from pysyncobj.journal import FileJournal
from pysyncobj.node import Node
from pysyncobj.tcp_connection import TcpConnection
from pysyncobj.transport import Transport

logging.disable(logging.CRITICAL)
NOW = 1000.0
IDS = ["a", "b", "c"]
stock.monotonicTime = lambda: NOW


class Bus(Transport):
    """Messages in memory."""

    all: dict[str, Bus] = {}

    def __init__(self, sync_obj, me, others):
        super().__init__(sync_obj, me, others)
        self.me, self.box, self.sent = me, [], []
        Bus.all[me.id] = self

    def send(self, node, message):
        self.sent.append((node.id, message))
        if node.id in Bus.all:
            Bus.all[node.id].box.append((self.me, message))
        return True


class Stock(SyncObj):
    def __init__(self, me, ids, **conf):
        conf = {"autoTick": False, "appendEntriesUseBatch": True, **conf}
        super().__init__(Node(me), [Node(i) for i in ids if i != me], SyncObjConf(**conf), nodeClass=Node,
                         transportClass=Bus)
        self.values = []

    @property
    def bus(self):
        return Bus.all[self.selfNode.id]

    @replicated
    def put(self, value):
        self.values.append(value)

    @replicated
    def explode(self):
        raise ValueError("boom")

    def take(self, member, **message):
        self.bus._onMessageReceived(Node(member), message)


def make(ids, **conf):
    Bus.all = {}
    nodes = [Stock(i, ids, **conf) for i in ids]
    for node in nodes:
        for other in ids:
            if other != node.selfNode.id:
                node.bus._onNodeConnected(Node(other))
    return nodes


def run(nodes, seconds, errors=None):
    global NOW
    end = NOW + seconds
    while end > NOW:
        NOW += 0.01
        for node in nodes:
            try:
                node.doTick(0)
                box, node.bus.box = node.bus.box, []
                for source, message in box:
                    node.bus._onMessageReceived(source, message)
            except Exception as error:
                if errors is None:
                    raise
                errors.append(repr(error))


def leader(nodes):
    run(nodes, 5)
    return next(node for node in nodes if node._isLeader())


def append(node, entries, prev, prev_term=0, term=1, commit=1):
    node.take("a", type="append_entries", term=term, commit_index=commit, entries=entries, prevLogIdx=prev,
              prevLogTerm=prev_term)


def alone(journal, dump=None, **conf):
    Bus.all = {}
    node = Stock("a", ["a"], journalFile=journal, fullDumpFile=dump, useFork=False, **conf)
    run([node], 3)
    return node


def put(node, values):
    for value in values:
        node.put(value)
        run([node], 0.1)


def snapshots(out, directory):
    """Fresh files a case; the node is alone, so that whatever it applied was committed."""
    whole, short, dump = (os.path.join(directory, name) for name in ("whole", "short", "dump"))
    node = alone(whole)
    put(node, range(30))
    node._destroy()
    node = alone(short, dump, logCompactionMinEntries=10**6, logCompactionMinTime=10**6)
    put(node, range(20))
    node.forceLogCompaction()
    run([node], 1)
    node._destroy()
    # The process was killed between the dump's rename and the journal's own compaction.
    node = alone(whole, dump)
    out["a dump beside a longer journal empties it"] = node._getRaftLogSize() < 10
    node._destroy()
    with open(dump, "r+b") as file:
        file.seek(20)
        file.write(b"damage")
    node = alone(short, dump)
    out["a damaged dump is swallowed, and the node leads"] = node._isLeader() and len(getattr(node, "values", [])) < 20
    node._destroy()


def elections(out: dict[str, bool]) -> None:
    """Who is cut off, removed or isolated."""
    nodes = make(IDS)
    first = leader(nodes)
    away = next(node for node in nodes if node is not first)
    term = first.raftCurrentTerm
    rest = [node for node in nodes if node is not away]
    for _ in range(20):  # it ticks alone; nothing reaches anybody
        run([away], 3)
        run(rest, 3)
        away.bus.box.clear()
        for node in rest:
            node.bus.box = [pair for pair in node.bus.box if pair[0] is not away.bus.me]
    out["a member that was cut off raises terms"] = away.raftCurrentTerm > term + 5
    run(nodes, 2)
    out["a member that was cut off deposes the leader"] = first.raftCurrentTerm > term + 5

    nodes = make(IDS)
    first, ended = leader(nodes), []
    first.put(1, callback=lambda *_: ended.append(1))
    run([first], 20)
    out["an isolated leader leads on for half a minute"] = first._isLeader()
    run([first], 40)
    out["a callback never fires"] = not ended

    nodes = make(IDS)
    first = leader(nodes)
    sent = [message for node in nodes for _, message in node.bus.sent if message["type"] == "next_node_idx"]
    out["acknowledgements carry no term"] = bool(sent) and all("term" not in message for message in sent)
    first.put(1)
    first.put(1)
    run(nodes, 1)
    out["a command that is sent again is applied again"] = first.values == [1, 1]

    first = leader(make(IDS, dynamicMembershipChange=True))
    run([node for node in (first,)], 0.1)
    grown = len(first.otherNodes)
    first.addNodeToCluster(Node("d"))
    first.addNodeToCluster(Node("e"))
    first.doTick(0)
    out["two uncommitted membership changes are taken"] = len(first.otherNodes) == grown + 2

    first = make(["a"])[0]
    run([first], 3)
    first._applyCommand(pickle.dumps(7, 2), None, stock._COMMAND_TYPE.VERSION)
    first.put(1)
    run([first], 1)
    out["an unsupported version is skipped and all behind it is counted wrong"] = (
        first.values.count(1) != 1 or first.raftLastApplied != first.raftCommitIndex)


def files(out: dict[str, bool], directory: str) -> None:
    """What the journal and its side file do not notice."""
    empty = os.path.join(directory, "empty")
    open(empty, "wb").close()
    try:
        FileJournal(empty)
    except ValueError:
        out["an empty journal is a ValueError"] = True
    path = os.path.join(directory, "voted")
    journal = FileJournal(path)
    journal.setCurrentTerm(9, "a")
    journal._destroy()
    with open(path + ".meta", "wb") as file:
        file.write(b"damaged")
    journal = FileJournal(path)
    out["a damaged term and vote are forgotten"] = (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (0, None)
    try:
        journal._FileJournal__setLastRecordOffset(1 << 32)
    except struct.error:
        out["a journal cannot grow over 4 GiB"] = True


def network(out: dict[str, bool], mark: str, bomb: object) -> None:
    """What a stranger sends."""
    link = TcpConnection(None)
    data = zlib.compress(pickle.dumps(bomb, 2))
    link._TcpConnection__readBuffer = struct.pack("i", len(data)) + data
    try:
        link._TcpConnection__processParseMessage()
    except Exception:
        pass
    out["a frame from the network is unpickled"] = os.path.exists(mark)


def main() -> dict[str, bool]:
    global NOW
    out: dict[str, bool] = {}
    ids = ["a", "b", "c"]
    entries = [(b"\x01", index, 1) for index in range(2, 12)]
    node = make(ids)[1]
    append(node, entries, 1)
    append(node, entries[:5], 1)
    out["a duplicate truncates"] = node._getRaftLogSize() < 11
    append(node, entries, 1)
    append(node, [], 1)
    out["a stale heartbeat truncates"] = node._getRaftLogSize() < 11

    node = make(ids)[1]
    append(node, [(b"\x01", 2, 1), (b"\x01", 3, 1)], 1, term=2, commit=1)
    append(node, [], 2, 1, term=2, commit=3)
    out["a stale heartbeat loses what it acknowledged"] = node._getRaftLogSize() < 3

    five = ["a", "b", "c", "d", "e"]
    node = make(five)[0]
    NOW += 10
    node.doTick(0)
    for _ in range(2):
        node.take("b", type="response_vote", term=node.raftCurrentTerm)
    out["one voter's repeated vote counts twice"] = node._isLeader()

    node = leader(make(ids))
    other = next(i for i in ids if i != node.selfNode.id)
    node.take(other, type="next_node_idx", next_node_idx=10**6, reset=False, success=True)
    matched = node._SyncObj__raftMatchIndex[Node(other)]
    out["an acknowledgement beyond the log counts"] = matched > node._getRaftLogSize()

    nodes = make(ids)
    first, errors = leader(nodes), []
    first.explode()
    run(nodes, 2, errors)
    first.put(1)
    run(nodes, 2, errors)
    out["an exception in apply wedges"] = bool(errors) and not first.values

    nodes = make(ids)
    first, errors, done = leader(nodes), [], []
    first._applyCommand(b"\x01" + b"x" * (131052 - 1), lambda *_: done.append(1))
    run(nodes, 3, errors)
    out["a command near a multiple of the batch size stalls"] = not done

    nodes = make(ids)
    first = leader(nodes)
    paused = next(node for node in nodes if node is not first)
    term = first.raftCurrentTerm
    run([node for node in nodes if node is not paused], 5)
    paused.doTick(0)
    out["a paused member disturbs a live leader"] = paused.raftCurrentTerm > term

    elections(out)
    with tempfile.TemporaryDirectory() as directory:
        mark = os.path.join(directory, "ran")

        class Bomb:
            def __reduce__(self):
                return os.mkdir, (mark,)

        try:
            node._SyncObj__doApplyCommand(b"\x00" + pickle.dumps(Bomb(), 2))
        except Exception:
            pass
        out["a command is unpickled"] = os.path.exists(mark)
        os.rmdir(mark)
        network(out, mark, Bomb())
        files(out, directory)

        synced, real = [], (os.fsync, os.fdatasync)
        os.fsync = os.fdatasync = lambda fd: synced.append(fd)
        path = os.path.join(directory, "journal")
        journal = FileJournal(path)
        for index in range(1, 50):
            journal.add(b"command" * 10, index, 1)
        journal.setCurrentTerm(7, "a")
        out["the journal is never fsynced"] = not synced
        end = journal._FileJournal__currentOffset
        journal._destroy()
        with open(path, "rb") as file:
            content = file.read()

        def opens(data):
            with open(path, "wb") as file:
                file.write(data)
            try:
                return FileJournal(path)
            except Exception:
                return None

        os.fsync, os.fdatasync = real
        snapshots(out, directory)

        flipped = bytearray(content)
        flipped[end - 100] ^= 255
        out["a flipped bit loads silently"] = opens(flipped) is not None
        zeroed = bytearray(content)
        zeroed[end - 200 : end] = bytes(200)
        loaded = opens(zeroed)
        out["a zeroed tail is an error or a wrong log"] = loaded is None or any(not e[0] for e in loaded[:])
    return out


if __name__ == "__main__":
    json.dump(main(), sys.stdout)
