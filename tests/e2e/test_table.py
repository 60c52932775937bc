"""The contract's table under random operations, over SSH, through the members of a real cluster.

`./scripts/table --cluster --seeds 20 --steps 500` starts a cluster and runs more of them.
"""

from __future__ import annotations

import pytest

from tests.e2e.harness import Cluster
from tests.table.real import run_seed_on

STEPS = 150


@pytest.mark.parametrize("seed", [0, 1])
def test_every_answer_is_the_models(shared_cluster: Cluster, seed: int) -> None:
    report = run_seed_on(shared_cluster, seed, STEPS)
    assert not report.failure, "\n".join(
        [*report.trace[-40:], f"replay it: ./scripts/table --cluster --seed {seed} --steps {STEPS}"])
