"""Rounds of interrupted uploads: the node that serves one is killed at a random byte, and it goes on through another.

Each upload is OpenSSH's, behind `metered_ssh.py`. Two kinds of rounds take turns. *new*: a name that nobody published;
it is continued by `reput` (by `put`, if nothing was durable yet), and no more may have to be sent again than 16 MiB and
what was in flight. *over*: a published file is overwritten; the interruption leaves the old one and no partial, and it
is put again. All the while `watchers.py` looks at the name through every node that lives. At the end the file is read
through every node. The same seed has the same contents, kill points and nodes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from tests.e2e.harness import Cluster, process_is_alive, wait_for
from tests.e2e.metered_ssh import RUN, WHEN_CLOSED, Meter, program_in
from tests.e2e.watchers import Truth, Watch

MIB = 1 << 20
MOST_BEHIND_BYTES = 16 * MIB
CLIENT_ADDRESS = "127.0.0.77"
"""Uploads come from here, so that their sessions are told from the watchers'."""
TRIES = 3
WITHIN_MS = 40
"""A kill after CLOSE comes within this time."""
ROUNDS_A_CLUSTER = 10
"""Nothing deletes chunks yet; this many rounds fill one cluster's disks."""
CLIENT_LIMIT_S = 90
SLOWLY = ("-l", "50000")
MOST_BEHIND_S = 2.0
SLOW_EVERY = 10


@dataclass(slots=True)
class Found:
    """What a round showed. `wrong` names everything that must not be."""

    kind: str
    killed: str
    through: str
    kill_at: int
    acked: int = 0
    sent: int = 0
    durable: int = 0
    tries: int = 0
    behind_s: float = 0.0
    looks: int = 0
    took_s: float = 0.0
    sights: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    @property
    def behind(self) -> int:
        """Bytes that were acknowledged and not kept."""
        return max(0, self.acked - self.durable)


class Client:
    """OpenSSH's sftp with one command, metered."""

    def __init__(self, cluster: Cluster, folder: Path, node: str, command: str, *options: str) -> None:
        self._file = folder / f"meter{time.monotonic_ns()}"
        self.meter = Meter(self._file)
        words = cluster.sftp_command(node, "-S", program_in(folder), "-o", f"BindAddress={CLIENT_ADDRESS}", *options)
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.PIPE, env={**os.environ, "METER": str(self._file)})
        assert self.process.stdin
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.close()
        self.process.stdin = None

    def held(self) -> bool:
        """Whether it waits at its first WRITE, or has ended."""
        return bool(self.meter["is_held"]) or self.process.poll() is not None

    def end(self) -> tuple[bool, str]:
        """Waits for its end: whether it was content, and what it said."""
        try:
            said = self.process.communicate(timeout=CLIENT_LIMIT_S)[1].decode(errors="replace").strip()
        finally:
            self.process.kill()
            self._file.unlink(missing_ok=True)
        return self.process.returncode == 0, said


class Rounds:
    """Rounds on one cluster of three, which are left running and ready after each."""

    def __init__(self, cluster: Cluster, folder: Path, size: int = 64 * MIB) -> None:
        self.cluster, self.folder, self.size = cluster, folder, size
        self.token = Path(cluster.about["admin_token_file"]).read_text().strip()
        self.watch = Watch(cluster)
        self.meters: list[Meter] = []

    def close(self) -> None:
        """Ends the watchers."""
        self.watch.close()

    def run(self, seed: int, kind: str) -> Found:
        """One round."""
        rng, begun = random.Random(f"{kind} {seed}"), time.monotonic()
        name, folder, node = f"{kind}{seed}", f"d{kind}{seed}", rng.choice(self.cluster.names)
        kill_at = rng.randrange(1, self.size + self.size // 16)
        found = Found(kind, "", "", kill_at)
        new = rng.randbytes(self.size)
        old = rng.randbytes(self.size // 2 + 4321) if kind == "over" else None
        charged = self._charged()
        self.cluster.sftp(node, f"mkdir {folder}\n")
        if old is not None:
            (self.folder / "old").write_bytes(old)
            self.cluster.sftp(node, f"put {self.folder}/old {folder}/{name}\n")
        (self.folder / "new").write_bytes(new)
        self.meters = []
        truth = self.watch.truth = Truth(
            folder, name, old, new, lambda: any(meter["is_closing"] for meter in self.meters),
            lambda: max((meter["sent_to"] for meter in self.meters), default=0))
        looks = self.watch.looks.total()
        is_done = self._interrupt(found, node, f"{folder}/{name}", rng, SLOWLY if kind == "slow" else ())
        if not is_done:
            found.through = rng.choice([other for other in self.cluster.names if other != found.killed])
            is_done = self._go_on(found, truth, f"{folder}/{name}")
        truth.new_since = time.monotonic() if is_done and truth.new_since is None else truth.new_since
        self.cluster.restart(found.killed)
        wait_for(f"{found.killed} to be ready", lambda: self._is_ready(found.killed), 90)
        self._read_everywhere(found, f"{folder}/{name}", new)
        self.watch.rest()
        found.looks, found.sights = self.watch.looks.total() - looks, dict(truth.sights)
        found.wrong += truth.torn
        charged = self._charged() - charged
        if charged != len(new):
            found.wrong.append(f"{charged} bytes are charged for {len(new)} that are published: a partial is left")
        self.cluster.sftp(node, f"rm {folder}/{name}\nrmdir {folder}\n")
        found.took_s = time.monotonic() - begun
        return found

    # --- the parts of a round --------------------------------------------------------------------
    def _interrupt(self, found: Found, node: str, target: str, rng: random.Random, options: tuple[str, ...]) -> bool:
        """Uploads until the kill. True if the client was told that the file is there."""
        client = Client(self.cluster, self.folder, node, f"put {self.folder}/new {target}", *options)
        meter = client.meter
        self.meters.append(meter)
        wait_for("the first WRITE", client.held, 60)
        assert meter["is_held"], client.end()
        found.killed = self._serving()
        meter["kill_at"] = found.kill_at if found.kill_at <= self.size else WHEN_CLOSED
        meter["delay_ns"] = rng.randrange(WITHIN_MS * 1_000_000) if found.kill_at > self.size else 0
        pid = self.cluster.pid(found.killed)
        meter["victim"], meter["gate"] = pid, RUN
        is_done, said = client.end()
        if not meter["killed_ns"]:
            found.wrong.append(f"the upload ended before the kill: {said}")
            self.cluster.kill(found.killed)
        wait_for("the end of the killed node", lambda: not process_is_alive(pid))
        found.sent, found.acked = meter["sent_to"], meter["acked_to"]
        if is_done and not meter["is_closing"]:
            found.wrong.append("the client was content without a CLOSE")
        return is_done

    def _go_on(self, found: Found, truth: Truth, target: str) -> bool:
        """Continues, or puts again. True if the file is there."""
        killed = self.meters[0]
        for found.tries in range(1, TRIES + 1):
            is_new = truth.old is None
            client = Client(self.cluster, self.folder, found.through,
                            f"{'reput' if is_new else 'put'} {self.folder}/new {target}")
            client.meter["gate"] = RUN
            self.meters.append(client.meter)
            is_done, said = client.end()
            is_there = "same size or larger" in said or "identical" in said
            if is_new and not is_done and not is_there and "No such file" in said:
                client = Client(self.cluster, self.folder, found.through, f"put {self.folder}/new {target}")
                client.meter["gate"] = RUN
                self.meters.append(client.meter)
                is_done, said = client.end()
            if is_new and found.tries == 1:
                found.durable = len(truth.new) if is_there else max(0, client.meter["first"])
                found.behind_s = killed.seconds_behind(found.durable)
                if found.behind > MOST_BEHIND_BYTES:
                    found.wrong.append(f"{found.behind} acknowledged bytes were not kept")
                if found.kind == "slow" and found.behind_s > MOST_BEHIND_S:
                    found.wrong.append(f"bytes that were acknowledged {found.behind_s:.2f} s ago were not kept")
            if is_there:
                return self._publish_what_is_whole(found, truth, target)
            if is_done:
                return True
            found.wrong += [f"try {found.tries}: {said}"] if found.tries == TRIES else []
        return False

    def _publish_what_is_whole(self, found: Found, truth: Truth, target: str) -> bool:
        """All bytes are there; if they are a partial only, its user says so by renaming or putting it again."""
        if self.meters[0]["is_closing"]:
            listing = self.cluster.sftp(found.through, f"ls -1 {truth.folder}\n").stdout
            if target.encode() in listing:
                return True
        self.cluster.sftp(found.through, f"put {self.folder}/new {target}\n")
        return True

    def _read_everywhere(self, found: Found, target: str, want: bytes) -> None:
        digest, readers = blake3(want).digest(), []
        for node in self.cluster.names:
            reader = subprocess.Popen(self.cluster.sftp_command(node), stdin=subprocess.PIPE,
                                      stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            assert reader.stdin
            reader.stdin.write(f"get {target} {self.folder}/back-{node}\n".encode())
            reader.stdin.close()
            reader.stdin = None
            readers.append((node, reader))
        for node, reader in readers:
            said = reader.communicate(timeout=CLIENT_LIMIT_S)[1].decode(errors="replace")
            back = self.folder / f"back-{node}"
            if reader.returncode or blake3(back.read_bytes()).digest() != digest:
                found.wrong.append(f"what is read through {node} differs: {said.strip()}")
            back.unlink(missing_ok=True)

    # --- leaves ----------------------------------------------------------------------------------
    def _serving(self) -> str:
        """The member that serves the upload."""
        return str(wait_for("the upload's session", lambda: next(
            (s["member"] for s in self._ask("/api/v1/sessions?user=demo")["sessions"]
             if s["address"].startswith(f"{CLIENT_ADDRESS}:")), None)))

    def _charged(self) -> int:
        """Bytes in the user's quota."""
        return int(self._ask("/api/v1/users/demo")["used_bytes"])

    def _ask(self, path: str) -> Any:
        request = urllib.request.Request(self.cluster.about["nodes"][0]["admin"] + path,
                                         headers={"authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def _is_ready(self, node: str) -> bool:
        try:
            with urllib.request.urlopen(self.cluster.node(node)["admin"] + "/readyz", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False


def main() -> None:
    """Prints a table on standard error, JSON on standard output. Exit code 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="resume", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50, help="of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the first round; each further one has the next")
    parser.add_argument("--kind", choices=("new", "over", "slow", "all"), default="all",
                        help="all: each seed does new and over, and every tenth slow")
    parser.add_argument("--mib", type=int, default=64, help="size of each upload")
    parser.add_argument("--dir", default=None, help="where the nodes keep their files (a real disk)")
    options = parser.parse_args()
    plan = [(seed, kind) for seed in range(options.seed, options.seed + options.rounds)
            for kind in ("new", "over", "slow") if options.kind in (kind, "all")
            and (kind != "slow" or options.kind == "slow" or seed % SLOW_EVERY == 0)]
    rounds: list[Found] = []
    print(f"{'seed':>4} {'kind':5}{'killed':7}{'through':8}{'at MiB':>7}{'in flight':>10}{'behind':>8}"
          f"{'sent again':>11}{'behind s':>9}{'looks':>7}{'s':>6}  wrong", file=sys.stderr)
    for start in range(0, len(plan), ROUNDS_A_CLUSTER):
        folder = Path(tempfile.mkdtemp(prefix="raftmft-resume-", dir=options.dir))
        cluster = Cluster(folder / "c")
        try:
            together = Rounds(cluster.start(), folder, options.mib * MIB)
            try:
                for seed, kind in plan[start : start + ROUNDS_A_CLUSTER]:
                    rounds.append(together.run(seed, kind))
                    print(line_of(seed, rounds[-1]), file=sys.stderr, flush=True)
            finally:
                together.close()
        finally:
            cluster.stop()
            if any(found.wrong for found in rounds[start:]):
                logs = shutil.copytree(folder, f"{folder}-logs", ignore=_but_logs)
                print(f"the nodes' logs are kept in {logs}", file=sys.stderr)
            shutil.rmtree(folder, ignore_errors=True)
    raise SystemExit(report(rounds))


def _but_logs(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not name.endswith(".log") and name != "c"]


def line_of(seed: int, found: Found) -> str:
    """A row of the table; MiB."""
    resumed = (f"{found.behind / MIB:>8.2f}{(found.sent - found.durable) / MIB:>11.2f}{found.behind_s:>9.2f}"
               if found.kind != "over" and found.through else " " * 28)
    at = f"{found.kill_at / MIB:.1f}" if found.kill_at <= found.sent else "close"
    return (f"{seed:>4} {found.kind:5}{found.killed:7}{found.through or '-':8}{at:>7}"
            f"{(found.sent - found.acked) / MIB:>10.2f}{resumed}{found.looks:>7}{found.took_s:>6.1f}  "
            + "; ".join(found.wrong[:3]))


def report(rounds: list[Found]) -> int:
    """Prints what all rounds showed; the exit code."""
    new = [found for found in rounds if found.kind != "over" and found.through]
    sights: dict[str, int] = {}
    for found in rounds:
        for what, count in found.sights.items():
            sights[what] = sights.get(what, 0) + count
    wrong = [f"{found.kind} round: {what}" for found in rounds for what in found.wrong]
    result = {
        "rounds": len(rounds), "looks": sum(found.looks for found in rounds), "sights": dict(sorted(sights.items())),
        "most_behind_bytes": max((found.behind for found in new), default=0),
        "most_behind_s": round(max((found.behind_s for found in new), default=0.0), 3),
        "most_sent_again_bytes": max((found.sent - found.durable for found in new), default=0),
        "most_in_flight_bytes": max((found.sent - found.acked for found in new), default=0),
        "tries": max((found.tries for found in rounds), default=0), "wrong": wrong}
    print(f"{len(rounds)} rounds, {result['looks']} looks, {len(wrong)} wrong; at most "
          f"{result['most_behind_bytes'] / MIB:.2f} MiB behind what was acknowledged", file=sys.stderr)
    print(json.dumps(result))
    return 1 if wrong else 0


if __name__ == "__main__":
    main()
