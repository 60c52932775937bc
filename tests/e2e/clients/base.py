"""What every client is to the tests: verbs that a client has or, with a reason, has not."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Door:
    """One node's SFTP port, and what opens it. `folder` is where clients may keep files of their own."""

    port: int
    user: str
    password: str
    key: Path
    known_hosts: Path
    fingerprint: str
    folder: Path
    host: str = "127.0.0.1"

    def ssh_options(self) -> list[str]:
        """For OpenSSH: this key, this host key, nothing of the machine's own settings."""
        return ["-F", "/dev/null", "-i", str(self.key), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
                "-o", f"UserKnownHostsFile={self.known_hosts}"]


WHY_NOT = {
    "put": "it does not upload",
    "get": "it does not download",
    "put_tree": "it knows files only",
    "get_tree": "it knows files only",
    "names": "it lists nothing",
    "make": "it makes no directories",
    "rename": "it does not rename",
    "remove": "it does not remove",
    "unmake": "it removes no directories",
    "go_on_putting": "it begins anew, or its way to go on is not tested",
    "go_on_getting": "it begins anew, or its way to go on is not tested",
    "login": "its login by password is not tested",
}
"""Of verbs that some clients have not, or are not tested for."""


@dataclass(frozen=True)
class Client:
    """One client. Paths on the server are absolute texts. A verb that fails raises; which are missing is told by
    `lacks`. `keeps_times`: what get and put carry over besides the content, when asked to.
    """

    programs: ClassVar[tuple[str, ...]] = ()
    package: ClassVar[str] = ""
    keeps_times: ClassVar[bool] = False
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As the table names it."""
        return type(self).__name__.lower()

    def missing(self) -> str:
        """"" if it is installed, else the reason for a skip."""
        absent = [program for program in self.programs if shutil.which(program) is None]
        return f"{absent[0]} is missing: apt-get install {self.package}" if absent else ""

    def lacks(self, *verbs: str) -> str:
        """Why the first of these verbs that the client does not have is not there; "" if it has all."""
        return next((WHY_NOT[verb] for verb in verbs if getattr(type(self), verb) is getattr(Client, verb)), "")

    def put(self, door: Door, local: Path, remote: str) -> None:
        """Uploads a file, with its times if the client keeps them."""
        raise NotImplementedError

    def get(self, door: Door, remote: str, local: Path) -> None:
        """Downloads a file, with its times if the client keeps them."""
        raise NotImplementedError

    def put_tree(self, door: Door, local: Path, remote: str) -> None:
        """Uploads a directory as the new directory `remote`."""
        raise NotImplementedError

    def get_tree(self, door: Door, remote: str, local: Path) -> None:
        """Downloads a directory as the new directory `local`."""
        raise NotImplementedError

    def names(self, door: Door, remote: str) -> set[str]:
        """What stands in a directory."""
        raise NotImplementedError

    def make(self, door: Door, remote: str) -> None:
        """Makes a directory."""
        raise NotImplementedError

    def rename(self, door: Door, old: str, new: str) -> None:
        """Renames."""
        raise NotImplementedError

    def remove(self, door: Door, remote: str) -> None:
        """Removes a file."""
        raise NotImplementedError

    def unmake(self, door: Door, remote: str) -> None:
        """Removes an empty directory."""
        raise NotImplementedError

    def go_on_putting(self, door: Door, local: Path, remote: str) -> None:
        """Goes on with an upload of which a first part is there."""
        raise NotImplementedError

    def go_on_getting(self, door: Door, remote: str, local: Path) -> None:
        """Goes on with a download of which a first part is there."""
        raise NotImplementedError

    def login(self, door: Door) -> None:
        """Logs in with the door's password, and looks at the home."""
        raise NotImplementedError

    def run(self, words: list[str], text: str = "", **environment: str) -> str:
        """Runs a program; its output. AssertionError with what it said if it fails."""
        done = subprocess.run(words, input=text.encode(), capture_output=True, timeout=LIMIT_S,
                              env={**os.environ, **self.environment, **environment}, check=False)
        said = done.stdout.decode(errors="replace")
        assert done.returncode == 0, f"{words[0]}: {done.returncode} {said}\n{done.stderr.decode(errors='replace')}"
        return said


def quoted(text: object) -> str:
    """For a batch line."""
    return '"' + str(text).replace("\\", "\\\\").replace('"', '\\"') + '"'
