"""Workers as processes of this machine: spawned, fed by a pipe with one job at a time, and ended with their driver."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, final

from evokd.genome.individual import Outcome
from evokd.worker import guarded, opened, resident

if TYPE_CHECKING:
    from evokd.executor import Terms


@final
class Processes:
    """The engine of one machine."""

    def hire(self, open_evaluator: Callable[[Any], Callable], recipe: Any, terms: Terms) -> Process:
        # Threads are limited before a worker imports torch: cores are not oversubscribed and results do not depend on their number.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        return Process(open_evaluator, recipe)

    def listen(self, workers: Sequence[Process], seconds: float) -> list[Process]:
        """Those whose pipe has news or has broken, or that have ended."""
        ready = wait([each for w in workers for each in (w.pipe, w.process.sentinel)], seconds)
        return [worker for worker in workers if worker.pipe in ready or worker.process.sentinel in ready]


@final
class Process:
    """One process as the driver sees it."""

    def __init__(self, open_evaluator: Callable[[Any], Callable], recipe: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, open_evaluator, recipe), daemon=True)
        with _deaf():
            self.process.start()
        theirs.close()
        self.place: int | None = None
        self.ready, self.broken, self.since = False, False, time.perf_counter()

    @property
    def gone(self) -> bool:
        return self.broken or (self.place is None and not self.process.is_alive())

    @property
    def exitcode(self) -> int | None:
        return self.process.exitcode

    def take(self, place: int, job: Any) -> None:
        self.place, self.since = place, time.perf_counter()
        with suppress(OSError):  # it has just died, which is seen when its news are waited for
            self.pipe.send(job)

    def news(self) -> Outcome | None:
        """An outcome, also one that it has left behind; None where the worker is ready to begin, or gone."""
        try:
            outcome = self.pipe.recv()
        except (EOFError, OSError):
            self.broken = True
            return None
        if outcome is None:
            self.ready, self.since = True, time.perf_counter()
            return None
        self.place = None
        return outcome

    def resident(self) -> int:
        return resident(self.process.pid)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _work(pipe: Any, open_evaluator: Callable[[Any], Callable], recipe: Any) -> None:
    """A worker's life. Ctrl-C is the driver's business."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_follow, daemon=True).start()
    evaluate = opened(open_evaluator, recipe)
    pipe.send(None)
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        pipe.send(guarded(evaluate, job))


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
