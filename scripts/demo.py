"""The story that scripts/demo tells. Uses what a user has: the raftmft command and OpenSSH's sftp."""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BIN = Path(sys.executable).parent
RAFTMFT = str(BIN / "raftmft")
started = time.monotonic()


def say(text: str) -> None:
    """One line of the story, with the time since the start."""
    print(f"[{time.monotonic() - started:6.1f} s] {text}", flush=True)


class DemoFailed(Exception):
    """Something the demo promises was not so."""


def wait_for(what: str, condition, timeout_s: float):
    """The condition's first true value; DemoFailed after timeout_s."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise DemoFailed(f"{what}: not within {timeout_s:.0f} s")


def make_tree(top: Path, seed: int) -> int:
    """A tree as people have it: nested folders, odd names, empty, small, chunk-edge and large files."""
    rng = random.Random(seed)
    sizes = {
        "empty": 0,
        "one byte": 1,
        "notes.txt": 4096,
        "edge-minus.bin": (1 << 20) - 1,
        "edge.bin": 1 << 20,
        "edge-plus.bin": (1 << 20) + 1,
        "Übersicht 2026.pdf": 300_000,
        "deep/er/still/file.dat": 70_000,
        "month/report.csv": 2_500_000,
        "video/large.bin": 40 << 20,
    }
    for number in range(40):
        sizes[f"invoices/{number:03}.xml"] = rng.randrange(200, 20_000)
    for name, size in sizes.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(size))
    return sum(sizes.values())


def compare(left: Path, right: Path) -> int:
    """How many files are byte for byte equal; DemoFailed on any difference."""
    files = sorted(p.relative_to(left) for p in left.rglob("*") if p.is_file())
    others = sorted(p.relative_to(right) for p in right.rglob("*") if p.is_file())
    if files != others:
        raise DemoFailed(f"names differ: {sorted(set(files) ^ set(others))[:5]}")
    _, different, errors = filecmp.cmpfiles(left, right, [str(f) for f in files], shallow=False)
    if different or errors:
        raise DemoFailed(f"bytes differ in {different[:5] + errors[:5]}")
    return len(files)


class Story:
    """One run: the dev cluster, its description, and the processes to end."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cluster = folder, {}
        self.processes: list[subprocess.Popen] = []

    def start(self) -> None:
        """`raftmft dev`, until cluster.json stands."""
        log = open(self.folder / "dev.log", "wb")
        self.processes.append(
            subprocess.Popen(
                [RAFTMFT, "dev", "--nodes", "3", "--dir", str(self.folder / "cluster")], stdout=log, stderr=log
            )
        )
        where = self.folder / "cluster" / "cluster.json"

        def ready():
            if self.processes[0].poll() is not None:
                tail = (self.folder / "dev.log").read_text(errors="replace")[-2000:]
                raise DemoFailed(f"raftmft dev ended with {self.processes[0].returncode}:\n{tail}")
            return where.exists()

        wait_for("cluster.json", ready, 60)
        self.cluster = json.loads(where.read_text())

    def node(self, name: str) -> dict:
        """A node's entry of cluster.json."""
        return next(n for n in self.cluster["nodes"] if n["name"] == name)

    def sftp_command(self, name: str, *options: str) -> list[str]:
        """OpenSSH's sftp to a node as the demo user, host key checked, batch from standard input."""
        host, port = self.node(name)["sftp"].rsplit(":", 1)
        user = self.cluster["users"][0]
        return [
            "sftp",
            "-q",
            "-b",
            "-",
            "-P",
            port,
            "-i",
            user["key"],
            "-F",
            "/dev/null",
            *options,
            "-o",
            "IdentitiesOnly=yes",
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=yes",
            "-o",
            f"UserKnownHostsFile={self.cluster['known_hosts']}",
            f"{user['name']}@{host}",
        ]

    def sftp(self, name: str, batch: str) -> None:
        """Runs a batch; DemoFailed if the client does."""
        done = subprocess.run(self.sftp_command(name), input=batch.encode(), capture_output=True, timeout=120)
        if done.returncode:
            raise DemoFailed(f"sftp through {name} failed: {done.stderr.decode(errors='replace').strip()[-500:]}")

    def raftmft(self, *words: str, also: int = 3) -> str:
        """A raftmft command's standard output; DemoFailed on exit codes other than 0, 3 (degraded) and `also`."""
        done = subprocess.run([RAFTMFT, *words], capture_output=True, text=True, timeout=60)
        if done.returncode not in (0, 3, also):
            raise DemoFailed(f"raftmft {' '.join(words[:3])}: {done.stderr.strip()[-500:]}")
        return done.stdout

    def status(self, name: str) -> dict:
        """`raftmft status` through a node. 4, no quorum, is an answer, too: during an election."""
        return json.loads(self.raftmft("status", "-o", "json", "--data-dir", self.node(name)["data_dir"], also=4))

    def stop(self) -> None:
        """Ends what was started, by process id."""
        for process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()


def tell(story: Story, folder: Path) -> None:
    """The whole story; DemoFailed when a promise does not hold."""
    say("starting three nodes on loopback: raftmft dev --nodes 3")
    story.start()
    n1, n2, _ = (n["name"] for n in story.cluster["nodes"])
    first = story.status(n1)
    say(f"three nodes vote; leader is {first['leader']}, term {first['term']}; user demo can log in at each")

    tree, back = folder / "tree", folder / "back"
    size = make_tree(tree, seed=1)
    begun = time.monotonic()
    story.sftp(n1, f"put -r {tree} first\n")
    say(f"uploaded a tree of {size / 1e6:.0f} MB through {n1} in {time.monotonic() - begun:.1f} s (sftp put -r)")
    begun = time.monotonic()
    story.sftp(n2, f"get -r first {back}\n")
    say(f"read it back through {n2} in {time.monotonic() - begun:.1f} s: {compare(tree, back)} files, every byte equal")

    leader = story.status(n2)["leader"]
    survivor = next(n["name"] for n in story.cluster["nodes"] if n["name"] != leader)
    big = folder / "big.bin"
    big.write_bytes(random.Random(2).randbytes(160 << 20))
    say(f"second upload, 168 MB through the leader {leader}; it will be killed in the middle")
    # -l holds the client to about 20 MB/s, so that the kill falls into the middle of the file.
    client = subprocess.Popen(
        story.sftp_command(leader, "-l", "160000"),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    story.processes.append(client)
    client.stdin.write(f"put {big} big.bin\n".encode())
    client.stdin.close()
    time.sleep(4)
    if client.poll() is not None:
        raise DemoFailed("the second upload ended before the kill")
    pid = int((Path(story.node(leader)["data_dir"]) / "node.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    say(f"SIGKILL to {leader} (pid {pid})")
    client.wait(60)
    if client.returncode == 0:
        raise DemoFailed("the client of the killed node says that all went well")
    now = wait_for("a new leader", lambda: (s := story.status(survivor))["leader"] not in (None, leader) and s, 10)
    say(
        f"{now['leader']} leads {time.monotonic() - killed:.1f} s after the kill, term {now['term']}; "
        f"verdict {now['verdict']}"
    )
    wait_for(
        "the survivors to take the upload on",
        lambda: (
            subprocess.run(story.sftp_command(survivor), input=b"ls -l\n", capture_output=True, timeout=60).returncode
            == 0
        ),
        15,
    )
    begun = time.monotonic()
    story.sftp(survivor, f"reput {big} big.bin\n")
    say(f"carried on through {survivor} (sftp reput) in {time.monotonic() - begun:.1f} s")

    say(f"starting {leader} again: raftmft node --data-dir {story.node(leader)['data_dir']}")
    log = open(folder / "restarted.log", "wb")
    story.processes.append(
        subprocess.Popen([RAFTMFT, "node", "--data-dir", story.node(leader)["data_dir"]], stdout=log, stderr=log)
    )
    begun = time.monotonic()
    story.raftmft("status", "--wait", "ready", "--data-dir", story.node(leader)["data_dir"])
    say(f"{leader} is back and has what it missed after {time.monotonic() - begun:.1f} s")
    again = folder / "again"
    again.mkdir()
    story.sftp(leader, f"get -r first {again}/tree\nget big.bin {folder}/big.back\n")
    if not filecmp.cmp(big, folder / "big.back", shallow=False):
        raise DemoFailed("big.bin differs")
    say(f"read everything back through {leader}: {compare(tree, again / 'tree')} files and big.bin, every byte equal")

    print("\n$ raftmft status", flush=True)
    print(story.raftmft("status", "--data-dir", story.node(n2)["data_dir"]))
    print("$ raftmft audit query --path big.bin")
    print(story.raftmft("audit", "query", "--path", "big.bin", "--data-dir", story.node(n1)["data_dir"]))


def main() -> int:
    """0 when every promise held, else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep the folder with data and logs")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="raftmft-demo-"))
    story, code = Story(folder), 0
    try:
        tell(story, folder)
        say("done: nothing was lost")
    except (DemoFailed, subprocess.TimeoutExpired) as trouble:
        say(f"FAILED: {trouble}")
        code = 1
    finally:
        story.stop()
        if options.keep or code:
            print(f"kept: {folder}", flush=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
