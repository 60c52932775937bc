"""A worker with its fake node, one for each test module that only uses it, one alone for tests that break it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sftp.fake_node import FakeNode


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeNode]:
    """Shared by a module's tests: each uses names of its own."""
    fake = FakeNode(tmp_path_factory.mktemp("node"))
    yield fake
    fake.close()


@pytest.fixture
def own_node(tmp_path: Path) -> Iterator[FakeNode]:
    """For one test alone."""
    folder = tmp_path / "node"
    folder.mkdir()
    fake = FakeNode(folder)
    yield fake
    fake.close()
