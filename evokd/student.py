"""Evolve a student from end to end: score every architecture without training, distil the most promising, compare the winner.

DisWOT (CVPR 2023) and AKD (CVPR 2020) on the engine of the distillers: the genome is a student, the evaluator a cascade of a
training-free score and short distillations.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import tee
from pathlib import Path
from random import Random
from typing import Any

from evokd.config import StudentConfig, make_config, read_config, resumed_config
from evokd.controllers import check_controller, make_student_controller
from evokd.evaluate.distill import DivergedError
from evokd.evaluate.students import StudentJob
from evokd.finals import Entry, Row
from evokd.funnel import Funnel, funnel_rows, part_of, told_funnel
from evokd.genome.codec import to_names
from evokd.genome.individual import Individual, Outcome, Status
from evokd.journal import Journal
from evokd.memory import kept_for_others
from evokd.mirror import Mirror
from evokd.report.lineage import write_end
from evokd.report.page import write_report
from evokd.report.terminal import Terminal
from evokd.resume import Place, check_named, go_on, journal_of, listening, take_place
from evokd.run import Budget, Search, evaluation_seeds, priced
from evokd.rungs import Halving, Training
from evokd.search.controller import Controller
from evokd.search.random import RandomSearch
from evokd.student_export import TrainedStudent, export_architecture, export_student, own_judge, train_final
from evokd.student_finals import TIERS, choose, final_rows, luck, text_of, write_student_front
from evokd.student_problem import StudentProblem, beside_human, open_student_problem
from evokd.students import read_definition
from evokd.students.cost import Limited
from evokd.tabular_search import open_table_problem, table_rows, told_rows

ROW_NAMES = {"evolution": "evolved", "random": "random search"}


@dataclass(frozen=True)
class Within:
    """A controller whose proposals keep the limits: a genome beyond them is mended slot by slot, none is thrown away."""

    controller: Controller
    within: Limited

    def ask(self, generation: int, stream: Random) -> Individual:
        proposal = self.controller.ask(generation, stream)
        mended = self.within.repair(proposal, stream)
        return proposal if mended is proposal else Individual(list(mended), op=proposal.op, parents=proposal.parents)

    def tell(self, individuals: Sequence[Individual]) -> None:
        self.controller.tell(individuals)


def student_search(problem: StudentProblem) -> Search:
    """The search of a problem, not yet run."""
    config = problem.config
    seeds = evaluation_seeds(config.seed, "search", config.protocol.repeats)
    tier, scores, funnel = TIERS.get(config.evaluator, config.evaluator), {}, Funnel()

    def train(jobs: Iterable[Training]) -> Iterator[Outcome]:
        wanted = (problem.job(i, tier, seeds[first:last], steps) for i, (first, last), steps in jobs)
        return iter(problem.executor.map(wanted, config.lag or None))

    def evaluate(batch: Iterable[Individual]) -> Iterator[Outcome]:
        batch, again = tee(batch)
        for individual, outcome in zip(batch, halving.evaluate(again), strict=True):
            yield replace(outcome, metrics=outcome.metrics | scores.get(individual.id, {}) | problem.figures(individual))

    def screen(batch: Sequence[Individual]) -> None:
        if config.evaluator == "cascade":
            with funnel.passing("score", len(batch)) as passage:
                scored(batch)
                passage.left += sum(i.outcome is None for i in batch)
        halving.screen([i for i in batch if i.outcome is None])

    def scored(batch: Sequence[Individual]) -> None:
        for individual, outcome in zip(batch, problem.executor.map([problem.job(i, "score", seeds) for i in batch]), strict=True):
            scores[individual.id] = outcome.metrics
            if outcome.fitness is None:
                individual.settle(replace(outcome, status=Status.REJECTED, metrics=problem.figures(individual)))
        sound = [i for i in batch if i.outcome is None]
        _promote(sound, scores, part_of(len(sound), promoted), problem)

    controller = Within(make_student_controller(problem), problem.within)
    promoted = config.promote if config.evaluator == "cascade" else 1.0
    rungs = config.rungs if tier in ("distill", "train") else ()
    halving = Halving(rungs, len(seeds), train, funnel, brackets=config.brackets if rungs else ())
    share = promoted * (config.share if rungs else 1.0)
    budget = Budget.of(config, share)
    search = Search(
        config.controller, problem.grammar, controller, lambda tree: "", evaluate, budget, config.seed, lag=config.lag
    )
    search.screen, search.ledger = screen, funnel.close
    if tier in ("distill", "train"):
        search.price = priced(halving, config.protocol, problem.card["images"])
    if problem.table:
        search.screen = lambda batch: problem.table.screen(search, batch)
    search.identity = problem.space.key
    return search


def _promote(batch: Sequence[Individual], scores: dict[int, dict], count: int, problem: StudentProblem) -> None:
    """Those with the best scores go on; the others are refused with their place."""
    order = sorted(batch, key=lambda i: (-scores[i.id]["score"], i.id))
    for place, individual in list(enumerate(order, 1))[count:]:
        reason = f"score: place {place} of {len(order)} by {problem.config.score}"
        metrics = scores[individual.id] | problem.figures(individual)
        individual.settle(Outcome(Status.REJECTED, metrics=metrics, reason=reason))


def random_students(problem: StudentProblem, count: int) -> list[Individual]:
    """Distinct students within the limits, from streams of their own."""
    controller = Within(RandomSearch(problem.grammar), problem.within)
    luck = Search("luck", problem.grammar, controller, lambda tree: "", iter, Budget(1, count), problem.config.seed)
    luck.identity = problem.space.key
    return luck.propose(count)[0]


@dataclass(frozen=True)
class StudentResult:
    """What a search hands over.

    Attributes:
        best: the student's text.
        front: (parameters, fitness, text) of those that no smaller student beats, on validation.
        run: the run folder.
        rows: the closing table.
    """

    best: str
    front: list[tuple[int, float, str]]
    run: Path
    rows: list[Row]


def evolve_student(teacher=None, data=None, *, quiet: bool = True, **config: Any) -> StudentResult:
    """The search of `python -m evokd.evolve student`, from a notebook.

    Args:
        teacher: a name, a file, or an `nn.Module` that maps (N,C,H,W) to logits (N,K).
        data: a name, a path, or a `Data` value.
        quiet: say nothing.
        **config: any field of `StudentConfig`; `protocol` as a dict.

    Raises:
        EvokdError: whatever the command line would refuse.
    """
    named = {name: value for name, value in {"teacher": teacher, "data": data}.items() if value is not None}
    objects = {name: value for name, value in named.items() if not isinstance(value, str)}
    values = {name: value if isinstance(value, str) else type(value).__name__ for name, value in named.items()}
    return run(make_config({"task": "student", **values, **config}), Terminal(quiet=quiet), **objects)


def run(
    config: StudentConfig,
    terminal: Terminal,
    *,
    folder: Path | None = None,
    download: bool = False,
    accept: bool = False,
    **objects: Any,
) -> StudentResult:
    """One search for a student in its folder; see `evolve_student`. With `folder` the run there goes on."""
    check_controller(config)
    with ExitStack() as stack:
        stack.callback(terminal.done)
        ending, events = listening(stack), journal_of(folder, stack, terminal.warn)
        tabular = config.evaluator == "tabular"
        with ending.dropping():
            problem = (
                open_table_problem(config) if tabular else open_student_problem(config, terminal.status, download, **objects)
            )
        executor, space = problem.executor, Path(read_definition(config.space)[1]).read_text(encoding="utf-8")
        stack.callback(executor.close)
        problem = replace(problem, executor=kept_for_others(problem, terminal.warn))
        place = take_place(problem, executor, space, folder, events, stack, ending, accept, terminal.warn)
        return _Session(problem, place, terminal).run()


def resume(
    folder: Path,
    terminal: Terminal,
    changes: Mapping[str, Any],
    overrides: Sequence[str] = (),
    accept: bool = False,
    **objects: Any,
) -> StudentResult:
    """Continue a run, or extend a finished one, from its folder; see `evokd.distiller.resume`.

    Raises:
        EvokdError: not a run folder of this task, or changes that would alter the search itself.
    """
    check_named(read_config(folder / "config.toml"), changes, objects)
    config = resumed_config(folder, "student", changes, overrides, accept)
    return run(config, terminal, folder=folder, accept=accept, **objects)


class _Session:
    """One run from its first line to its last."""

    def __init__(self, problem: StudentProblem, place: Place, terminal: Terminal) -> None:
        self.problem, self.config, self.place, self.terminal = problem, problem.config, place, terminal
        self.folder, self.search = place.folder, student_search(problem)
        self.fresh = not go_on(self.search, place, problem.space.tree_from_names)
        self.set_clock()
        self.journal = self.search.journal = Journal(self.folder)
        self.mirror = Mirror(problem, self.folder, terminal.warn)

    def set_clock(self) -> None:
        """A table's clock is the simulated one."""
        if self.problem.table:
            self.search.clock = self.problem.table.clock(self.search)

    def run(self) -> StudentResult:
        with closing(self.journal), self.mirror.until_the_end():
            return self.through()

    def through(self) -> StudentResult:
        """Search, choice, finals, and everything that is written of them."""
        self.terminal.opening(self.problem, self.folder)
        if self.fresh:
            about = {"config": self.config.hash(), "problem": self.problem.key, "card": self.problem.card}
            self.journal.write("start", version=1, **about, seed=self.config.seed)
        if self.place.drift:
            self.journal.write("drift", lines=self.place.drift)
        self.search.notice = self.notice
        self.search.run()
        best = choose(self.problem, self.search.individuals, self.journal, self.terminal.status)
        rows, table = self.finals(best)
        files, figures = self.export(best, rows)
        entry = Entry(str(best.id), text_of(self.problem, best), fitness=best.outcome.fitness)
        front = write_student_front(self.folder, self.problem, self.search.individuals)
        files += [self.report(entry, best, rows, table), self.folder / "front.csv"]
        self.journal.write("end", best=entry.text)
        files += write_end(self.folder)
        self.mirror.finish(rows, [*files, self.journal.path], entry, figures)
        self.place.terms.trainings.remove()
        names = " ".join(path.name for path in files if path.parent.name == "best")
        speed = "latency {latency_ms:.2f} ms, {latency_ratio:.2f} × the human-designed student's"
        measured = [speed.format(**figures)] if figures else []
        passed = told_funnel(funnel_rows(self.search.history))
        gap, where = [""] if table else [], f"{self.folder / 'best'}: {names}   {self.folder / 'report.html'}"
        hints = [*table, *gap, *passed, "", *measured, where]
        self.terminal.closing(self.search, entry, [] if table else rows, hints, self.mirror.command)
        return StudentResult(entry.text, front, self.folder, rows)

    def finals(self, best: Individual) -> tuple[list[Row], list[str]]:
        """The closing rows; where they are of a published table, also how they are told."""
        name, journal, say = ROW_NAMES.get(self.config.controller, self.config.controller), self.journal, self.terminal.status
        if self.problem.table:
            rows = table_rows(self.problem, self.search, best, name)
            return rows, told_rows(rows, self.problem.table.figures.told)
        lucky = None
        if self.config.baselines and self.config.evaluator != "score":
            lucky = luck(self.problem, random_students(self.problem, self.search.trained), journal, say)
        return final_rows(self.problem, name, best, lucky, journal, say), []

    def report(self, entry: Entry, best: Individual, rows: Sequence[Row], table: Sequence[str]) -> Path:
        space = self.problem.space
        shown = "".join(f"<pre>{html.escape(text)}</pre>" for text in (space.diagram(space.genome(best)), "\n".join(table)))
        return write_report(self.folder, entry.text, shown, [] if table else rows)

    def notice(self, summary: dict | None) -> None:
        """After a student: the status line. After a generation: the table, the state and the mirror."""
        if summary is None:
            if not self.problem.table:  # which is read in no time
                self.terminal.candidate(self.search)
            return
        self.set_clock()
        self.terminal.generation(self.search, summary)
        told = {k: summary[k] for k in ("generation", "evaluations", "best", "best_id")}
        self.journal.mark(seed=self.config.seed, **told)
        self.mirror.generation(self.search, summary)
        self.place.generation_over()

    def export(self, best: Individual, rows: Sequence[Row]) -> tuple[list[Path], dict[str, float]]:
        """(files, measured figures) of the winner as the finals trained it with their first seed; from a table, its architecture alone."""
        space, folder, config, problem = self.problem.space, self.folder / "best", self.config, self.problem
        genome, about = space.genome(best), {"test": [{"row": r.entry.name, "mean": r.mean, "half": r.half} for r in rows]}
        if problem.table:
            shape = problem.images[1], *problem.images[2:] * 2
            return export_architecture(folder, config.space, genome, problem.images[0], shape, about), {}
        self.terminal.status("export: the winner once more")
        seed, judge = evaluation_seeds(config.seed, "final", config.finals)[0], own_judge(problem.executor)
        try:
            network = train_final(judge, StudentJob(tuple(to_names(best)), "distill", (seed,), "test"))
        except DivergedError:
            return export_architecture(folder, config.space, genome, problem.data.classes, problem.data.shape, about), {}
        data, teacher = problem.data, problem.teacher
        student = TrainedStudent(network, config.space, genome, data.classes, data.shape, teacher.mean, teacher.std)
        images = judge.bank.normalised(judge.bank.images["validation"][:32])
        figures = beside_human(problem, best, network, images[:1])
        return export_student(folder, student, images, about | {"seed": seed} | figures), figures
