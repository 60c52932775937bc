"""OpenSSH's client against a real worker: what a user does on the first day."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import blake3
import pytest

from tests.sftp.fake_node import FakeNode, random_file

SIZES = (0, 1, 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 9_000_001)


@pytest.mark.parametrize("size", SIZES)
def test_put_and_get(node: FakeNode, tmp_path: Path, size: int) -> None:
    data = random_file(tmp_path / "s", size)
    node.sftp(f"put {tmp_path}/s put{size}\nget put{size} {tmp_path}/back\n")
    assert node.content(f"put{size}") == data == (tmp_path / "back").read_bytes()
    assert node.files["anna"][(f"put{size}".encode(),)].digest == blake3.blake3(data).hexdigest()


def test_names(node: FakeNode, tmp_path: Path) -> None:
    data = random_file(tmp_path / "s", 10)
    node.sftp(f"mkdir d\nmkdir d/e\nput {tmp_path}/s d/e/x\nrename d/e/x d/y\nrmdir d/e\nchmod 600 d/y\n")
    assert node.content("d/y") == data
    listing = node.sftp("ls -l d\n").stdout
    assert b"-rw-------" in listing and b"y" in listing
    assert b"Remote working directory: /\n" in node.sftp("pwd\n").stdout
    node.sftp("rm d/y\nrmdir d\n")
    assert not node.has("d")


@pytest.mark.parametrize(("batch", "says"), [
    ("get missing /dev/null\n", b"not found"),
    ("ls missing\n", b"not found"),
    ("rmdir missing\n", b"No such file"),
    ("rm missing\n", b"No such file"),
    ("mkdir missing/sub\n", b"No such file"),
    ("put /etc/hostname missing/x\n", b"No such file"),
    ("mkdir " + "n" * 256 + "\n", b"Failure"),
    ("ln missing b\n", b"No such file"),
])
def test_refusals(node: FakeNode, batch: str, says: bytes) -> None:
    done = node.sftp(batch, check=False)
    assert done.returncode == 1 and says in done.stderr, done.stderr


def test_paths_cannot_climb_out_of_the_home(node: FakeNode, tmp_path: Path) -> None:
    random_file(tmp_path / "s", 10)
    node.sftp(f"put {tmp_path}/s mine\n")
    node.sftp(f"put {tmp_path}/s ../../../../climbed\n")
    assert node.has("climbed")
    assert not node.has("climbed", "bert")
    for path in ("../anna/mine", "/../anna/mine", "/etc/passwd"):
        assert node.sftp(f"get {path} {tmp_path}/x\n", user="bert", check=False).returncode == 1


def test_a_replacing_rename_and_an_overwrite(node: FakeNode, tmp_path: Path) -> None:
    one, two = random_file(tmp_path / "1", 100), random_file(tmp_path / "2", 50)
    node.sftp(f"put {tmp_path}/1 over\nput {tmp_path}/2 other\n")
    assert node.content("over") == one
    node.sftp(f"put {tmp_path}/2 over\n")
    assert node.content("over") == two
    node.sftp(f"put {tmp_path}/1 other\nrename other over\n")
    assert node.content("over") == one and not node.has("other")


def test_times_and_mode_come_along(node: FakeNode, tmp_path: Path) -> None:
    random_file(tmp_path / "s", 10)
    os.utime(tmp_path / "s", (1_234_567, 2_345_678))
    (tmp_path / "s").chmod(0o640)
    node.sftp(f"put -p {tmp_path}/s kept\nget -p kept {tmp_path}/back\n")
    file = node.files["anna"][(b"kept",)]
    assert file.mode == 0o640 and file.times == (1_234_567, 2_345_678)
    assert (tmp_path / "back").stat().st_mtime == 2_345_678


def test_many_names(node: FakeNode, tmp_path: Path) -> None:
    random_file(tmp_path / "s", 1)
    node.sftp("mkdir many\n")
    for number in range(1203):
        node._fs_mkdir(session=_a_session(node), path=[b"many", b"%05d" % number], mode=None)
    names = [line for line in node.sftp("ls -1 many\n").stdout.split() if line.startswith(b"many/")]
    assert names == [b"many/%05d" % number for number in range(1203)]


def _a_session(node: FakeNode) -> int:
    node.sessions[1] = "anna"
    return 1


def test_rekeying_in_the_middle(node: FakeNode, tmp_path: Path) -> None:
    data = random_file(tmp_path / "s", 12_000_000)
    node.sftp(f"put {tmp_path}/s rekey\nget rekey {tmp_path}/back\n", "-o", "RekeyLimit=1M")
    assert node.content("rekey") == data == (tmp_path / "back").read_bytes()


def test_small_buffers_and_many_requests(node: FakeNode, tmp_path: Path) -> None:
    data = random_file(tmp_path / "s", 3_000_000)
    node.sftp(f"put {tmp_path}/s small\nget small {tmp_path}/back\n", "-B", "1000", "-R", "200")
    assert node.content("small") == data == (tmp_path / "back").read_bytes()


def test_ctr_with_mac(node: FakeNode, tmp_path: Path) -> None:
    data = random_file(tmp_path / "s", 3_000_000)
    node.sftp(f"put {tmp_path}/s ctr\nget ctr {tmp_path}/back\n", "-c", "aes256-ctr", "-o", "MACs=hmac-sha2-256")
    assert node.content("ctr") == data == (tmp_path / "back").read_bytes()


@pytest.mark.parametrize("algorithm", [
    ("-c", "chacha20-poly1305@openssh.com"), ("-c", "aes128-cbc"), ("-o", "MACs=hmac-sha1", "-c", "aes128-ctr"),
    ("-o", "KexAlgorithms=diffie-hellman-group14-sha1")])
def test_what_is_not_offered(node: FakeNode, algorithm: tuple[str, ...]) -> None:
    command = [word for word in node.sftp_command(*algorithm) if word != "-q"]
    done = subprocess.run(command, input=b"pwd\n", capture_output=True, timeout=20)
    assert done.returncode != 0 and b"no matching" in done.stderr


def test_no_shell_no_exec_no_forwarding(node: FakeNode) -> None:
    command = ["ssh", *node.sftp_command()[5:-1], "anna@127.0.0.1"]
    port = ["-p", str(node.port)]
    options = [word for word in command[1:] if word not in ("-b",)]
    done = subprocess.run(["ssh", *port, *options, "id"], capture_output=True, timeout=20, stdin=subprocess.DEVNULL)
    assert done.returncode != 0 and b"uid=" not in done.stdout


def test_the_exit_status_is_zero(node: FakeNode) -> None:
    assert node.sftp("pwd\n").returncode == 0
