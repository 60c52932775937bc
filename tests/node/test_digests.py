"""Digests that workers computed: kept by file version, bounded, and believed only of the own user's present files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raftmft.node import digests
from raftmft.node.digests import MOST_ALGORITHMS, Digests
from raftmft.node.files import Files
from raftmft.node.link import Rejected
from tests.core.machine_world import World

MD5 = "00" * 16


def test_what_was_asked_for_last_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "MOST_FILES", 3)
    kept = Digests()
    for file in range(3):
        kept.told(file, 1, "md5", MD5)
    assert kept.known(0, 1) == {"md5": MD5} and kept.known(0, 2) == {}
    kept.told(3, 1, "md5", MD5)
    assert [bool(kept.known(file, 1)) for file in range(4)] == [True, False, True, True]
    for number in range(MOST_ALGORITHMS + 5):
        kept.told(3, 1, f"x{number}", MD5)
    assert len(kept.known(3, 1)) == MOST_ALGORITHMS


@pytest.mark.parametrize(("algorithm", "digest"), [
    ("md5", "zz" * 16), ("md5", "00"), ("md5", "00" * 99), ("x" * 999, MD5)])
def test_what_is_no_digest_is_refused(algorithm: str, digest: str) -> None:
    kept = Digests()
    with pytest.raises(ValueError):
        kept.told(1, 1, algorithm, digest)
    assert kept.known(1, 1) == {}


async def test_only_of_the_own_users_present_files_a_worker_is_believed(tmp_path: Path) -> None:
    world = World(tmp_path / "state.db")
    world.boot()
    for user in ("ann", "bob"):
        world.user(user)
    ann, bob = world.login("ann"), world.login("bob")
    first = world.put(ann, "file")
    state: Any = SimpleNamespace(machine=world.machine, subscribe=lambda _: None)
    files = Files(state, None, SimpleNamespace(worker_of=None), None)  # type: ignore[arg-type]
    worker: Any = SimpleNamespace(sessions={ann: "ann", bob: "bob"})

    async def tell(session: int, file: int, version: int) -> bool:
        await files.operations["digest.told"](worker, {
            "session": session, "file": file, "version": version, "algorithm": "md5", "digest": MD5})
        return bool(files._digests.known(file, version))

    assert not await tell(bob, first["file"], first["version"])
    assert not await tell(ann, first["file"], first["version"] + 1)
    assert await tell(ann, first["file"], first["version"])
    second = world.put(ann, "file")
    assert second["file"] == first["file"] and not files._digests.known(second["file"], second["version"])
    with pytest.raises(Rejected, match="session has ended"):
        await tell(bob + 99, first["file"], second["version"])
