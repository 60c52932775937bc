"""Fixtures of the state machine's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from machine_world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A bootstrapped cluster of three members, without users."""
    world = World(tmp_path / "state.db")
    yield world
    world.machine.close()
