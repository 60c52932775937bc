"""The house stands as drawn (DESIGN.md): imports point down, files have one idea, nothing is ever unpickled."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import raftmft

ROOT = Path(raftmft.__file__).parent
STDLIB = set(sys.stdlib_module_names)
# room -> (rooms below it that it may import, libraries it may import beside the standard library)
ALLOWED: dict[str, tuple[set[str], set[str]]] = {
    "core": (set(), set()),
    "wire": ({"core"}, {"msgpack", "blake3"}),
    "store": ({"core"}, {"blake3"}),
    "raft": ({"core", "wire"}, {"pysyncobj", "trio", "msgpack"}),
    "cluster": ({"core", "wire", "store"}, {"trio", "cryptography", "blake3", "msgpack"}),
    "node": ({"core", "wire", "store", "raft", "cluster"},
             {"trio", "starlette", "hypercorn", "argon2", "msgpack", "blake3", "cryptography",
              "prometheus_client"}),
    "sftp": ({"core", "wire", "store"}, {"asyncssh", "uvloop", "blake3", "msgpack", "cryptography"}),
    "cli": ({"core", "wire", "store", "raft", "cluster", "node", "sftp"},
            {"click", "rich", "trio", "cryptography", "argon2", "msgpack"}),
}
# The worker never shares the node's loop, and only core stays free of every clock, thread and socket.
FORBIDDEN = {"sftp": {"trio"}, "core": {"time", "random", "threading", "socket", "asyncio", "secrets", "select"}}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" if node.module == "raftmft" else str(node.module)
                      for alias in node.names}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    if room not in ALLOWED:
        assert path.parent == ROOT, f"{path} stands in no known room"
        return
    below, libraries = ALLOWED[room]
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "raftmft":
            assert not rest or rest[0] in below | {room, "__version__"}, f"{room} must not import {name}"
        elif top in STDLIB:
            assert top not in FORBIDDEN.get(room, ()), f"{room} must not import {name}"
        else:
            assert top in libraries, f"{room} must not import {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_is_unpickled(path: Path) -> None:
    assert not {"pickle", "marshal", "shelve", "dill", "cloudpickle"} & {i.split(".")[0] for i in imports(path)}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_has_one_idea(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400, "split it"
