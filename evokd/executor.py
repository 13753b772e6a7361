"""Executors: jobs in, outcomes out, in the order of the jobs, whoever computed them. Serial in this process, or workers elsewhere."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any, Protocol, final

from evokd.errors import EvokdError
from evokd.genome.individual import Outcome, Status
from evokd.processes import Processes
from evokd.signals import Ending
from evokd.trainings import Trainings
from evokd.worker import attempt

if TYPE_CHECKING:
    from evokd.config import Config

POLL = 0.2  # seconds between two looks at signals, clocks and memory
START = 60.0  # seconds that a worker may take to come up before its job is given to one that is idle


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


def in_this_process(config: Config, why: str) -> bool:
    """Whether this process evaluates: one worker is enough, or what others would need is not in files, and why.

    Raises:
        EvokdError: Ray was asked for, which needs it there.
    """
    if config.engine == "ray" and why:
        raise EvokdError("--engine ray", "teacher, student and training that every node can read from files", why)
    return bool(why) or (config.engine != "ray" and count_workers(config) == 1)


def count_workers(config: Config) -> int:
    """As configured, or one a core, at most 8."""
    return config.workers or min(os.cpu_count() or 1, 8)


def open_workers(config: Config, open_evaluator: Callable[[Any], Callable], recipe: Any, device: str) -> Workers:
    """As many as are configured, in the configured engine, for evaluations on a device.

    Raises:
        EvokdError: a cluster that is not there.
    """
    if config.engine == "processes":
        return Workers(count_workers(config), open_evaluator, recipe)
    from evokd.ray_actors import RayEngine

    engine = RayEngine(config.ray_address, float(device == "cuda") if config.ray_gpus is None else config.ray_gpus)
    return Workers(config.workers or engine.count(), open_evaluator, recipe, engine)


@final
class Serial:
    """Evaluates in this process. A time limit is an alarm here, which waits for the operation in hand."""

    def __init__(self, evaluate: Callable[[Any], Outcome]) -> None:
        self.evaluate, self.terms = evaluate, Terms()

    def map(self, jobs: Iterable[Any], ahead: int | None = None) -> Iterator[Outcome]:
        """Outcomes in the order of the jobs, each of which is taken when its outcome is asked for."""
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


class Worker(Protocol):
    """One that evaluates, as the driver sees it, wherever it lives: a process, or an actor of Ray's.

    Attributes:
        place: of the job in hand; None while idle.
        ready: it has come up.
        gone: it has died.
        since: when it was called for, came up, or took its job; of `time.perf_counter`.
        exitcode: what is known of its death.
    """

    place: int | None
    ready: bool
    gone: bool
    since: float
    exitcode: object

    def take(self, place: int, job: Any) -> None: ...

    def news(self) -> Outcome | None:
        """An outcome; None where the worker is ready to begin, or gone."""

    def resident(self) -> int:
        """Bytes in memory; 0 where nobody tells."""

    def end(self) -> None:
        """At once, whatever it is doing."""


class Engine(Protocol):
    """What workers live in."""

    def hire(self, open_evaluator: Callable[[Any], Callable], recipe: Any, terms: Terms) -> Worker: ...

    def listen(self, workers: Sequence[Any], seconds: float) -> list:
        """Those of which there is news, waited for so long at most."""


@dataclass
class _Queue:
    """Jobs on their way: taken from their source, waiting, in hand, done."""

    source: Iterator[Any]
    trainings: Trainings
    jobs: dict[int, Any] = field(default_factory=dict)
    waiting: deque[int] = field(default_factory=deque)
    done: dict[int, Outcome] = field(default_factory=dict)
    retried: set[int] = field(default_factory=set)
    taken: int = 0

    def take(self, until: float) -> None:
        """Jobs from the source until so many were taken in all."""
        while self.taken < until:
            try:
                job = next(self.source)
            except StopIteration:
                return
            known = self.trainings.find(job)
            if known is None:
                self.jobs[self.taken] = job
                self.waiting.append(self.taken)
            else:
                self.done[self.taken] = known
            self.taken += 1

    def settle(self, place: int, outcome: Outcome) -> None:
        self.done[place] = self.trainings.keep(self.jobs.pop(place), outcome)

    def died(self, place: int, exitcode: object) -> None:
        """With its worker: a job is tried once more."""
        if place in self.retried:
            self.settle(place, Outcome(Status.CRASHED, reason=f"the worker died ({exitcode}), also on a second try"))
        else:
            self.retried.add(place)
            self.waiting.appendleft(place)


@final
class Workers:
    """So many workers, each with its own evaluator and one job at a time; a dead one is replaced, its candidate retried once.

    Args:
        count: of workers.
        open_evaluator: importable function, called once in every worker with `recipe`.
        recipe: plain data.
        engine: what they live in.
    """

    def __init__(self, count: int, open_evaluator: Callable[[Any], Callable], recipe: Any, engine: Engine | None = None) -> None:
        self.count, self.setup, self.terms = count, (open_evaluator, recipe), Terms()
        self.engine = engine or Processes()
        self._workers: list[Worker] = []

    def map(self, jobs: Iterable[Any], ahead: int | None = None) -> Iterator[Outcome]:
        """Outcomes in the order of the jobs.

        Args:
            jobs: taken from where they come as workers need them.
            ahead: so many at most before the outcome of the first of them has been listened to; None takes all at once.
        """
        queue, place = _Queue(iter(jobs), self.terms.trainings), 0
        try:
            while True:
                queue.take(inf if ahead is None else place + ahead)
                if place == queue.taken:
                    return
                while place not in queue.done:
                    self._hand_out(queue)
                    self._collect(queue)
                self._hand_out(queue)
                yield queue.done.pop(place)
                place += 1
        finally:  # whoever stops listening has no use for what is still going on
            for worker in [w for w in self._workers if w.place is not None]:
                self._end(worker)

    def _hand_out(self, queue: _Queue) -> None:
        """Every idle worker gets a job; workers are hired as they are needed."""
        idle = [worker for worker in self._workers if worker.place is None]
        if idle and not queue.waiting:
            self._call_back(queue)
        while queue.waiting and (idle or len(self._workers) < self.count):
            worker = idle.pop() if idle else self._hire()
            if worker.gone:
                self._end(worker)
            else:
                worker.take(queue.waiting[0], queue.jobs[queue.waiting[0]])
                queue.waiting.popleft()

    def _call_back(self, queue: _Queue) -> None:
        """A job whose worker does not come up, since a cluster has lost its place, is given to another."""
        late = [w for w in self._workers if not w.ready and time.perf_counter() - w.since > START]
        for worker in late[:1]:
            queue.waiting.append(worker.place)
            self._end(worker)

    def _collect(self, queue: _Queue) -> None:
        """Wait for news of a busy worker, for a moment at most; settle what is done, late, too large or dead."""
        busy = [worker for worker in self._workers if worker.place is not None]
        told = self.engine.listen(busy, POLL)
        self.terms.ending.check()
        for worker in busy:
            place, outcome = worker.place, worker.news() if worker in told else None
            if outcome is None and not worker.gone:
                outcome = _over(worker, self.terms)
                if outcome is not None:
                    self._end(worker)
            if outcome is not None:
                queue.settle(place, outcome)
            elif worker.gone:
                self._end(worker)
                queue.died(place, worker.exitcode)

    def _hire(self) -> Worker:
        self._workers.append(self.engine.hire(*self.setup, self.terms))
        return self._workers[-1]

    def _end(self, worker: Worker) -> None:
        self._workers.remove(worker)
        worker.end()

    def close(self) -> None:
        while self._workers:
            self._end(self._workers[0])


def _over(worker: Worker, terms: Terms) -> Outcome | None:
    """The outcome of a job that has gone beyond its limits."""
    seconds = time.perf_counter() - worker.since
    if terms.timeout and worker.ready and seconds > terms.timeout:  # the start of a worker is not the candidate's time
        return _late(terms.timeout, seconds)
    if terms.memory and (size := worker.resident()) > terms.memory:
        told = f"{size / 2**30:.2f} of {terms.memory / 2**30:.2f} GiB"
        return Outcome(Status.OUT_OF_MEMORY, reason=f"memory limit: {told} resident", seconds=seconds)
    return None


def _late(limit: float, seconds: float) -> Outcome:
    return Outcome(Status.TIMED_OUT, reason=f"time limit: {limit:g} seconds", seconds=seconds)


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
