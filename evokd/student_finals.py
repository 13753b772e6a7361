"""The end of a search for a student: one is chosen on validation, and all rows meet on test with fresh paired seeds.

Beside the winner stand the human-designed student of equal cost, the best of as many random students, and both winners without a
teacher.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from evokd.checkpoint import write_whole
from evokd.controllers import reward_of
from evokd.errors import EvokdError
from evokd.evaluate.students import StudentJob
from evokd.finals import Entry, Row, row_of
from evokd.genome.codec import to_names
from evokd.genome.individual import Individual, rank
from evokd.journal import Journal
from evokd.models.zoo import build, parameters
from evokd.run import evaluation_seeds
from evokd.student_problem import StudentProblem, human_designed

Say = Callable[[str], None]
REFERENCE = "human-designed, distilled"
TIERS = {"cascade": "distill"}  # evaluator → how it trains; the others train as they are called
LUCK = "random search, same trainings"


def text_of(problem: StudentProblem, tree: Sequence) -> str:
    return f"{problem.grammar.write(tree)}  ({problem.cost(tree).parameters:,} parameters)"


def choose(problem: StudentProblem, individuals: Sequence[Individual], journal: Journal, say: Say) -> Individual:
    """The best of the leaders, by the configured reward, after more validation seeds; what is not trained has nothing to confirm.

    Raises:
        EvokdError: if there is no leader.
    """
    config = problem.config
    reward = reward_of(config)
    valued = [(reward(i.outcome), i) for i in individuals]
    order = sorted((pair for pair in valued if pair[0] is not None), key=lambda pair: (-pair[0], pair[1].id))
    leaders = [i for _, i in order[: config.confirm]]
    if not leaders:
        reasons = "; ".join(sorted({i.outcome.reason[:60] for i in individuals if i.outcome.reason})[:3])
        raise EvokdError("search", "at least one student that can be judged", "none", f"see {journal.path}: {reasons}")
    if config.evaluator in ("score", "shared", "tabular"):
        return leaders[0]
    say(f"confirming: the best {len(leaders)} once more on validation")
    seeds = evaluation_seeds(config.seed, "confirm", config.confirm_repeats)
    jobs = [problem.job(i, TIERS.get(config.evaluator, config.evaluator), seeds) for i in leaders]
    outcomes = problem.executor.map(jobs)
    again = {i.id: replace(i.outcome, status=o.status, fitness=o.fitness) for i, o in zip(leaders, outcomes, strict=True)}
    for i in leaders:
        journal.write("confirm", id=i.id, text=text_of(problem, i), fitness=again[i.id].fitness)
    found = {i.id: reward(outcome) for i, outcome in zip(leaders, again.values(), strict=True)}
    return max(leaders, key=lambda i: (-math.inf if found[i.id] is None else found[i.id], -i.id))


def luck(problem: StudentProblem, drawn: Sequence[Individual], journal: Journal, say: Say) -> Individual | None:
    """The best of random students, trained and confirmed as the search does it; None if none can be trained."""
    config = problem.config
    seeds = evaluation_seeds(config.seed, "search", config.protocol.repeats)
    jobs = [problem.job(i, TIERS.get(config.evaluator, config.evaluator), seeds) for i in drawn]
    for done, (individual, outcome) in enumerate(zip(drawn, problem.executor.map(jobs), strict=True), 1):
        individual.settle(replace(outcome, metrics=outcome.metrics | problem.figures(individual)))
        journal.write("baseline", name="random", trial=done, text=text_of(problem, individual), fitness=outcome.fitness)
        say(f"random search: {done}/{len(drawn)} trained")
    return choose(problem, drawn, journal, say) if any(i.ok for i in drawn) else None


def final_rows(
    problem: StudentProblem, name: str, best: Individual, lucky: Individual | None, journal: Journal, say: Say
) -> list[Row]:
    """Every row trained with every final seed and told on test; one journal line a training."""
    human = human_designed(problem, problem.cost(best).parameters)
    named = f"{human}  ({parameters(build(human, *problem.images[:2], 0)):,} parameters)"
    spec, text = tuple(to_names(best)), text_of(problem, best)
    entries = {f"{name}, distilled": (spec, "distill", text), REFERENCE: (human, "distill", named)}
    if lucky is not None:
        entries[LUCK] = (tuple(to_names(lucky)), "distill", text_of(problem, lucky))
    entries |= {f"{name}, labels alone": (spec, "train", text), "human-designed, labels alone": (human, "train", named)}
    say(f"finals: {problem.config.finals} fresh seeds a row, told on test")
    values = {row: _measured(problem, row, student, tier, journal) for row, (student, tier, _) in entries.items()}
    gammas = {row: 1.0 if tier == "train" else None for row, (_, tier, _) in entries.items()}
    return [
        row_of(Entry(row, told, gammas[row]), values[row], values[REFERENCE] if row != REFERENCE else None)
        for row, (_, _, told) in entries.items()
    ]


def _measured(problem: StudentProblem, row: str, student: tuple[str, ...] | str, tier: str, journal: Journal) -> list[float]:
    seeds = evaluation_seeds(problem.config.seed, "final", problem.config.finals)
    found = []
    jobs = [StudentJob(student, tier, (seed,), "test") for seed in seeds]
    for seed, outcome in zip(seeds, problem.executor.map(jobs), strict=True):
        found.append(outcome.metrics.get("accuracy", math.nan))
        told = found[-1] if math.isfinite(found[-1]) else None
        reference = {"reference": True} if row == REFERENCE else {}
        journal.write("final", row=row, seed=seed, status=outcome.status.value, accuracy=told, **reference)
    return found


def write_student_front(folder: Path, problem: StudentProblem, individuals: Sequence[Individual]) -> list[tuple[int, float, str]]:
    """front.csv: (parameters, fitness, student) of those that no smaller student beats, on validation."""
    front: list[tuple[int, float, str]] = []
    sized = sorted(((problem.cost(i).parameters, rank(i), i) for i in individuals if i.ok), key=lambda each: each[:2])
    for size, _, i in sized:
        if not front or i.outcome.fitness > front[-1][1]:
            front.append((size, i.outcome.fitness, problem.grammar.write(i)))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("parameters", "fitness", "student"), *front])
    write_whole(folder / "front.csv", text.getvalue())
    return front
