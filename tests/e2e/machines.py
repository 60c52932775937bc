"""Machines that are as good as hosts: each has its own network, processes, host name, /etc, /opt and /var/lib.

They are namespaces on one bridge (`ip netns`, veth pairs; `unshare` for the rest), so only root can have them. Their
addresses are 10.77.0.x, and exist inside these namespaces only. `Machines.close` removes all that was made.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

NETWORK = "10.77.0"
CHECKOUT = Path(__file__).parents[2]
_LIVE = """
set -e
for part in etc opt var/lib; do mount --rbind "$1/$part" "/$part"; done
hostname "$2"
echo ready
while :; do sleep 3600 & wait $!; done
"""
"""The first process of a machine: it mounts what is the machine's own, and then only reaps."""

Done = subprocess.CompletedProcess[bytes]


def why_not() -> str:
    """Why there can be no machines here; empty if there can."""
    tools = ("ip", "unshare", "nsenter", "setpriv", "useradd")
    return "" if os.geteuid() == 0 and all(shutil.which(tool) for tool in tools) else \
        "needs root for network namespaces"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Machine:
    """One host. Its files lie below `folder`: the parts that are its own, and `home`, where its commands run."""

    def __init__(self, name: str, address: str, namespace: str, folder: Path, setup: str) -> None:
        self.name, self.address, self.home = name, address, folder / "home"
        self._namespace, self._setup = namespace, setup
        self.home.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, "unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child",
             "--mount-proc", "bash", "-c", _LIVE, "live", str(folder), name],
            stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line == b"ready\n", f"the machine {name} did not come up"
        pid = self._process.pid
        self._first = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]

    def run(self, script: str, *, check: bool = True, timeout_s: float = 120, network: bool = True,
            cwd: Path | None = None) -> Done:
        """A shell script as root of this machine; `network=False` leaves it in the network of the real one."""
        path = f"{self.home.parent / 'bin'}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAFTMFT_", "PYTHON"))}
        command = ["nsenter", "-t", self._first, "-m", "-u", "-p", *(["-n"] if network else []),
                   f"--wd={cwd or self.home}", "--", "bash", "-euo", "pipefail", "-c", f"{self._setup}\n{script}"]
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, stdin=subprocess.DEVNULL,
                              env={**kept, "PATH": path})
        assert not check or done.returncode == 0, \
            f"on {self.name}: {done.returncode}\n{script}\n{done.stdout.decode()}{done.stderr.decode()}"
        return done

    def json(self, command: str) -> Any:
        """The JSON answer of a command; empty when it gave none."""
        return json.loads(self.run(f"{command} -o json", check=False).stdout or b"{}")

    def plug(self, up: bool) -> None:
        """Puts the network cable in, or draws it."""
        _ip("-n", self._namespace, "link", "set", "eth0", "up" if up else "down")

    @property
    def log(self) -> str:
        """What the service wrote."""
        file = self.home.parent / "var/lib/raftmft.log"
        return file.read_text() if file.exists() else ""

    def close(self) -> None:
        """Ends all its processes."""
        self._process.kill()  # the first process dies with it (--kill-child), and all others with that
        self._process.wait()


class Machines:
    """All machines of a test, below `folder`; `setup` is run before each of their scripts."""

    def __init__(self, folder: Path, setup: str) -> None:
        self._folder, self._setup = folder, setup
        self._switch = f"raftmft-{os.getpid()}-switch"
        self._namespaces: list[str] = []
        self.all: list[Machine] = []

    def open(self) -> None:
        """Makes the bridge, in a namespace of its own."""
        self._namespace(self._switch)
        _ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "br0", "up")

    def _namespace(self, name: str) -> None:
        _ip("netns", "add", name)
        self._namespaces.append(name)
        _ip("-n", name, "link", "set", "lo", "up")

    def add(self, name: str, number: int, like: Machine | None = None) -> Machine:
        """A machine with the address 10.77.0.`number`; with `like`, what is installed there is installed here too."""
        folder = self._folder / name
        folder.mkdir()
        (folder / "var/lib").mkdir(parents=True)
        (folder / "bin").mkdir()
        (folder / "bin/systemctl").symlink_to(CHECKOUT / "tests/e2e/systemctl.py")
        source = like.home.parent / "etc" if like else Path("/etc")
        subprocess.run(["cp", "-a", str(source), str(folder / "etc")], check=True)
        if like:
            subprocess.run(["cp", "-a", str(like.home.parent / "opt"), str(folder / "opt")], check=True)
        else:
            (folder / "opt").mkdir()
        namespace, address = f"raftmft-{os.getpid()}-{name}", f"{NETWORK}.{number}"
        self._namespace(namespace)
        _ip("-n", self._switch, "link", "add", "name", f"to-{name}", "type", "veth", "peer",
            "name", "eth0", "netns", namespace)
        _ip("-n", self._switch, "link", "set", f"to-{name}", "master", "br0", "up")
        _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", namespace, "link", "set", "eth0", "up")
        self.all.append(Machine(name, address, namespace, folder, self._setup))
        return self.all[-1]

    def close(self) -> None:
        """Ends every process of every machine, and removes the namespaces with what is in them."""
        for machine in self.all:
            machine.close()
        for name in reversed(self._namespaces):
            _ip("netns", "del", name)
