"""A data directory belongs to one node at a time, and tells clean stops from others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raftmft.core.errors import ConfigError
from raftmft.node.datadir import DataDir
from raftmft.node.genesis import FirstMember, bootstrap_command, make_cluster
from raftmft.node.settings import Settings, load


def make(path: Path) -> DataDir:
    make_cluster("c", [FirstMember(path, Settings(name="a", advertise="127.0.0.1"))])
    return DataDir(path)


def test_a_new_cluster_of_one(tmp_path: Path) -> None:
    data_dir = make(tmp_path / "d")
    seed = data_dir.read_seed()
    assert load(data_dir.path).name == "a" and seed.member(seed.me).name == "a"
    assert bootstrap_command(seed).members == seed.members
    for folder, _, files in os.walk(data_dir.path):
        assert os.stat(folder).st_mode & 0o077 == 0
        for file in files:
            assert file.endswith(".crt") or os.stat(f"{folder}/{file}").st_mode & 0o077 == 0, file


def test_secrets_stand_only_in_the_key_files(tmp_path: Path) -> None:
    data_dir = make(tmp_path / "d")
    key = data_dir.cluster_key.read_bytes()
    for file in (p for p in data_dir.path.rglob("*") if p.is_file()):
        if file.parent != data_dir.keys:
            content = file.read_bytes()
            assert key not in content and key.hex().encode() not in content and b"PRIVATE KEY" not in content, file


def test_a_used_directory_is_refused_and_unchanged(tmp_path: Path) -> None:
    data_dir = make(tmp_path / "d")
    before = sorted((p, p.read_bytes()) for p in data_dir.path.rglob("*") if p.is_file())
    with pytest.raises(ConfigError, match="not empty"):
        make(tmp_path / "d")
    assert before == sorted((p, p.read_bytes()) for p in data_dir.path.rglob("*") if p.is_file())
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="not a directory"):
        DataDir(tmp_path / "file").make()


def test_foreign_and_open_directories_are_refused(tmp_path: Path) -> None:
    data_dir = make(tmp_path / "d")
    data_dir.check_owner()
    os.chmod(data_dir.path, 0o750)
    with pytest.raises(ConfigError, match="chmod 700"):
        data_dir.check_owner()
    os.chmod(data_dir.path, 0o700)
    if os.geteuid() == 0:
        os.chown(data_dir.path, 12345, 0)
        with pytest.raises(ConfigError, match="belongs to user 12345"):
            data_dir.check_owner()


def test_one_process_has_it_at_a_time(tmp_path: Path) -> None:
    data_dir = make(tmp_path / "d")
    data_dir.lock()
    data_dir.pid_file.write_text("4711")
    again = subprocess.run(
        [sys.executable, "-c", f"from raftmft.node.datadir import DataDir; DataDir({str(data_dir.path)!r}).lock()"],
        capture_output=True,
        text=True,
    )
    assert "in use by a running node (pid 4711)" in again.stderr


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b'{"format": 9}', b"\x80\x04N."])
def test_a_damaged_seed_gets_one_line(tmp_path: Path, damage: bytes) -> None:
    data_dir = make(tmp_path / "d")
    (data_dir.path / "seed.json").write_bytes(damage)
    with pytest.raises(ConfigError, match=r"seed\.json"):
        data_dir.read_seed()


def test_the_clean_mark_serves_once(tmp_path: Path) -> None:
    data_dir = make(tmp_path / "d")
    assert not data_dir.take_clean_mark()
    data_dir.state.write_bytes(b"state")
    data_dir.leave_clean_mark()
    assert data_dir.take_clean_mark()
    assert not data_dir.take_clean_mark(), "a crash after this start would pass for a clean stop"
