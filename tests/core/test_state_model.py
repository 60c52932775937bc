"""The namespace against a model that is nothing but a dict from path to size (None: a directory)."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machine_world import World

from raftmft.core import commands as c
from raftmft.core.manifest import Manifest
from raftmft.core.outcome import Code, Outcome

Tree = dict[c.Path, int | None]
NAMES = st.sampled_from([b"a", b"b", b"c"])
PATHS = st.lists(NAMES, min_size=0, max_size=4).map(tuple)
STEPS = st.lists(st.tuples(st.sampled_from(["mkdir", "rmdir", "put", "remove", "rename", "replace", "open"]), PATHS,
                           PATHS, st.integers(0, 1)), max_size=40)


def missing(tree: Tree, path: c.Path) -> Code | None:
    """Why the parent of `path` cannot be reached, if so."""
    for i in range(1, len(path)):
        if path[:i] not in tree:
            return Code.NOT_FOUND
        if tree[path[:i]] is not None:
            return Code.NOT_A_DIRECTORY
    return None


def is_empty(tree: Tree, path: c.Path) -> bool:
    return not any(len(p) > len(path) and p[: len(path)] == path for p in tree)


def model_rename(tree: Tree, source: c.Path, target: c.Path, replace: bool) -> Code | None:
    if not source or not target:
        return Code.PERMISSION
    trouble = missing(tree, source) or missing(tree, target)
    if trouble:
        return trouble
    if source not in tree:
        return Code.NOT_FOUND
    if source == target:
        return None
    if target[: len(source)] == source:
        return Code.INVALID
    if target in tree:
        if not replace:
            return Code.EXISTS
        if tree[source] is not None and tree[target] is None:
            return Code.IS_A_DIRECTORY
        if tree[source] is None and tree[target] is not None:
            return Code.NOT_A_DIRECTORY
        if tree[target] is None and not is_empty(tree, target):
            return Code.NOT_EMPTY
        del tree[target]
    for old in [p for p in tree if p[: len(source)] == source]:
        tree[target + old[len(source):]] = tree.pop(old)
    return None


def model(tree: Tree, operation: str, path: c.Path, target: c.Path, size: int) -> Code | None:
    """Applies one step to the model; the code of the rejection, or None."""
    if operation in ("rename", "replace"):
        return model_rename(tree, path, target, operation == "replace")
    if not path:
        return {"mkdir": Code.EXISTS, "rmdir": Code.PERMISSION}.get(operation, Code.IS_A_DIRECTORY)
    trouble = missing(tree, path)
    if trouble:
        return trouble
    is_there, content = path in tree, tree.get(path)
    if operation == "mkdir":
        if is_there:
            return Code.EXISTS
        tree[path] = None
    elif operation == "put":
        if is_there and content is None:
            return Code.IS_A_DIRECTORY
        tree[path] = size
    elif not is_there:
        return Code.NOT_FOUND
    elif operation == "rmdir":
        if content is not None:
            return Code.NOT_A_DIRECTORY
        if not is_empty(tree, path):
            return Code.NOT_EMPTY
        del tree[path]
    elif content is None:
        return Code.IS_A_DIRECTORY
    elif operation == "remove":
        del tree[path]
    return None


def real(world: World, session: int, operation: str, path: c.Path, target: c.Path, size: int) -> Outcome:
    if operation == "put":
        outcome = world.apply(c.BeginUpload(session, path, truncate=True))
        if not outcome.ok:
            return outcome
        return world.apply(c.Publish(session, outcome.value["upload"], Manifest(size, 0, b"i" * 32), world.placement))
    return world.apply({
        "mkdir": lambda: c.Mkdir(session, path), "rmdir": lambda: c.Rmdir(session, path),
        "remove": lambda: c.Remove(session, path), "open": lambda: c.OpenRead(session, path),
        "rename": lambda: c.Rename(session, path, target), "replace": lambda: c.Rename(session, path, target, True),
    }[operation]())


def walk(world: World, user: str, top: c.Path = ()) -> Tree:
    found: Tree = {}
    entries = world.machine.namespace.list(user, top)
    assert isinstance(entries, list)
    for entry in entries:
        path = (*top, entry["name"])
        stat = world.machine.namespace.stat(user, path)
        assert stat == {k: v for k, v in entry.items() if k != "name"}
        found[path] = None if entry["kind"] == "dir" else entry["size"]
        if entry["kind"] == "dir":
            found |= walk(world, user, path)
    return found


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(STEPS)
def test_the_namespace_is_like_a_dict_of_paths(steps: list[tuple[str, c.Path, c.Path, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder) / "state")
        trees: dict[str, Tree] = {"ann": {}, "bob": {}}
        sessions = {}
        for user in trees:
            world.user(user)
            sessions[user] = [world.login(user, "id-n1"), world.login(user, "id-n2")]
        for number, (operation, path, target, who) in enumerate(steps):
            user, size = ("ann", "bob")[who], 1 + number
            outcome = real(world, sessions[user][number % 2], operation, path, target, size)
            expected = model(trees[user], operation, path, target, size)
            assert (outcome.rejection.code if outcome.rejection else None) == expected, (operation, path, target)
        for user, tree in trees.items():
            assert walk(world, user) == tree
        world.machine.close()
