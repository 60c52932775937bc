"""How many commits a second, at what latency, for what CPU?

Three processes on loopback, each with what a node has between a proposal and its outcome: proposer, replica, journal
with fdatasync, mutual-TLS links, SQLite state machine. 1, 16, 128 and 1000 proposers propose one command after another
for some seconds, from the leader's process and then from a follower's. Three kinds: no-ops as the read barrier
proposes them, no-ops through the proposer (command id, exactly-once bookkeeping in SQLite), and real publishes
(BeginUpload, then Publish: two commits; rate and latency are the Publish's). Afterwards the state digests of all three
must be equal.

CPU is user + system time of the three processes; "ms/1k" is CPU milliseconds for 1000 commits, followers included.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import trio

sys.path.insert(0, str(Path(__file__).parent.parent))
from raftmft.cli.dev import free_ports
from raftmft.cluster.certificates import client_context, server_context
from raftmft.cluster.hello import Self
from raftmft.cluster.links import PeerLinks
from raftmft.cluster.listener import PeerListener, open_port
from raftmft.core import commands as c
from raftmft.core.manifest import Manifest
from raftmft.node.datadir import DataDir
from raftmft.node.genesis import FirstMember, bootstrap_command, make_cluster
from raftmft.node.link import value_of
from raftmft.node.settings import Settings
from raftmft.node.state import open_state
from raftmft.raft.driver import RaftDriver
from raftmft.raft.journal import Journal
from raftmft.raft.proposer import Proposer
from raftmft.raft.replica import Replica
from raftmft.raft.snapshots import SnapshotFolder

PROPOSERS = (1, 16, 128, 1000)


class Member:
    """One process: serves commands from standard input, one JSON line each, and answers with one line each."""

    def __init__(self, path: str) -> None:
        self.data_dir = DataDir(path)
        self.seed = self.data_dir.read_seed()
        journal, snapshots = Journal(str(self.data_dir.journal)), SnapshotFolder(str(self.data_dir.snapshots))
        self.state = open_state(self.data_dir, journal, snapshots)
        replica = Replica(self.seed.me, [m.id for m in self.seed.members], journal, self.state)
        files, members = self.data_dir.certificates, self.seed.members
        me = Self(self.seed.me, self.seed.cluster_id, server_context(files), client_context(files))

        def directory() -> dict[str, str]:
            return {m.fingerprint: m.id for m in members}

        self.links = PeerLinks(
            me,
            lambda: {m.id: (m.host, m.peer_port) for m in members},
            directory,
            on_up=lambda m: self.driver.peer_connected(m),
            on_down=lambda m: self.driver.peer_disconnected(m),
        )
        self.driver = RaftDriver(replica, lambda member, body: self.links.send(member, "raft", body))
        self.links.on_message("raft", self.driver.receive)

        async def nothing(*_: Any) -> None:
            raise OSError("this process serves the control channel only")

        self.listener = PeerListener(me, directory, on_control=self.links.serve, on_bulk=nothing, on_relay=nothing)
        self.session = 0

    async def run(self) -> None:
        """Until standard input ends."""
        async with trio.open_nursery() as nursery:
            spec = self.seed.member(self.seed.me)
            nursery.start_soon(self.listener.serve, open_port(spec.host, spec.peer_port))
            nursery.start_soon(self.links.run)
            nursery.start_soon(self.driver.run)
            lines = trio.lowlevel.FdStream(os.dup(0))
            buffer = b""
            while data := await lines.receive_some(65536):
                *whole, buffer = (buffer + data).split(b"\n")
                for line in whole:
                    order = json.loads(line)
                    answer = await getattr(self, order.pop("do"))(**order)
                    print(json.dumps(answer), flush=True)
            nursery.cancel_scope.cancel()

    async def look(self) -> dict[str, Any]:
        """Role, indexes, digest, CPU so far."""
        status = self.driver.status()
        use = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "role": status.role,
            "term": status.term,
            "applied": status.applied_index,
            "commit": status.commit_index,
            "cpu": use.ru_utime + use.ru_stime,
        }

    async def digest(self) -> str:
        """The state's digest."""
        return self.state.machine.digest()

    async def prepare(self) -> int:
        """Boots this member's epoch and logs a user in."""
        if self.driver.status().role == "leader":
            await self.driver.propose(c.Envelope(bootstrap_command(self.seed)), timeout_s=5)
        outcome = await self.driver.propose(
            c.Envelope(c.MemberBoot(self.seed.me, os.urandom(16), "bench")), timeout_s=5
        )
        epoch = value_of(outcome)["epoch"]
        self.proposer = Proposer(self.driver, self.seed.me, epoch)
        user = f"bench-{self.seed.me}"
        value_of(await self.proposer.execute(c.UserAdd(user)))
        credential = self.state.machine.users.get(user).credential
        self.session = value_of(
            await self.proposer.execute(c.Login(self.seed.me, epoch, user, "127.0.0.1:1", "bench", credential))
        )["session"]
        return self.session

    async def load(self, proposers: int, seconds: float, kind: str) -> dict[str, Any]:
        """Runs `proposers` proposers; counts what ended in the time, with latencies."""
        took: deque[float] = deque()
        deadline = trio.current_time() + seconds

        async def noops() -> None:
            while trio.current_time() < deadline:
                begun = time.perf_counter()
                value_of(await self.driver.propose(c.Envelope(c.NoOp()), timeout_s=5))
                took.append(time.perf_counter() - begun)

        async def commands() -> None:
            while trio.current_time() < deadline:
                begun = time.perf_counter()
                value_of(await self.proposer.execute(c.NoOp()))
                took.append(time.perf_counter() - begun)

        async def publishes(number: int) -> None:
            count = 0
            while trio.current_time() < deadline:
                count += 1
                path = (f"{kind}-{proposers}-{number}-{count % 50}".encode(),)
                upload = value_of(await self.proposer.execute(c.BeginUpload(self.session, path, truncate=True)))
                begun = time.perf_counter()
                value_of(
                    await self.proposer.execute(
                        c.Publish(
                            self.session,
                            upload["upload"],
                            Manifest(4096, 0, os.urandom(32)),
                            upload["placement"],
                            "00" * 32,
                        )
                    )
                )
                took.append(time.perf_counter() - begun)

        begun = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for number in range(proposers):
                nursery.start_soon(*{"noop": (noops,), "command": (commands,), "publish": (publishes, number)}[kind])
        elapsed = time.perf_counter() - begun
        ordered = sorted(took)
        return {
            "count": len(ordered),
            "seconds": elapsed,
            "p50_ms": 1e3 * ordered[len(ordered) // 2],
            "p99_ms": 1e3 * ordered[int(len(ordered) * 0.99)],
        }


class Handle:
    """The parent's side of one member process."""

    def __init__(self, path: Path, script: str = __file__) -> None:
        self.process = subprocess.Popen(
            [sys.executable, script, "--member", str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def ask(self, do: str, **rest: Any) -> Any:
        """One order and its answer."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"do": do, **rest}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a member ended with {self.process.wait()}")
        return json.loads(line)


def three_members(folder: Path, script: str = __file__) -> list[Handle]:
    """Three members, as `script` runs them, with a leader, their epochs and a user each. `stop` them."""
    ports = free_ports(12)
    first = [
        FirstMember(
            folder / f"n{n}",
            Settings(
                name=f"n{n}",
                advertise="127.0.0.1",
                sftp_port=ports.pop(),
                peer_port=ports.pop(),
                gossip_port=ports.pop(),
                admin_port=ports.pop(),
            ),
        )
        for n in range(3)
    ]
    make_cluster("bench", first)
    members = [Handle(m.data_dir, script) for m in first]
    try:
        wait(lambda: any(m.ask("look")["role"] == "leader" for m in members))
        for member in sorted(members, key=lambda m: m.ask("look")["role"] != "leader"):
            member.ask("prepare")
    except BaseException:
        stop(members)
        raise
    return members


def stop(members: list[Handle]) -> None:
    """Ends the processes, and returns when they are gone."""
    for member in members:
        assert member.process.stdin
        member.process.stdin.close()
    for member in members:
        member.process.wait(10)


def wait(condition: Any) -> Any:
    """The condition's first true value within 30 s."""
    deadline = time.monotonic() + 30
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise SystemExit("the members do not come to terms")
        time.sleep(0.05)
    return value


def main() -> None:
    """Prints a table on standard error, JSON on standard output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--member", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--proposers", type=int, nargs="*", default=PROPOSERS)
    parser.add_argument("--kinds", nargs="*", default=("noop", "command", "publish"))
    parser.add_argument("--dir", default=None, help="where the journals lie (a real disk)")
    options = parser.parse_args()
    if options.member:
        gc.freeze()  # as node/process.py does
        trio.run(Member(options.member).run)
        return
    folder = Path(tempfile.mkdtemp(prefix="raftmft-commit-", dir=options.dir))
    members: list[Handle] = []
    try:
        members += three_members(folder)
        rows = []
        print(
            f"{'kind':8}{'from':10}{'proposers':>10}{'commits/s':>11}{'p50 ms':>9}{'p99 ms':>9}{'CPU ms/1k':>11}",
            file=sys.stderr,
        )
        for kind in options.kinds:
            for count in options.proposers:
                for role in ("leader", "follower"):
                    member = next(m for m in members if (m.ask("look")["role"] == "leader") == (role == "leader"))
                    before = [m.ask("look") for m in members]
                    result = member.ask("load", proposers=count, seconds=options.seconds, kind=kind)
                    after = [m.ask("look") for m in members]
                    commits = max(a["commit"] for a in after) - max(b["commit"] for b in before)
                    cpu = sum(a["cpu"] - b["cpu"] for a, b in zip(after, before, strict=True))
                    row = {
                        "kind": kind,
                        "from": role,
                        "proposers": count,
                        "per_s": round(result["count"] / result["seconds"]),
                        "p50_ms": round(result["p50_ms"], 2),
                        "p99_ms": round(result["p99_ms"], 2),
                        "cpu_ms_per_1k_commits": round(1e6 * cpu / max(1, commits), 1),
                    }
                    rows.append(row)
                    print(
                        f"{kind:8}{role:10}{count:>10}{row['per_s']:>11}{row['p50_ms']:>9}{row['p99_ms']:>9}"
                        f"{row['cpu_ms_per_1k_commits']:>11}",
                        file=sys.stderr,
                    )
        last = max(m.ask("look")["commit"] for m in members)
        wait(lambda: all(m.ask("look")["applied"] >= last for m in members))
        digests = {m.ask("digest") for m in members}
        print(f"state digests of the three members: {'equal' if len(digests) == 1 else 'DIFFERENT'}", file=sys.stderr)
        print(json.dumps({"seconds": options.seconds, "rows": rows, "digests_equal": len(digests) == 1}))
        if len(digests) != 1:
            raise SystemExit(1)
    finally:
        stop(members)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
