"""Whether agents with one teacher end at one architecture, and those with different teachers at different ones.

AKD shows this as a picture; here it is a permutation test of distances between the final genomes of whole searches, and the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, suppress
from itertools import combinations

from evokd.akd.experiment import Experiment, Plan, told_budget
from evokd.akd.figures import level_distances, separation
from evokd.akd.results import Cell, Results, Table
from evokd.akd.searches import Found, Task, by_group, check_controllers, check_teachers, find, start_genomes, task_of
from evokd.errors import EvokdError
from evokd.report.akd import draw_architectures
from evokd.student_problem import StudentProblem, open_student_problem


def open_agents(plan: Plan, say, download: bool = False) -> list[StudentProblem]:
    """A problem a teacher.

    Raises:
        EvokdError: fewer than two teachers or agents, more than one budget, or anything that is unknown.
    """
    check_teachers(plan.teachers)
    check_controllers(plan)
    if plan.seeds < 2:
        raise EvokdError("--agents", "at least 2", str(plan.seeds), "a distance within a teacher needs two")
    if len(plan.budgets) > 1:
        raise EvokdError("evokd akd agents", "one budget at most", ", ".join(map(told_budget, plan.budgets)))
    problems: list[StudentProblem] = []
    try:
        for teacher in plan.teachers:
            problems.append(open_student_problem(tasks(plan, teacher)[0].config, say, download))
    except EvokdError:
        for problem in problems:
            problem.executor.close()
        raise
    return problems


def tasks(plan: Plan, teacher: str, mode: str = "distill") -> list[Task]:
    """A search an agent; agents differ in their seed, and take the controllers in turn."""
    budget = plan.budgets[0] if plan.budgets else None
    names = plan.controllers
    return [task_of(plan, mode, teacher, budget, names[agent % len(names)], agent) for agent in range(plan.seeds)]


def run_agents(experiment: Experiment, problems: Sequence[StudentProblem], notice=lambda found: None) -> Results:
    """Searches with labels beside the first teacher, then with each teacher."""
    found: list[Found] = []
    for at, problem in enumerate(problems):
        with closing(problem.executor):
            modes = ("distill",) if at else ("train", "distill")
            for task in [task for mode in modes for task in tasks(experiment.plan, problem.config.teacher, mode)]:
                found.append(find(experiment, problem, task))
                notice(found[-1])
    return agents_results(experiment, problems, found)


def agents_results(experiment: Experiment, problems: Sequence[StudentProblem], found: Sequence[Found]) -> Results:
    """Tables and pictures of searches that have ended."""
    plan, space, groups = experiment.plan, problems[0].space, by_group(found)
    taught = {name: groups[name] for name in plan.teachers}
    rows = [_row("all teachers", taught, plan.seed)] if len(taught) > 2 else []
    rows += [_row(f"{a} and {b}", {a: groups[a], b: groups[b]}, plan.seed) for a, b in combinations(groups, 2)]
    note = "Mean Hamming distance of final genomes (slots that differ). p: share of all ways to label the searches that part them as much."
    columns = ("groups", "between", "within", "ratio", "p", "least p", "ways")
    tables = [
        Table("separation", "Distances between and within", columns, rows, note),
        _levels(groups, taught),
        _finds(problems, found),
    ]
    finals = {name: [genome for search in searches for genome in search] for name, searches in groups.items()}
    picture = draw_architectures(space, list(start_genomes(found)), finals, f"final architectures, {plan.top} a search")
    budget = told_budget(plan.budgets[0]) if plan.budgets else "limits of the data set's preset"
    about = [f"{problems[0].card['data']}, space {problems[0].config.space} ({len(space.slots)} slots), {budget}"]
    about.append(f"{plan.seeds} agents a teacher, the best {plan.top} architectures of each; {', '.join(plan.controllers)}")
    return Results(
        "Agents and teachers", about, tables, {"architectures": picture}, {"p_teachers": separation(taught, plan.seed).p}
    )


def _row(name: str, groups: dict, seed: int) -> list[Cell]:
    found, ratio = separation(groups, seed), float("nan")
    with suppress(ZeroDivisionError):
        ratio = found.between / found.within
    return [name, found.between, found.within, ratio, f"{found.p:.3f}", f"{found.least:.3f}", found.ways]


def _levels(groups: dict, taught: dict) -> Table:
    """How far two finds lie apart, from one search to two groups."""
    rows = [("with teachers", *level_distances(taught).values()), ("with labels too", *level_distances(groups).values())]
    note = "Two agents with one teacher agree if the second figure is about the first, and teachers differ if the third is above both."
    return Table(
        "levels", "Distance of two finds", ("searches", "one search", "one teacher, two agents", "two teachers"), rows, note
    )


def _finds(problems: Sequence[StudentProblem], found: Sequence[Found]) -> Table:
    problem, rows = problems[0], []
    for each in found:
        cost = problem.cost(problem.space.parse(each.student))
        head = (each.task.group, str(each.task.seed), each.task.config.controller, each.student)
        rows.append((*head, cost.parameters, cost.macs, each.fitness, each.trained, each.seconds))
    columns = ("taught by", "agent", "controller", "student", "parameters", "MACs", "validation", "trained", "seconds")
    return Table("searches", "Searches", columns, rows)
