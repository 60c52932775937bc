"""The cluster keys of one member, and the plan by which they change."""

from __future__ import annotations

import stat
import struct
from pathlib import Path

import pytest

from raftmft.cluster.keyring import FIRST, MOST_KEYS, KeyMissing, KeyRing, name_of
from raftmft.cluster.rotation import Rotation
from raftmft.core.errors import ConfigError, CorruptFile

K1, K2, K3, K4 = (bytes([n]) * 32 for n in range(1, 5))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    KeyRing.make(tmp_path / "cluster.key", K1)
    return tmp_path / "cluster.key"


def held(path: Path) -> set[str]:
    """What is on disk."""
    return set(KeyRing.load(path).names())


def test_the_file_is_private_and_tells_nothing_when_shown(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    current = KeyRing.load(path).current(FIRST)
    assert current is not None and current.key == K1 and "\\x01" not in repr(current)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        KeyRing.load(path)


@pytest.mark.parametrize("data, words", [
    (b"k" * 32, "no file of cluster keys"), (b"", "no file"), (b"RMFTKEYS" + struct.pack(">II", 9, 0), "format 9"),
    (b"RMFTKEYS" + struct.pack(">II", 1, 0) + b"x", "damaged")])
def test_other_files_are_refused_by_name(path: Path, data: bytes, words: str) -> None:
    path.write_bytes(data)
    with pytest.raises(CorruptFile, match=words) as refusal:
        KeyRing.load(path)
    assert str(path) in str(refusal.value)


def test_every_flipped_bit_is_found(path: Path) -> None:
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
        with pytest.raises(CorruptFile):
            KeyRing.load(path)


def test_an_offer_is_on_disk_and_takes_over_when_the_rotation_is_committed(path: Path) -> None:
    ring = KeyRing.load(path)
    ring.offer(name_of(K2), FIRST, K2)
    ring.offer(name_of(K3), FIRST, K3)
    assert held(path) == {FIRST, name_of(K2), name_of(K3)}
    assert ring.current(FIRST).key == K1
    ring.rotated(FIRST, name_of(K3))
    assert held(path) == {name_of(K3)}, "the old key and the offer that was not taken are erased"
    assert K1 not in path.read_bytes() and K2 not in path.read_bytes()
    assert ring.present(name_of(K3)) == K3
    with pytest.raises(KeyMissing):
        ring.present(FIRST)


def test_old_rotations_that_are_replayed_erase_nothing(path: Path) -> None:
    ring = KeyRing.load(path)
    for base, key in ((FIRST, K2), (name_of(K2), K3)):
        ring.offer(name_of(key), base, key)
        ring.rotated(base, name_of(key))
    ring.offer(name_of(K4), name_of(K3), K4)
    before = path.read_bytes()
    again = KeyRing.load(path)
    assert again.current(FIRST).key == K3, "the state is old: the ring knows better"
    again.rotated(FIRST, name_of(K2))
    assert again.current(name_of(K2)).key == K3
    again.rotated(name_of(K2), name_of(K3))
    assert path.read_bytes() == before


def test_who_missed_the_offer_has_nothing_until_it_fetched_the_key(path: Path) -> None:
    ring = KeyRing.load(path)
    ring.rotated(FIRST, name_of(K2))
    assert ring.current(name_of(K2)) is None and held(path) == set()
    with pytest.raises(ValueError, match="of that name"):
        ring.fetched(name_of(K2), K3)
    ring.fetched(name_of(K2), K2)
    assert KeyRing.load(path).current(name_of(K2)).key == K2


def test_wrong_offers_and_too_many(path: Path) -> None:
    ring = KeyRing.load(path)
    for name, base, key in ((FIRST, FIRST, K2), (name_of(K2), "other", K2), (name_of(K3), FIRST, K2),
                            (name_of(b"x"), FIRST, b"x")):
        with pytest.raises(ValueError):
            ring.offer(name, base, key)
    many = [bytes([n]) * 32 for n in range(100, 100 + 2 * MOST_KEYS)]
    for key in many:
        ring.offer(name_of(key), FIRST, key)
    assert len(held(path)) == MOST_KEYS and ring.current(FIRST).key == K1
    assert name_of(many[-1]) in held(path) and name_of(many[0]) not in held(path)


def test_a_failed_write_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = KeyRing.load(path)
    monkeypatch.setattr("os.rename", lambda *a: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError):
        ring.offer(name_of(K2), FIRST, K2)
    assert ring.names() == [FIRST] and held(path) == {FIRST}


def test_a_rotation_needs_a_majority_of_those_who_are_members_now() -> None:
    rotation = Rotation("", 7)
    assert rotation.to_ask(["a", "b", "c"], {"b", "x"}) == ["b"]
    rotation.holders |= {"a", "gone"}
    assert not rotation.may_commit(["a", "b", "c"]), "one of three"
    rotation.holders.add("b")
    assert rotation.may_commit(["a", "b", "c"]) and not rotation.may_commit(["a", "b", "c", "d"])
    assert rotation.to_ask(["a", "b", "c"], {"a", "b", "c"}) == ["c"]
    assert rotation.suits("", 7) and not rotation.suits("", 8) and not rotation.suits("k", 7)
    assert Rotation("", 7).key != rotation.key and repr(rotation.key) not in repr(rotation)
