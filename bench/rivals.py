"""Three raftmft members and three etcd members on the same disk, to be driven by the same client (http_client.py).

Both keep every commit by fsync on a majority, speak mutual TLS between members on 127.0.0.1, and take the same JSON
request ({"key", "value"} in base64) over HTTP/1.1 with keep-alive. etcd answers with its own v3 JSON gateway, which
goes through gRPC within the same process; raftmft's members (this file, run with --member) answer with the few lines
below. etcd stores the 200 bytes under one key. raftmft commits them in an audit record: hash-chained, in SQLite, under
a command id that makes it happen once.
"""

from __future__ import annotations

import base64
import json
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import trio

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench import commit
from bench.transfer import cpu_of_tree
from raftmft.cli.dev import free_ports
from raftmft.core import commands as c
from raftmft.core.errors import RaftmftError
from raftmft.node.link import value_of

VALUE = b"v" * 200
KEY = b"bench"
TIMEOUT_S = 5.0


class ServedMember(commit.Member):
    """A member of commit.py with an HTTP port: /put commits, /get is a linearizable read."""

    value = VALUE

    async def listen(self) -> int:
        """Opens the port and returns it."""
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=2048)
        self.nursery.start_soon(trio.serve_listeners, self._serve, [listener])
        return int(listener.socket.getsockname()[1])

    async def run(self) -> None:
        """Until standard input ends."""
        async with trio.open_nursery() as self.nursery:
            await super().run()
            self.nursery.cancel_scope.cancel()

    async def _serve(self, stream: trio.SocketStream) -> None:
        buffer = b""
        while True:
            while (end := buffer.find(b"\r\n\r\n")) < 0:
                part = await stream.receive_some(65536)
                if not part:
                    return
                buffer += part
            head = buffer[:end]
            length = int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
            while len(buffer) < end + 4 + length:
                buffer += await stream.receive_some(65536)
            body, buffer = buffer[end + 4 : end + 4 + length], buffer[end + 4 + length :]
            order, status = json.loads(body), b"200 OK"
            try:
                if head.startswith(b"POST /put "):
                    answer = await self._put(base64.b64decode(order["key"]), base64.b64decode(order["value"]))
                else:
                    answer = await self._get(base64.b64decode(order["key"]))
            except RaftmftError as error:
                answer, status = {"error": str(error)}, b"503 Service Unavailable"
            out = json.dumps(answer).encode()
            head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(out))
            await stream.send_all(head + out)

    async def _put(self, key: bytes, value: bytes) -> dict[str, Any]:
        self.value = value
        record = (key.decode(), value[:100].decode(), value[100:].decode(), 1)
        outcome = await self.proposer.execute(c.LoginRefused(self.seed.me, (record,)), timeout_s=TIMEOUT_S)
        value_of(outcome)
        return {"header": {"revision": outcome.index}}

    async def _get(self, key: bytes) -> dict[str, Any]:
        index = await self.driver.barrier(timeout_s=TIMEOUT_S)
        user = self.state.machine.users.get(f"bench-{self.seed.me}")  # one look into SQLite, as a stat would be
        assert user is not None
        kv = {"key": base64.b64encode(key).decode(), "value": base64.b64encode(self.value).decode()}
        return {"header": {"revision": index}, "kvs": [kv], "count": "1"}


class Raftmft:
    """Three members in processes."""

    name = "raftmft"
    put, get = "/put", "/get"

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.members = commit.three_members(folder, __file__)
        self._ports = [member.ask("listen") for member in self.members]

    def roles(self) -> list[str]:
        """Of each member, in order."""
        return [member.ask("look")["role"] for member in self.members]

    def address(self, number: int) -> tuple[str, int]:
        """Where the member takes requests."""
        return "127.0.0.1", self._ports[number]

    def cpu_s(self) -> float:
        """CPU seconds of all members so far."""
        return sum(cpu_of_tree(member.process.pid) for member in self.members)

    def digests_equal(self) -> bool:
        """Whether all members come to the same state."""
        last = max(member.ask("look")["commit"] for member in self.members)
        commit.wait(lambda: all(member.ask("look")["applied"] >= last for member in self.members))
        return len({member.ask("digest") for member in self.members}) == 1

    def stop(self) -> None:
        """Ends the processes."""
        commit.stop(self.members)


class Etcd:
    """Three members in processes, with etcd's defaults but for mutual TLS between peers."""

    name = "etcd"
    put, get = "/v3/kv/put", "/v3/kv/range"

    def __init__(self, folder: Path) -> None:
        if shutil.which("etcd") is None:
            raise SystemExit("there is no etcd here: apt-get install etcd-server etcd-client")
        import trustme  # of raftmft's test extra

        folder.mkdir()
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        ports = free_ports(6)
        self._ports, peers = ports[:3], ports[3:]
        cluster = ",".join(f"e{n}=https://127.0.0.1:{port}" for n, port in enumerate(peers))
        self._processes: list[subprocess.Popen[bytes]] = []
        for n in range(3):
            pair = authority.issue_cert("127.0.0.1", "localhost")
            pair.private_key_pem.write_to_path(str(folder / f"e{n}.key"))
            pair.cert_chain_pems[0].write_to_path(str(folder / f"e{n}.pem"))
            client, peer = f"http://127.0.0.1:{self._ports[n]}", f"https://127.0.0.1:{peers[n]}"
            options = {
                "name": f"e{n}",
                "data-dir": str(folder / f"e{n}"),
                "listen-client-urls": client,
                "advertise-client-urls": client,
                "listen-peer-urls": peer,
                "initial-advertise-peer-urls": peer,
                "initial-cluster": cluster,
                "peer-cert-file": str(folder / f"e{n}.pem"),
                "peer-key-file": str(folder / f"e{n}.key"),
                "peer-trusted-ca-file": str(folder / "ca.pem"),
                "peer-client-cert-auth": "true",
                "logger": "zap",
                "log-level": "error",
            }
            with open(folder / f"e{n}.log", "wb") as log:
                self._processes.append(
                    subprocess.Popen(["etcd", *(f"--{k}={v}" for k, v in options.items())], stdout=log, stderr=log)
                )
        try:
            commit.wait(lambda: "leader" in self.roles())
        except BaseException:
            self.stop()
            raise

    def roles(self) -> list[str]:
        """Of each member, in order; "?" while it does not answer."""
        found = []
        for port in self._ports:
            try:
                with urllib.request.urlopen(
                    urllib.request.Request(f"http://127.0.0.1:{port}/v3/maintenance/status", b"{}"), timeout=2
                ) as answer:
                    status = json.load(answer)
            except OSError:
                found.append("?")
            else:
                leads = status.get("leader") == status["header"]["member_id"]
                found.append("leader" if leads else "follower" if status.get("leader") else "?")
        return found

    def address(self, number: int) -> tuple[str, int]:
        """Where the member takes requests."""
        return "127.0.0.1", self._ports[number]

    def cpu_s(self) -> float:
        """CPU seconds of all members so far."""
        return sum(cpu_of_tree(process.pid) for process in self._processes)

    def stop(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


Subject = Raftmft | Etcd


def drive(subject: Subject, role: str, path: str, connections: int, seconds: float) -> dict[str, float]:
    """One round of one subject: what the client measured, and the CPU milliseconds of servers and client for 1,000."""
    number = commit.wait(lambda: [n + 1 for n, found in enumerate(subject.roles()) if found == role])[0] - 1
    values = {"key": base64.b64encode(KEY).decode()}
    if path == subject.put:
        values["value"] = base64.b64encode(VALUE).decode()
    order = {
        "address": subject.address(number),
        "path": path,
        "body": json.dumps(values),
        "connections": connections,
        "seconds": seconds,
    }
    before = subject.cpu_s()
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("http_client.py")), json.dumps(order)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=seconds + 30,
    )
    if run.returncode:
        raise SystemExit(f"the client of {subject.name} failed")
    result = json.loads(run.stdout)
    per_1k = 1e6 / result["count"]
    return {
        "per_s": result["count"] / result["seconds"],
        "p50_ms": result["p50_ms"],
        "p99_ms": result["p99_ms"],
        "servers_ms_per_1k": per_1k * (subject.cpu_s() - before),
        "client_ms_per_1k": per_1k * result["client_cpu_s"],
    }


def interleaved(
    subjects: list[Subject], role: str, what: str, connections: int, seconds: float, rounds: int
) -> dict[str, dict[str, float]]:
    """The medians of `rounds` rounds of each subject, taken in turn, in an order that rotates."""
    found: dict[str, list[dict[str, float]]] = {subject.name: [] for subject in subjects}
    for number in range(rounds):
        for subject in subjects if number % 2 == 0 else subjects[::-1]:
            found[subject.name].append(drive(subject, role, getattr(subject, what), connections, seconds))
    return {
        name: {key: round(statistics.median(r[key] for r in results), 3) for key in results[0]}
        for name, results in found.items()
    }


HEAD = (
    f"{'from':10}{'at once':>8}  {'subject':9}{'per s':>9}{'p50 ms':>9}{'p99 ms':>9}"
    f"{'servers ms/1k':>15}{'client ms/1k':>14}{'load':>7}"
)


def show(role: str, connections: int, medians: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Prints the lines of a table on standard error; returns them as rows."""
    load = float(Path("/proc/loadavg").read_text().split()[0])
    rows = []
    for name, m in medians.items():
        print(
            f"{role:10}{connections:>8}  {name:9}{m['per_s']:>9.0f}{m['p50_ms']:>9.2f}{m['p99_ms']:>9.2f}"
            f"{m['servers_ms_per_1k']:>15.0f}{m['client_ms_per_1k']:>14.0f}{load:>7.1f}",
            file=sys.stderr,
        )
        rows.append({"from": role, "at_once": connections, "subject": name, **m, "load": load})
    return rows


def show_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """raftmft's figures over etcd's, of rows that belong together."""
    found: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["from"], row["at_once"]), {})[row["subject"]] = row
    ratios = []
    for (role, connections), pair in found.items():
        if set(pair) == {"raftmft", "etcd"}:
            ours, theirs = pair["raftmft"], pair["etcd"]
            keys = ("per_s", "p50_ms", "p99_ms", "servers_ms_per_1k")
            ratio = {key: round(ours[key] / theirs[key], 2) for key in keys if theirs[key]}
            print(f"raftmft / etcd, {role}, {connections} at once: {ratio}", file=sys.stderr)
            ratios.append({"from": role, "at_once": connections, **ratio})
    return ratios


def settle(seconds: float = 1.0) -> None:
    """Lets what was just started come to rest."""
    time.sleep(seconds)


if __name__ == "__main__":
    trio.run(ServedMember(sys.argv[2]).run)
