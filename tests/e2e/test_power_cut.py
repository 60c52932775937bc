"""Contract 1 for a real power cut of all hosts at once: what was acknowledged is on disk, not in a cache.

`scripts/powercut` runs as many rounds as one likes. The last test shows that these can fail: with the syncs of one kind
of file left out, something is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.power import SMALL_SNAPSHOTS, PoweredCluster, forgetting, why_not
from tests.e2e.power_rounds import Rounds, while_a_snapshot_is_made, while_one_is_installed

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]
Begin = Callable[[str], Rounds]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Starts a cluster whose processes run the given Python first."""
    clusters = []

    def start(bent: str) -> Rounds:
        clusters.append(PoweredCluster(tmp_path / "c", bent))
        clusters[0].start()
        return Rounds(clusters[0], tmp_path)

    try:
        yield start
    finally:
        for cluster in clusters:
            cluster.close()


def test_a_power_cut_of_all_hosts_loses_nothing_acknowledged(begin: Begin) -> None:
    rounds = begin("")
    for seed in range(2):
        found = rounds.run(seed)
        assert not found.lost
        assert found.acknowledged >= 20 and found.under_way >= 3


def test_nor_while_snapshots_are_made_or_installed_and_the_log_is_dropped(begin: Begin) -> None:
    rounds = begin(SMALL_SNAPSHOTS)
    for seed, when in enumerate((while_a_snapshot_is_made, while_one_is_installed)):
        found = rounds.run(seed, when)
        assert not found.lost
        assert found.acknowledged >= 20


@pytest.mark.parametrize("part", ["/raft/journal", "/chunks/", "/raft/snapshot"])
def test_a_node_that_forgets_to_sync_one_kind_of_file_is_caught(begin: Begin, part: str) -> None:
    rounds = begin(forgetting(part) + (SMALL_SNAPSHOTS if "snapshot" in part else ""))
    for _ in range(5):  # what was written a moment ago may have reached the disk by itself
        if rounds.run(1, while_a_snapshot_is_made if "snapshot" in part else None).lost:
            return
    raise AssertionError("syncs were left out, and nothing was ever lost")
