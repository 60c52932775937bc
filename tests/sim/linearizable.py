"""Are these reads and writes of registers linearizable? (Wing and Gong 1993, with Lowe's memory of what was tried.)

Each operation took effect at one moment between its call and its return; what nobody got an answer to may have taken
effect at any time after its call, or never. Keys are independent of each other, so each is checked for itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

NEVER = math.inf
UNREAD = -1
"""Stands for any value that nobody reads."""
MAX_STEPS = 200_000
"""Per key. A history that needs more is `Undecided`, and that is a failure of the simulation, to be looked at."""


@dataclass(frozen=True, slots=True)
class Operation:
    """`value` was written, or read. No two writes write the same value. `returned` is NEVER if the end is unknown."""

    key: int
    writes: bool
    value: int
    called: float
    returned: float
    who: str = ""

    def __str__(self) -> str:
        end = "never" if self.returned == NEVER else f"{self.returned:.4f}"
        return f"{self.called:.4f}..{end} {self.who} {'writes' if self.writes else 'reads'} {self.value}"


class Undecided(AssertionError):
    """The history takes too long to check."""


def violation(history: Iterable[Operation], initial: int = 0) -> str | None:
    """None if the history is linearizable, else what cannot be, in lines."""
    keys: dict[int, list[Operation]] = {}
    for operation in history:
        keys.setdefault(operation.key, []).append(operation)
    for key in sorted(keys):
        if (text := _violation_of_key(keys[key], initial)) is not None:
            return f"register {key} is not linearizable:\n{text}"
    return None


def _violation_of_key(history: list[Operation], initial: int) -> str | None:
    read = {op.value for op in history if not op.writes and op.returned != NEVER}
    # An unanswered read says nothing; an unanswered write whose value nobody saw may be held not to have happened.
    operations = sorted((op for op in history if op.returned != NEVER or (op.writes and op.value in read)),
                        key=lambda op: (op.called, op.returned))
    unheard_of = read - {op.value for op in operations if op.writes} - {initial}
    if unheard_of:
        return "\n".join(str(op) for op in operations if op.value in unheard_of)
    return _search(operations, initial)


def _search(operations: list[Operation], initial: int) -> str | None:
    """Depth first: a state is (which operations have taken effect, the register's value).

    Two things need no choice. A read of the present value may take effect at once: it changes nothing. And a write
    whose value nobody reads may take effect just before whichever write comes next, or beside others of its kind.
    """
    everything = (1 << len(operations)) - 1
    read = {op.value for op in operations if not op.writes}
    stack = [(0, initial)]
    tried: set[tuple[int, int]] = set()
    deepest, deepest_value = 0, initial
    steps = 0
    while stack:
        done, value = stack.pop()
        again = True
        while again:
            again = False
            candidates = _candidates(operations, done)
            steps += len(candidates)
            for at in candidates:
                if not operations[at].writes and operations[at].value == value:
                    done |= 1 << at
                    again = True
        if done == everything:
            return None
        if (done, value) in tried:
            continue
        tried.add((done, value))
        if done.bit_count() > deepest.bit_count():
            deepest, deepest_value = done, value
        if steps > MAX_STEPS:
            raise Undecided(f"a history of {len(operations)} operations took more than {MAX_STEPS} steps")
        unread = done
        for at in candidates:
            if operations[at].writes and operations[at].value not in read:
                unread |= 1 << at
        if unread != done:
            stack.append((unread, UNREAD))
        stack += [(unread | 1 << at, operations[at].value) for at in reversed(candidates)
                  if operations[at].writes and operations[at].value in read]
    stuck = [operations[at] for at in _candidates(operations, deepest)]
    past = [op for at, op in enumerate(operations) if deepest >> at & 1][-8:]
    return "\n".join([*map(str, past), f"then, while the register holds {deepest_value}, none of these fits:",
                      *map(str, stuck)])


def _candidates(operations: list[Operation], done: int) -> list[int]:
    """Those that may be next: called before any other that is left returned."""
    found: list[int] = []
    ends = NEVER
    first = ((done + 1) & ~done).bit_length() - 1
    for at in range(first, len(operations)):
        if done >> at & 1:
            continue
        operation = operations[at]
        if operation.called > ends:
            break
        found.append(at)
        ends = min(ends, operation.returned)
    return [at for at in found if operations[at].called <= ends]
