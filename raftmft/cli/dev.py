"""raftmft dev: a cluster of real node processes on loopback, with a user `demo`, to try things out and for tests."""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from raftmft.cli.client import Client, NotFound
from raftmft.cluster.certificates import write_file
from raftmft.core.errors import ConfigError, RaftmftError
from raftmft.node import jsonfile
from raftmft.node.datadir import DataDir
from raftmft.node.genesis import FirstMember, make_cluster, make_ssh_key
from raftmft.node.settings import Settings, load

LOOPBACK = "127.0.0.1"
START_LIMIT_S = 60.0
STOP_LIMIT_S = 10.0
DRAIN_UNKNOWN_S = 20
"""How long a node whose settings cannot be read gets to drain."""
POLL_S = 0.05
PORTS = (10_000, 32_000)
PLAN, PLAN_KIND, PLAN_FORMAT = "dev.json", "dev plan", 1
USER = "demo"


@click.command(epilog="Example: raftmft dev --nodes 3 --dir /tmp/cluster")
@click.option(
    "--nodes", type=click.IntRange(1, 9), default=3, show_default=True, help="How many nodes a new cluster has."
)
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False),
    default="raftmft-dev",
    show_default=True,
    help="Where it lives; one that exists goes on.",
)
@click.option(
    "--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Session workers of each node."
)
@click.option("--replicas", type=click.IntRange(1, 9), default=3, show_default=True, help="Copies of each chunk.")
def dev(nodes: int, folder: str, workers: int, replicas: int) -> int:
    """Run a local cluster in the foreground. D/cluster.json tells how to reach it; Ctrl-C stops it."""
    cluster = DevCluster(Path(folder).absolute())
    stop = _Stop()
    cluster.prepare(nodes, workers, replicas)
    try:
        cluster.start()
        cluster.announce(stop)
        while not stop.wanted:
            cluster.reap()
            time.sleep(POLL_S)
    finally:
        cluster.stop()
    return 0


class _Stop:
    """Becomes wanted at SIGTERM or SIGINT, and at SIGHUP: the nodes do not end with a terminal by themselves."""

    def __init__(self) -> None:
        self.wanted = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._want)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup means that it goes on
            signal.signal(signal.SIGHUP, self._want)

    def _want(self, *_: Any) -> None:
        self.wanted = True


class DevCluster:
    """The cluster below one folder: its plan (dev.json), its nodes (n1, n2, ...), what it tells (cluster.json)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._plan: dict[str, Any] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def prepare(self, nodes: int, workers: int, replicas: int) -> None:
        """Takes the folder: makes a new cluster there, or reads the plan of the one that is there."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ConfigError(f"{self.folder} is not a directory; give another --dir") from None
        (self.folder / "cluster.json").unlink(missing_ok=True)
        plan = self.folder / PLAN
        if not plan.exists():
            if any(self.folder.iterdir()):
                raise ConfigError(f"{self.folder} is not empty and holds no {PLAN}; give an empty or new --dir")
            self._make(nodes, workers, replicas)
        try:
            self._plan = jsonfile.read(plan, PLAN_KIND, PLAN_FORMAT)
            self._plan["nodes"], self._plan["password"], self._plan["host_key"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{plan} is damaged ({type(error).__name__}); give an empty or new --dir") from None

    def start(self) -> None:
        """Starts the nodes that do not run already."""
        for name in self._plan["nodes"]:
            if _running(self.folder / name) is None:
                log = open(self.folder / f"{name}.log", "ab")
                with log:
                    self._processes[name] = subprocess.Popen(
                        [sys.executable, "-m", "raftmft", "node", "--data-dir", str(self.folder / name)],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )

    def announce(self, stop: _Stop) -> None:
        """Waits until every member votes and `demo` can log in at each, then writes cluster.json and says so."""
        started = time.monotonic()
        clients = {name: Client(str(self.folder / name), None, None) for name in self._plan["nodes"]}
        for client in clients.values():
            self._wait(partial(client.call, "GET", "/readyz"), stop)
        if stop.wanted:
            return
        first = next(iter(clients.values()))
        try:
            first.get(f"/api/v1/users/{USER}")
        except NotFound:
            public = (self.folder / f"{USER}.key.pub").read_text().strip()
            first.call("POST", "/api/v1/users", {"name": USER, "password": self._plan["password"], "keys": [public]})
        for client in clients.values():
            self._wait(partial(client.get, f"/api/v1/users/{USER}"), stop)
            self._wait(partial(_all_alive, client), stop)
        if stop.wanted:
            return
        # From the moment that it stands others may stop nodes and change their settings: nothing is read after it.
        about = self._describe()
        write_file(self.folder / "cluster.json", json.dumps(about, indent=1).encode())
        click.echo(f"{len(clients)} nodes serve after {time.monotonic() - started:.1f} s: {self.folder}/cluster.json")
        address = about["nodes"][0]["sftp"].split(":")
        click.echo(
            f"try: sftp -P {address[1]} -i {self.folder}/{USER}.key -o UserKnownHostsFile={self.folder}/known_hosts "
            f"{USER}@{address[0]}"
        )

    def reap(self) -> None:
        """Says once of each node that ended."""
        for name, process in list(self._processes.items()):
            if process.poll() is not None:
                del self._processes[name]
                click.echo(
                    f"node {name} ended ({_ending(process.returncode)}); start it again: "
                    f"raftmft node --data-dir {self.folder / name}",
                    err=True,
                )

    def stop(self) -> None:
        """Ends all nodes, also those that others started on our data directories; what does not end is killed."""
        (self.folder / "cluster.json").unlink(missing_ok=True)
        names = self._plan.get("nodes", [])
        drain = max((_drain_timeout_s(self.folder / name) for name in names), default=0)
        pids = [pid for name in names if (pid := _running(self.folder / name)) is not None]
        starting = [p.pid for p in self._processes.values() if p.poll() is None and p.pid not in pids]
        for pid in pids + starting:
            _signal(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_LIMIT_S + drain
        while time.monotonic() < deadline and self._alive(names):
            time.sleep(POLL_S)
        for pid in self._alive(names):
            _signal(pid, signal.SIGKILL)
        for process in self._processes.values():
            process.wait()

    def _alive(self, names: list[str]) -> list[int]:
        running = [pid for name in names if (pid := _running(self.folder / name)) is not None]
        return running + [p.pid for p in self._processes.values() if p.poll() is None and p.pid not in running]

    def _wait(self, ask: Callable[[], Any], stop: _Stop) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while not stop.wanted:
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise RaftmftError(f"node {name} ended at start: {_last_line(self.folder / f'{name}.log')}")
            try:
                if ask():
                    return
                trouble = "members do not see each other yet"
            except RaftmftError as error:
                trouble = str(error)
            if time.monotonic() > deadline:
                raise RaftmftError(f"the cluster is not ready after {START_LIMIT_S:.0f} s: {trouble}")
            time.sleep(POLL_S)

    def _make(self, nodes: int, workers: int, replicas: int) -> None:
        names = [f"n{number}" for number in range(1, nodes + 1)]
        token = secrets.token_urlsafe(32)
        ports = iter(free_ports(4 * nodes))
        members = [
            FirstMember(
                self.folder / name,
                Settings(
                    name=name,
                    advertise=LOOPBACK,
                    sftp_port=next(ports),
                    peer_port=next(ports),
                    gossip_port=next(ports),
                    admin_port=next(ports),
                    workers=workers,
                ),
            )
            for name in names
        ]
        host_key = make_cluster("dev", members, replicas=replicas, admin_token=token)
        known_hosts = "".join(f"[{LOOPBACK}]:{m.settings.sftp_port} {host_key}\n" for m in members)
        write_file(self.folder / "known_hosts", known_hosts.encode())
        write_file(self.folder / "admin.token", token.encode() + b"\n")
        private, public = make_ssh_key()
        write_file(self.folder / f"{USER}.key", private)
        write_file(self.folder / f"{USER}.key.pub", f"{public} {USER}\n".encode())
        # Written last: without it the folder is not a cluster.
        write_file(
            self.folder / PLAN,
            jsonfile.render(PLAN_KIND, PLAN_FORMAT, {"nodes": names, "password": secrets.token_urlsafe(12),
                                                     "host_key": host_key}),
        )

    def _describe(self) -> dict[str, Any]:
        nodes = []
        for name in self._plan["nodes"]:
            settings = load(self.folder / name)
            nodes.append(
                {
                    "name": name,
                    "pid": _running(self.folder / name),
                    "data_dir": str(self.folder / name),
                    "sftp": f"{LOOPBACK}:{settings.sftp_port}",
                    "peer": f"{LOOPBACK}:{settings.peer_port}",
                    "gossip": f"{LOOPBACK}:{settings.gossip_port}",
                    "admin": f"http://{LOOPBACK}:{settings.admin_port}",
                }
            )
        return {
            "name": "dev",
            "pid": os.getpid(),
            "nodes": nodes,
            "host_key": self._plan["host_key"],
            "known_hosts": str(self.folder / "known_hosts"),
            "admin_token_file": str(self.folder / "admin.token"),
            "users": [{"name": USER, "password": self._plan["password"], "key": str(self.folder / f"{USER}.key")}],
        }


def _drain_timeout_s(data_dir: Path) -> int:
    """How long a node may take to drain; that its settings cannot be read now must not keep it running."""
    try:
        return load(data_dir).drain_timeout_s
    except RaftmftError:
        return DRAIN_UNKNOWN_S


def _all_alive(client: Client) -> bool:
    status = client.get("/api/v1/status")
    return status["verdict"] == "ok" and all(m["state"] == "alive" for m in status["members"])


def _running(data_dir: Path) -> int | None:
    """The pid of the node that holds the data directory's lock; None if none does."""
    import fcntl

    try:
        fd = os.open(data_dir / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return None
    except OSError:
        try:
            return int(DataDir(data_dir).pid_file.read_text())
        except (OSError, ValueError):
            return None  # it has just begun and has not written its pid yet
    finally:
        os.close(fd)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def free_ports(count: int) -> list[int]:
    """Ports that are free for TCP and UDP now, below those that the kernel gives to outgoing connections, so that a
    node which is started again still finds its own free.
    """
    ports: list[int] = []
    candidates = list(range(*PORTS))
    random.shuffle(candidates)
    for port in candidates:
        if len(ports) == count:
            return ports
        with (
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        ):
            try:
                tcp.bind((LOOPBACK, port))
                udp.bind((LOOPBACK, port))
            except OSError:
                continue
            ports.append(port)
    raise RaftmftError(
        f"only {len(ports)} of {count} ports between {PORTS[0]} and {PORTS[1]} are free; stop other clusters"
    )


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"see {path}"
