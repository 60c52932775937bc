"""What do snapshots of a state with many files cost those who work meanwhile, and how long does a start take?

Three real nodes on loopback (bench/realnode.py), whose state is filled with files before they start: as members that
have been at it for long, with a log that begins behind it. Clients are stood in for by proposers, each of which begins
an upload, publishes it, and pauses; what counts is the time of the Publish. Rounds alternate, so that what else the
machine does meets all of them alike:

  quiet          nothing else
  one snapshot   the leader makes one
  all snapshots  all three make one at once, which happens, since all count the same entries
  install        a follower that was away too long is given one; "gap": the longest time without a commit
  start          to serving, after a clean stop; after SIGKILL, with a log to apply on top of the snapshot
  long           commits without a pause, until several times as much log was written as is kept
"""

from __future__ import annotations

import argparse
import json
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.realnode import CHUNK, Handle, prefer
from raftmft.cluster.repairer import Marker
from raftmft.core.audit import chain
from raftmft.node.datadir import DataDir
from raftmft.raft.configuration import Configuration
from raftmft.raft.journal import Journal
from raftmft.raft.snapshots import SnapshotFolder
from tests.e2e.harness import Cluster

PER_FOLDER = 1000
SETTLE_S = 1.0
Took = list[tuple[float, float]]


# --- the cluster -----------------------------------------------------------------------------------------------------
def make(folder: Path, files: int) -> list[Path]:
    """The data directories of three members with so many files."""
    cluster = Cluster(folder / "c")
    chunk = folder / "chunk"
    chunk.write_bytes(CHUNK)
    try:
        cluster.start()
        cluster.sftp(cluster.names[0], f"put {chunk} first\n")
        cluster.wait_ready()
    finally:
        cluster.stop()
    members = [DataDir(cluster.folder / name) for name in cluster.names]
    source = max(members, key=lambda member: _applied(member.state))
    logs = {}
    for member in members:
        logs[member.path] = Journal(str(member.journal))
    newest = logs[source.path]
    term = newest.getCurrentTerm()
    founders = Configuration(tuple(sorted(spec.id for spec in source.read_seed().members)))
    configuration = newest.configurations[-1][1] if newest.configurations else founders.encode()
    index, placement = fill(source.state, files)
    made = SnapshotFolder(str(source.snapshots)).make(str(source.state), index, term, configuration)
    for member in members:
        log = logs[member.path]
        log.reset_to(index, term, configuration)
        log.setCurrentTerm(max(term, log.getCurrentTerm()), None)
        log.setRaftCommitIndex(index)
        log.close()
        Marker(member.repair_mark).move(index, placement)
        if member is not source:
            shutil.copy(source.state, member.state)
            name = SnapshotFolder(str(source.snapshots)).name(made)
            shutil.copy(name, member.snapshots.parent)
    return [Path(member.path) for member in members]


def _applied(state: Path) -> int:
    db = sqlite3.connect(state)
    try:
        return int(db.execute("SELECT applied FROM clock").fetchone()[0])
    finally:
        db.close()


def fill(state: Path, files: int) -> tuple[int, int]:
    """Puts so many files into the state, as if each had been published; the index it is of then, and the placement."""
    db = sqlite3.connect(state, isolation_level=None)
    db.execute("PRAGMA synchronous=OFF")
    db.execute("BEGIN")
    applied, now, head = db.execute("SELECT applied, time_ms, audit_head FROM clock").fetchone()
    row = db.execute("SELECT * FROM inodes WHERE size=?", (len(CHUNK),)).fetchone()
    home, uid = db.execute("SELECT home, uid FROM users WHERE name='demo'").fetchone()
    folder = db.execute("SELECT * FROM inodes WHERE id=?", (home,)).fetchone()
    inodes, names, records = [], [], []
    index = applied
    for number in range(files):
        if number % PER_FOLDER == 0:
            index += 1
            parent, name = index, b"folder-%06d" % (number // PER_FOLDER)
            inodes.append((parent, *folder[1:]))
            names.append((home, name, parent, folder[1]))
        index += 1
        inodes.append((index, *row[1:12], index, *row[13:]))
        names.append((parent, b"file-%08d.dat" % number, index, row[1]))
        path = f"/{name.decode()}/file-{number:08d}.dat"
        record = (index, now, "publish", "demo", path, None, "n1", "127.0.0.1", 5, len(CHUNK), row[11], "ok")
        head = chain(head, record)
        records.append((index, 0, *record[1:], head))
    for table, rows in (("inodes", inodes), ("dentries", names), ("audit", records)):
        db.executemany(f"INSERT INTO {table} VALUES ({','.join('?' * len(rows[0]))})", rows)
    db.execute("UPDATE clock SET applied=?, audit_count=audit_count+?, audit_head=?", (index, files, head))
    db.execute("UPDATE users SET files=files+?, file_bytes=file_bytes+? WHERE uid=?", (files, files * len(CHUNK), uid))
    (placement,) = db.execute("SELECT value FROM settings WHERE key='placement'").fetchone()
    db.execute("COMMIT")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    return index, int(placement)


# --- measuring -------------------------------------------------------------------------------------------------------
def wait(what: str, condition: Callable[[], Any], limit_s: float = 120) -> Any:
    """The condition's first true value."""
    deadline = time.monotonic() + limit_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {limit_s} s")
        time.sleep(0.02)
    return value


def figures(took: Took, begun: float, ended: float) -> dict[str, Any]:
    """Of the commits that were under way or ended in the span: latencies, and the longest time without one."""
    within = [(at, span) for at, span in took if at >= begun and at - span <= ended]
    if not within:
        return {"commits": 0}
    ordered = sorted(span for _, span in within)
    ends = sorted(at for at, _ in within)
    gaps = [after - before for before, after in zip(ends, ends[1:], strict=False)]
    return {"commits": len(ordered), "seconds": round(ended - begun, 2),
            "p50_ms": round(1e3 * ordered[len(ordered) // 2], 2),
            "p99_ms": round(1e3 * ordered[int(len(ordered) * 0.99)], 2), "max_ms": round(1e3 * ordered[-1], 1),
            "gap_ms": round(1e3 * max(gaps, default=0), 1)}


def _ready(node: Handle) -> dict[str, Any] | None:
    look: dict[str, Any] = node.ask("look")
    return look if look["ready"] else None


class Bench:
    """The running nodes, and what was measured."""

    def __init__(self, folders: list[Path], options: argparse.Namespace) -> None:
        self.options, self.rows = options, list[dict[str, Any]]()
        self.nodes = [Handle(folder) for folder in folders]
        wait("ready nodes", lambda: all(node.ask("look")["ready"] for node in self.nodes))
        self.leader = wait("a leader", self._leader)

    def _leader(self) -> Handle | None:
        return next((node for node in self.nodes if node.ask("look")["role"] == "leader"), None)

    def tell(self, kind: str, **row: Any) -> None:
        """Prints and keeps a row."""
        self.rows.append({"kind": kind, **row})
        print(f"{kind:16}" + "  ".join(f"{name} {value}" for name, value in row.items()), file=sys.stderr, flush=True)

    def _begin_load(self, nodes: list[Handle]) -> None:
        for node in nodes:
            node.order("publish", proposers=self.options.proposers // len(nodes), pause_s=self.options.pause_s)
        time.sleep(SETTLE_S)

    def _end_load(self, nodes: list[Handle]) -> Took:
        time.sleep(SETTLE_S)
        for node in nodes:
            node.ask("hush")
        return sorted((at, span) for node in nodes for at, span in node.answer("publish"))

    def making(self, kind: str, makers: list[Handle]) -> None:
        """Load on all members, while these make a snapshot."""
        for node in makers:
            node.ask("forget_peak")
        self._begin_load(self.nodes)
        begun = time.monotonic()
        for node in makers:
            node.order("snapshot")
        done = [node.answer("snapshot") for node in makers]
        if not makers:
            time.sleep(self.options.seconds)
        ended = time.monotonic()
        looks = [node.ask("look") for node in makers]
        more = self.leader.ask("felt", begun=begun, ended=ended)
        took = self._end_load(self.nodes)
        if makers:
            more |= {"snapshot_s": round(max(snapshot["seconds"] for snapshot in done), 1),
                    "snapshot_mb": round(done[0]["mb"]), "wal_mb": round(max(look["wal_mb"] for look in looks)),
                    "peak_mb": round(max(look["peak_mb"] for look in looks))}
        self.tell(kind, **figures(took, begun, ended), **more)
        if makers:
            self.tell("  just after", **figures(took, ended, ended + SETTLE_S))

    def install(self) -> None:
        """A follower is away until the others have dropped what it lacks, and comes back."""
        away = next(node for node in self.nodes if node is not self.leader)
        others = [node for node in self.nodes if node is not away]
        end = away.ask("look")["commit"]
        away.end()
        for node in others:
            node.ask("bound", keep_bytes=0, segment_bytes=1 << 16)
        while min(node.ask("look")["base"] for node in others) <= end:
            self._begin_load(others)
            self._end_load(others)
            for node in others:
                node.ask("snapshot")
        term = self.leader.ask("look")["term"]
        self._begin_load(others)
        begun = time.monotonic()
        back = self.nodes[self.nodes.index(away)] = Handle(away.path)
        ready = wait("the follower to catch up", lambda: _ready(back))
        ended = time.monotonic()
        took = self._end_load(others)
        installed = back.path.with_suffix(".log").read_text().count("is installed")
        self.tell("install", **figures(took, begun, ended), peak_mb=round(ready["peak_mb"]), installed=installed,
                  terms_changed=self.leader.ask("look")["term"] - term)
        wait("its state", lambda: back.ask("look")["applied"] >= self.leader.ask("look")["commit"] - 50)

    def starts(self) -> None:
        """A follower starts after a clean stop, and after SIGKILL with --replay entries of log beyond its snapshot."""
        node = next(node for node in self.nodes if node is not self.leader)
        node.end()
        node = self._start("start, clean", node, entries=0)
        node.ask("snapshot")
        at = node.ask("look")["applied"]
        self.leader.order("publish", proposers=64, pause_s=0)
        wait("a log to apply", lambda: self.leader.ask("look")["applied"] - at >= self.options.replay, 900)
        self.leader.ask("hush")
        self.leader.answer("publish")
        wait("the follower", lambda: node.ask("look")["applied"] - at >= self.options.replay)
        node.end(kill=True)
        self._start("start, killed", node, entries=self.leader.ask("look")["applied"] - at)

    def _start(self, kind: str, node: Handle, entries: int) -> Handle:
        begun = time.monotonic()
        back = self.nodes[self.nodes.index(node)] = Handle(node.path)
        look = wait("a ready node", lambda: _ready(back))
        self.tell(kind, seconds=round(time.monotonic() - begun, 2), entries=entries, peak_mb=round(look["peak_mb"]))
        return back

    def long(self) -> None:
        """Commits of 2 KiB, as files of 64 MiB are, without a pause until --log-mb of log were written."""
        node = self.leader
        begin = node.ask("look")
        node.order("publish", proposers=64, pause_s=0, chunks=64)
        most: dict[str, float] = {}
        half: dict[str, float] = {}
        while (look := node.ask("look"))["written_mb"] - begin["written_mb"] < self.options.log_mb:
            most = {name: max(look[name], most.get(name, 0)) for name in ("log_mb", "rss_mb", "wal_mb")}
            half = most if look["written_mb"] - begin["written_mb"] < self.options.log_mb / 2 else half
            time.sleep(0.2)
        node.ask("hush")
        node.answer("publish")
        self.tell("long", written_mb=round(look["written_mb"] - begin["written_mb"]),
                  commits=look["commit"] - begin["commit"], rss_mb_before=round(begin["rss_mb"]),
                  rss_mb_halfway=round(half["rss_mb"]), **{f"most_{name}": round(most[name]) for name in most})

    def check(self) -> None:
        """All three hold the same state."""
        wait("one applied index", lambda: len({node.ask("look")["applied"] for node in self.nodes}) == 1)
        digests = {node.ask("digest") for node in self.nodes}
        self.tell("digests", equal=len(digests) == 1)
        if len(digests) != 1:
            raise SystemExit("the states of the members differ")


def main() -> None:
    """Rows on standard error, JSON on standard output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=12.0, help="of load without a snapshot")
    parser.add_argument("--proposers", type=int, default=15)
    parser.add_argument("--pause-s", type=float, default=0.05)
    parser.add_argument("--replay", type=int, default=50_000)
    parser.add_argument("--nice", type=int, default=0, help="of the nodes; negative where others use the machine, too")
    parser.add_argument("--log-mb", type=int, default=500, help="of log to be written in the long run")
    parser.add_argument("--only", nargs="*", default=("making", "starts", "long", "install"))
    parser.add_argument("--dir", default=None, help="where the nodes lie (a real disk)")
    options = parser.parse_args()
    if options.nice:
        prefer(options.nice)
    folder = Path(tempfile.mkdtemp(prefix="raftmft-snapshots-", dir=options.dir))
    bench = None
    try:
        bench = Bench(make(folder, options.files), options)
        bench.tell("begin", **{name: round(value) for name, value in bench.leader.ask("look").items()
                               if name.endswith("_mb")})
        for _ in range(options.rounds if "making" in options.only else 0):
            bench.making("quiet", [])
            bench.making("one snapshot", [bench.leader])
            bench.making("all snapshots", bench.nodes)
        if "starts" in options.only:
            bench.starts()
        if "long" in options.only:
            bench.long()
        if "install" in options.only:
            bench.install()
        bench.check()
        print(json.dumps({"options": {**vars(options), "only": list(options.only)}, "rows": bench.rows}))
    finally:
        for node in bench.nodes if bench else []:
            node.end(kill=True)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
