"""raftmft dev beside people and tests that change the settings of its nodes as soon as they are told of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from raftmft.cli import dev
from raftmft.cli.dev import DevCluster, _Stop


class ReadyNode:
    """An admin API that says yes to all."""

    def __init__(self, *_: object) -> None: ...

    def call(self, *_: object) -> bool:
        return True

    def get(self, *_: object) -> dict[str, object]:
        return {"verdict": "ok", "members": []}


def test_settings_may_be_in_the_writing_once_cluster_json_stands(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = DevCluster(tmp_path / "d")
    cluster.prepare(2, 1, 2)
    write_file = dev.write_file

    def write_and_edit(path: Path, content: bytes) -> None:
        write_file(path, content)
        if path.name == "cluster.json":
            (tmp_path / "d" / "n1" / "raftmft.toml").write_bytes(b"")  # as an editor leaves it for a moment

    monkeypatch.setattr(dev, "write_file", write_and_edit)
    monkeypatch.setattr(dev, "Client", ReadyNode)
    monkeypatch.setattr(dev.signal, "signal", lambda *_: None)
    cluster.announce(_Stop())
    assert "2 nodes serve" in capsys.readouterr().out
    cluster.stop()  # nor does it keep nodes from being stopped
    assert not (tmp_path / "d" / "cluster.json").exists()
