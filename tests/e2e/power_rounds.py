"""Rounds of power cuts: clients that know what was acknowledged to them, a cut, and what must be there afterwards.

Each client has a folder of its own, in which it puts, overwrites, renames and removes, one thing after another. After
the cut its folder must be as of the last acknowledged operation or as of the one that was under way: whole, the same
through every node; and the audit log must have each acknowledged operation once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from blake3 import blake3

from tests.e2e.harness import Cluster, wait_for
from tests.e2e.power import SMALL_SNAPSHOTS, PoweredCluster, forgetting, why_not

SIZES = (0, 1, 4096, 4096, 4096, 70_000, 300_000, 1 << 20, (1 << 20) + 1, 2_500_000)
CLIENTS_PER_NODE = 2
OPERATIONS = 250
WITHIN_S = 0.03
"""The cut comes at a random moment of this length after the awaited thing happened."""
SPARE_ENTRIES = 150
"""Log is dropped by whole segments, and shortly after its snapshot was made: this is more than what that may leave."""

Tree = dict[str, str | None]
"""Path -> content digest, or None for a directory."""
Record = tuple[str, str, str | None]
"""kind, path, content digest (of a publish) or target: what the audit log must say of an operation."""


@dataclass(frozen=True, slots=True)
class Step:
    """One operation: what is typed, what it makes of the folder, what the audit log says of it."""

    command: str
    after: Tree
    record: Record


@dataclass(slots=True)
class Found:
    """What a round showed. `lost` names everything that should have been there and is not, or should not."""

    acknowledged: int
    under_way: int
    lost: list[str]


class Contents:
    """Files to put, made once: (path, digest)."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        rng = random.Random(7)
        self.files: list[tuple[Path, str]] = []
        for number in range(40):
            data, path = rng.randbytes(SIZES[number % len(SIZES)]), folder / f"c{number}"
            path.write_bytes(data)
            self.files.append((path, blake3(data).hexdigest()))


def plan(folder: str, contents: Contents, rng: random.Random) -> list[Step]:
    """Operations in `folder`, each possible after those before it."""
    steps, tree, count = [], dict[str, str | None](), 0

    def fresh(kind: str) -> str:
        nonlocal count
        count += 1
        homes = ["", *(f"{path}/" for path, digest in tree.items() if digest is None)]
        return f"{rng.choice(homes) if kind == 'f' else ''}{kind}{count}"

    while len(steps) < OPERATIONS:
        files = [path for path, digest in tree.items() if digest is not None]
        empty = [path for path, digest in tree.items()
                 if digest is None and not any(other.startswith(f"{path}/") for other in tree)]
        kind = rng.choices(("put", "over", "rename", "replace", "remove", "mkdir", "rmdir"), (9, 3, 3, 2, 3, 1, 1))[0]
        if kind in ("put", "over"):
            if kind == "over" and not files:
                continue
            name = fresh("f") if kind == "put" else rng.choice(files)
            source, digest = rng.choice(contents.files)
            tree[name] = digest
            command, record = f"put {source} {folder}/{name}", ("publish", name, digest)
        elif kind in ("rename", "replace"):
            if len(files) < 2:
                continue
            old = rng.choice(files)
            new = fresh("f") if kind == "rename" else rng.choice([path for path in files if path != old])
            tree[new] = tree.pop(old)
            command, record = f"rename {folder}/{old} {folder}/{new}", ("rename", old, new)
        elif kind == "mkdir":
            name = fresh("d")
            tree[name] = None
            command, record = f"mkdir {folder}/{name}", ("mkdir", name, None)
        else:
            names = files if kind == "remove" else empty
            if not names:
                continue
            name = rng.choice(names)
            del tree[name]
            command, record = f"{'rm' if kind == 'remove' else 'rmdir'} {folder}/{name}", (kind, name, None)
        steps.append(Step(command, dict(tree), record))
    return steps


class Client(threading.Thread):
    """One OpenSSH client that does the steps until its connection is lost."""

    def __init__(self, cluster: Cluster, node: str, folder: str, steps: list[Step]) -> None:
        super().__init__()
        self.folder, self.steps, self.acknowledged = folder, steps, 0
        self._command = cluster.sftp_command(node)

    def run(self) -> None:
        """An operation is acknowledged when the client goes on to the next command."""
        with tempfile.TemporaryFile() as commands:
            commands.write("".join(f"{step.command}\n" for step in self.steps).encode() + b"pwd\n")
            commands.seek(0)
            client = subprocess.Popen(self._command, stdin=commands, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert client.stdout
        echoed = 0
        for line in client.stdout:
            if line.startswith(b"sftp> "):
                echoed += 1
                self.acknowledged = echoed - 1
        client.wait()

    def may_be(self) -> list[Tree]:
        """What the folder may be after the cut."""
        before = self.steps[self.acknowledged - 1].after if self.acknowledged else {}
        return [before, *(step.after for step in self.steps[self.acknowledged : self.acknowledged + 1])]

    def records(self) -> Counter[Record]:
        """What the audit log must have of it."""
        return Counter(self._in_home(step.record) for step in self.steps[: self.acknowledged])

    def record_under_way(self) -> Counter[Record]:
        """What it may have beyond that."""
        return Counter(self._in_home(step.record) for step in self.steps[self.acknowledged : self.acknowledged + 1])

    def _in_home(self, record: Record) -> Record:
        kind, path, rest = record
        return kind, f"/{self.folder}/{path}", f"/{self.folder}/{rest}" if kind == "rename" else rest


class Rounds:
    """Rounds on one cluster. `work` is a folder for what the clients need."""

    def __init__(self, cluster: PoweredCluster, work: Path) -> None:
        self.cluster, self._work = cluster, work
        self._contents = Contents(work / "contents")
        self._count = self._seen_index = 0

    def run(self, seed: int, when: Callable[[Rounds, random.Random], None] | None = None) -> Found:
        """One round. `when` is called while clients work, and the cut comes when it returns; without it, after a
        random number of acknowledgements.
        """
        cluster, rng = self.cluster, random.Random(seed)
        self._count += 1
        folders = [(node, f"r{self._count}-{node}-{n}") for node in cluster.names for n in range(CLIENTS_PER_NODE)]
        cluster.sftp(cluster.names[0], "".join(f"mkdir {folder}\n" for _, folder in folders))
        clients = [Client(cluster, node, folder, plan(folder, self._contents, rng)) for node, folder in folders]
        for client in clients:
            client.start()
        try:
            wait_for("every client's first operation", lambda: all(client.acknowledged for client in clients), 60)
            if when is None:
                target = rng.randrange(20, 200)
                wait_for("some operations", partial(_have_done, clients, target), 60)
            else:
                when(self, rng)
            time.sleep(rng.random() * WITHIN_S)  # not to wait for anything: the moment of the cut is to be any moment
        finally:
            cluster.cut()
            for client in clients:
                client.join(60)
        assert not any(client.is_alive() for client in clients), "a client hangs"
        acknowledged = sum(client.acknowledged for client in clients)
        under_way = sum(client.acknowledged < len(client.steps) for client in clients)
        trouble = cluster.come_up()
        return Found(acknowledged, under_way, [trouble] if trouble else self._lost(clients))

    def _lost(self, clients: list[Client]) -> list[str]:
        cluster, lost = self.cluster, []
        trees = {node: {client.folder: self._tree(node, client.folder) for client in clients} for node in cluster.names}
        for client in clients:
            seen = [trees[node][client.folder] for node in cluster.names]
            if any(tree != seen[0] for tree in seen):
                lost.append(f"{client.folder} differs between nodes")
            if seen[0] not in client.may_be():
                wanted = client.may_be()[0]
                wrong = [path for path in sorted(wanted.keys() | seen[0].keys())
                         if wanted.get(path, "-") != seen[0].get(path, "-")]
                lost.append(f"{client.folder} after {client.acknowledged} operations: {wrong[:5]}")
        chains = [self._audit(node) for node in cluster.names]
        if any(chain != chains[0] for chain in chains):
            lost.append("the audit logs of the nodes differ")
        have = Counter(map(_record, chains[0]))
        for client in clients:
            must, may = client.records(), client.record_under_way()
            mine = Counter({record: n for record, n in have.items() if record[1].startswith(f"/{client.folder}/")})
            if missing := must - mine:
                lost.append(f"the audit log lacks {next(iter(missing))} and {missing.total() - 1} more")
            if extra := mine - must - may:
                lost.append(f"the audit log has {next(iter(extra))} and {extra.total() - 1} more too often")
        self._seen_index = chains[0][-1]["index"] if chains[0] else self._seen_index
        return lost

    def _tree(self, node: str, folder: str) -> Tree:
        target = self._work / "back"
        shutil.rmtree(target, ignore_errors=True)
        done = self.cluster.sftp(node, f"get -R {folder} {target}\n", check=False, timeout_s=120)
        if done.returncode:
            return {"": done.stderr.decode(errors="replace")[:200]}
        return {str(path.relative_to(target)): blake3(path.read_bytes()).hexdigest() if path.is_file() else None
                for path in target.rglob("*")}

    def _audit(self, node: str) -> list[dict[str, Any]]:
        checked = json.loads(self.cluster.run("audit", "verify", "-o", "json", node=node).stdout)
        assert checked["ok"], f"the audit log's chain is broken on {node}: {checked}"
        records = self.cluster.audit("--after", str(self._seen_index), "--limit", "10000", "--user", "demo", node=node)
        assert len(records) < 10_000, "more records than one query gives"
        return [record for record in records if record["kind"] in ("publish", "rename", "remove", "mkdir", "rmdir")]


def _have_done(clients: list[Client], target: int) -> bool:
    return sum(client.acknowledged for client in clients) >= target


def _record(record: dict[str, Any]) -> Record:
    return record["kind"], record["path"], record["digest"] if record["kind"] == "publish" else record["target"]


# --- when the cut comes ----------------------------------------------------------------------------------------------
def while_a_snapshot_is_made(rounds: Rounds, rng: random.Random) -> None:
    """For a cluster with SMALL_SNAPSHOTS: some node is about to finish one."""
    folders = [rounds.cluster.folder / name / "raft" for name in rounds.cluster.names]
    skip = rng.randrange(1, 4)
    for _ in range(skip):
        before = {folder: _newest(folder) for folder in folders}
        wait_for("a snapshot", lambda before=before: any(  # type: ignore[misc]
            _newest(folder) != before[folder] for folder in folders), 60)
    wait_for("one in the making", lambda: any(
        name.endswith(".new") for folder in folders for name in os.listdir(folder) if name.startswith("snapshot")), 60)


def while_one_is_installed(rounds: Rounds, rng: random.Random) -> None:
    """For a cluster with SMALL_SNAPSHOTS: a node that was away is being given one."""
    cluster = rounds.cluster
    away = rng.choice(cluster.names)
    others = [cluster.folder / name / "raft" for name in cluster.names if name != away]
    end = _newest(cluster.folder / away / "raft")
    cluster.kill_nodes(away)
    serving = next(name for name in cluster.names if name != away)
    more = "".join(f"mkdir more{number}\nrmdir more{number}\n" for number in range(15))

    def have_dropped() -> bool:
        # It may have served every client, or have been its door: somebody must go on writing.
        cluster.sftp(serving, more, check=False)
        return all(_oldest(folder) > end + SPARE_ENTRIES for folder in others)

    wait_for("the others to drop what it lacks", have_dropped, 90)
    fetched = cluster.log(away).count("fetching its snapshot")
    cluster.switch_on(away)
    wait_for("an install", lambda: cluster.log(away).count("fetching its snapshot") > fetched, 60)


def _snapshots(folder: Path) -> list[int]:
    return sorted(int(name.split(".")[1]) for name in os.listdir(folder)
                  if name.startswith("snapshot.") and not name.endswith(".new"))


def _newest(folder: Path) -> int:
    return max(_snapshots(folder), default=0)


def _oldest(folder: Path) -> int:
    return min(_snapshots(folder), default=0)


def main() -> int:
    """Half of the rounds on nodes as they are, half on such that make snapshots all the time. 1 if anything is lost."""
    parser = argparse.ArgumentParser(description="Cuts the power of three hosts under load, and looks what is lost.")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of what clients do and when the power goes")
    parser.add_argument("--forget", default="", metavar="PART", help="sync no file whose path has this in it, to see "
                        "that it is caught: /raft/journal, /chunks/, /raft/snapshot")
    options = parser.parse_args()
    if reason := why_not():
        parser.error(reason)
    plain = [None] * (options.rounds - options.rounds // 2)
    small = [(while_a_snapshot_is_made, while_one_is_installed)[n % 2] for n in range(options.rounds // 2)]
    acknowledged, lost = 0, 0
    for bent, whens in (("", plain), (SMALL_SNAPSHOTS, small)):
        if not whens:
            continue
        with tempfile.TemporaryDirectory(prefix="raftmft-power-") as folder:
            cluster = PoweredCluster(Path(folder) / "c", bent + (forgetting(options.forget) if options.forget else ""))
            try:
                cluster.start()
                rounds = Rounds(cluster, Path(folder))
                for when in whens:
                    options.seed += 1
                    found = rounds.run(options.seed, when)
                    acknowledged, lost = acknowledged + found.acknowledged, lost + len(found.lost)
                    print(f"seed {options.seed}, cut {when.__name__.replace('_', ' ') if when else 'at any moment'}: "
                          f"{found.acknowledged} acknowledged, {found.under_way} under way, lost: "
                          f"{'; '.join(found.lost) or 'nothing'}", flush=True)
            finally:
                cluster.close()
    print(f"{options.rounds} rounds, {acknowledged} acknowledged operations, {lost or 'nothing'} lost")
    return 1 if lost else 0


if __name__ == "__main__":
    raise SystemExit(main())
