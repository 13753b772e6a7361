"""Executors: jobs in, outcomes out, in the order of the jobs, whoever computed them. Serial in this process, or spawned workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, final

from evokd.errors import EvokdError
from evokd.genome.individual import Outcome, Status
from evokd.signals import Ending
from evokd.trainings import Trainings

POLL = 0.2  # seconds between two looks at signals, clocks and memory
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Terms:
    """On what terms a run has its jobs evaluated. Set as `executor.terms` before the first job; the default limits nothing.

    Attributes:
        timeout: seconds that a candidate may take.
        memory: bytes that a worker may have resident.
        trainings: outcomes of an earlier process, and where new ones are written down.
        ending: what may end the run.
    """

    timeout: float | None = None
    memory: int | None = None
    trainings: Trainings = field(default_factory=Trainings)
    ending: Ending = field(default_factory=Ending)


def check_limits(memory_gib: float | None, executor: Any) -> None:
    """Raises EvokdError for a limit that cannot be kept: this process cannot be ended for one candidate."""
    if memory_gib and isinstance(executor, Serial):
        raise EvokdError("--memory-gib", "two workers or more, which can be ended", "one process", "take --workers 2")


@final
class Serial:
    """Evaluates in this process. A time limit is an alarm here, which waits for the operation in hand."""

    def __init__(self, evaluate: Callable[[Any], Outcome]) -> None:
        self.evaluate, self.terms = evaluate, Terms()

    def map(self, jobs: Iterable[Any]) -> Iterator[Outcome]:
        for job in jobs:
            known = self.terms.trainings.find(job)
            yield self.terms.trainings.keep(job, self.outcome(job)) if known is None else known

    def outcome(self, job: Any) -> Outcome:
        start = time.perf_counter()
        try:
            with self.terms.ending.dropping(), _alarm(self.terms.timeout):
                return attempt(self.evaluate, job)
        except _TimeUpError:
            return _late(self.terms.timeout, time.perf_counter() - start)

    def close(self) -> None:
        """Nothing to end."""


@final
class Workers:
    """Spawned processes, each with its own evaluator and one job at a time; a dead one is replaced, its candidate retried once.

    Args:
        count: processes.
        open_evaluator: importable function, called once in every worker with `recipe`.
        recipe: plain data.
    """

    def __init__(self, count: int, open_evaluator: Callable[[Any], Callable], recipe: Any) -> None:
        self.count, self.setup, self.terms = count, (open_evaluator, recipe), Terms()
        self._workers: list[_Worker] = []

    def map(self, jobs: Iterable[Any]) -> Iterator[Outcome]:
        jobs = list(jobs)
        done = {i: known for i, job in enumerate(jobs) if (known := self.terms.trainings.find(job)) is not None}
        waiting = deque(i for i in range(len(jobs)) if i not in done)
        retried: set[int] = set()

        def settle(place: int, outcome: Outcome) -> None:
            done[place] = self.terms.trainings.keep(jobs[place], outcome)

        try:
            for place in range(len(jobs)):
                while place not in done:
                    self._hand_out(jobs, waiting)
                    self._collect(settle, waiting, retried)
                self._hand_out(jobs, waiting)
                yield done.pop(place)
        finally:  # whoever stops listening has no use for what is still going on
            for worker in [w for w in self._workers if w.place is not None]:
                self._end(worker)

    def _hand_out(self, jobs: list, waiting: deque[int]) -> None:
        """Every idle worker gets a job; workers are started as they are needed."""
        idle = [worker for worker in self._workers if worker.place is None]
        while waiting and (idle or len(self._workers) < self.count):
            worker = idle.pop() if idle else self._start()
            if worker.process.is_alive():
                worker.take(waiting[0], jobs[waiting[0]])
                waiting.popleft()
            else:
                self._end(worker)

    def _collect(self, settle: Callable[[int, Outcome], None], waiting: deque[int], retried: set[int]) -> None:
        """Wait for news of a busy worker, for a moment at most; settle what is done, late, too large or dead."""
        busy = [worker for worker in self._workers if worker.place is not None]
        ready = wait([each for w in busy for each in (w.pipe, w.process.sentinel)], POLL)
        self.terms.ending.check()
        for worker in busy:
            place, outcome = worker.place, None
            if worker.pipe in ready:
                outcome = worker.news()
            if outcome is None:
                outcome = worker.over(self.terms)
                if outcome is not None:
                    self._end(worker)
            if outcome is None and worker.gone:
                self._end(worker)
                if place not in retried:
                    retried.add(place)
                    waiting.appendleft(place)
                    continue
                outcome = Outcome(Status.CRASHED, reason=f"the worker died ({worker.process.exitcode}), also on a second try")
            if outcome is not None:
                settle(place, outcome)

    def _start(self) -> _Worker:
        # Threads are limited before a worker imports torch: cores are not oversubscribed and results do not depend on their number.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        self._workers.append(_Worker(*self.setup))
        return self._workers[-1]

    def _end(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.end()

    def close(self) -> None:
        while self._workers:
            self._end(self._workers[0])


class _Worker:
    """One process as the driver sees it."""

    def __init__(self, open_evaluator: Callable[[Any], Callable], recipe: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, open_evaluator, recipe), daemon=True)
        with _deaf():
            self.process.start()
        theirs.close()
        self.place: int | None = None  # of the job in hand
        self.ready, self.gone, self.since = False, False, 0.0

    def take(self, place: int, job: Any) -> None:
        self.place, self.since = place, time.perf_counter()
        with suppress(OSError):  # it has just died, which is seen when its news are waited for
            self.pipe.send(job)

    def news(self) -> Outcome | None:
        """An outcome; None where the worker is ready to begin, or gone."""
        try:
            outcome = self.pipe.recv()
        except (EOFError, OSError):
            self.gone = True
            return None
        if outcome is None:
            self.ready, self.since = True, time.perf_counter()  # the start of a process is not the candidate's time
            return None
        self.place = None
        return outcome

    def over(self, terms: Terms) -> Outcome | None:
        """The outcome of a job that has gone beyond its limits."""
        seconds = time.perf_counter() - self.since
        if terms.timeout and self.ready and seconds > terms.timeout:
            return _late(terms.timeout, seconds)
        if terms.memory and (size := resident(self.process.pid)) > terms.memory:
            told = f"{size / 2**30:.2f} of {terms.memory / 2**30:.2f} GiB"
            return Outcome(Status.OUT_OF_MEMORY, reason=f"memory limit: {told} resident", seconds=seconds)
        return None

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def resident(pid: int) -> int:
    """Bytes of a process in memory; 0 where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError, ValueError):
        return 0


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


def _late(limit: float, seconds: float) -> Outcome:
    return Outcome(Status.TIMED_OUT, reason=f"time limit: {limit:g} seconds", seconds=seconds)


def _work(pipe: Any, open_evaluator: Callable[[Any], Callable], recipe: Any) -> None:
    """A worker's life. Ctrl-C is the driver's business; one that cannot start says why in every outcome, instead of dying."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_follow, daemon=True).start()
    try:
        evaluate = open_evaluator(recipe)
    except Exception as error:  # whatever it is, the driver should read it
        reason = f"the worker could not start: {type(error).__name__}: {error}"[:300]
        evaluate = lambda job: Outcome(Status.CRASHED, reason=reason)  # noqa: E731
    pipe.send(None)
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        pipe.send(_guarded(evaluate, job))


def _guarded(evaluate: Callable[[Any], Outcome], job: Any) -> Outcome:
    try:
        return attempt(evaluate, job)
    except Exception as error:  # it concerns this candidate alone
        return _told_memory(Outcome(Status.CRASHED, reason=f"{type(error).__name__}: {error}"[:200]))


def _follow() -> None:
    """A worker does not outlive its driver, however that died."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


@contextmanager
def _deaf() -> Iterator[None]:
    """Signals are held back while a process starts, which inherits it: between its first line and ours Ctrl-C would end it."""
    held = (signal.SIGINT, signal.SIGUSR1)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _TimeUpError(BaseException):
    """No Exception, which an evaluator would take for a candidate's own."""


@contextmanager
def _alarm(seconds: float | None) -> Iterator[None]:
    """Raises _TimeUpError within, in the main thread."""
    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: object) -> None:
        raise _TimeUpError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
