"""The checker itself: histories made by hand, good and bad, and against a slow and simple one on small random ones."""

from __future__ import annotations

from itertools import permutations
from random import Random

import pytest

from tests.sim import linearizable
from tests.sim.linearizable import NEVER, Operation, Undecided, violation


def write(value: int, called: float, returned: float, key: int = 0) -> Operation:
    return Operation(key, True, value, called, returned)


def read(value: int, called: float, returned: float, key: int = 0) -> Operation:
    return Operation(key, False, value, called, returned)


GOOD = {
    "nothing": [],
    "the first value": [read(0, 1, 2)],
    "one after the other": [write(1, 1, 2), read(1, 3, 4), write(2, 5, 6), read(2, 7, 8)],
    "a read beside a write sees the old or the new": [write(1, 1, 9), read(0, 2, 3), read(1, 4, 5)],
    "two writes at once, either order": [write(1, 1, 9), write(2, 1, 9), read(2, 10, 11)],
    "an unanswered write that nobody saw": [write(1, 1, NEVER), read(0, 5, 6), read(0, 50, 60)],
    "an unanswered write that came late": [write(1, 1, NEVER), read(0, 5, 6), read(1, 50, 60)],
    "an unanswered write between others": [write(1, 1, NEVER), write(2, 2, 3), read(1, 4, 5), read(1, 6, 7)],
    "an unanswered read": [write(1, 1, 2), read(0, 3, NEVER)],
    "keys are apart": [write(1, 1, 2, key=1), read(0, 3, 4, key=2)],
    "a call at the very moment of a return may come first": [write(1, 1, 2), read(0, 2, 3)],
    "three readers and two writers": [write(1, 0, 10), write(2, 0, 10), read(1, 1, 4), read(2, 5, 8), read(2, 9, 12)],
}
BAD = {
    "a lost write": [write(1, 1, 2), read(0, 3, 4)],
    "back in time": [write(1, 1, 9), read(1, 2, 3), read(0, 4, 5)],
    "a value from nowhere": [write(1, 1, 2), read(7, 3, 4)],
    "a value before it was written": [read(1, 1, 2), write(1, 3, 4)],
    "an overwritten value again": [write(1, 1, 2), write(2, 3, 4), read(1, 5, 6)],
    "two readers see two orders": [write(1, 0, 10), write(2, 0, 10), read(1, 11, 12), read(2, 13, 14)],
    "flip-flop inside one overlap": [write(1, 0, 10), write(2, 0, 10), read(1, 1, 2), read(2, 3, 4), read(1, 5, 6)],
    "an unanswered write that came and went": [write(1, 1, NEVER), read(1, 2, 3), read(0, 4, 5)],
    "an unanswered write seen before its call": [read(1, 1, 2), write(1, 3, NEVER)],
    "only one key is wrong": [write(1, 1, 2, key=1), read(1, 3, 4, key=1), write(2, 1, 2, key=2), read(0, 3, 4, key=2)],
}


@pytest.mark.parametrize("name", GOOD)
def test_good(name: str) -> None:
    assert violation(GOOD[name]) is None


@pytest.mark.parametrize("name", BAD)
def test_bad(name: str) -> None:
    text = violation(BAD[name])
    assert text is not None and text.startswith("register ") and "reads" in text


def _by_trying_all(history: list[Operation]) -> bool:
    certain = [op for op in history if op.returned != NEVER]
    doubtful = [op for op in history if op.returned == NEVER and op.writes]
    for chosen in range(1 << len(doubtful)):
        happened = certain + [op for at, op in enumerate(doubtful) if chosen >> at & 1]
        for order in permutations(happened):
            if any(later.returned < op.called for at, op in enumerate(order) for later in order[at + 1:]):
                continue
            value, fits = 0, True
            for op in order:
                if op.writes:
                    value = op.value
                elif op.value != value:
                    fits = False
                    break
            if fits:
                return True
    return False


def test_agrees_with_trying_every_order() -> None:
    rng, bad = Random(1), 0
    for _ in range(600):
        history: list[Operation] = []
        for number in range(1, rng.randrange(3, 7)):
            called = rng.uniform(0, 10)
            returned = called + rng.uniform(0, 5) if rng.random() < 0.8 else NEVER
            writes = rng.random() < 0.5
            history.append(Operation(0, writes, number if writes else rng.randrange(0, 6), called, returned))
        expected = _by_trying_all(history)
        assert (violation(history) is None) == expected, history
        bad += not expected
    assert 100 < bad < 500, "the random histories are all alike"


def test_a_long_history_is_checked_quickly_and_one_late_lie_is_found() -> None:
    rng, history, value, now = Random(2), [], 0, 0.0
    for number in range(1, 2001):
        now += 1
        if rng.random() < 0.5:
            value = number
            history.append(write(number, now - rng.uniform(0, 3), now + rng.uniform(0, 0.4)))
        else:
            history.append(read(value, now - rng.uniform(0, 0.4), now + rng.uniform(0, 3)))
    assert violation(history) is None
    assert violation([*history, read(1, now + 10, now + 11)]) is not None


def test_what_takes_too_long_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linearizable, "MAX_STEPS", 50)
    with pytest.raises(Undecided):
        all_at_once = [make(n, 0, 100) for n in range(1, 9) for make in (write, read)]
        violation([*all_at_once, read(1, 101, 102), read(2, 101, 102)])
