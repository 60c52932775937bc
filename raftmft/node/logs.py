"""Where this node and its workers write their log lines: standard error, or a file of their own (`log_file`).

The node alone opens the file. Its workers, which may run as another user, inherit the descriptor as their standard
error; when the file is opened again they are handed the new one through their doors (node/workers.py).
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from raftmft.core.errors import ConfigError
from raftmft.wire.loglines import LineFormatter, fields, log_what_nobody_catches

log = logging.getLogger(__name__)

QUIET = ("asyncssh", "hypercorn", "hypercorn.error", "hypercorn.access", "pysyncobj")


class LogFile:
    """A log file that is always open, under one descriptor, also while `reopen` changes what that leads to."""

    def __init__(self, path: Path) -> None:
        """Opens or makes (0600) the file; ConfigError if that cannot be."""
        self._path = path
        try:
            self.fd = _open(path)
        except OSError as error:
            raise ConfigError(f"log_file {path} cannot be opened: {error.strerror}") from None
        self.stream = open(self.fd, "w", encoding="utf-8", errors="backslashreplace", closefd=False)

    def reopen(self) -> bool:
        """Lines go to the file that has the name now, a new one if there is none. False: they go where they went."""
        try:
            fd = _open(self._path)
        except OSError as error:
            log.error("%s cannot be opened again (%s): lines go on into the file from before", self._path,
                      error.strerror, extra=fields(file=self._path))
            return False
        os.dup2(fd, self.fd, inheritable=False)
        os.close(fd)
        return True


def set_up(level: str, log_format: str = "text", file: LogFile | None = None) -> None:
    """Sets the process's logging up. Libraries that would log per request or packet are held to warnings."""
    handler = logging.StreamHandler(None if file is None else file.stream)
    handler.setFormatter(LineFormatter("node", as_json=log_format == "json"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    log_what_nobody_catches()


def _open(path: Path) -> int:
    # NONBLOCK: a pipe without a reader is refused at once instead of waited for; it means nothing for a regular file.
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(0, "it is no regular file")
    return fd
