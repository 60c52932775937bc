"""The contract's table under random operations: two users, three sessions, two nodes, every answer the model's.

`./scripts/table --seeds 500` runs more of them, `--seed N` the one that failed; `--storm` has sessions at odds at once.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raftmft.core import commands as c
from raftmft.core.namespace import Namespace
from raftmft.core.partials import Partials
from raftmft.core.publish import Publisher
from raftmft.core.uploads import Uploads
from raftmft.node.files import Files
from raftmft.sftp import closing, operations
from raftmft.sftp.buffers import Prefix
from raftmft.sftp.upload import Upload
from tests.table.seeds import run_seed
from tests.table.storm import run_storm

ROOT = Path(__file__).parents[2]
SEEDS, STEPS, MOST_SEEDS = 12, 400, 40
STORMS, STORM_STEPS = 4, 40


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_answer_is_the_models(seed: int) -> None:
    report = run_seed(seed, STEPS)
    assert not report.failure, "\n".join(
        [*report.trace[-40:], f"replay it: ./scripts/table --seed {seed} --steps {STEPS} --chunk 1048576"])


def test_files_of_many_small_chunks() -> None:
    """Up to 70 chunks a file, where manifests get a second level."""
    done = subprocess.run([sys.executable, "-m", "tests.table", "--seeds", "40", "--steps", str(STEPS)], cwd=ROOT,
                          capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONHASHSEED": "0"})
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("seed", range(STORMS))
def test_nothing_torn_is_seen_in_a_storm(seed: int) -> None:
    report = run_storm(seed, STORM_STEPS)
    assert not report.failure, "\n".join([*report.trace[-40:], report.failure])


# --- the product broken on purpose: some seed must see it ---------------------------------------------------------
def publish_at_eof(patch: pytest.MonkeyPatch) -> None:
    async def let_go(session: Any, upload: Any) -> None:
        await closing.publish(None, session, upload)  # type: ignore[arg-type]
    patch.setattr(operations.closing, "let_go", let_go)


def partials_are_listed(patch: pytest.MonkeyPatch) -> None:
    listing = Namespace._list

    def with_partials(self: Namespace, user: str, path: c.Path, after: bytes | None, limit: int) -> Any:
        entries = listing(self, user, path, after, limit)
        rows = self._state.db.execute("SELECT name, size, mode, touched_ms / 1000 FROM partials WHERE parent = ?",
                                      (self.find(self.home_of(user), path).inode,))
        return entries + [{"id": 0, "kind": "file", "size": size, "mode": mode | 0o100000, "uid": 0, "gid": 0,
                           "atime": when, "mtime": when, "nlink": 1, "version": 0, "name": name}
                          for name, size, mode, when in rows]
    patch.setattr(Namespace, "_list", with_partials)


def no_base_version_check(patch: pytest.MonkeyPatch) -> None:
    write_over = Publisher._write_over
    patch.setattr(Publisher, "_write_over", lambda self, command, who, upload, file: write_over(
        self, command, who, upload._replace(truncate=1), file))


def a_take_over_revokes_nobody(patch: pytest.MonkeyPatch) -> None:
    get = Partials.get
    patch.setattr(Partials, "get", lambda self, uid, parent, name: get(self, uid, parent, name) and get(
        self, uid, parent, name)._replace(upload=0))


def append_ignores_the_offset_of_a_partial(patch: pytest.MonkeyPatch) -> None:
    begin = Files._begin

    async def marked(self: Files, worker: Any, args: dict[str, Any]) -> Any:
        return {**await begin(self, worker, args), "is_append": args["append"]}
    patch.setattr(Files, "_begin", marked)
    init = Upload.__init__

    def appending(self: Upload, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        self.appends = bool(options["is_append"])
    patch.setattr(Upload, "__init__", appending)


def what_lies_behind_a_gap_counts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Prefix, "add", lambda self, start, end: setattr(self, "end", max(self.end, end)))


def uploads_are_every_sessions(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Uploads, "of_session_at", lambda self, session, parent, name, file: [
        row[0] for row in self._state.db.execute(
            "SELECT id FROM uploads WHERE (file = 0 AND parent = ? AND name = ?) OR (file > 0 AND file = ?)",
            (parent, name, file))])


BREAKS = [publish_at_eof, partials_are_listed, no_base_version_check,
          a_take_over_revokes_nobody, append_ignores_the_offset_of_a_partial, what_lies_behind_a_gap_counts,
          uploads_are_every_sessions]


def rebase_forgets_where_bytes_were_appended(patch: pytest.MonkeyPatch) -> None:
    rebase = closing._rebase

    async def wrong(lookup: Any, upload: Upload) -> Upload:
        upload.appended_from = (upload.appended_from or 0) + 1
        return await rebase(lookup, upload)
    patch.setattr(closing, "_rebase", wrong)


@pytest.mark.parametrize("break_it", [pytest.param(b, id=b.__name__) for b in (
    publish_at_eof, rebase_forgets_where_bytes_were_appended)])
def test_a_broken_rule_is_seen_in_a_storm(
        break_it: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    break_it(monkeypatch)
    for seed in range(MOST_SEEDS):
        failure = run_storm(seed, STORM_STEPS).failure
        if failure:
            assert "torn" in failure, failure
            return
    raise AssertionError(f"{MOST_SEEDS} storms did not see it")


@pytest.mark.parametrize("break_it", [pytest.param(b, id=b.__name__) for b in BREAKS])
def test_a_broken_rule_is_seen(break_it: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    break_it(monkeypatch)
    for seed in range(MOST_SEEDS):
        failure = run_seed(seed, STEPS).failure
        if failure:
            assert failure.startswith("Mismatch"), failure
            return
    raise AssertionError(f"{MOST_SEEDS} seeds did not see it")
