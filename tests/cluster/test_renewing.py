"""A renewed pair takes the old one's place, whole at every moment."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from raftmft.cluster import renewing
from raftmft.cluster.certificates import (
    NODE_DAYS,
    CertificateFiles,
    issue_member,
    load_member,
    make_authority,
    write_member_files,
)

NOW = datetime(2026, 3, 1, tzinfo=timezone.utc)
AUTHORITY = make_authority("c", now=NOW)
OLD, NEW = issue_member(AUTHORITY, "m", now=NOW), issue_member(AUTHORITY, "m", now=NOW)


@pytest.fixture
def files(tmp_path: Path) -> CertificateFiles:
    made = CertificateFiles(tmp_path / "ca.crt", tmp_path / "node.crt", tmp_path / "node.key")
    write_member_files(made, AUTHORITY.certificate, OLD)
    return made


class Crash(Exception):
    pass


def test_the_new_pair_is_taken(files: CertificateFiles) -> None:
    renewing.prepare(files, NEW)
    assert load_member(files) == OLD
    renewing.take(files)
    assert load_member(files) == NEW and len(list(files.key.parent.iterdir())) == 3
    assert os.stat(files.key).st_mode & 0o777 == 0o600


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_crash_between_any_two_renames_leaves_a_pair_that_fits(
        files: CertificateFiles, monkeypatch: pytest.MonkeyPatch, renames: int) -> None:
    renewing.prepare(files, NEW)
    real, left = os.rename, [renames]

    def rename(source: Path, target: Path) -> None:
        if not left[0]:
            raise Crash
        left[0] -= 1
        real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(renewing.os, "rename", rename)
        try:
            renewing.take(files)
        except Crash:
            assert renames < 2
    renewing.settle(files)
    assert load_member(files) == (OLD if renames == 0 else NEW)
    assert not any(path.exists() for path in renewing.next_to(files))


def test_a_crash_while_it_is_prepared_leaves_the_old_pair(files: CertificateFiles) -> None:
    _, key = renewing.next_to(files)
    key.write_bytes(NEW.key)
    renewing.settle(files)
    assert load_member(files) == OLD and not key.exists()


def test_two_thirds_of_its_life() -> None:
    begin = NOW - timedelta(days=1)
    due = begin + timedelta(days=NODE_DAYS + 1) * 2 / 3
    assert not renewing.is_due(OLD.certificate, due - timedelta(seconds=1)) and renewing.is_due(OLD.certificate, due)
