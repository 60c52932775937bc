"""The mutants do not rot: each fits the source, and says which rule it breaks. ./scripts/mutants hunts them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim import mutate

MUST_BE_THERE = {
    "ack_before_fsync", "skip_barrier", "skip_read_barrier", "forget_vote", "ignore_ack_terms", "apply_twice",
    "unverified_tail", "uncontested_rollback", "stale_command", "noterm", "norollback", "noprevote",
    "skip_read_round", "read_before_own_entry", "join_read_round"}


@pytest.mark.parametrize("name", mutate.names())
def test_a_mutant_fits_the_source(name: str, tmp_path: Path) -> None:
    mutate.apply(name, tmp_path)
    changed = [path for path in (tmp_path / "raftmft").rglob("*.py")
               if path.read_bytes() != (mutate.ROOT / path.relative_to(tmp_path)).read_bytes()]
    assert changed, "the patch changes nothing"
    for path in changed:
        compile(path.read_text(), str(path), "exec")
    assert mutate.first_line(name).endswith((".", "Run: quiet")) and "diff" not in mutate.first_line(name)


def test_every_rule_has_its_mutant() -> None:
    assert set(mutate.names()) >= MUST_BE_THERE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ack_before_fsync", "noprevote"])
def test_a_mutant_is_caught(name: str) -> None:
    verdict = mutate.hunt(name, 40)
    assert verdict.seed >= 0 and verdict.failure
