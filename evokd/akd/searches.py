"""Searches of an experiment, each in a run folder of its own: run, gone on with, or read back where they have ended."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from evokd.akd.experiment import Budget, Experiment, Plan, told_budget
from evokd.checkpoint import write_whole
from evokd.config import StudentConfig
from evokd.controllers import check_controller
from evokd.errors import EvokdError
from evokd.journal import Journal, individuals, read_events, read_outcome
from evokd.models.zoo import build
from evokd.run import Search, replay
from evokd.student import student_search
from evokd.student_finals import choose, text_of
from evokd.student_problem import StudentProblem, students_within
from evokd.students.space import Genome, StudentSpace

MODES = {"train": "NAS", "distill": "AKD"}  # evaluator of the search → what is found is called


@dataclass(frozen=True)
class Task:
    """One search of a plan.

    Attributes:
        config: of the search.
        teacher: whose problem it runs on.
        group: the teacher, or `labels`: whom the search listens to.
        budget: its limit, if any.
        seed: which of the plan's searches it is, from 0.
    """

    config: StudentConfig
    teacher: str
    group: str
    budget: Budget | None
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        limit = f"{self.budget[0].removeprefix('max_')}{self.budget[1]:g}" if self.budget else "all"
        group = "".join(c if c.isalnum() or c in "-._" else "-" for c in self.group)
        return f"{self.config.controller}-{limit}-{group}-s{self.seed}"


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        task: the search.
        student: text of the one that was chosen on validation.
        fitness: of the best on validation.
        elites: final genomes, the chosen one first.
        initial: genomes of its first generation.
        trained: students trained in full.
        seconds: that it took.
    """

    task: Task
    student: str
    fitness: float
    elites: list[Genome]
    initial: list[Genome]
    trained: int
    seconds: float


def check_controllers(plan: Plan) -> None:
    """Raises EvokdError for a name that is no controller, one that cannot search so, one named twice, or none."""
    if not plan.controllers:
        raise EvokdError("--controller", "a controller", "none", "such as evolution,reinforce")
    _once("--controller", plan.controllers)
    for name, budget, mode in product(plan.controllers, plan.budgets or (None,), MODES):
        check_controller(plan.config(budget, evaluator=mode, controller=name))


def check_teachers(names: Sequence[str], least: int = 2) -> None:
    """What would fail after the first teacher's training fails before it.

    Raises:
        EvokdError: fewer than `least`, one named twice, a file that is not there, or a name that is no network.
    """
    if len(names) < least:
        raise EvokdError("--teachers", f"at least {least} teachers", f"{len(names)}", "such as resnet8w16,resnet14w32,resnet20")
    _once("--teachers", names)
    for name in names:
        if name.endswith(".safetensors"):
            if not Path(name).is_file():
                raise EvokdError("--teachers", "an existing file", repr(name))
        elif ".py:" not in name:
            build(name, 10, 3, 0, "--teachers")


def _once(option: str, names: Sequence[str]) -> None:
    if twice := [name for name in names if list(names).count(name) > 1]:
        raise EvokdError(option, "each one once", repr(twice[0]))


def task_of(plan: Plan, mode: str, teacher: str, budget: Budget | None, controller: str, seed: int) -> Task:
    config = plan.config(budget, evaluator=mode, teacher=teacher, controller=controller, seed=plan.seed + seed)
    return Task(config, teacher, "labels" if mode == "train" else teacher, budget, seed)


def within_budget(problem: StudentProblem, config: StudentConfig) -> StudentProblem:
    """The same data, teacher and judges for another search.

    Raises:
        EvokdError: limits that no student meets.
    """
    within, milliseconds = students_within(config, problem.space, problem.images)
    return replace(problem, config=config, within=within, latency=milliseconds)


def find(experiment: Experiment, problem: StudentProblem, task: Task) -> Found:
    """The outcome of a search, which is run or gone on with if it has not ended."""
    folder = experiment.folder / "searches" / task.name
    events = read_events(folder) if (folder / "events.jsonl").exists() else []
    if not events or events[-1]["event"] != "end":
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "config.toml", task.config.to_toml())
        _search(experiment, within_budget(problem, task.config), folder, events, task)
        events = read_events(folder)
    return _read(problem.space, events, task, experiment.plan.top)


def _search(experiment: Experiment, problem: StudentProblem, folder: Path, events: list[dict], task: Task) -> None:
    terminal, search = experiment.terminal, student_search(problem)
    kept = replay(search, events, problem.space.tree_from_names, read_outcome) if events else []
    write_whole(folder / "events.jsonl", "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in kept))
    search.notice = lambda summary: None if summary else terminal.status(_told(search, task))
    with closing(Journal(folder)) as journal:
        search.journal = journal
        if not kept:
            journal.write("start", version=1, config=task.config.hash(), problem=problem.key, seed=task.config.seed)
        search.run()
        best = choose(problem, search.individuals, journal, terminal.status)
        journal.write("end", best=text_of(problem, best))


def _told(search: Search, task: Task) -> str:
    limit = told_budget(task.budget)
    return f"{task.name}: {search.trained}/{search.budget.total} trained, searched with {task.group}, {limit}"


def _read(space: StudentSpace, events: Sequence[dict], task: Task, top: int) -> Found:
    text = events[-1]["best"].rpartition("  (")[0]
    sound = sorted((e for e in individuals(events) if e["status"] == "OK"), key=lambda e: (-e["fitness"], e["id"]))
    genomes = [space.read(text), *(_genome(space, e) for e in sound)]
    distinct = list({space.write(g): g for g in genomes}.values())
    initial = [_genome(space, e) for e in individuals(events) if e["generation"] == 0]
    rounds = [e for e in events if e["event"] == "generation"]
    fitness, seconds = sound[0]["fitness"], sum(e["seconds"] for e in rounds)
    return Found(task, text, fitness, distinct[:top], initial, rounds[-1]["evaluations"], seconds)


def _genome(space: StudentSpace, event: dict) -> Genome:
    return space.genome(space.tree_from_names(event["tree"]))


def by_group(found: Sequence[Found]) -> dict[str, list[list[Genome]]]:
    """Group → searches → final genomes."""
    groups: dict[str, list[list[Genome]]] = {}
    for each in found:
        groups.setdefault(each.task.group, []).append(each.elites)
    return groups


def start_genomes(found: Sequence[Found]) -> Iterator[Genome]:
    """First generations of all searches."""
    return (genome for each in found for genome in each.initial)
