"""Seeds on all cores."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor

from tests.sim import quiet
from tests.sim.seeds import SECONDS, Report, run_seed


def _run(job: tuple[int, float, bool]) -> Report:
    seed, seconds, calm = job
    report = quiet.run_seed(seed, seconds) if calm else run_seed(seed, seconds)
    if not report.failure:
        report.trace = []
    return report


def run_many(seeds: Iterable[int], seconds: float = SECONDS, *, jobs: int = 0, calm: bool = False) -> Iterator[Report]:
    """Reports in the order of the seeds, from processes that end with it; `jobs` of them, by default one a core.
    `calm`: the seeds of quiet.py.
    """
    work = [(seed, seconds, calm) for seed in seeds]
    jobs = min(jobs or len(os.sched_getaffinity(0)), len(work))
    if jobs <= 1:
        yield from map(_run, work)
        return
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))
    try:
        yield from pool.map(_run, work)
    finally:
        pool.shutdown(cancel_futures=True)
