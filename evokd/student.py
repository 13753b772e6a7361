"""Evolve a student from end to end: score every architecture without training, distil the most promising, compare the winner.

DisWOT (CVPR 2023) and AKD (CVPR 2020) on the engine of the distillers: the genome is a student, the evaluator a cascade of a
training-free score and short distillations.
"""

from __future__ import annotations

import html
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from filelock import FileLock, Timeout

from evokd.checkpoint import write_state, write_whole
from evokd.config import StudentConfig, change_config, read_config
from evokd.errors import EvokdError, unknown
from evokd.evaluate.students import StudentJob
from evokd.finals import Entry, Row, interval
from evokd.folder import new_folder
from evokd.genome.codec import to_names
from evokd.genome.grammar import Grammar
from evokd.genome.individual import Individual, Outcome, Status, rank
from evokd.journal import Journal, read_events, read_outcome
from evokd.mirror import Mirror
from evokd.models.zoo import build, parameters
from evokd.report.page import write_report
from evokd.report.terminal import Terminal
from evokd.run import Budget, Search, evaluation_seeds, replay
from evokd.search.controller import Controller
from evokd.search.evolution import Evolution
from evokd.search.random import RandomSearch
from evokd.student_problem import StudentProblem, human_designed, open_student_problem
from evokd.students.cost import Limited
from evokd.students.space import Cost

CONTROLLERS: dict[str, Callable[[Grammar, int], Controller]] = {
    "evolution": lambda grammar, size: Evolution(grammar, size),
    "random": lambda grammar, size: RandomSearch(grammar),
}


@dataclass(frozen=True)
class Within:
    """A controller whose proposals keep the limits: a genome beyond them is mended slot by slot."""

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
    tier = {"cascade": "distill"}.get(config.evaluator, config.evaluator)

    def evaluate(batch: Sequence[Individual]) -> Iterator[Outcome]:
        for outcome, individual in zip(problem.executor.map([problem.job(i, tier, seeds) for i in batch]), batch, strict=True):
            yield replace(outcome, metrics=outcome.metrics | scores.pop(individual.id, {}) | _figures(problem.cost(individual)))

    def screen(batch: Sequence[Individual]) -> None:
        for individual, outcome in zip(batch, problem.executor.map([problem.job(i, "score", seeds) for i in batch]), strict=True):
            scores[individual.id] = outcome.metrics
            if outcome.fitness is None:
                individual.settle(replace(outcome, status=Status.REJECTED))
        _promote([i for i in batch if i.outcome is None], scores, config)

    scores: dict[int, dict] = {}
    controller = Within(CONTROLLERS[config.controller](problem.grammar, config.population), problem.within)
    budget = Budget(config.generations, config.population, config.budget_evals, config.budget_seconds)
    search = Search(config.controller, problem.grammar, controller, lambda tree: "", evaluate, budget, config.seed)
    if config.evaluator == "cascade":
        search.screen = screen
    search.identity = problem.space.key
    return search


def _promote(batch: Sequence[Individual], scores: dict[int, dict], config: StudentConfig) -> None:
    """The share with the best scores goes on; the others are refused with their place."""
    order = sorted(batch, key=lambda i: (-scores[i.id][config.score], i.id))
    for place, individual in enumerate(
        order[math.ceil(config.promote * len(order)) :], math.ceil(config.promote * len(order)) + 1
    ):
        reason = f"score: place {place} of {len(order)} by {config.score}"
        individual.settle(Outcome(Status.REJECTED, metrics=scores.pop(individual.id), reason=reason))


def _figures(cost: Cost) -> dict[str, float]:
    return {name: float(value) for name, value in asdict(cost).items()}


@dataclass(frozen=True)
class StudentResult:
    """What a search hands over: the student's text, its run folder, and the closing table."""

    best: str
    run: Path
    rows: list[Row]


def run(config: StudentConfig, terminal: Terminal, *, folder: Path | None = None, download: bool = False) -> StudentResult:
    """One search for a student in its folder; with `folder` the run there goes on."""
    if config.controller not in CONTROLLERS:
        raise unknown("--controller", "a controller", config.controller, CONTROLLERS)
    events = read_events(folder) if folder else None
    problem = open_student_problem(config, terminal.status, download)
    try:
        text = f'task = "student"\nspace = {json.dumps(config.space)}\n'
        folder = folder or new_folder(config, problem.card["data"], text)
        with FileLock(folder / ".lock", timeout=0):
            return _Session(problem, folder, terminal, events).run()
    except Timeout:
        raise EvokdError(str(folder), "a run that no other process writes", "a locked one", "wait for it, or stop it") from None
    finally:
        terminal.done()
        problem.executor.close()


def resume(folder: Path, terminal: Terminal, changes: Mapping[str, Any], overrides: Sequence[str] = ()) -> StudentResult:
    """Continue or extend a run from its folder."""
    old = read_config(folder / "config.toml")
    new = change_config(old, {**changes, "out": str(folder.parent)}, overrides)
    if new.hash() != old.hash():
        raise EvokdError(
            "--resume", f"the settings of {folder / 'config.toml'}", "others", "only budget and surroundings may change"
        )
    return run(new, terminal, folder=folder)


class _Session:
    """One run from its first line to its last."""

    def __init__(self, problem: StudentProblem, folder: Path, terminal: Terminal, events: list[dict] | None) -> None:
        self.problem, self.config, self.folder, self.terminal = problem, problem.config, folder, terminal
        self.start, self.search = time.perf_counter(), student_search(problem)
        if events is not None:
            kept = replay(self.search, events, problem.space.tree_from_names, read_outcome)
            write_whole(folder / "events.jsonl", "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in kept))
        self.journal = self.search.journal = Journal(folder)
        self.mirror = Mirror(problem, folder, terminal.warn)

    def run(self) -> StudentResult:
        try:
            return self.through()
        except KeyboardInterrupt:
            self.mirror.stop("KILLED")
            self.terminal.say(f"\n stopped; to go on: python -m evokd.evolve student --resume {self.folder}")
            raise
        except BaseException:
            self.mirror.stop("FAILED")
            raise
        finally:
            self.journal.close()

    def through(self) -> StudentResult:
        self.terminal.opening(self.problem, self.folder)
        if not self.search.individuals:
            about = {"config": self.config.hash(), "problem": self.problem.key}
            self.journal.write("start", version=1, **about, seed=self.config.seed)
        self.search.notice = self.notice
        self.search.run()
        best = self.choice()
        rows = self.finals(best)
        files = self.export(best, rows)
        entry = Entry(str(best.id), self.text(best), fitness=best.outcome.fitness)
        shown = f"<pre>{html.escape(self.problem.space.diagram(self.problem.space.genome(best)))}</pre>"
        seconds = time.perf_counter() - self.start
        files.append(write_report(self.folder, self.problem, self.search, rows, entry, seconds, shown))
        self.journal.write("end", best=entry.text)
        self.mirror.finish(rows, [*files, self.journal.path])
        hints = [f"{self.folder / 'best'}: {' '.join(path.name for path in files[:-1])}   {files[-1]}"]
        self.terminal.closing(self.search, entry, rows, hints, self.mirror.command)
        return StudentResult(entry.text, self.folder, rows)

    def notice(self, summary: dict | None) -> None:
        if summary is None:
            self.terminal.candidate(self.search)
            return
        self.terminal.generation(self.search, summary)
        told = {k: summary[k] for k in ("generation", "evaluations", "best", "best_id")}
        write_state(self.folder / "state.json", {"version": 1, "seed": self.config.seed, **told})
        self.mirror.generation(self.search, summary)

    def text(self, tree: Sequence) -> str:
        return f"{self.problem.grammar.write(tree)}  ({self.problem.cost(tree).parameters:,} parameters)"

    def choice(self) -> Individual:
        """The best of the leaders after more validation seeds; the score alone has nothing to confirm."""
        leaders = sorted((i for i in self.search.individuals if i.ok), key=rank)[: self.config.confirm]
        if not leaders:
            raise EvokdError("search", "at least one student that trains", "none", f"see {self.folder / 'events.jsonl'}")
        self.terminal.status(f"confirming: the best {len(leaders)} once more on validation")
        seeds = evaluation_seeds(self.config.seed, "confirm", self.config.confirm_repeats)
        jobs = [self.problem.job(i, "distill", seeds) for i in leaders]
        found = {i.id: outcome for i, outcome in zip(leaders, self.problem.executor.map(jobs), strict=True)}
        for individual in leaders:
            self.journal.write("confirm", id=individual.id, text=self.text(individual), fitness=found[individual.id].fitness)
        return max(leaders, key=lambda i: (found[i.id].fitness or -math.inf, -i.id))

    def finals(self, best: Individual) -> list[Row]:
        """The winner, the human-designed student of equal cost, and both without a teacher, with fresh paired seeds on test."""
        human = human_designed(self.problem, self.problem.cost(best).parameters)
        spec = tuple(to_names(best))
        size = parameters(build(human, self.problem.data.classes, self.problem.data.shape[0], 0))
        named = f"{human}  ({size:,} parameters)"
        entries = {
            "evolved, distilled": (spec, "distill", self.text(best)),
            "human-designed, distilled": (human, "distill", named),
            "evolved, labels alone": (spec, "train", self.text(best)),
            "human-designed, labels alone": (human, "train", named),
        }
        self.terminal.status(f"finals: {self.config.finals} fresh seeds a row, told on test")
        seeds = evaluation_seeds(self.config.seed, "final", self.config.finals)
        values = {name: self.measured(name, student, tier, seeds) for name, (student, tier, _) in entries.items()}
        base = values["human-designed, distilled"]
        return [_row(Entry(name, text), values[name], base) for name, (_, _, text) in entries.items()]

    def measured(self, name: str, student, tier: str, seeds: Sequence[int]) -> list[float]:
        jobs = [StudentJob(student, tier, (seed,), "test") for seed in seeds]
        found = []
        for seed, outcome in zip(seeds, self.problem.executor.map(jobs), strict=True):
            found.append(outcome.metrics.get("accuracy", math.nan))
            self.journal.write("final", row=name, seed=seed, status=outcome.status.value, accuracy=found[-1])
        return found

    def export(self, best: Individual, rows: Sequence[Row]) -> list[Path]:
        """student.json: text, genome, costs and figures; diagram.txt."""
        space, folder = self.problem.space, self.folder / "best"
        folder.mkdir(exist_ok=True)
        body = {
            "format": "evokd-student-1", "space": self.config.space, "text": space.grammar.write(best), "genome": space.genome(best),
            "cost": asdict(self.problem.cost(best)), "classes": self.problem.data.classes, "shape": self.problem.data.shape,
            "test": [{"row": r.entry.name, "mean": r.mean, "half": r.half} for r in rows],
        }  # fmt: skip
        write_whole(folder / "student.json", json.dumps(body, indent=1, ensure_ascii=False) + "\n")
        write_whole(folder / "diagram.txt", space.diagram(space.genome(best)) + "\n")
        return [folder / "student.json", folder / "diagram.txt"]


def _row(entry: Entry, values: Sequence[float], base: Sequence[float]) -> Row:
    pairs = [v - b for v, b in zip(values, base, strict=True) if math.isfinite(v - b)] if values is not base else []
    return Row(entry, tuple(v for v in values if math.isfinite(v)), interval(pairs) if len(pairs) > 1 else None)
