"""`raftmft key export` and `key verify`, without a node: what they write, and one line for what is wrong."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from raftmft.cluster import keyexport
from raftmft.cluster.keyexport import KeyExport, WrongPassphrase, decode_export, encode_export
from raftmft.cluster.keyring import FIRST, NO_BASE, KeyRing, RingKey, name_of
from raftmft.core.errors import CorruptFile
from raftmft.node.datadir import DataDir
from raftmft.node.genesis import FirstMember, make_cluster
from raftmft.node.settings import Settings

PASSPHRASE = "correct horse battery"
K1, K2 = b"1" * 32, b"2" * 32


def make_member(folder: Path) -> DataDir:
    make_cluster("files", [FirstMember(folder, Settings("n1", "127.0.0.1", "127.0.0.1", 2222, 7400, 7400,
                                                        admin_port=7480))])
    return DataDir(folder)


@pytest.fixture
def member(tmp_path: Path) -> DataDir:
    return make_member(tmp_path / "d")


@pytest.fixture
def passphrase(tmp_path: Path) -> Path:
    return write_passphrase(tmp_path / "pass", PASSPHRASE + "\n")


def write_passphrase(path: Path, text: str) -> Path:
    path.touch(0o600)
    path.write_text(text)
    return path


def run(*words: object) -> subprocess.CompletedProcess[str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAFTMFT")}
    return subprocess.run([sys.executable, "-m", "raftmft", "key", *map(str, words)], capture_output=True, text=True,
                          timeout=60, env=plain, stdin=subprocess.DEVNULL)


def refused(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and len(lines) == 1 and not done.stdout, (done.returncode, done.stdout, lines)
    return lines[0]


def test_an_export_is_private_opens_again_and_shows_no_key(member: DataDir, passphrase: Path, tmp_path: Path) -> None:
    out, (ours,) = tmp_path / "export", KeyRing.load(member.cluster_key).keys()
    done = run("export", "--data-dir", member.path, "--passphrase-file", passphrase, "--out", out)
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    data = out.read_bytes()
    found = keyexport.read_export(out, PASSPHRASE)
    assert found.keys == (ours,) and found.cluster == "files"
    checked = run("verify", out, "--passphrase-file", passphrase, "--against", member.path, "-o", "json")
    assert checked.returncode == 0, checked.stderr
    told = json.loads(checked.stdout)
    assert (told["cluster"], told["cluster_id"], told["keys"]) == ("files", member.read_seed().cluster_id, ["first"])
    shown = (done.stdout + checked.stdout + repr(found)).encode() + data
    assert all(secret not in shown for secret in (ours.key, ours.key.hex().encode(), PASSPHRASE.encode()))
    # It may be the only one: it is not overwritten.
    assert "exists" in refused(run("export", "--data-dir", member.path, "--passphrase-file", passphrase, "--out", out))
    assert out.read_bytes() == data


def test_what_is_wrong_gets_one_line_and_no_file(member: DataDir, passphrase: Path, tmp_path: Path) -> None:
    out = tmp_path / "export"
    for text, words in (("short\n", "5 characters"), ("", "0 characters"), ("a" * 20 + "\n" + "b" * 20, "one line"),
                        ("x" * 5000, "one line")):
        bad = write_passphrase(tmp_path / "bad", text)
        line = refused(run("export", "--data-dir", member.path, "--passphrase-file", bad, "--out", out))
        assert words in line and str(bad) in line and not out.exists()
    passphrase.chmod(0o644)
    assert "chmod 600" in refused(run("export", "--data-dir", member.path, "--passphrase-file", passphrase, "--out",
                                      out))
    passphrase.chmod(0o600)
    assert "cannot be read" in refused(run("export", "--data-dir", member.path, "--passphrase-file", tmp_path / "no",
                                           "--out", out))
    assert "No such file" in refused(run("export", "--data-dir", member.path, "--passphrase-file", passphrase, "--out",
                                         tmp_path / "no" / "export"))
    KeyRing.load(member.cluster_key).rotated(FIRST, name_of(K2))
    assert "no key at this moment" in refused(run("export", "--data-dir", member.path, "--passphrase-file", passphrase,
                                                  "--out", out))
    assert not out.exists()


def test_verify_tells_an_export_that_is_out_of_date_or_of_another_cluster(
        member: DataDir, passphrase: Path, tmp_path: Path) -> None:
    out = tmp_path / "export"
    assert run("export", "--data-dir", member.path, "--passphrase-file", passphrase, "--out", out).returncode == 0
    other = make_member(tmp_path / "other")
    assert "is of the cluster" in refused(run("verify", out, "--passphrase-file", passphrase, "--against", other.path))
    ring = KeyRing.load(member.cluster_key)
    ring.offer(name_of(K2), FIRST, K2)
    ring.rotated(FIRST, name_of(K2))
    line = refused(run("verify", out, "--passphrase-file", passphrase, "--against", member.path))
    assert "the key was changed after" in line
    wrong = write_passphrase(tmp_path / "wrong", "wrong horse battery\n")
    assert "does not open with this passphrase" in refused(run("verify", out, "--passphrase-file", wrong))
    assert "is no key export" in refused(run("verify", member.path / "seed.json", "--passphrase-file", passphrase))


def test_every_flipped_bit_and_every_cut_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyexport, "SCRYPT_N", 2)
    export = KeyExport("files", "c1", 5, (RingKey(FIRST, NO_BASE, K1), RingKey(name_of(K2), FIRST, K2)))
    whole = encode_export(export, PASSPHRASE)
    assert decode_export("f", whole, PASSPHRASE) == export
    assert whole != encode_export(export, PASSPHRASE), "salted"
    for at in range(len(whole)):
        for data in (whole[:at], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:]):
            with pytest.raises(CorruptFile, match="^f "):
                decode_export("f", data, PASSPHRASE)
    with pytest.raises(WrongPassphrase):
        decode_export("f", whole, PASSPHRASE + " ")


def test_what_is_changed_by_somebody_who_mends_the_checksum_does_not_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyexport, "SCRYPT_N", 2)
    whole = encode_export(KeyExport("files", "c1", 5, (RingKey(FIRST, NO_BASE, K1),)), PASSPHRASE)
    for at in range(16, len(whole)):
        rest = whole[16:at] + bytes([whole[at] ^ 1]) + whole[at + 1:]
        with pytest.raises(WrongPassphrase):
            decode_export("f", whole[:12] + zlib.crc32(rest).to_bytes(4, "big") + rest, PASSPHRASE)
