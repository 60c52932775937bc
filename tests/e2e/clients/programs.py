"""Clients that are programs."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from tests.e2e.clients.base import Client, Door, quoted


class Sftp(Client):
    """OpenSSH's sftp."""

    programs, package, keeps_times = ("sftp",), "openssh-client", True
    options: tuple[str, ...] = ()

    def _batch(self, door: Door, *lines: str) -> str:
        return self.run(["sftp", "-q", "-b", "-", "-P", str(door.port), *door.ssh_options(), *self.options,
                         f"{door.user}@{door.host}"], "".join(f"{line}\n" for line in lines))

    def put(self, door: Door, local: Path, remote: str) -> None:
        self._batch(door, f"put -p {quoted(local)} {quoted(remote)}")

    def get(self, door: Door, remote: str, local: Path) -> None:
        self._batch(door, f"get -p {quoted(remote)} {quoted(local)}")

    def put_tree(self, door: Door, local: Path, remote: str) -> None:
        self._batch(door, f"put -r {quoted(local)} {quoted(remote)}")

    def get_tree(self, door: Door, remote: str, local: Path) -> None:
        self._batch(door, f"get -r {quoted(remote)} {quoted(local)}")

    def names(self, door: Door, remote: str) -> set[str]:
        lines = self._batch(door, f"cd {quoted(remote)}", "ls -1").splitlines()
        return {line for line in lines if not line.startswith("sftp>")}

    def make(self, door: Door, remote: str) -> None:
        self._batch(door, f"mkdir {quoted(remote)}")

    def rename(self, door: Door, old: str, new: str) -> None:
        self._batch(door, f"rename {quoted(old)} {quoted(new)}")

    def remove(self, door: Door, remote: str) -> None:
        self._batch(door, f"rm {quoted(remote)}")

    def unmake(self, door: Door, remote: str) -> None:
        self._batch(door, f"rmdir {quoted(remote)}")

    def go_on_putting(self, door: Door, local: Path, remote: str) -> None:
        self._batch(door, f"reput {quoted(local)} {quoted(remote)}")

    def go_on_getting(self, door: Door, remote: str, local: Path) -> None:
        self._batch(door, f"reget {quoted(remote)} {quoted(local)}")


class SftpRekey(Sftp):
    """OpenSSH's sftp, which asks for new keys every 256 KiB, amid its transfers."""

    options = ("-o", "RekeyLimit=256K")


class Dropbear(Sftp):
    """dropbear's client below OpenSSH's sftp: its guess of the key exchange is wrong."""

    programs, package = ("sftp", "dbclient", "dropbearconvert"), "dropbear-bin"

    def _batch(self, door: Door, *lines: str) -> str:
        key, program = door.folder / "dropbear.key", door.folder / f"dropbear-{door.port}"
        if not key.exists():
            self.run(["dropbearconvert", "openssh", "dropbear", str(door.key), str(key)])
        program.write_text(f'#!/bin/sh\nexec dbclient -y -y -i {key} -p {door.port} -s {door.user}@{door.host} sftp\n')
        program.chmod(0o700)
        return self.run(["sftp", "-q", "-b", "-", "-D", str(program)], "".join(f"{line}\n" for line in lines))


class Scp(Client):
    """OpenSSH's scp, which speaks SFTP."""

    programs, package, keeps_times = ("scp",), "openssh-client", True

    def _copy(self, door: Door, source: str, target: str, *options: str) -> None:
        self.run(["scp", "-q", "-p", "-P", str(door.port), *door.ssh_options(), *options, source, target])

    def put(self, door: Door, local: Path, remote: str) -> None:
        self._copy(door, str(local), f"{door.user}@{door.host}:{remote}")

    def get(self, door: Door, remote: str, local: Path) -> None:
        self._copy(door, f"{door.user}@{door.host}:{remote}", str(local))

    def put_tree(self, door: Door, local: Path, remote: str) -> None:
        self._copy(door, str(local), f"{door.user}@{door.host}:{remote}", "-r")

    def get_tree(self, door: Door, remote: str, local: Path) -> None:
        self._copy(door, f"{door.user}@{door.host}:{remote}", str(local), "-r")


class Lftp(Client):
    """lftp: mirror for trees, segmented downloads."""

    programs, package, keeps_times = ("lftp",), "lftp", True

    def _do(self, door: Door, *commands: str) -> str:
        connect = " ".join(["ssh", "-a", "-x", *door.ssh_options()])
        return self.run(["lftp", "-c", f'set sftp:connect-program "{connect}"; set net:max-retries 1; '
                         f"open sftp://{door.user}:x@{door.host}:{door.port} && " + " && ".join(commands)],
                        HOME=str(door.folder))

    def put(self, door: Door, local: Path, remote: str) -> None:
        self._do(door, f"put {quoted(local)} -o {quoted(remote)}")

    def get(self, door: Door, remote: str, local: Path) -> None:
        self._do(door, f"pget -n 3 {quoted(remote)} -o {quoted(local)}")

    def put_tree(self, door: Door, local: Path, remote: str) -> None:
        self._do(door, f"mirror -R {quoted(local)} {quoted(remote)}")

    def get_tree(self, door: Door, remote: str, local: Path) -> None:
        self._do(door, f"mirror {quoted(remote)} {quoted(local)}")

    def names(self, door: Door, remote: str) -> set[str]:
        return {line.rstrip("/") for line in self._do(door, f"cd {quoted(remote)}", "cls -1 -a").splitlines()} - {
            ".", ".."}

    def make(self, door: Door, remote: str) -> None:
        self._do(door, f"mkdir {quoted(remote)}")

    def rename(self, door: Door, old: str, new: str) -> None:
        self._do(door, f"mv {quoted(old)} {quoted(new)}")

    def remove(self, door: Door, remote: str) -> None:
        self._do(door, f"rm {quoted(remote)}")

    def unmake(self, door: Door, remote: str) -> None:
        self._do(door, f"rmdir {quoted(remote)}")

    def go_on_putting(self, door: Door, local: Path, remote: str) -> None:
        self._do(door, f"put -c {quoted(local)} -o {quoted(remote)}")

    def go_on_getting(self, door: Door, remote: str, local: Path) -> None:
        self._do(door, f"get -c {quoted(remote)} -o {quoted(local)}")


class Rclone(Client):
    """rclone; Debian's 1.60 sends WRITEs with bytes behind them. It asks for a shell to find its hash programs."""

    programs, package, keeps_times = ("rclone",), "rclone", True

    def _do(self, door: Door, *words: str) -> str:
        return self.run(["rclone", "--retries", "1", "--low-level-retries", "1", *words], RCLONE_CONFIG="/dev/null",
                        RCLONE_CONFIG_R_TYPE="sftp", RCLONE_CONFIG_R_HOST=door.host, HOME=str(door.folder),
                        RCLONE_CONFIG_R_PORT=str(door.port), RCLONE_CONFIG_R_USER=door.user,
                        RCLONE_CONFIG_R_KEY_FILE=str(door.key), RCLONE_CONFIG_R_KNOWN_HOSTS_FILE=str(door.known_hosts))

    def put(self, door: Door, local: Path, remote: str) -> None:
        self._do(door, "copyto", str(local), f"r:{remote}")

    def get(self, door: Door, remote: str, local: Path) -> None:
        self._do(door, "copyto", f"r:{remote}", str(local))

    def put_tree(self, door: Door, local: Path, remote: str) -> None:
        self._do(door, "sync", "--create-empty-src-dirs", str(local), f"r:{remote}")
        self._do(door, "check", "--download", str(local), f"r:{remote}")

    def get_tree(self, door: Door, remote: str, local: Path) -> None:
        self._do(door, "copy", "--create-empty-src-dirs", f"r:{remote}", str(local))

    def names(self, door: Door, remote: str) -> set[str]:
        return {line.rstrip("/") for line in self._do(door, "lsf", f"r:{remote}").splitlines()}

    def make(self, door: Door, remote: str) -> None:
        self._do(door, "mkdir", f"r:{remote}")

    def rename(self, door: Door, old: str, new: str) -> None:
        self._do(door, "moveto", f"r:{old}", f"r:{new}")

    def remove(self, door: Door, remote: str) -> None:
        self._do(door, "deletefile", f"r:{remote}")

    def unmake(self, door: Door, remote: str) -> None:
        self._do(door, "rmdir", f"r:{remote}")


class Curl(Client):
    """curl, which has libssh2."""

    programs, package = ("curl",), "curl"

    def _do(self, door: Door, path: str, *lines: str) -> str:
        settings = [f'user = "{door.user}:{door.password}"', f'hostpubsha256 = "{door.fingerprint}"', "silent",
                    "show-error", "fail", f"url = {quoted(f'sftp://{door.host}:{door.port}{quote(path)}')}"]
        return self.run(["curl", "--config", "-"], "".join(f"{line}\n" for line in [*settings, *lines]))

    def put(self, door: Door, local: Path, remote: str) -> None:
        self._do(door, remote, f"upload-file = {quoted(local)}")

    def get(self, door: Door, remote: str, local: Path) -> None:
        self._do(door, remote, f"output = {quoted(local)}")

    def names(self, door: Door, remote: str) -> set[str]:
        return set(self._do(door, f"{remote}/", "list-only").splitlines()) - {".", ".."}

    def _quote(self, door: Door, command: str) -> None:
        self._do(door, "/", f"quote = {quoted(command)}")

    def make(self, door: Door, remote: str) -> None:
        self._quote(door, f"mkdir {quoted(remote)}")

    def rename(self, door: Door, old: str, new: str) -> None:
        self._quote(door, f"rename {quoted(old)} {quoted(new)}")

    def remove(self, door: Door, remote: str) -> None:
        self._quote(door, f"rm {quoted(remote)}")

    def unmake(self, door: Door, remote: str) -> None:
        self._quote(door, f"rmdir {quoted(remote)}")

    def go_on_putting(self, door: Door, local: Path, remote: str) -> None:
        self._do(door, remote, f"upload-file = {quoted(local)}", "continue-at = -")

    def go_on_getting(self, door: Door, remote: str, local: Path) -> None:
        self._do(door, remote, f"output = {quoted(local)}", "continue-at = -")

    def login(self, door: Door) -> None:
        self.names(door, "")


class Putty(Client):
    """What PuTTY's two clients have in common."""

    package = "putty-tools"

    def _options(self, door: Door) -> list[str]:
        return ["-batch", "-P", str(door.port), "-hostkey", f"SHA256:{door.fingerprint.rstrip('=')}",
                "-pwfile", str(self._password_file(door))]

    @staticmethod
    def _password_file(door: Door) -> Path:
        file = door.folder / "putty-password"
        file.write_text(door.password + "\n")
        return file


class Psftp(Putty):
    """PuTTY's psftp; it quotes by doubling."""

    programs = ("psftp",)

    def _batch(self, door: Door, *lines: str) -> str:
        file = door.folder / "putty-batch"
        file.write_text("".join(f"{line}\n" for line in lines))
        return self.run(["psftp", *self._options(door), "-b", str(file), f"{door.user}@{door.host}"],
                        HOME=str(door.folder))

    def put(self, door: Door, local: Path, remote: str) -> None:
        self._batch(door, f"put {_doubled(local)} {_doubled(remote)}")

    def get(self, door: Door, remote: str, local: Path) -> None:
        self._batch(door, f"get {_doubled(remote)} {_doubled(local)}")

    def put_tree(self, door: Door, local: Path, remote: str) -> None:
        self._batch(door, f"put -r {_doubled(local)} {_doubled(remote)}")

    def get_tree(self, door: Door, remote: str, local: Path) -> None:
        self._batch(door, f"get -r {_doubled(remote)} {_doubled(local)}")

    def names(self, door: Door, remote: str) -> set[str]:
        lines = self._batch(door, f"ls {_doubled(remote)}").splitlines()
        return {line.split(None, 8)[8] for line in lines if line[:1] in "-dl" and len(line.split(None, 8)) > 8} - {
            ".", ".."}

    def make(self, door: Door, remote: str) -> None:
        self._batch(door, f"mkdir {_doubled(remote)}")

    def rename(self, door: Door, old: str, new: str) -> None:
        self._batch(door, f"mv {_doubled(old)} {_doubled(new)}")

    def remove(self, door: Door, remote: str) -> None:
        self._batch(door, f"del {_doubled(remote)}")

    def unmake(self, door: Door, remote: str) -> None:
        self._batch(door, f"rmdir {_doubled(remote)}")

    def go_on_putting(self, door: Door, local: Path, remote: str) -> None:
        self._batch(door, f"reput {_doubled(local)} {_doubled(remote)}")

    def go_on_getting(self, door: Door, remote: str, local: Path) -> None:
        self._batch(door, f"reget {_doubled(remote)} {_doubled(local)}")

    def login(self, door: Door) -> None:
        self._batch(door, "ls")


class Pscp(Putty):
    """PuTTY's pscp; a tree it puts only into a directory that is there, as with OpenSSH's server."""

    programs, keeps_times = ("pscp", "psftp"), True

    def _copy(self, door: Door, source: str, target: str, *options: str) -> str:
        return self.run(["pscp", "-q", "-p", "-sftp", *self._options(door), *options, source, target],
                        HOME=str(door.folder))

    def put(self, door: Door, local: Path, remote: str) -> None:
        self._copy(door, str(local), f"{door.user}@{door.host}:{remote}")

    def get(self, door: Door, remote: str, local: Path) -> None:
        self._copy(door, f"{door.user}@{door.host}:{remote}", str(local), "-unsafe")

    def put_tree(self, door: Door, local: Path, remote: str) -> None:
        Psftp().make(door, remote)
        for path in sorted(local.iterdir()):
            self._copy(door, str(path), f"{door.user}@{door.host}:{remote}", "-r")

    def get_tree(self, door: Door, remote: str, local: Path) -> None:
        self._copy(door, f"{door.user}@{door.host}:{remote}", str(local), "-r", "-unsafe")

    def login(self, door: Door) -> None:
        self._copy(door, str(self._password_file(door)), f"{door.user}@{door.host}:pscp-logged-in")


def _doubled(text: object) -> str:
    return '"' + str(text).replace('"', '""') + '"'
