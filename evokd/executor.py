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
        self._pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        # Threads are limited before a worker imports torch: cores are not oversubscribed and results do not depend on their number.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        return ProcessPoolExecutor(self.count, multiprocessing.get_context("spawn"), _open, self.setup)

    def map(self, jobs: Iterable[Any]) -> Iterator[Outcome]:
        pool = self._pool
        waiting = [(job, pool.submit(_run, job)) for job in jobs]
        for job, future in waiting:
            yield self._collect(job, pool, future)

    def _collect(self, job: Any, pool: ProcessPoolExecutor, future: Future) -> Outcome:
        """A result, or CRASHED when the job kills its worker twice. A bystander of another's crash is retried alone."""
        for attempt in range(2):
            try:
                return future.result()
            except BrokenProcessPool:
                if pool is self._pool:
                    pool.shutdown(wait=False, cancel_futures=True)
                    self._pool = self._start()
                if attempt == 0:
                    pool = self._pool
                    future = pool.submit(_run, job)
        return Outcome(Status.CRASHED, reason="the worker died, also on a second try")

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _open(open_evaluator: Callable[[Any], Callable], recipe: Any) -> None:
    global _evaluate
    _evaluate = open_evaluator(recipe)


def _run(job: Any) -> Outcome:
    return _evaluate(job)
