"""Fixtures with real processes: one cluster shared by the tests that only use it, fresh ones for those that hurt it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import SFTP, Cluster
from tests.e2e.hosts import Hosts


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "e2e" in Path(item.path).parts:
            item.add_marker(pytest.mark.e2e)
            if SFTP is None:
                item.add_marker(pytest.mark.skip(reason="OpenSSH's sftp is missing: apt-get install openssh-client"))


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes; tests must leave them running and use names of their own."""
    cluster = Cluster(tmp_path_factory.mktemp("shared") / "c")
    try:
        yield cluster.start()
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def mortal_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes; tests may kill one, if they start it again and wait until it is ready. Names are their own."""
    cluster = Cluster(tmp_path_factory.mktemp("mortal") / "c")
    try:
        yield cluster.start()
    finally:
        cluster.stop()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Three fresh nodes that may be hurt."""
    cluster = Cluster(tmp_path / "c")
    try:
        yield cluster.start()
    finally:
        cluster.stop()


@pytest.fixture
def five(tmp_path: Path) -> Iterator[Cluster]:
    """Five fresh nodes that may be hurt."""
    cluster = Cluster(tmp_path / "c", 5)
    try:
        yield cluster.start()
    finally:
        cluster.stop()


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    """No members yet: made by init and join."""
    hosts = Hosts(tmp_path)
    try:
        yield hosts
    finally:
        hosts.stop()
