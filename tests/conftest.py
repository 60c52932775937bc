"""In CI (RAFTMFT_CI=1) a test may be skipped only for a reason that is listed here."""

from __future__ import annotations

import os

import pytest

ALLOWED_SKIPS: tuple[str, ...] = (
    "rclone is missing",
    "lftp is missing",
    "psftp is missing",
    "pscp is missing",
    "dbclient is missing",
    "curl is missing",
    " cannot: ",  # tests/e2e/test_clients.py: a client without such a command
    "sshfs is missing",
    "restic is missing",
    "mounting needs /dev/fuse",
    "needs root for network namespaces",
    "needs root to mount a small disk",
    "needs root for loop-mounted disks",
    "needs root to give a directory away",
    "this machine has no IPv6",
    "no C compiler for a shifted clock",
)

_unlisted: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and os.environ.get("RAFTMFT_CI"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(allowed in reason for allowed in ALLOWED_SKIPS):
            _unlisted.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _unlisted:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _unlisted:
        terminalreporter.write_line(f"CI does not allow this skip (tests/conftest.py): {line}", red=True)
