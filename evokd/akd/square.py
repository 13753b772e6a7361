"""AKD's 2 × 2: {searched with labels, searched with distillation} × {trained with labels, trained with distillation}, by budget.

Both searches see the same students, seeds, steps and images; they differ in the labels that their candidates are trained with alone.
The students they choose on validation are trained both ways with fresh seeds, the same for all, and told on test. Differences are
paired by search seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from itertools import product

from evokd.akd.experiment import Budget, Experiment, Plan, Training, told_budget
from evokd.akd.figures import Cells, gap, level_distances, mean_cells, separation, spread
from evokd.akd.results import Cell, Picture, Results, Table
from evokd.akd.searches import MODES, Found, Task, by_group, check_controllers, find, start_genomes, task_of, within_budget
from evokd.akd.table import COLUMNS
from evokd.errors import EvokdError
from evokd.evaluate.students import StudentJob
from evokd.genome.codec import to_names
from evokd.report.akd import draw_architectures, draw_cells
from evokd.student_problem import StudentProblem, open_student_problem
from evokd.students.space import Genome, StudentSpace

TIERS = {"plain": "train", "kd": "distill"}  # way of a final training → tier of its job


def open_square(plan: Plan, say, download: bool = False) -> StudentProblem:
    """The problem that all searches of the plan share, opened once.

    Raises:
        EvokdError: no budget, too few seeds, an unknown controller, a budget that no student meets, and all that a search refuses.
    """
    if not plan.budgets:
        raise EvokdError("evokd akd", "at least one budget", "none", "such as --max-macs 200k,400k, or --max-params 5000")
    _at_least("--seeds", plan.seeds, 2)
    _at_least("--finals", plan.finals, 1)
    check_controllers(plan)
    problem = open_student_problem(tasks(plan)[0].config, say, download)
    try:
        for budget in plan.budgets:
            within_budget(problem, plan.config(budget, evaluator="train"))
    except EvokdError:
        problem.executor.close()
        raise
    return problem


def _at_least(option: str, value: int, least: int) -> None:
    if value < least:
        raise EvokdError(option, f"at least {least}", str(value), "an interval needs two" if least == 2 else "")


def tasks(plan: Plan) -> list[Task]:
    """All searches: pairs of NAS and AKD side by side, so that a death leaves whole pairs."""
    teacher = plan.config(plan.budgets[0] if plan.budgets else None).teacher
    settings = product(plan.controllers, plan.budgets, range(plan.seeds), MODES)
    return [task_of(plan, mode, teacher, budget, controller, seed) for controller, budget, seed, mode in settings]


def run_square(experiment: Experiment, problem: StudentProblem, notice=lambda found: None) -> Results:
    """Searches, final trainings, and their figures; `notice` is told of every search."""
    found = []
    with closing(problem.executor):
        for task in tasks(experiment.plan):
            found.append(find(experiment, problem, task))
            notice(found[-1])
        train_finds(experiment, problem, [f.student for f in found])
    return square_results(experiment, problem, found)


def train_finds(
    experiment: Experiment, problem: StudentProblem, students: Sequence[str], ways: Sequence[str] = tuple(TIERS)
) -> None:
    """Every student in every way with every final seed; a student found twice is trained once."""
    wanted = []
    for student, way, seed in product(dict.fromkeys(students), ways, experiment.seeds):
        names = tuple(to_names(problem.space.parse(student)))
        teacher = "" if way == "plain" else problem.config.teacher
        wanted.append(Training(teacher, student, way, seed, StudentJob(names, TIERS[way], (seed,), "test")))
    experiment.train(problem.executor, wanted)


def cells_of(experiment: Experiment, teacher: str, nas: str, akd: str) -> Cells:
    """Means over the final seeds."""
    ways = [(student, way) for student in (nas, akd) for way in TIERS]
    return mean_cells([experiment.accuracies("" if way == "plain" else teacher, student, way) for student, way in ways])


def square_results(experiment: Experiment, problem: StudentProblem, found: Sequence[Found]) -> Results:
    """Tables and pictures of searches whose finds are trained."""
    plan, teacher = experiment.plan, problem.config.teacher
    settings: dict[tuple[str, Budget], list[tuple[Found, Found]]] = {}
    for nas, akd in zip(found[::2], found[1::2], strict=True):
        settings.setdefault((nas.task.config.controller, nas.task.budget), []).append((nas, akd))
    cells = {
        at: [cells_of(experiment, teacher, nas.student, akd.student) for nas, akd in pairs] for at, pairs in settings.items()
    }
    tables = [squares(cells), distances(settings, plan.seed), searches(experiment, problem, found)]
    figures = {f"{controller}, {told_budget(budget)}": each for (controller, budget), each in cells.items()}
    pictures = {"cells": draw_cells(figures)} | architectures(problem.space, settings)
    about = [problem.about, f"space {problem.config.space}, loss {problem.config.loss}, {told_protocol(problem)}"]
    about.append(f"{plan.seeds} search seeds, {plan.finals} fresh final seeds, the same for all students, told on test")
    return Results("AKD: whether the best student depends on how it is taught", about, tables, pictures, metrics_of(cells))


def told_protocol(problem: StudentProblem) -> str:
    config = problem.config
    size = f"at most {config.generations} generations of {config.population}"
    return f"{config.protocol.steps} steps, γ = {config.protocol.gamma:g} where distilled, {size}"


def squares(cells: dict[tuple[str, Budget], list[Cells]]) -> Table:
    """The 2 × 2 of every controller and budget."""
    rows = []
    for (controller, budget), each in cells.items():
        means = [spread(column) for column in zip(*each, strict=True)]
        rows.append((controller, told_budget(budget), *means, gap([c.knowledge for c in each]), gap([c.ahead for c in each])))
    note = "Mean ± half width and [95 % interval], Student's t over search seeds; the two differences are paired by search seed."
    return Table("square", "2 × 2, test accuracy (%)", ("controller", "budget", *COLUMNS), rows, note)


def searches(experiment: Experiment, problem: StudentProblem, found: Sequence[Found]) -> Table:
    """One row a search, with its student."""
    columns = ("controller", "budget", "seed", "searched with", "student", "parameters", "MACs", "validation", "CLS", "KD")
    rows = [_searched(experiment, problem, each) for each in found]
    note = f"Validation: fitness of the search's best. CLS and KD: test, mean of {experiment.plan.finals} final seeds."
    return Table("searches", "Searches", (*columns, "trained", "seconds"), rows, note)


def _searched(experiment: Experiment, problem: StudentProblem, found: Found) -> list[Cell]:
    task, cost = found.task, problem.cost(problem.space.parse(found.student))
    plain = spread(experiment.accuracies("", found.student, "plain")).mean
    kd = spread(experiment.accuracies(problem.config.teacher, found.student, "kd")).mean
    head = [task.config.controller, told_budget(task.budget), str(task.seed), task.group, found.student]
    return [*head, cost.parameters, cost.macs, found.fitness, plain, kd, found.trained, found.seconds]


Settings = dict[tuple[str, Budget], list[tuple[Found, Found]]]


def distances(settings: Settings, seed: int) -> Table:
    """Whether NAS and AKD end in different places, by controller and budget."""
    rows = []
    for (controller, budget), pairs in settings.items():
        groups = by_group([each for pair in pairs for each in pair])
        apart, levels = separation(groups, seed), level_distances(groups)
        same = sum(nas.student == akd.student for nas, akd in pairs)
        told = (f"{same} of {len(pairs)}", levels["one search"], apart.within, apart.between, apart.p, apart.least)
        rows.append((controller, told_budget(budget), *told))
    columns = ("controller", "budget", "same student", "in a search", "in NAS or AKD", "NAS to AKD", "p", "least p")
    note = "Mean Hamming distance of final genomes (slots that differ); p by permuting whole searches, least p: what so many can give."
    return Table("distances", "Where NAS and AKD end", columns, rows, note)


def architectures(space: StudentSpace, settings: Settings) -> dict[str, Picture]:
    """The 2-D picture of every controller and budget."""
    found = {}
    for (controller, budget), pairs in settings.items():
        both = [each for pair in pairs for each in pair]
        groups: dict[str, list[Genome]] = {MODES[mode]: [] for mode in MODES}
        for each in both:
            groups[MODES[each.task.config.evaluator]] += each.elites
        name = f"architectures-{controller}-{budget[0].removeprefix('max_')}{budget[1]:g}"
        found[name] = draw_architectures(space, list(start_genomes(both)), groups, f"{controller}, {told_budget(budget)}")
    return found


def metrics_of(cells: dict[tuple[str, Budget], list[Cells]]) -> dict[str, float]:
    """Figures by name, for tracking; a single setting needs no name."""
    told = {}
    for (controller, budget), each in cells.items():
        at = f"/{controller}-{budget[0].removeprefix('max_')}{budget[1]:g}" if len(cells) > 1 else ""
        told[f"equation_1{at}"] = gap([c.knowledge for c in each]).mean
        told[f"kd_akd_less_kd_nas{at}"] = gap([c.ahead for c in each]).mean
    return {name: value for name, value in told.items() if math.isfinite(value)}
