"""A member whose state differs from the others' ends with one line; the others serve on; started again it agrees.

In the processes themselves (a sitecustomize on PYTHONPATH) states are compared every 200 entries, and one member's
apply gives new directories another mode while a file tells it to.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Cluster

ODD = """
import os, sys
if "raftmft" in sys.argv[0] or "-m" in sys.orig_argv:
    from raftmft.core import divergence, machine
    divergence.POINT_EVERY = machine.POINT_EVERY = 200
    run = machine.Machine._run

    def odd(self, index, command):
        result = run(self, index, command)
        if type(command).__name__ == "Mkdir" and os.path.exists(os.path.join(os.path.dirname(self.path), "odd")):
            self._db.execute("UPDATE inodes SET mode = 448 WHERE id = ?", (index,))
        return result

    machine.Machine._run = odd
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "sitecustomize.py").write_text(ODD)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "odd"), str(Path(__file__).parents[2])]))
    cluster = Cluster(tmp_path / "c")
    try:
        yield cluster.start()
    finally:
        cluster.stop()


def mkdirs(cluster: Cluster, name: str, first: int, count: int) -> None:
    cluster.sftp(name, "".join(f"mkdir d{number}\n" for number in range(first, first + count)))


def log_of(cluster: Cluster, name: str) -> str:
    return (cluster.folder / f"{name}.log").read_text()


def test_the_odd_one_ends_and_the_others_serve_on(cluster: Cluster) -> None:
    first, other, odd = cluster.names
    mkdirs(cluster, first, 0, 250)
    mark = Path(cluster.node(odd)["data_dir"]) / "state" / "odd"
    mark.touch()
    made = 250
    while cluster.pid_or(odd):  # no outcome shows it: it takes a digest of every row, and these are rare
        mkdirs(cluster, first, made, 100)
        made += 100
        assert made < 10_000, "nobody noticed"
    lines = [line for line in log_of(cluster, odd).splitlines() if "a majority: this member stops" in line]
    assert len(lines) == 1 and "the rows of the state here differ from those of" in lines[0]
    assert "Traceback" not in log_of(cluster, odd)
    mkdirs(cluster, other, made, 50)
    assert not any("this member stops" in log_of(cluster, name) for name in (first, other))

    mark.unlink()
    cluster.restart(odd)
    cluster.wait_ready(odd)
    mkdirs(cluster, odd, made + 50, 450)
    assert cluster.pid_or(odd) and f"d{made}" in cluster.sftp(odd, "ls -1\n").stdout.decode().split()
