#!/usr/bin/python3
"""What `systemctl enable --now UNIT`, `stop` and `is-active` mean for a unit of Type=notify, without systemd.

Runs on a test's machine of its own (machines.py), by Debian's Python. Of the unit it obeys Type, User, ExecStart and
LimitNOFILE, and refuses what it would have to ignore wrongly.
"""

import configparser
import os
import resource
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

START_LIMIT_S, STOP_LIMIT_S = 60, 60
NOTIFY = "\0raftmft-notify"
"""An abstract address: each network namespace has its own."""


def read_unit(name: str) -> configparser.SectionProxy:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment]
    with open(f"/etc/systemd/system/{name}.service", encoding="utf-8") as file:
        unit.read_file(file)
    service = unit["Service"]
    if service["Type"] != "notify":
        sys.exit(f"systemctl: this stand-in starts units of Type=notify only, not {service['Type']}")
    return service


def pid_file(name: str) -> Path:
    return Path(f"/var/lib/{name}.pid")


def is_active(name: str) -> bool:
    try:
        pid = pid_file(name).read_text()
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def start(name: str) -> None:
    service = read_unit(name)
    # A sandbox may not let even root raise the limit.
    files = min(int(service["LimitNOFILE"]), resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, open(f"/var/lib/{name}.log", "ab") as log:
        notify.bind(NOTIFY)
        notify.settimeout(0.1)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        process = subprocess.Popen(
            ["setpriv", "--reuid", service["User"], "--regid", service["User"], "--init-groups", "--no-new-privs",
             *shlex.split(service["ExecStart"])], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True, cwd="/",
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "NOTIFY_SOCKET": "@" + NOTIFY[1:]})
        pid_file(name).write_text(str(process.pid))
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if b"READY=1" in notify.recv(4096).split(b"\n"):
                    return
            except TimeoutError:
                continue
    sys.exit(f"systemctl: {name} is not ready: {Path(f'/var/lib/{name}.log').read_text()[-2000:]}")


def stop(name: str) -> None:
    os.kill(int(pid_file(name).read_text()), signal.SIGTERM)
    deadline = time.monotonic() + STOP_LIMIT_S
    while is_active(name):
        if time.monotonic() > deadline:
            sys.exit(f"systemctl: {name} did not stop in {STOP_LIMIT_S} s")
        time.sleep(0.02)


def main(words: list[str]) -> None:
    if words[:2] == ["enable", "--now"] and len(words) == 3:
        start(words[2])
    elif words[:1] == ["stop"] and len(words) == 2:
        stop(words[1])
    elif words[:1] == ["is-active"] and len(words) == 2:
        sys.exit(0 if is_active(words[1]) else 3)
    else:
        sys.exit(f"systemctl: this stand-in knows nothing of {words}")


main(sys.argv[1:])
