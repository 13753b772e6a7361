"""The searches of a comparison: what they share is opened once, and each runs in its own folder, from its start or where it was cut."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

from evokd.checkpoint import write_whole
from evokd.config import Config
from evokd.controllers import make_controller
from evokd.distiller import admitted
from evokd.evaluate.students import StudentJob
from evokd.executor import Terms
from evokd.export import read_loss
from evokd.finals import Entry
from evokd.finals import choose as choose_loss
from evokd.finals import final_rows as final_losses
from evokd.folder import commit
from evokd.genome.codec import to_names
from evokd.genome.individual import Individual, Status
from evokd.journal import Journal, cut, read_events, read_outcome
from evokd.losses.language import tree_from_names
from evokd.losses.own import load_operators
from evokd.memory import kept_for_others
from evokd.mirror import experiment_of, params_of, tags_of
from evokd.problem import open_problem
from evokd.progress import Progress
from evokd.report.terminal import Terminal
from evokd.resume import Place, terms_of
from evokd.run import Budget, Search, arm, replay
from evokd.search.evolution import default_toolbox
from evokd.signals import Ending
from evokd.student import student_search
from evokd.student_finals import TIERS
from evokd.student_finals import choose as choose_student
from evokd.student_problem import open_student_problem
from evokd.tabular_search import open_table_problem
from evokd.tracker import open_tracker

DISTILLED, LABELS = "test accuracy, distilled", "test accuracy, labels alone"  # % of a winner trained again
_commit = cache(commit)
LONGER = (
    "generations",
    "budget_evals",
    "budget_seconds",
    "budget_epochs",
    "budget_gpu_hours",
    "finals",
)  # settings that send a finished search on


class Losses:
    """Searches for a distiller on one problem."""

    table = None

    def __init__(self, config: Config, terminal: Terminal, download: bool) -> None:
        load_operators(config.operators)
        self.seeds, self.tree_of = [read_loss(spec, "--seed-with") for spec in config.seed_with], tree_from_names
        self.problem = open_problem(config, terminal.status, self.seeds, download=download)
        self.problem.executor = kept_for_others(self.problem, terminal.warn)
        self.space = self.problem.space.text

    def search(self, config: Config) -> Search:
        """The search of a controller and a seed, not yet run."""
        problem = replace(self.problem, config=config)
        controller = make_controller(problem, self.seeds, default_toolbox)
        return arm(problem, config.controller, controller, Budget.of(config, config.share), config.seed)

    def recall(self, search: Search) -> None:
        """What a search that is resumed must be told besides its generations."""
        search.gate.recall(admitted(search.individuals))

    def tell(self, search: Search, config: Config, seeds: Sequence[int], journal: Journal) -> str:
        """The winner after confirmation, which is then trained with the shared seeds; empty where nothing could be trained."""
        repeats, executor = (config.confirm, config.confirm_repeats), self.problem.executor
        chosen, _ = choose_loss(search.individuals, search.text, executor, config.seed, *repeats)
        for entry in chosen:
            journal.write("confirm", id=int(entry.name), text=entry.text, fitness=entry.fitness, error=entry.error)
        if chosen:
            final_losses([Entry(DISTILLED, chosen[0].text)], DISTILLED, executor, seeds, journal)
        return chosen[0].text if chosen else ""


class Students:
    """Searches for a student on one problem, or on a published table."""

    def __init__(self, config: Config, terminal: Terminal, download: bool) -> None:
        tabular = config.evaluator == "tabular"
        problem = open_table_problem(config) if tabular else open_student_problem(config, terminal.status, download)
        self.problem = replace(problem, executor=kept_for_others(problem, terminal.warn))
        self.tree_of, self.table = problem.space.tree_from_names, problem.table
        self.space = f'task = "student"\nspace = {json.dumps(config.space)}\n'

    def search(self, config: Config) -> Search:
        """The search of a controller and a seed, not yet run."""
        search = student_search(replace(self.problem, config=config))
        if self.table:
            search.notice = lambda summary: setattr(search, "clock", self.table.clock(search)) if summary else None
        return search

    def recall(self, search: Search) -> None:
        """Nothing but its generations."""

    def tell(self, search: Search, config: Config, seeds: Sequence[int], journal: Journal) -> str:
        """The winner after confirmation, trained with the shared seeds or looked up; empty where nothing could be trained."""
        if not any(i.ok for i in search.individuals):
            return ""
        best = choose_student(replace(self.problem, config=config), search.individuals, journal, lambda line: None)
        text = self.problem.grammar.write(best)
        if self.table:
            for column in self.table.figures.told:
                journal.write("final", row=column, status=Status.OK, accuracy=self.table.table.accuracy(text, column))
        else:
            self.train(best, config, seeds, journal)
        return text

    def train(self, best: Individual, config: Config, seeds: Sequence[int], journal: Journal) -> None:
        """As the search trained it, distilled or on labels alone, and told on test."""
        row, tier = (LABELS, "train") if TIERS.get(config.evaluator, config.evaluator) == "train" else (DISTILLED, "distill")
        jobs = [StudentJob(tuple(to_names(best)), tier, (seed,), "test") for seed in seeds]
        for seed, outcome in zip(seeds, self.problem.executor.map(jobs), strict=True):
            value = outcome.metrics.get("accuracy", math.nan)
            told = value if math.isfinite(value) else None
            journal.write("final", row=row, seed=seed, status=outcome.status, accuracy=told)


def open_field(config: Config, terminal: Terminal, download: bool = False) -> Losses | Students:
    """What all searches share.

    Raises:
        EvokdError: whatever a search would refuse.
    """
    return (Students if config.task == "student" else Losses)(config, terminal, download)


class Unsynced(Journal):
    """Of a search on a table, which is made again sooner than a disk answers."""

    def sync(self) -> None:
        """Nothing is waited for."""


def run_arm(
    field: Losses | Students, config: Config, folder: Path, told: Sequence[int] | None, terminal: Terminal,
    tell: Callable[[dict], None], ending: Ending | None = None,
) -> None:  # fmt: skip
    """One search to its end, and the figures of its winner. What was trained is on disk at once, and is not trained again.

    Args:
        field: what it shares with others.
        config: of this search.
        folder: its own; a search that was cut goes on from its last whole generation, one on a table begins anew, which costs less.
        told: seeds of the trainings that are told on test; None skips them, though not what a table tells.
        terminal: for the status line.
        tell: called with the summary of each generation.
        ending: what may end it, between two trainings or after a generation.
    """
    search, begun = field.search(config), (folder / "events.jsonl").exists()
    folder.mkdir(exist_ok=True)
    if field.table:
        (folder / "events.jsonl").unlink(missing_ok=True)  # what a clock refused would be lost to a longer search
    elif begun:
        cut(folder, len(replay(search, read_events(folder), field.tree_of, read_outcome)))
        field.recall(search)
    write_whole(folder / "config.toml", config.to_toml())
    place = _place(field, config, folder, begun, ending or Ending())
    with closing((Unsynced if field.table else Journal)(folder)) as journal, closing(place.terms.trainings):
        if not search.individuals:
            journal.write("start", version=1, config=config.hash(), problem=field.problem.key, seed=config.seed)
        search.journal, search.notice = journal, _notice(search, terminal, tell, place, quiet=field.table is not None)
        search.run()
        best = field.tell(search, config, told or (), journal) if told or field.table else ""
        journal.write("end", best=best, told=bool(told or field.table), reach=_reach(config))
        place.terms.trainings.remove()


def _place(field: Losses | Students, config: Config, folder: Path, begun: bool, ending: Ending) -> Place:
    """Of one search, on whose terms the shared executor works from now on; a table's look-ups are not kept."""
    executor = getattr(field.problem.executor, "inner", field.problem.executor)
    executor.terms = Terms(ending=ending) if field.table else terms_of(config, folder, begun, ending)
    return Place(folder, None, [], executor.terms, steady=config.lag > 0)


def _notice(
    search: Search, terminal: Terminal, tell: Callable[[dict], None], place: Place, quiet: bool
) -> Callable[[dict | None], None]:
    before = search.notice

    def notice(summary: dict | None) -> None:
        before(summary)
        if summary is not None:
            tell(summary)
            place.generation_over()
        elif not quiet:
            terminal.candidate(search)

    return notice


def is_whole(events: Sequence[dict], config: Config, told: bool) -> bool:
    """Whether a search came to the end that its configuration sets, and its winner was told if it shall be."""
    last = events[-1] if events else {}
    return last.get("event") == "end" and last["reach"] == _reach(config) and (last["told"] or not told)


def _reach(config: Config) -> dict:
    return {name: getattr(config, name) for name in LONGER}


def finals_of(events: Sequence[dict]) -> dict[str, float]:
    """Row → mean of what the winner's trainings with finite figures tell, %; of a table its columns."""
    values: dict[str, list[float]] = {}
    for event in events:
        if event["event"] == "final":
            value = event.get("accuracy", event.get("metrics", {}).get("accuracy"))
            values.setdefault(event["row"], []).extend([] if value is None else [value])
    return {row: statistics.fmean(each) for row, each in values.items() if each}


@contextmanager
def tracked(
    field: Losses | Students, config: Config, folder: Path, warn: Callable[[str], None]
) -> Iterator[Callable[[dict], None]]:
    """One search in MLflow, in the experiment of its task, where the UI draws `best_by_evaluations` of all of them on one axis.

    Yields:
        what takes the summary of a generation.
    """
    problem, name, progress = field.problem, f"{folder.parent.name}/{folder.name}", Progress(config)
    tracker = open_tracker(config.tracking_uri, Path(config.out), experiment_of(config, problem.card), warn)
    about = {"evokd.compare": folder.parent.name, "evokd.folder": name, "evokd.git": _commit(), "evokd.state": "going"}
    about |= {"evokd.space": problem.grammar.name, "evokd.space_hash": problem.space_hash}
    tracker.start(name, params_of(config, problem.card), tags_of(config, folder) | about, [])
    with tracker.until_the_end():
        yield lambda summary: tracker.generation(progress.generation(summary, ()))
        named = {row.replace(",", "").replace(" ", "_"): value for row, value in finals_of(read_events(folder)).items()}
        tracker.finish("FINISHED", named)
