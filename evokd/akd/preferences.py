"""Which students a teacher prefers: accuracies of the same students under several teachers, and Kendall's τ-b between their orders.

AKD's first slide: students of equal accuracy on labels are ordered otherwise by every teacher, some almost the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import numpy as np

from evokd.akd.experiment import Experiment, Plan, told_budget
from evokd.akd.figures import order, resampled_agreement, spread
from evokd.akd.results import Results, Table
from evokd.akd.searches import check_teachers
from evokd.akd.square import train_finds
from evokd.errors import EvokdError
from evokd.report.akd import draw_preferences
from evokd.student import random_students
from evokd.student_problem import StudentProblem, open_student_problem

DRAWS = 20  # random students a wanted one, of which those nearest the limit are taken, so that costs are alike
LABELS = "GT"  # the column of training on labels alone


def open_matrix(plan: Plan, say, download: bool = False) -> tuple[list[StudentProblem], list[str]]:
    """(a problem a teacher, texts of the students).

    Raises:
        EvokdError: fewer than two teachers, students or final seeds, or any of them unknown.
    """
    check_teachers(plan.teachers)
    if plan.finals < 2:
        raise EvokdError("--finals", "at least 2", str(plan.finals), "an interval needs two")
    if not plan.students and plan.count < 2:
        raise EvokdError("--students", "at least 2 students", str(plan.count), "a number to draw, or their texts")
    if len(plan.budgets) > 1:
        raise EvokdError("evokd akd matrix", "one budget at most", ", ".join(map(told_budget, plan.budgets)))
    budget = plan.budgets[0] if plan.budgets else None
    problems: list[StudentProblem] = []
    try:
        for teacher in plan.teachers:
            problems.append(open_student_problem(plan.config(budget, evaluator="distill", teacher=teacher), say, download))
        return problems, students_of(plan, problems[0])
    except EvokdError:
        for problem in problems:
            problem.executor.close()
        raise


def students_of(plan: Plan, problem: StudentProblem) -> list[str]:
    """As named, or drawn within the limits: of many those that cost most.

    Raises:
        EvokdError: a text outside the space, one named twice, or fewer within the limits than wanted.
    """
    if plan.students:
        texts = [problem.space.write(problem.space.read(text)) for text in plan.students]
        if len(set(texts)) < max(len(texts), 2):
            raise EvokdError("--students", "at least two students, each once", ", ".join(plan.students)[:80])
        return texts
    drawn = random_students(problem, DRAWS * plan.count if plan.budgets else plan.count)
    if len(drawn) < plan.count:
        raise EvokdError("--students", f"at most the {len(drawn)} students that could be drawn", str(plan.count))
    name = {"max_macs": "macs", "max_params": "parameters", "max_latency_ms": "latency_ms"}[
        (plan.budgets or (("max_params", 0),))[0][0]
    ]
    drawn.sort(key=lambda i: -problem.figures(i).get(name, 0.0))
    return [problem.grammar.write(i) for i in drawn[: plan.count]]


def run_matrix(experiment: Experiment, problems: Sequence[StudentProblem], students: Sequence[str]) -> Results:
    """Every student under every teacher, and on labels alone beside the first."""
    for at, problem in enumerate(problems):
        with closing(problem.executor):
            train_finds(experiment, problem, students, ("kd",) if at else ("plain", "kd"))
    return matrix_results(experiment, problems, students)


def matrix_results(experiment: Experiment, problems: Sequence[StudentProblem], students: Sequence[str]) -> Results:
    """Tables and the picture of students that are trained."""
    columns = {LABELS: [experiment.accuracies("", s, "plain") for s in students]}
    for problem in problems:
        columns[problem.config.teacher] = [experiment.accuracies(problem.config.teacher, s, "kd") for s in students]
    names = [f"S{i}" for i, _ in enumerate(students, 1)]
    means = {column: [spread(values).mean for values in each] for column, each in columns.items()}
    tables = [
        accuracies(problems[0], columns, names, students), orders(problems, means, names), agreements(columns, experiment.plan.seed)
    ]  # fmt: skip
    problem = problems[0]
    about = [
        f"{problem.card['data']}, space {problem.config.space}, loss {problem.config.loss}, {problem.config.protocol.steps} steps"
    ]
    about.append(f"{experiment.plan.finals} fresh seeds a training, the same for all, told on test")
    taus = {(a, b): resampled_agreement(*_pair(columns, a, b)).mean for a in columns for b in columns}
    picture = draw_preferences(means, names, taus)
    metrics = {f"tau_{a}_{b}".replace(":", "-"): t for (a, b), t in taus.items() if a < b and t == t}
    return Results("Which students a teacher prefers", about, tables, {"preferences": picture}, metrics)


def accuracies(problem: StudentProblem, columns: dict[str, list], names: Sequence[str], students: Sequence[str]) -> Table:
    costs = [problem.cost(problem.space.parse(text)) for text in students]
    rows = [
        (name, text, cost.parameters, cost.macs, *(spread(columns[column][i]) for column in columns))
        for i, (name, text, cost) in enumerate(zip(names, students, costs, strict=True))
    ]
    note = f"{LABELS}: trained on labels alone. Mean ± half width of the 95 % interval over final seeds."
    return Table("accuracies", "Test accuracy (%)", ("", "student", "parameters", "MACs", *columns), rows, note)


def orders(problems: Sequence[StudentProblem], means: dict[str, list[float]], names: Sequence[str]) -> Table:
    own = {p.config.teacher: p.teacher.accuracy for p in problems}
    rows = [(column, f"{own[column]:.1f}" if column in own else "–", order(values, names)) for column, values in means.items()]
    return Table(
        "orders", "Orders of the students", ("taught by", "own validation %", "order"), rows, "= where means print equally"
    )


def agreements(columns: dict[str, list], seed: int) -> Table:
    """τ-b of every pair of columns, with resamples of the final seeds."""
    rows = [(a, *("1" if a == b else resampled_agreement(*_pair(columns, a, b), seed) for b in columns)) for a in columns]
    note = "Of the mean accuracies; in brackets what holds 95 % of resamples of the final seeds."
    return Table("agreement", "Kendall's τ-b between orders", ("", *columns), rows, note)


def _pair(columns: dict[str, list], first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    """Two (seeds, students) arrays."""
    return np.array(columns[first]).T, np.array(columns[second]).T
