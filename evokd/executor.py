"""Executors: jobs in, outcomes out, in the order of the jobs, whoever computed them. Serial in this process, or spawned workers."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from evokd.genome.individual import Outcome, Status

_evaluate: Callable[[Any], Outcome] | None = None  # a worker's own evaluator


class Serial:
    """Evaluates in this process."""

    def __init__(self, evaluate: Callable[[Any], Outcome]) -> None:
        self.evaluate = evaluate

    def map(self, jobs: Iterable[Any]) -> Iterator[Outcome]:
        return map(self.evaluate, jobs)

    def close(self) -> None:
        """Nothing to end."""


class Workers:
    """Spawned processes, each with its own evaluator; a dead worker costs its candidate one retry.

    Args:
        count: processes.
        open_evaluator: importable function, called once in every worker with `recipe`.
        recipe: plain data.
    """

    def __init__(self, count: int, open_evaluator: Callable[[Any], Callable], recipe: Any) -> None:
        self.count, self.setup = count, (open_evaluator, recipe)
        self._pool = self._start(count)
        self._lone: ProcessPoolExecutor | None = None

    def _start(self, count: int) -> ProcessPoolExecutor:
        # Threads are limited before a worker imports torch: cores are not oversubscribed and results do not depend on their number.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _open, self.setup)

    def map(self, jobs: Iterable[Any]) -> Iterator[Outcome]:
        waiting = [(job, self._submit(job)) for job in jobs]
        for job, future in waiting:
            try:
                yield future.result()
            except BrokenProcessPool:
                yield self._alone(job)

    def _submit(self, job: Any) -> Future:
        try:
            return self._pool.submit(_run, job)
        except (BrokenProcessPool, OSError):  # a pool that breaks while it starts a process says so by a closed handle
            self._pool.shutdown(wait=False)
            self._pool = self._start(self.count)
            return self._pool.submit(_run, job)

    def _alone(self, job: Any) -> Outcome:
        """The second try, in a process of its own: whoever killed the pool cannot meet a bystander again."""
        self._lone = self._lone or self._start(1)
        try:
            return self._lone.submit(_run, job).result()
        except BrokenProcessPool:
            self._lone.shutdown(wait=False)
            self._lone = None
            return Outcome(Status.CRASHED, reason="the worker died, also on a second try")

    def close(self) -> None:
        for pool in (self._pool, self._lone):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)


def _open(open_evaluator: Callable[[Any], Callable], recipe: Any) -> None:
    """A worker that cannot start says why in every outcome, instead of dying."""
    global _evaluate
    try:
        _evaluate = open_evaluator(recipe)
    except Exception as error:  # whatever it is, the driver should read it
        reason = f"the worker could not start: {type(error).__name__}: {error}"[:300]
        _evaluate = lambda job: Outcome(Status.CRASHED, reason=reason)  # noqa: E731


def _run(job: Any) -> Outcome:
    return _evaluate(job)
