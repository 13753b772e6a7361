"""What happens within a worker, wherever it lives: its evaluator is opened once, and whatever a job does comes back as an outcome."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from evokd.genome.individual import Outcome, Status

PAGE = os.sysconf("SC_PAGE_SIZE")


def opened(open_evaluator: Callable[[Any], Callable], recipe: Any) -> Callable[[Any], Outcome]:
    """The evaluator; one that cannot be opened says why in every outcome, instead of dying."""
    try:
        return open_evaluator(recipe)
    except Exception as error:  # whatever it is, the driver should read it
        reason = f"the worker could not start: {type(error).__name__}: {error}"[:300]
        return lambda job: Outcome(Status.CRASHED, reason=reason)


def guarded(evaluate: Callable[[Any], Outcome], job: Any) -> Outcome:
    """The outcome of a job, whatever it raises."""
    try:
        return attempt(evaluate, job)
    except Exception as error:  # it concerns this candidate alone
        return _told_memory(Outcome(Status.CRASHED, reason=f"{type(error).__name__}: {error}"[:200]))


def attempt(evaluate: Callable[[Any], Outcome], job: Any) -> Outcome:
    """The outcome of a job; one that runs out of memory is tried once more by the evaluator's `smaller()`, if it has one."""
    outcome = _told_memory(evaluate(job))
    smaller = getattr(evaluate, "smaller", None)
    if outcome.status is not Status.OUT_OF_MEMORY or smaller is None:
        return outcome
    again = _told_memory(smaller()(job))
    reason = f"out of memory, then smaller: {again.reason or 'sound'}"
    seconds = outcome.seconds + again.seconds
    return replace(again, metrics=again.metrics | {"smaller": 1.0}, reason=reason, seconds=seconds)


def _told_memory(outcome: Outcome) -> Outcome:
    """Memory of the processor runs out in an ordinary exception, which its reason tells."""
    ran_out = outcome.reason.startswith("MemoryError") or "can't allocate memory" in outcome.reason
    return replace(outcome, status=Status.OUT_OF_MEMORY) if outcome.status is Status.CRASHED and ran_out else outcome


def resident(pid: int) -> int:
    """Bytes of a process in memory; 0 where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError, ValueError):
        return 0
