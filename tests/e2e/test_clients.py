"""Contract 3: the clients that people use, each through every scenario that it has verbs for: it works at one node, and
another client sees the outcome at another. tests/e2e/clients holds the clients; `./scripts/clients` prints the table.
"""

from __future__ import annotations

import base64
import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.clients.base import Client, Door
from tests.e2e.clients.libraries import Asyncssh, Paramiko
from tests.e2e.clients.programs import Curl, Dropbear, Lftp, Pscp, Psftp, Rclone, Scp, Sftp, SftpRekey
from tests.e2e.harness import Cluster

CLIENTS: tuple[Client, ...] = (
    Sftp(), SftpRekey(), Dropbear(), Scp(), Lftp(), Rclone(), Curl(), Psftp(), Pscp(), Paramiko(), Asyncssh())
MIB = 1 << 20
ODD_NAME = "ein Wort, ünï & more+50%.txt"
THEN = 1_500_000_000
judge = Sftp()


class Place:
    """A client's own directory on the server, the doors of three nodes, and a local folder."""

    def __init__(self, doors: list[Door], remote: str, folder: Path) -> None:
        self.doors, self.remote, self.folder = doors, remote, folder
        self.random = random.Random(remote)
        judge.make(doors[0], remote)

    def file(self, name: str, size: int) -> Path:
        """A local file of that size that was written a while ago."""
        path = self.folder / name
        path.write_bytes(self.random.randbytes(size))
        os.utime(path, (THEN, THEN))
        return path

    def whole_and_part(self) -> tuple[Path, Path]:
        """A local file, and another that is its first part."""
        whole, part = self.file("whole", 2 * MIB), self.folder / "part"
        part.write_bytes(whole.read_bytes()[:MIB + 5])
        return whole, part

    def seen(self, door: Door, remote: str) -> Path:
        """The remote file as OpenSSH's sftp gets it there, with its times."""
        path = self.folder / "seen"
        path.unlink(missing_ok=True)
        judge.get(door, remote, path)
        return path


def upload(client: Client, place: Place) -> None:
    """A file of some MiB and an empty one; the content and, where the client keeps them, the times."""
    one, two, _ = place.doors
    for name, size in (("large", 3 * MIB + 77), (ODD_NAME, 0)):
        local = place.file("up", size)
        client.put(one, local, f"{place.remote}/{name}")
        seen = place.seen(two, f"{place.remote}/{name}")
        assert seen.read_bytes() == local.read_bytes()
        assert not client.keeps_times or size == 0 or seen.stat().st_mtime == THEN


def overwrite(client: Client, place: Place) -> None:
    """A shorter file over a longer one, through another node."""
    one, two, three = place.doors
    remote = f"{place.remote}/{ODD_NAME}"
    judge.put(one, place.file("longer", 200_000), remote)
    shorter = place.file("shorter", 1_000)
    client.put(two, shorter, remote)
    assert place.seen(three, remote).read_bytes() == shorter.read_bytes()


def download(client: Client, place: Place) -> None:
    """What OpenSSH's sftp put at another node."""
    one, _, three = place.doors
    local = place.file("source", 3 * MIB + 1)
    judge.put(one, local, f"{place.remote}/{ODD_NAME}")
    client.get(three, f"{place.remote}/{ODD_NAME}", place.folder / "down")
    assert (place.folder / "down").read_bytes() == local.read_bytes()
    assert not client.keeps_times or (place.folder / "down").stat().st_mtime == THEN


def tree(client: Client, place: Place) -> None:
    """A tree with odd names goes up at one node, and comes down at two others, by this client and by OpenSSH's."""
    one, two, three = place.doors
    local = place.folder / "tree"
    (local / "a b" / "ü").mkdir(parents=True)
    for name, size in (("plain", 70_000), (f"a b/{ODD_NAME}", 10), ("a b/ü/deep", 0)):
        (local / name).write_bytes(place.random.randbytes(size))
    client.put_tree(one, local, f"{place.remote}/tree")
    judge.get_tree(two, f"{place.remote}/tree", place.folder / "judged")
    client.get_tree(three, f"{place.remote}/tree", place.folder / "back")
    assert contents(place.folder / "judged") == contents(local)
    assert contents(place.folder / "back") == contents(local)


def names(client: Client, place: Place) -> None:
    """Makes, lists, renames and removes; each is seen at the next node."""
    one, two, three = place.doors
    folder = f"{place.remote}/made here"
    client.make(one, folder)
    judge.put(two, place.file("small", 10), f"{folder}/before")
    client.rename(three, f"{folder}/before", f"{folder}/{ODD_NAME}")
    assert client.names(one, folder) == judge.names(two, folder) == {ODD_NAME}
    client.remove(two, f"{folder}/{ODD_NAME}")
    assert judge.names(three, folder) == set()
    client.unmake(three, folder)
    assert "made here" not in judge.names(one, place.remote)


def resume_upload(client: Client, place: Place) -> None:
    """Goes on, at another node, behind the first part of a file."""
    one, two, three = place.doors
    whole, part = place.whole_and_part()
    judge.put(one, part, f"{place.remote}/whole")
    client.go_on_putting(two, whole, f"{place.remote}/whole")
    assert place.seen(three, f"{place.remote}/whole").read_bytes() == whole.read_bytes()


def resume_download(client: Client, place: Place) -> None:
    """Goes on, from another node, behind the first part of a file."""
    one, _, three = place.doors
    whole, part = place.whole_and_part()
    judge.put(one, whole, f"{place.remote}/whole")
    client.go_on_getting(three, f"{place.remote}/whole", part)
    assert part.read_bytes() == whole.read_bytes()


def password(client: Client, place: Place) -> None:
    """Logs in by password, at each node."""
    for door in place.doors:
        client.login(door)


SCENARIOS: dict[Callable[[Client, Place], None], tuple[str, ...]] = {
    upload: ("put",), overwrite: ("put",), download: ("get",), tree: ("put_tree", "get_tree"),
    names: ("make", "rename", "names", "remove", "unmake"), resume_upload: ("go_on_putting",),
    resume_download: ("go_on_getting",), password: ("login",)}
"""With the verbs that each needs of a client."""


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every path below it, with its bytes if it is a file."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
            for path in folder.rglob("*")}


def doors(cluster: Cluster, folder: Path) -> list[Door]:
    """The nodes' doors for the demo user."""
    user, known_hosts = cluster.about["users"][0], Path(cluster.about["known_hosts"])
    found = []
    for name in cluster.names:
        host, port = cluster.node(name)["sftp"].rsplit(":", 1)
        blob = next(words[2] for line in known_hosts.read_text().splitlines()
                    if (words := line.split())[0] == f"[{host}]:{port}" and words[1] == "ssh-ed25519")
        fingerprint = base64.b64encode(hashlib.sha256(base64.b64decode(blob)).digest()).decode()
        found.append(Door(int(port), user["name"], user["password"], Path(user["key"]), known_hosts, fingerprint,
                          folder, host))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_client(shared_cluster: Cluster, tmp_path: Path, client: Client,
                scenario: Callable[[Client, Place], None]) -> None:
    if client.missing():
        pytest.skip(client.missing())
    if why := client.lacks(*SCENARIOS[scenario]):
        pytest.skip(f"{client.name} cannot: {why}")
    own = tmp_path / "client"
    own.mkdir()
    place = Place(doors(shared_cluster, own), f"/clients {client.name} {scenario.__name__}", tmp_path)
    scenario(client, place)
