"""Members made by `init`, `token create` and `join`, as processes on loopback addresses. No sleeps."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raftmft.cli.dev import free_ports
from tests.e2e.harness import RAFTMFT, wait_for

Done = subprocess.CompletedProcess[bytes]


def port_options() -> list[str]:
    """Four ports that are free now, as options."""
    ports = free_ports(4)
    names = ("--sftp-port", "--peer-port", "--gossip-port", "--admin-port")
    return [word for name, port in zip(names, ports, strict=True) for word in (name, str(port))]


def refused(done: Done, code: int = 1) -> str:
    """The one line with which a command failed."""
    lines = done.stderr.decode().splitlines()
    assert done.returncode == code and len(lines) == 1 and lines[0].startswith("raftmft: "), (done.returncode, lines)
    return lines[0]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own, mounted with these options (needs root)."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def taken_port(setting: str) -> Iterator[int]:
    """A port of 127.0.0.1 that somebody else uses, UDP if it is to be the gossip port."""
    (port,) = free_ports(1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if setting == "gossip-port" else socket.SOCK_STREAM) as taken:
        taken.bind(("127.0.0.1", port))
        if setting != "gossip-port":
            taken.listen()
        yield port


@dataclass
class Host:
    """One member's data directory, and its process while it runs."""

    name: str
    data_dir: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.data_dir.with_suffix(".log")


class Hosts:
    """All members of a test. `stop` ends all that was started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[Host] = []
        self.env = dict(os.environ)
        """Of every process that is started from now on."""

    def run(self, *words: str, timeout_s: float = 60, **more: Any) -> Done:
        """A raftmft command, to its end."""
        return subprocess.run([*RAFTMFT, *words], capture_output=True, timeout=timeout_s, **{"env": self.env, **more})

    def run_limited(self, files: int, *words: str) -> Done:
        """A raftmft command that may open so many files."""
        return subprocess.run(["sh", "-c", f'ulimit -n {files} && exec "$@"', "sh", *RAFTMFT, *words],
                              capture_output=True, timeout=60)

    def run_init(self, folder: str, *options: str) -> Done:
        """`raftmft init` below the folder; later options win over the usual ones."""
        return self.run("init", "--data-dir", str(self.folder / folder), "--cluster-name", "files", "--advertise",
                        "127.0.0.1", "--listen", "127.0.0.1", *options)

    def init(self, folder: str, *options: str) -> Host:
        """A new cluster's first member."""
        listen = ["--listen", "::1"] if "::1" in options else []
        return self._made(folder, self.run_init(folder, *port_options(), *listen, *options))

    def token(self, host: Host, *options: str) -> str:
        """A join token made at a host."""
        done = self.run("token", "create", "--data-dir", str(host.data_dir), *options)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().splitlines()[-1]

    def run_join(self, folder: str, token: str, *options: str) -> Done:
        """`raftmft join` below the folder."""
        return self.run(*self.join_words(folder, token, *options))

    def join_words(self, folder: str, token: str, *options: str) -> list[str]:
        """The words of a join below the folder; the token comes in a file. Later options win over the usual ones."""
        file = self.folder / f"{folder.replace('/', '-')}.token"
        file.write_text(token + "\n")
        return ["join", "--token-file", str(file), "--data-dir", str(self.folder / folder),
                "--advertise", "127.0.0.1", "--listen", "127.0.0.1", *port_options(), *options]

    def join(self, folder: str, token: str, *options: str) -> Host:
        """Another member, named like its folder."""
        return self._made(folder, self.run_join(folder, token, "--name", folder, *options))

    def _made(self, folder: str, done: Done) -> Host:
        assert done.returncode == 0, done.stderr.decode()
        return Host(folder, self.folder / folder)

    def start(self, *hosts: Host) -> None:
        """`raftmft node` for each."""
        for host in hosts:
            with open(host.log, "ab") as log:
                host.process = subprocess.Popen([*RAFTMFT, "node", "--data-dir", str(host.data_dir)], stdout=log,
                                                stderr=log, env={**self.env, "PYTHONFAULTHANDLER": "1"})
            self.started.append(host)

    def wait_ready(self, *hosts: Host) -> None:
        """Until each serves and holds all that it should."""
        for host in hosts:
            done = self.run("status", "--wait", "ready", "--timeout", "60", "--data-dir", str(host.data_dir),
                            timeout_s=90)
            assert done.returncode in (0, 3), f"{done.stderr.decode()}\n{host.log.read_text()[-3000:]}"

    def json(self, host: Host, *words: str) -> Any:
        """The JSON answer of a command to a host."""
        done = self.run(*words, "-o", "json", "--data-dir", str(host.data_dir))
        assert done.returncode in (0, 3), done.stderr.decode()
        return json.loads(done.stdout)

    def json_lines(self, host: Host, *words: str) -> list[Any]:
        """The answer of a command that prints a JSON document a line."""
        done = self.run(*words, "-o", "json", "--data-dir", str(host.data_dir))
        assert done.returncode == 0, done.stderr.decode()
        return [json.loads(line) for line in done.stdout.splitlines()]

    def members(self, host: Host) -> list[dict[str, Any]]:
        """The member list as a host tells it."""
        answer = self.json(host, "member", "list")
        return answer["members"] if isinstance(answer, dict) else answer

    def wait_members(self, host: Host, count: int) -> None:
        """Until `host` sees that many members, all alive and voting."""

        def all_alive() -> bool:
            # On a busy machine there may be no quorum for a moment: that is waited for, too.
            done = self.run("status", "-o", "json", "--data-dir", str(host.data_dir))
            members = json.loads(done.stdout)["members"] if done.returncode in (0, 3) else []
            return len(members) == count and all(
                m["state"] == "alive" and m["role"] in ("leader", "follower") for m in members)

        wait_for(f"{count} members", all_alive, 40)

    def end(self, host: Host, number: int = signal.SIGTERM) -> None:
        """Ends a host's process."""
        if host.process is not None:
            host.process.send_signal(number)
            host.process.wait(40)
            host.process = None

    def stop(self) -> None:
        """Ends every process that was started."""
        running = [host.process for host in self.started if host.process is not None and host.process.poll() is None]
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
