"""A search on a published table in place of training: fitness is looked up, and time is what the trainings took."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np

from evokd.config import StudentConfig
from evokd.errors import EvokdError
from evokd.evaluate.students import StudentJob
from evokd.evaluate.tabular import Table, read_table, simulate
from evokd.executor import Serial, in_this_process
from evokd.finals import Entry, Row
from evokd.genome.individual import Individual, Outcome, Status, content_key
from evokd.problem import check_writable
from evokd.run import Search
from evokd.streams import stream
from evokd.student_problem import StudentProblem, students_within, tables_folder
from evokd.students import read_student_space
from evokd.students.space import StudentSpace

RUNS = 300  # random searches beside the found student


class Figures(NamedTuple):
    """Columns of a table: what a search sees, what is told of the found student, and the images that they are of."""

    fitness: str
    told: tuple[str, ...]
    data: str
    images: tuple[int, int, int]


FIGURES = {
    "nas_bench_201": Figures("cifar10_12epochs", ("cifar10", "cifar100"), "cifar10", (10, 3, 32)),
    "nas_bench_macro": Figures("cifar10", ("cifar10",), "cifar10", (10, 3, 32)),
    "resnet_s0": Figures("distilled", ("distilled", "plain"), "cifar100", (100, 3, 32)),
}


@dataclass(frozen=True)
class Published:
    """The judge of a search on a table.

    Attributes:
        space: all students.
        table: what is known of them.
        figures: the columns in use.
        budget: simulated seconds; infinite without a limit.
    """

    space: StudentSpace
    table: Table
    figures: Figures
    budget: float

    def __call__(self, job: StudentJob) -> Outcome:
        tree = self.space.tree_from_names(job.student)
        fitness = self.table.accuracy(self.space.grammar.write(tree), self.figures.fitness)
        price = {"simulated_seconds": self.price(tree)} if self.table.training else {}
        return Outcome(Status.OK, fitness, {self.figures.fitness: fitness} | price)

    def price(self, tree: Sequence) -> float:
        """Simulated seconds of a student's training."""
        return self.table.seconds(self.space.grammar.write(tree), self.figures.fitness) if self.table.training else 0.0

    def spent(self, individuals: Sequence[Individual]) -> float:
        return sum(self.price(i) for i in individuals if i.ok)

    def screen(self, search: Search, batch: Sequence[Individual]) -> None:
        """As published: the student whose training would exceed the budget is discarded, and with it what comes after."""
        end = self.spent(search.individuals)
        for individual in batch:
            end += self.price(individual)
            if end > self.budget:
                reason = f"clock: trained at {end:,.0f} of {self.budget:,.0f} simulated seconds"
                individual.settle(Outcome(Status.REJECTED, reason=reason))

    def clock(self, search: Search) -> float:
        """Simulated time, with what the last generation had no time for: beyond the budget the search is over."""
        late = [i for i in search.individuals if not i.ok and i.generation == search.generation - 1]
        return self.spent(search.individuals) + sum(map(self.price, late))


def open_table_problem(config: StudentConfig) -> StudentProblem:
    """A table in place of data, teacher and training.

    Raises:
        EvokdError: a space without a table, a table that is not there, a budget in seconds without a clock, limits nothing meets.
    """
    space, table = read_student_space(config.space), read_table(config.space, tables_folder(config))
    if config.budget_seconds and not table.training:
        raise EvokdError("--budget-seconds", "a table with times of training", config.space, "limit --budget-evals instead")
    in_this_process(config, "a published table, which is read in no time")
    figures = FIGURES[config.space]
    check_writable(Path(config.out))
    within, latency = students_within(config, space, figures.images)
    published = Published(space, table, figures, config.budget_seconds or math.inf)
    card = {"data": figures.data, "teacher": "table", "student": space.name, "student_parameters": config.max_params or 0}
    clock = f" · {published.budget:,.0f} simulated seconds" if published.budget < math.inf else ""
    about = f"evokd · published table of {space.name}, fitness {figures.fitness}{clock}"
    key = content_key(f"{config.space}/{figures.fitness}/{len(table.rows)}")
    return StudentProblem(
        config, space, within, None, None, Serial(published), card, key, figures.images, about, published, latency
    )


def table_rows(problem: StudentProblem, search: Search, best: Individual, name: str) -> list[Row]:
    """The found student beside random search with the same simulated seconds (or look-ups) and the best of all, in every told column."""
    published, space = problem.table, problem.space
    texts = [space.write(genome) for genome in space.genomes() if problem.within.fits(genome)]
    lucky = list(_random_searches(published, texts, search))
    rows = []
    for column in published.figures.told:
        known = {text: published.table.accuracy(text, column) for text in texts}
        text, top = space.grammar.write(best), max(known, key=known.get)
        rows.append(Row(Entry(f"{name}, {column}", text), (known[text],)))
        rows.append(Row(Entry(f"random search, {column}", f"mean of {RUNS} runs"), tuple(known[each] for each in lucky)))
        rows.append(Row(Entry(f"best of all, {column}", top), (known[top],)))
    return rows


def _random_searches(published: Published, texts: Sequence[str], search: Search) -> Iterator[str]:
    """The incumbents of random searches with what this search has spent."""
    table, column, spent = published.table, published.figures.fitness, min(published.budget, published.clock(search))
    if not table.training:  # a look-up is what is counted
        table, spent = replace(table, training={column: np.ones(len(table.rows))}), float(search.trained)
    for run in range(RUNS):
        draw = _without_repeats(texts, stream(search.seed, "table", "random search", run))
        yield simulate(draw.__next__, lambda text, accuracy: None, table, spent, column).best


def _without_repeats(texts: Sequence[str], draw: Random) -> Iterator[str]:
    """Every text once, then the last one for ever."""
    seen: dict[str, None] = {}
    while True:
        text = draw.choice(texts)
        if text not in seen or len(seen) == len(texts):
            seen[text] = None
            yield text


def told_rows(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """The rows as a table with a column a figure; random search with the standard deviation of its runs."""
    kinds = [row.entry.name.rpartition(", ")[0] for row in rows[:3]]
    width = max(map(len, kinds)) + 3
    lines = [f"{'published figures':<{width}}" + "".join(f"{column:>16}" for column in columns)]
    for place, kind in enumerate(kinds):
        mine = rows[place::3]
        lines.append(f"{'  ' + kind:<{width}}" + "".join(f"{_figure(row):>16}" for row in mine) + f"   {mine[0].entry.text}")
    ahead = statistics.fmean(value < rows[0].mean for value in rows[1].values)
    return [*lines, f"{columns[0]}: ahead of {ahead:.0%} of the random searches, which spent as much"]


def _figure(row: Row) -> str:
    return f"{row.mean:.2f}" + (f" ± {statistics.stdev(row.values):.2f}" if len(row.values) > 1 else "")
