"""A search that may be disturbed: the toy's, in a process of its own, with the journal, trainings and signals of a real run.

`python -m tests.disturbed FOLDER CONTROLLER GENERATIONS [SECONDS]` begins it or goes on; `evaluated.txt` there has a line an evaluation,
written before it begins.
"""

import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from evokd.config import Rung
from evokd.executor import Serial, Terms
from evokd.folder import locked
from evokd.funnel import Funnel
from evokd.genome.codec import to_names
from evokd.genome.individual import Outcome, Status
from evokd.journal import Journal, good_events
from evokd.resume import Place, go_on
from evokd.run import Budget, Search
from evokd.rungs import Halving
from evokd.search.ageing import AgeingEvolution
from evokd.search.evolution import Evolution
from evokd.search.front import FrontEvolution
from evokd.search.islands import Islands
from evokd.search.random import RandomSearch
from evokd.signals import Ending, Interrupted
from evokd.trainings import Trainings
from tests.toy import gate, judge, toy_grammar

CONTROLLERS = {
    "evolution": lambda grammar: Evolution(grammar, 8),
    "random": RandomSearch,
    "ageing": lambda grammar: AgeingEvolution(grammar, 10, 3),
    "nsga2": lambda grammar: FrontEvolution(grammar, 8, ["value"]),
    "steady": lambda grammar: Evolution(grammar, 8),
    "islands": lambda grammar: Islands([Evolution(grammar, 4), Evolution(grammar, 4)]),
}
SIZE = 8
LAGS = {"steady": 5}


def disturbed(folder: Path, controller: str, generations: int, seconds: float = 0.0) -> list[str]:
    """Texts evaluated by this process, once the search has come to its end."""
    folder.mkdir(exist_ok=True, parents=True)
    grammar, evaluated, lag = toy_grammar(), [], LAGS.get(controller, 0)

    def train_all(jobs):
        return iter(executor.map(([*to_names(individual), str(steps)] for individual, _, steps in jobs), lag or None))

    def train(job):
        *names, _ = job
        text = " ".join(job)
        evaluated.append(text)
        with (folder / "evaluated.txt").open("a") as file:
            file.write(text + "\n")
        time.sleep(seconds)
        return judge([grammar.nodes[name] for name in names])

    with ExitStack() as stack:
        stack.enter_context(locked(folder))
        events = good_events(folder, print) if (folder / "events.jsonl").exists() else None
        ending = stack.enter_context(Ending(folder, f"go on with {folder}"))
        executor = Serial(train)
        executor.terms = Terms(trainings=Trainings(folder, go_on=events is not None), ending=ending)
        place = Place(folder, events, [], executor.terms, steady=lag > 0)
        funnel = Funnel({"toy": gate})
        # half of a generation is refused after a rung, whose outcomes the journal does not have while it lasts
        halving = Halving([] if lag else [Rung(0.5, 1, 0.5)], 1, train_all, funnel)
        budget = Budget(generations, SIZE)
        search = Search(controller, grammar, CONTROLLERS[controller](grammar), funnel, halving.evaluate, budget, 3, lag=lag)
        search.screen, search.ledger = halving.screen, funnel.close
        go_on(search, place, lambda names: [grammar.nodes[name] for name in names])
        search.journal = Journal(folder)
        stack.callback(search.journal.close)

        def notice(summary):
            if summary is not None:
                search.journal.mark(generation=summary["generation"])
                place.generation_over()

        search.notice = notice
        print("ready", flush=True)
        search.run()
        search.journal.write("end")
        executor.terms.trainings.remove()
    return evaluated


class Faulty:
    """(kind, number) → the fault of that name, or an outcome."""

    def __init__(self, recipe, half=False):
        self.recipe, self.half = recipe, half

    def __call__(self, job):
        kind, number = job
        if kind == "raises":
            raise ZeroDivisionError("a fault")
        if kind == "hangs":
            while True:
                time.sleep(0.01)
        if kind == "exits":
            os._exit(9)
        if kind == "grows":
            held = bytearray(220 << 20)
            held[::4096] = b"x" * len(held[::4096])
            time.sleep(20)
        if kind == "gpu" or (kind == "gpu once" and not self.half):
            return Outcome(Status.OUT_OF_MEMORY, reason="CUDA out of memory", seconds=1.0)
        if kind == "cpu":
            return Outcome(Status.CRASHED, reason="RuntimeError: DefaultCPUAllocator: can't allocate memory")
        return Outcome(Status.OK, float(number), seconds=2.0)

    def smaller(self):
        return Faulty(self.recipe, half=True)


def open_sleeper(recipe):
    def evaluate(job):
        Path(recipe, str(job)).write_text(str(os.getpid()))
        time.sleep(60)

    return evaluate


if __name__ == "__main__":
    try:
        disturbed(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), *map(float, sys.argv[4:]))
    except Interrupted as stop:
        print(stop)
        sys.exit(stop.code)
