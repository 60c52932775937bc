"""Passwords: who is let in, what a refusal costs and leaves, and that strangers cannot fill the log."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from raftmft.core.commands import Login, LoginRefused
from raftmft.core.errors import NoQuorum, OutcomeUnknown
from raftmft.core.outcome import Code, Outcome
from raftmft.node import logins
from raftmft.node.link import Rejected
from raftmft.node.logins import Logins, hash_password, verify

HASH = hash_password("right")


class FakeEpoch:
    """Remembers commands; answers Login by script."""

    number = 1

    def __init__(self) -> None:
        self.commands: list[Any] = []
        self.answers: list[Any] = []
        self.barriers = 0
        self.reachable = True

    async def barrier(self) -> None:
        self.barriers += 1

    async def execute(self, command: Any) -> Outcome:
        if not self.reachable:
            raise NoQuorum("no quorum")
        self.commands.append(command)
        return Outcome(9)

    async def value(self, command: Any) -> dict[str, Any]:
        self.commands.append(command)
        answer = self.answers.pop(0) if self.answers else {"session": 7, "read_only": False, "uid": 1000}
        if isinstance(answer, Exception):
            raise answer
        return answer


def user(**changes: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"password_hash": HASH, "enabled": True, "credential": 4, **changes})


def make(users: dict[str, Any]) -> tuple[Logins, FakeEpoch]:
    epoch = FakeEpoch()
    table = SimpleNamespace(get=users.get, keys=lambda name: [SimpleNamespace(line="ssh-ed25519 AAAA")])
    state = SimpleNamespace(machine=SimpleNamespace(users=table))
    return Logins(state, epoch, "m1"), epoch  # type: ignore[arg-type]


async def test_the_right_password_commits_a_login_against_its_credential() -> None:
    service, epoch = make({"anna": user()})
    assert (await service.password("anna", "right", "1.2.3.4:5"))["session"] == 7
    assert epoch.barriers == 1, "a user just added elsewhere is seen"
    assert epoch.commands == [Login("m1", 1, "anna", "1.2.3.4:5", "password", 4)]


@pytest.mark.parametrize(
    "row", [None, user(), user(enabled=False), user(password_hash=None), user(password_hash="junk")]
)
async def test_everyone_else_gets_the_same_refusal_at_the_same_cost(
    row: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[str] = []

    def counting(stored: str, password: str) -> bool:
        verified.append(stored)
        return verify(stored, password)

    monkeypatch.setattr(logins, "verify", counting)
    service, epoch = make({} if row is None else {"anna": row})
    with pytest.raises(Rejected) as refusal:
        await service.password("anna", "wrong", "1.2.3.4:5")
    assert (refusal.value.code, str(refusal.value)) == (Code.PERMISSION, "wrong user or password")
    assert len(verified) == 1, "one hash is computed, whoever asks"
    await service.finish()
    assert [type(command) for command in epoch.commands] == [LoginRefused]


async def test_a_password_changed_meanwhile_is_checked_again() -> None:
    service, epoch = make({"anna": user()})
    epoch.answers = [Rejected(Code.STALE_CREDENTIAL, "changed"), {"session": 8, "read_only": False, "uid": 1}]
    assert (await service.password("anna", "right", "a:1"))["session"] == 8
    epoch.answers = [Rejected(Code.STALE_CREDENTIAL, "changed")] * 9
    with pytest.raises(Rejected):
        await service.password("anna", "right", "a:1")
    assert len(epoch.answers) == 9 - logins.CREDENTIAL_ATTEMPTS, "not for ever"


async def test_refusals_are_folded_and_bounded_and_survive_a_lost_quorum() -> None:
    service, epoch = make({})
    for number in range(1000):
        service.refused("root", f"1.2.3.4:{number}", "unknown user")
    for number in range(500):
        service.refused(f"user{number}", "5.6.7.8:1", "unknown user")
    epoch.reachable = False
    await service.finish()
    epoch.reachable = True
    await service.finish()
    [command] = epoch.commands
    counts = {record[:3]: record[3] for record in command.refusals}
    assert counts["1.2.3.4", "root", "unknown user"] == 1000
    assert len(counts) == logins.MOST_REFUSALS_A_SECOND + 1 and sum(counts.values()) == 1500


async def test_too_many_at_once_are_refused_and_not_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    release = trio.Event()

    async def slow(*_: Any, **__: Any) -> bool:
        await release.wait()
        return False

    monkeypatch.setattr(logins.trio.to_thread, "run_sync", slow)
    service, _ = make({"anna": user()})

    async def attempt() -> None:
        with pytest.raises(Rejected):
            await service.password("anna", "x", "a:1")

    async with trio.open_nursery() as nursery:
        for _ in range(logins.MOST_WAITING):
            nursery.start_soon(attempt)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Rejected) as refusal:
            await service.password("anna", "x", "a:1")
        assert refusal.value.code == Code.LIMIT
        release.set()


def test_long_and_odd_passwords_are_only_wrong() -> None:
    for password in ("", "\0", "x" * 5000, "\ud800", "\U0001f600" * 100):
        assert not verify(HASH, password)
    assert verify(HASH, "right") and not verify("not a hash", "right")
    assert HASH.startswith("$argon2id$v=19$m=19456,t=2,p=1$")


async def test_refusals_whose_commit_is_unknown_are_not_recorded_twice() -> None:
    service, epoch = make({})

    async def applied_but_unheard(command: Any) -> Outcome:
        epoch.commands.append(command)
        raise OutcomeUnknown("outcome unknown")

    service.refused("root", "1.2.3.4:5", "unknown user")
    answer, epoch.execute = epoch.execute, applied_but_unheard  # type: ignore[method-assign]
    await service.finish()
    epoch.execute = answer  # type: ignore[method-assign]
    await service.finish()
    assert len(epoch.commands) == 1
