"""A real cluster for tests: `raftmft dev` and nodes as processes, OpenSSH's client, the raftmft command. No sleeps."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
RAFTMFT = [sys.executable, "-m", "raftmft"]
SFTP = shutil.which("sftp")


def wait_for(what: str, condition: Callable[[], T], timeout_s: float = 20.0) -> T:
    """The condition's first true value; AssertionError with `what` after the time."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.02)


class Cluster:
    """A dev cluster below `folder`. `stop` ends all that was started."""

    def __init__(self, folder: Path, nodes: int = 3, *options: str) -> None:
        self.folder, self.options = folder, ["--nodes", str(nodes), *options]
        self.dev: subprocess.Popen[bytes] | None = None
        self.restarted: list[subprocess.Popen[bytes]] = []
        self.about: dict[str, Any] = {}

    def start(self) -> Cluster:
        """Starts it, and returns when cluster.json stands."""
        where = self.folder / "cluster.json"
        where.unlink(missing_ok=True)
        with open(self.folder.with_suffix(".log"), "ab") as log:
            self.dev = subprocess.Popen(
                [*RAFTMFT, "dev", "--dir", str(self.folder), *self.options], stdout=log, stderr=log
            )
        wait_for("cluster.json", lambda: where.exists() or self._dev_failed(), 60)
        self.about = json.loads(where.read_text())
        return self

    def _dev_failed(self) -> bool:
        assert self.dev is not None
        assert self.dev.poll() is None, self.folder.with_suffix(".log").read_text()[-3000:]
        return False

    def stop(self) -> None:
        """Stops dev and every node."""
        for process in [self.dev, *self.restarted]:
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in [self.dev, *self.restarted]:
            if process is not None:
                try:
                    process.wait(40)
                except subprocess.TimeoutExpired:
                    process.kill()
                    raise

    @property
    def names(self) -> list[str]:
        """The nodes' names."""
        return [node["name"] for node in self.about["nodes"]]

    def node(self, name: str) -> dict[str, Any]:
        """A node's entry of cluster.json."""
        return next(node for node in self.about["nodes"] if node["name"] == name)

    def pid(self, name: str) -> int:
        """The node's present process id."""
        return int((Path(self.node(name)["data_dir"]) / "node.pid").read_text())

    def pid_or(self, name: str, otherwise: int = 0) -> int:
        """The node's process id, or `otherwise` when it does not run."""
        try:
            return self.pid(name)
        except (FileNotFoundError, ValueError):
            return otherwise

    def kill(self, *names: str) -> None:
        """SIGKILL to these nodes, at once; returns when they are gone."""
        pids = [self.pid(name) for name in names]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for process in self.restarted:
            if process.pid in pids:
                process.wait()
        for pid in pids:
            wait_for(f"the end of {pid}", lambda pid=pid: not _alive(pid))  # type: ignore[misc]

    def restart(self, *names: str) -> None:
        """`raftmft node` on the data directories of these; returns at once."""
        for name in names:
            with open(self.folder / f"{name}.log", "ab") as log:
                self.restarted.append(
                    subprocess.Popen(
                        [*RAFTMFT, "node", "--data-dir", self.node(name)["data_dir"]], stdout=log, stderr=log
                    )
                )

    def run(
        self, *words: str, check: bool = True, input: bytes | None = None, node: str | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """A raftmft command against a node (the first one); exit codes over 3 fail the test if `check`."""
        data_dir = self.node(node or self.names[0])["data_dir"]
        done = subprocess.run(
            [*RAFTMFT, *words],
            capture_output=True,
            timeout=90,
            input=input,
            env={**os.environ, "RAFTMFT_DATA_DIR": data_dir},
        )
        assert not check or done.returncode in (0, 3), f"{words}: {done.returncode} {done.stderr.decode()}"
        return done

    def status(self, node: str | None = None) -> dict[str, Any]:
        """The status document as a node gives it."""
        return json.loads(self.run("status", "-o", "json", node=node, check=False).stdout or b"{}")

    def leader(self) -> str:
        """The leader's name; waits until there is one that a living node knows."""

        def find() -> str | None:
            for name in self.names:
                if _alive(self.pid(name)):
                    document = self.status(name)
                    leader = document.get("leader")
                    if leader and document["verdict"] != "no-quorum" and _alive(self.pid(leader)):
                        return str(leader)
            return None

        return str(wait_for("a leader", find))

    def wait_ready(self, *names: str) -> None:
        """Until these nodes serve and hold all that they should."""
        for name in names or self.names:
            self.run("status", "--wait", "ready", "--timeout", "60", node=name)

    def audit(self, *options: str, node: str | None = None) -> list[dict[str, Any]]:
        """Audit records."""
        out = self.run("audit", "query", "-o", "json", *options, node=node).stdout
        return [json.loads(line) for line in out.splitlines()]

    def sftp_command(self, name: str, *options: str, user: str = "demo", key: str | None = None) -> list[str]:
        """OpenSSH's sftp to a node, by key, reading its batch from standard input."""
        host, port = self.node(name)["sftp"].rsplit(":", 1)
        return [
            str(SFTP),
            "-q",
            "-b",
            "-",
            "-P",
            port,
            "-F",
            "/dev/null",
            "-i",
            key or self.about["users"][0]["key"],
            *options,
            "-o",
            "IdentitiesOnly=yes",
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=yes",
            "-o",
            "ConnectTimeout=10",
            "-o",
            f"UserKnownHostsFile={self.about['known_hosts']}",
            f"{user}@{host}",
        ]

    def sftp(
        self,
        name: str,
        batch: str,
        *options: str,
        check: bool = True,
        user: str = "demo",
        key: str | None = None,
        timeout_s: float = 90,
    ) -> subprocess.CompletedProcess[bytes]:
        """Runs a batch; a failing client fails the test if `check`."""
        done = subprocess.run(
            self.sftp_command(name, *options, user=user, key=key),
            input=batch.encode(),
            capture_output=True,
            timeout=timeout_s,
        )
        assert not check or done.returncode == 0, f"sftp through {name}: {done.stderr.decode(errors='replace')}"
        return done

    def sftp_process(self, name: str) -> subprocess.Popen[bytes]:
        """A session that waits for its next command."""
        return subprocess.Popen(self.sftp_command(name), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL)

    def sftp_with_password(
        self, name: str, batch: str, password: str, user: str = "demo"
    ) -> subprocess.CompletedProcess[bytes]:
        """Runs a batch, logging in by password (given through SSH_ASKPASS)."""
        host, port = self.node(name)["sftp"].rsplit(":", 1)
        askpass = self.folder.parent / "askpass"
        askpass.write_text('#!/bin/sh\nprintf "%s\\n" "$TEST_PASSWORD"\n')
        askpass.chmod(0o700)
        # A batch by -b would forbid passwords, so the commands come from standard input.
        command = [
            str(SFTP),
            "-q",
            "-P",
            port,
            "-F",
            "/dev/null",
            "-o",
            "PreferredAuthentications=password",
            "-o",
            "NumberOfPasswordPrompts=1",
            "-o",
            "StrictHostKeyChecking=yes",
            "-o",
            f"UserKnownHostsFile={self.about['known_hosts']}",
            f"{user}@{host}",
        ]
        return subprocess.run(
            command,
            input=batch.encode(),
            capture_output=True,
            timeout=60,
            start_new_session=True,
            env={
                **os.environ,
                "SSH_ASKPASS": str(askpass),
                "SSH_ASKPASS_REQUIRE": "force",
                "TEST_PASSWORD": password,
                "DISPLAY": ":none",
            },
        )


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


process_is_alive = _alive
