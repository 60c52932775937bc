"""A data directory belongs to one node at a time, and tells clean stops from others."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from raftmft.cluster.keyring import FIRST, KeyRing
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
    key = KeyRing.load(data_dir.cluster_key).present(FIRST)
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
        make(tmp_path / "file")


def everything(path: Path) -> list[tuple[str, int]]:
    return sorted((str(p), p.stat().st_mode) for p in path.rglob("*"))


@pytest.mark.parametrize("existing", [True, False])
def test_what_fails_halfway_leaves_the_directory_as_it_was(tmp_path: Path, existing: bool) -> None:
    path = tmp_path / "a" / "b"
    if existing:
        (path / "lost+found").mkdir(parents=True)
        path.chmod(0o755)
    before = everything(tmp_path)
    with pytest.raises(ZeroDivisionError):
        with DataDir(path).made():
            (path / "seed.json").write_text("{}")
            raise ZeroDivisionError
    assert everything(tmp_path) == before
    make(path)
    assert (path.stat().st_mode & 0o777, DataDir(path).read_seed().cluster) == (0o700, "c")


def test_two_at_once_do_not_fill_one_directory(tmp_path: Path) -> None:
    with DataDir(tmp_path / "d").made():
        with pytest.raises(ConfigError, match="being filled|not empty"):
            make(tmp_path / "d")
        assert (tmp_path / "d" / "keys").is_dir(), "the loser removed what the winner made"


def test_a_second_member_in_a_directory_is_told_how_to_run_the_first(tmp_path: Path) -> None:
    make(tmp_path / "d")
    with pytest.raises(ConfigError, match="made there already; run it with raftmft node"):
        make(tmp_path / "d")


def test_another_users_directory_is_not_filled(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        tmp_path = Path("/")  # root's own, for everybody else
    else:
        os.chown(tmp_path, 12345, 0)
    with pytest.raises(ConfigError, match="belongs to user"):
        make(tmp_path)


def test_who_joined_is_no_founder(tmp_path: Path) -> None:
    data_dir = make(tmp_path / "d")
    seed = data_dir.read_seed()
    assert seed.founder
    data_dir.write_seed(replace(seed, founder=False))
    assert not data_dir.read_seed().founder
    with pytest.raises(ConfigError, match="damaged"):
        data_dir.write_seed(replace(seed, founder="no"))  # type: ignore[arg-type]
        data_dir.read_seed()


def test_a_seed_of_another_format_is_told_with_both_versions(tmp_path: Path) -> None:
    data_dir = make(tmp_path / "d")
    path = data_dir.path / "seed.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(ConfigError, match=r"seed\.json has format 1, this program reads format 2"):
        data_dir.read_seed()


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
