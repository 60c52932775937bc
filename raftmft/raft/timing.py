"""How often a member ticks, how long it waits. The defaults of a node; tests and the simulation use their own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. A leader that hears no majority for `step_down_s` steps down; one whose disk does not answer for
    `stall_s` makes room for a member whose disk does.
    """

    tick_s: float = 0.02
    heartbeat_s: float = 0.1
    election_min_s: float = 0.5
    election_max_s: float = 1.0
    step_down_s: float = 0.9
    stall_s: float = 5.0
