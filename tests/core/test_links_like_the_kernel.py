"""Symbolic links lead where Linux leads them when the home is the root (openat2 with RESOLVE_IN_ROOT), errors included.

One deliberate difference is left out: a slash or dot at a target's end asks the kernel for a directory; here it says
nothing.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machine_world import World

from raftmft.core import commands as c
from raftmft.core.outcome import Code

OPENAT2, RESOLVE_IN_ROOT, O_PATH = 437, 0x10, 0o10000000
ERRORS = {errno.ENOENT: Code.NOT_FOUND, errno.ENOTDIR: Code.NOT_A_DIRECTORY, errno.ELOOP: Code.LOOP}
NAMES = ("a", "b", "c")
PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4)
TARGETS = st.builds(lambda slash, steps, last: slash + "/".join([*steps, last]), st.sampled_from(["", "", "/", "//"]),
                    st.lists(st.sampled_from([*NAMES, "..", "."]), max_size=3), st.sampled_from([*NAMES, ".."]))
_libc = ctypes.CDLL(None, use_errno=True)


def kernel(root: int, path: list[str], *, follow: bool) -> Any:
    """Where the kernel leads, as a path below the root, or the code of its error."""
    how = struct.pack("QQQ", O_PATH | (0 if follow else os.O_NOFOLLOW), 0, RESOLVE_IN_ROOT)
    fd = _libc.syscall(OPENAT2, root, "/".join(path).encode(), how, len(how))
    if fd < 0:
        number = ctypes.get_errno()
        if number == errno.ENOSYS or number == errno.EPERM:
            pytest.skip("this kernel has no openat2")
        return ERRORS[number]
    try:
        whole = os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return os.path.relpath(whole, os.readlink(f"/proc/self/fd/{root}")).split("/")


def ours(world: World, path: list[str], *, follow: bool) -> Any:
    """The same of the state machine."""
    look = world.machine.namespace.look("ann", tuple(name.encode() for name in path), follow=follow)
    if not isinstance(look, dict):
        return look.code
    if look["entry"] is None:
        return Code.NOT_FOUND
    return [name.decode() for name in look["path"]] or ["."]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.sampled_from(["dir", "file", "link", "link", "link"]), PATHS, TARGETS), max_size=12),
       st.lists(PATHS, min_size=1, max_size=12))
def test_links_lead_where_the_kernel_leads_them(steps: list[tuple[str, list[str], str]],
                                                asked: list[list[str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        top = Path(os.path.realpath(folder)) / "root"
        top.mkdir()
        world = World(Path(folder) / "state")
        world.user()
        session = world.login()
        root = os.open(top, os.O_RDONLY)
        try:
            for kind, path, target in steps:
                # Made where no link leads, so that both trees are made alike.
                where, names = top.joinpath(*path), tuple(name.encode() for name in path)
                is_linked = os.path.realpath(where.parent) != str(where.parent)
                if is_linked or not where.parent.is_dir() or os.path.lexists(where):
                    continue
                if kind == "dir":
                    where.mkdir()
                    world.ok(c.Mkdir(session, names))
                elif kind == "file":
                    where.touch()
                    world.publish(session, world.begin(session, "/".join(path))["upload"], 1)
                else:
                    where.symlink_to(target)
                    world.ok(c.Symlink(session, names, target.encode()))
            for path in [*asked, *(path for _, path, _ in steps)]:
                for follow in (True, False):
                    assert ours(world, path, follow=follow) == kernel(root, path, follow=follow), (path, follow)
        finally:
            os.close(root)
            world.machine.close()


def test_the_longest_chain_of_links_is_the_kernels(tmp_path: Path) -> None:
    top = tmp_path / "root"
    top.mkdir()
    world = World(tmp_path / "state")
    world.user()
    session = world.login()
    world.put(session, "0")
    (top / "0").touch()
    for number in range(1, 43):
        world.ok(c.Symlink(session, (b"%d" % number,), b"%d" % (number - 1)))
        (top / str(number)).symlink_to(str(number - 1))
    root = os.open(top, os.O_RDONLY)
    answers = [kernel(root, [str(number)], follow=True) for number in range(43)]
    os.close(root)
    assert answers == [ours(world, [str(number)], follow=True) for number in range(43)]
    assert answers[40] == ["0"] and answers[41] == Code.LOOP
