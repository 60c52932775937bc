"""Contract 2 and 3: the node that serves an upload is killed at a random byte, and the upload goes on through another,
while sessions of the same user look at the name through every node. `scripts/resume` does as many rounds as one likes.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.harness import Cluster
from tests.e2e.resume_rounds import MIB, Found, Rounds, line_of, report

pytestmark = pytest.mark.slow
SIZE = 32 * MIB


@pytest.fixture(scope="module")
def rounds(mortal_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rounds]:
    """All rounds of this module, one after another."""
    made = Rounds(mortal_cluster, tmp_path_factory.mktemp("resume"), SIZE)
    yield made
    made.close()


def check(found: Found) -> None:
    print(line_of(0, found))
    assert not found.wrong, found
    assert report([found]) == 0, "what scripts/resume would say of it"
    assert found.looks > 10, "nobody looked"
    assert found.sights.get("get new"), "nobody saw the whole file"


@pytest.mark.parametrize("seed", [1, 2])
def test_an_upload_goes_on_through_another_node(rounds: Rounds, seed: int) -> None:
    found = rounds.run(seed, "new")
    check(found)
    assert found.sent - found.durable <= 16 * MIB + (found.sent - found.acked)
    assert found.sights.get("stat old", 0) + found.sights.get("stat partial", 0) > 0, "nobody looked while it was sent"


def test_an_interrupted_overwrite_leaves_the_old_file(rounds: Rounds) -> None:
    found = rounds.run(1, "over")
    check(found)
    assert found.sights.get("get old") and found.sights.get("pinned old"), "nobody saw the old file"


def test_what_a_slow_client_was_told_is_kept_but_for_two_seconds(rounds: Rounds) -> None:
    found = rounds.run(1, "slow")
    check(found)
    assert found.durable > 0, found
