"""Controllers on NAS-Bench-201 by table look-up, in the benchmark's protocol of 12,000 simulated seconds.

They see the validation accuracy on CIFAR-10 after 12 epochs and are judged by the incumbent's test accuracy after 200, on
CIFAR-10 and CIFAR-100. A repeated student is either paid for again, as published, or asked for anew, as evokd's loop does.

python -m tests.bench.tabular [--runs N] [--seconds S] [--first SEED] [CONTROLLER …]
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from evokd.controllers import CONTROLLERS, Wanted
from evokd.evaluate.tabular import Simulation, Table, read_table, simulate
from evokd.genome.grammar import Grammar
from evokd.genome.individual import Outcome, Status
from evokd.run import PATIENCE
from evokd.search.controller import Controller
from evokd.search.fresh import Prior
from evokd.search.local import LocalSearch
from evokd.streams import stream
from evokd.students import read_student_space
from evokd.students.space import StudentSpace

DATA = Path(os.environ.get("EVOKD_DATA", "../shared/data"))


@cache
def parameters_of(text: str) -> int:
    space = read_student_space("nas_bench_201")
    return space.cost(space.read(text), 10, 3, 32).parameters


def parameters(grammar: Grammar) -> Prior:
    """Parameters of a cell: a prior that costs nothing."""
    return lambda tree: parameters_of(grammar.write(tree))


def largest_first(grammar: Grammar) -> LocalSearch:
    """Starts are the largest of 200 random cells."""
    return LocalSearch(grammar, parameters(grammar))


def named(name: str, size: int = 1, prior: bool = False, **options) -> tuple[Callable[[Grammar], Controller], int]:
    """A controller of the command line, and the size of its generations."""
    mu = max(size, 10)
    make = CONTROLLERS[name]
    return lambda grammar: make(Wanted(grammar, mu, prior=parameters(grammar) if prior else None, **options)), size


ROWS: dict[str, tuple[Callable[[Grammar], Controller], int]] = {  # with the size of a generation
    "random": named("random"),
    "ageing, P10 S3": named("ageing"),
    "Algorithm 1": named("diswot"),
    "evolution, μ20": named("evolution", 20),
    "evolution, prior": named("evolution", 10, prior=True),
    "local": named("local"),
    "local, prior": named("local", prior=True),
    "REINFORCE": named("reinforce"),
    "PPO": named("ppo", 10),
    "TPE": named("tpe"),
}
SLOW = {"TPE": 10}  # as often fewer runs: seconds each
PUBLISHED = {  # Dong & Yang (ICLR 2020), 500 runs of the same protocol
    "random": "93.70 ± 0.36  71.04 ± 1.07",
    "ageing, P10 S3": "93.92 ± 0.30  71.84 ± 0.99",
    "REINFORCE": "93.85 ± 0.37  71.71 ± 1.09",
}


class Played:
    """A controller as `simulate` calls it: asked for one student after another, told by whole generations."""

    def __init__(self, space: StudentSpace, controller: Controller, size: int, seed: int, anew: bool) -> None:
        self.space, self.controller, self.size, self.seed, self.anew = space, controller, size, seed, anew
        self.generation, self.count, self.seen, self.batch = 0, 0, set(), []
        self.open()

    def open(self) -> None:
        self.stream = stream(self.seed, "generation", self.generation)

    def ask(self) -> str:
        for _ in range(PATIENCE if self.anew else 1):
            self.asked = self.controller.ask(self.generation, self.stream)
            key = self.space.key(self.asked)
            if key not in self.seen:
                break
        self.seen.add(key)
        return self.space.grammar.write(self.asked)

    def tell(self, text: str, accuracy: float) -> None:
        self.asked.id, self.count = self.count, self.count + 1
        self.asked.settle(Outcome(Status.OK, accuracy))
        self.batch.append(self.asked)
        if len(self.batch) == self.size:
            self.controller.tell(self.batch)
            self.generation, self.batch = self.generation + 1, []
            self.open()


def play(
    table: Table,
    space: StudentSpace,
    make: Callable[[Grammar], Controller],
    size: int = 1,
    seed: int = 0,
    anew: bool = False,
    seconds: float = 12_000.0,
) -> Simulation:
    """One run of a controller on the simulated clock.

    Args:
        table: of the space.
        space: all students.
        make: grammar → controller.
        size: of a generation.
        seed: of the streams.
        anew: whether a student seen before is asked for anew, rather than paid for again.
        seconds: the budget, simulated.
    """
    played = Played(space, make(space.grammar), size, seed, anew)
    return simulate(played.ask, played.tell, table, seconds)


def tests(table: Table, runs: list[Simulation], column: str) -> tuple[float, float]:
    """Mean and population deviation of the incumbents' test accuracies (%)."""
    values = [table.accuracy(run.best, column) for run in runs]
    return statistics.fmean(values), statistics.pstdev(values)


def main(given: argparse.Namespace) -> None:
    table, space = read_table("nas_bench_201", DATA), read_student_space("nas_bench_201")
    print(
        f"{given.seconds:,.0f} s; test accuracy (%) on CIFAR-10 and CIFAR-100, mean ± deviation; published: Dong & Yang, ICLR 2020"
    )
    for anew in (False, True):
        print("repeats asked for anew" if anew else "repeats paid for, as published")
        for name in given.names or ROWS:
            (make, size), seeds = ROWS[name], range(given.first, given.first + max(given.runs // SLOW.get(name, 1), 1))
            start = time.process_time()
            runs = [play(table, space, make, size, seed, anew, given.seconds) for seed in seeds]
            took = time.process_time() - start
            figures = "  ".join("{:.2f} ± {:.2f}".format(*tests(table, runs, column)) for column in ("cifar10", "cifar100"))
            looked = statistics.fmean(run.evaluations for run in runs)
            known = PUBLISHED.get(name, "") if given.seconds == 12_000 else ""
            print(f"  {name:<17}{figures}   {len(runs)} runs, {looked:5.1f} students   {took:5.1f} s   {known}", flush=True)


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--runs", type=int, default=500)
    options.add_argument("--seconds", type=float, default=12_000.0)
    options.add_argument("--first", type=int, default=0)
    options.add_argument("names", nargs="*")
    main(options.parse_args())
