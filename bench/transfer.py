"""How fast do files go in and out, and for how much server CPU, beside OpenSSH's sshd in the same run?

Subjects: sshd (internal-sftp), raftmft with one node (R=1), raftmft with three nodes (R=3). One OpenSSH client, one
file of random bytes, aes128-gcm for all. Rounds are interleaved: every round uploads and downloads once through each
subject, in an order that rotates. Server CPU is user + system time of all server processes, reaped children included.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.e2e.harness import Cluster, wait_for

TICK = os.sysconf("SC_CLK_TCK")


def cpu_of_tree(pid: int) -> float:
    """CPU seconds of a process, its living descendants, and those that were reaped."""
    total = 0.0
    todo = [pid]
    while todo:
        current = todo.pop()
        try:
            fields = Path(f"/proc/{current}/stat").read_text().rsplit(")", 1)[1].split()
            todo += [int(p) for p in Path(f"/proc/{current}/task/{current}/children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(fields[i]) for i in (11, 12, 13, 14)) / TICK
    return total


class Sshd:
    """OpenSSH's server on loopback for the present user, with its own keys."""

    name = "sshd"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for key in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
        (folder / "authorized").write_text((folder / "user.pub").read_text())
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (folder / "known").write_text(f"[127.0.0.1]:{self.port} {(folder / 'host.pub').read_text()}")
        (folder / "config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\n"
            f"AuthorizedKeysFile {folder}/authorized\n"
            f"StrictModes no\nUsePAM no\nPidFile none\nSubsystem sftp internal-sftp\nPermitRootLogin yes\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True) if os.getuid() == 0 else None
        self.process = subprocess.Popen(
            [str(shutil.which("sshd", path="/usr/sbin:/usr/bin")), "-D", "-e", "-f", str(folder / "config")],
            stderr=subprocess.DEVNULL,
        )
        (folder / "files").mkdir()
        wait_for("sshd", lambda: self.run("pwd\n").returncode == 0)

    def run(self, batch: str) -> subprocess.CompletedProcess[bytes]:
        """Runs an sftp batch in the folder for files."""
        user = pwd.getpwuid(os.getuid()).pw_name
        return subprocess.run(
            [
                "sftp",
                "-q",
                "-b",
                "-",
                "-P",
                str(self.port),
                "-F",
                "/dev/null",
                "-c",
                "aes128-gcm@openssh.com",
                "-i",
                str(self.folder / "user"),
                "-o",
                "IdentitiesOnly=yes",
                "-o",
                "BatchMode=yes",
                "-o",
                f"UserKnownHostsFile={self.folder}/known",
                f"{user}@127.0.0.1",
            ],
            input=f"cd {self.folder}/files\n{batch}".encode(),
            capture_output=True,
        )

    def cpu(self) -> float:
        """CPU seconds so far."""
        return cpu_of_tree(self.process.pid)

    def stop(self) -> None:
        """Ends it."""
        self.process.terminate()
        self.process.wait()


class Raftmft:
    """A dev cluster; the client always talks to the first node."""

    def __init__(self, folder: Path, nodes: int, replicas: int) -> None:
        self.name = f"raftmft {nodes} node{'s' if nodes > 1 else ''} R={replicas}"
        self.cluster = Cluster(folder, nodes, "--replicas", str(replicas)).start()

    def run(self, batch: str) -> subprocess.CompletedProcess[bytes]:
        """Runs an sftp batch."""
        return self.cluster.sftp(self.cluster.names[0], batch, "-c", "aes128-gcm@openssh.com", timeout_s=600)

    def cpu(self) -> float:
        """CPU seconds of all nodes so far."""
        return sum(cpu_of_tree(self.cluster.pid(name)) for name in self.cluster.names)

    def stop(self) -> None:
        """Ends it."""
        self.cluster.stop()


def measure(subject: Any, batch: str, size: int) -> tuple[float, float]:
    """(MB/s, CPU seconds a GB) of one transfer."""
    cpu, begun = subject.cpu(), time.perf_counter()
    done = subject.run(batch)
    took = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"{subject.name}: {done.stderr.decode()}")
    return size / 1e6 / took, (subject.cpu() - cpu) / (size / 1e9)


def main() -> None:
    """Prints a table on standard error, JSON on standard output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size-mib", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    size = options.size_mib << 20
    folder = Path(tempfile.mkdtemp(prefix="raftmft-bench-"))
    subjects: list[Any] = []
    try:
        source = folder / "source"
        with open(source, "wb") as file:
            for _ in range(options.size_mib):
                file.write(os.urandom(1 << 20))
        subjects.append(Sshd(folder / "sshd"))
        subjects.append(Raftmft(folder / "one", 1, 1))
        subjects.append(Raftmft(folder / "three", 3, 3))
        results: dict[str, dict[str, list[tuple[float, float]]]] = {s.name: {"up": [], "down": []} for s in subjects}
        for number in range(options.rounds):
            for subject in subjects[number % 3 :] + subjects[: number % 3]:
                results[subject.name]["up"].append(measure(subject, f"put {source} file{number}\n", size))
                results[subject.name]["down"].append(measure(subject, f"get file{number} {folder}/back\n", size))
                if number == 0 and (folder / "back").read_bytes() != source.read_bytes():
                    raise SystemExit(f"{subject.name} gave back other bytes")
        report = {
            name: {
                way: {
                    "mb_per_s": round(statistics.median(r[0] for r in rows), 1),
                    "cpu_s_per_gb": round(statistics.median(r[1] for r in rows), 2),
                }
                for way, rows in ways.items()
            }
            for name, ways in results.items()
        }
        print(f"{'':26}{'up MB/s':>10}{'CPU s/GB':>10}{'down MB/s':>11}{'CPU s/GB':>10}", file=sys.stderr)
        for name, ways in report.items():
            print(
                f"{name:26}{ways['up']['mb_per_s']:>10}{ways['up']['cpu_s_per_gb']:>10}"
                f"{ways['down']['mb_per_s']:>11}{ways['down']['cpu_s_per_gb']:>10}",
                file=sys.stderr,
            )
        print(json.dumps({"size_mib": options.size_mib, "rounds": options.rounds, "median": report}))
    finally:
        for subject in subjects:
            subject.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
