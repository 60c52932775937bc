"""How many files of 4 KiB go in (published) and out a second, at 1, 8 and 64 sessions, beside OpenSSH's sshd?

Subjects, in turn and in an order that rotates: a three-node cluster with its default settings; the same with
`audit.opens relaxed`; sshd (internal-sftp) whose client asks for an fsync before each CLOSE, since a raftmft CLOSE
promises that and more. One client process (asyncssh, raw packets, sessions logged in before the clock starts) drives
each subject: a put is OPEN, WRITE, CLOSE and a get OPEN, READ, CLOSE, each sent when the one before was answered, as
OpenSSH does. Its CPU is told beside that of the servers: where it comes near one core it is the limit.

`commits` is how far the Raft log grew for each file. With --syncs, strace counts the fdatasyncs and fsyncs of all
server processes in rounds of their own, whose other figures mean nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pwd
import re
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import asyncssh
import uvloop

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.transfer import TICK, Sshd, cpu_of_tree
from raftmft.sftp import packets as p
from tests.e2e.harness import Cluster
from tests.sftp.raw_client import PUT, RawSftp, s

SIZE = 4096
CONTENT = b"every file of the bench begins alike " * 120
LOGINS_AT_ONCE = 8
NAMES = 200
"""Each session writes so many names again and again, so that the directory has one size."""


class Raftmft:
    """A dev cluster."""

    def __init__(self, folder: Path) -> None:
        self.cluster = Cluster(folder).start()
        self.user, self.key = "demo", self.cluster.about["users"][0]["key"]

    def ports(self) -> list[int]:
        """Where it takes connections."""
        return [int(self.cluster.node(name)["sftp"].rsplit(":", 1)[1]) for name in self.cluster.names]

    def set(self, opens: str) -> None:
        """Sets audit.opens."""
        self.cluster.run("config", "set", "audit.opens", opens)

    def cpu(self) -> tuple[float, float]:
        """CPU seconds so far: of the node processes, and of the workers."""
        nodes = trees = 0.0
        for name in self.cluster.names:
            pid = self.cluster.pid(name)
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            nodes += (int(fields[11]) + int(fields[12])) / TICK
            trees += cpu_of_tree(pid)
        return nodes, trees - nodes

    def commits(self) -> int:
        """How long the Raft log is."""
        return max(int(self.cluster.status(name)["commit_index"]) for name in self.cluster.names)

    def pids(self) -> list[int]:
        """All server processes."""
        nodes = [self.cluster.pid(name) for name in self.cluster.names]
        return nodes + [child for node in nodes for child in children(node)]

    def stop(self) -> None:
        """Ends it."""
        self.cluster.stop()


class Plain(Sshd):
    """sshd, with room for many sessions."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.process.terminate()
        self.process.wait()
        with open(folder / "config", "a") as config:
            config.write("MaxStartups 1000\nMaxSessions 1000\n")
        self.process = subprocess.Popen(
            [str(shutil.which("sshd", path="/usr/sbin:/usr/bin")), "-D", "-e", "-f", str(folder / "config")],
            stderr=subprocess.DEVNULL)
        self.user, self.key = pwd.getpwuid(os.getuid()).pw_name, str(folder / "user")

    def ports(self) -> list[int]:
        """Where it takes connections."""
        return [self.port]

    def cpu_pair(self) -> tuple[float, float]:
        """CPU seconds so far, all of them as of workers."""
        return 0.0, cpu_of_tree(self.process.pid)

    def pids(self) -> list[int]:
        """All server processes."""
        todo, found = [self.process.pid], []
        while todo:
            found.append(todo.pop())
            todo += children(found[-1])
        return found


class Subject:
    """What is measured: a server under a setting."""

    def __init__(self, name: str, server: Raftmft | Plain, folder: str = "", opens: str = "",
                 fsyncs: bool = False) -> None:
        self.name, self.server, self.folder, self.opens, self.fsyncs = name, server, folder, opens, fsyncs

    def prepare(self) -> None:
        """Has the setting in force."""
        if self.opens and isinstance(self.server, Raftmft):
            self.server.set(self.opens)

    def cpu(self) -> tuple[float, float]:
        """CPU seconds so far of nodes and of workers (of sshd: all of it)."""
        return self.server.cpu() if isinstance(self.server, Raftmft) else self.server.cpu_pair()

    def commits(self) -> int:
        """How long the Raft log is; 0 where there is none."""
        return self.server.commits() if isinstance(self.server, Raftmft) else 0


def children(pid: int) -> list[int]:
    """Of a process, living ones."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


async def sessions(subject: Subject, count: int) -> list[RawSftp]:
    """So many sessions, spread over the nodes by the cluster itself."""
    ports, found, at_once = subject.server.ports(), list[RawSftp](), asyncio.Semaphore(LOGINS_AT_ONCE)

    async def one(number: int) -> None:
        async with at_once:
            connection = await asyncssh.connect(
                "127.0.0.1", ports[number % len(ports)], username=subject.server.user,
                client_keys=[subject.server.key], known_hosts=None, config=None, agent_path=None,
                encryption_algs=["aes128-gcm@openssh.com"], compression_algs=None)
            found.append(await RawSftp.open(None, connection))

    await asyncio.gather(*(one(number) for number in range(count)))
    return found


async def put(subject: Subject, sftp: RawSftp, path: str, number: int) -> None:
    """One file in, as OpenSSH's client does it but for its STAT."""
    handle = await sftp.open_file(path, PUT)
    await sftp.call(p.WRITE, s(handle), struct.pack(">Q", 0), s(number.to_bytes(8, "big") + CONTENT[8:SIZE]))
    if subject.fsyncs:
        await sftp.fsync(handle)
    await sftp.close_handle(handle)


async def get(_: Subject, sftp: RawSftp, path: str, __: int) -> None:
    """One file out."""
    handle = await sftp.open_file(path, p.FXF_READ)
    data = await sftp.read(handle, 0, p.MAX_DATA)
    assert len(data) == SIZE
    await sftp.close_handle(handle)


async def phase(subject: Subject, clients: list[RawSftp], what: Any, seconds: float) -> dict[str, float]:
    """All sessions at once for that long: what the client saw, and what it cost whom."""
    took: list[float] = []
    commits, cpu, mine, begun = subject.commits(), subject.cpu(), time.process_time(), time.perf_counter()
    deadline = begun + seconds

    async def one(sftp: RawSftp, me: int) -> None:
        number = 0
        while (at := time.perf_counter()) < deadline:
            serial = time.time_ns() if what is put else number % min(NAMES, written[me])
            await what(subject, sftp, f"{subject.folder}p{me}-{number % NAMES}" if what is put
                       else f"{subject.folder}p{me}-{serial}", serial)
            number += 1
            took.append(time.perf_counter() - at)
        if what is put:
            written[me] = number

    await asyncio.gather(*(one(sftp, me) for me, sftp in enumerate(clients)))
    seconds = time.perf_counter() - begun
    mine, after = time.process_time() - mine, subject.cpu()
    thousand, ordered = len(took) / 1000, sorted(took)
    return {
        "per_s": len(took) / seconds, "p50_ms": 1e3 * statistics.median(ordered),
        "p99_ms": 1e3 * ordered[int(len(ordered) * 0.99)], "node_s_per_1k": (after[0] - cpu[0]) / thousand,
        "worker_s_per_1k": (after[1] - cpu[1]) / thousand, "client_s_per_1k": mine / thousand,
        "client_cores": mine / seconds, "commits": (subject.commits() - commits) / len(took), "count": len(took)}


written: dict[int, int] = {}
"""How many names each session of the present round has written."""


async def one_round(subject: Subject, count: int, seconds: float, syncs: bool) -> dict[str, dict[str, float]]:
    """Puts, then gets of what was put, by new sessions."""
    subject.prepare()
    clients = await sessions(subject, count)
    found = {}
    try:
        for what in (put, get):
            counted = Counted(subject.server.pids()) if syncs else None
            found[what.__name__] = await phase(subject, clients, what, seconds)
            if counted is not None:
                found[what.__name__]["syncs"] = counted.stop() / found[what.__name__]["count"]
    finally:
        await asyncio.gather(*(client.close() for client in clients))
    return found


class Counted:
    """strace's count of syncs in these processes."""

    def __init__(self, pids: list[int]) -> None:
        self._file = tempfile.NamedTemporaryFile(suffix=".strace")
        self._process = subprocess.Popen(
            ["strace", "-f", "-qq", "-e", "trace=fdatasync,fsync", "-o", self._file.name,
             *(word for pid in pids for word in ("-p", str(pid)))])
        time.sleep(1.0)  # until it holds them all; what it costs does not matter here

    def stop(self) -> int:
        """How many."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait()
        return len(re.findall(rb"(?m)^\d+ +f(?:data)?sync\(", Path(self._file.name).read_bytes()))


HEAD = (f"{'':16}{'at once':>8}{'':>5}{'per s':>8}{'p50 ms':>8}{'p99 ms':>8}{'node s/1k':>11}{'worker s/1k':>13}"
        f"{'client s/1k':>13}{'cores':>7}{'commits':>9}{'syncs':>7}")


def main() -> None:
    """Prints a table on standard error, JSON on standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each of a round's phases")
    parser.add_argument("--syncs", action="store_true", help="count syncs with strace; the other figures mean nothing")
    every = ["strict", "relaxed", "sshd"]
    parser.add_argument("--only", choices=every, nargs="+", default=every)
    parser.add_argument("--dir", default=None, help="where servers keep their files (default: a temporary directory)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="raftmft-bench-", dir=options.dir))
    servers: list[Raftmft | Plain] = []
    try:
        subjects: list[Subject] = []
        if {"strict", "relaxed"} & set(options.only):
            servers.append(Raftmft(folder / "three"))
            subjects += [Subject(f"raftmft {opens}", servers[-1], opens=opens)
                         for opens in ("strict", "relaxed") if opens in options.only]
        if "sshd" in options.only:
            servers.append(Plain(folder / "sshd"))
            subjects.append(Subject("sshd + fsync", servers[-1], f"{folder}/sshd/files/", fsyncs=True))
        print(HEAD, file=sys.stderr)
        rows = []
        for count in options.sessions:
            rounds: dict[str, list[dict[str, dict[str, float]]]] = {subject.name: [] for subject in subjects}
            for number in range(options.rounds):
                turn = number % len(subjects)
                for subject in subjects[turn:] + subjects[:turn]:
                    rounds[subject.name].append(uvloop.run(one_round(subject, count, options.seconds, options.syncs)))
            for way in ("put", "get"):
                for name, results in rounds.items():
                    row = {key: round(statistics.median(r[way][key] for r in results), 3) for key in results[0][way]}
                    rows.append({"subject": name, "sessions": count, "way": way, **row})
                    print(f"{name:16}{count:>8}{way:>5}{row['per_s']:>8.0f}{row['p50_ms']:>8.2f}{row['p99_ms']:>8.1f}"
                          f"{row['node_s_per_1k']:>11.2f}{row['worker_s_per_1k']:>13.2f}{row['client_s_per_1k']:>13.2f}"
                          f"{row['client_cores']:>7.2f}{row['commits']:>9.2f}{row.get('syncs', 0):>7.1f}",
                          file=sys.stderr)
        print(json.dumps({"rounds": options.rounds, "seconds": options.seconds, "load": os.getloadavg()[0],
                          "rows": rows}))
    finally:
        for server in servers:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
