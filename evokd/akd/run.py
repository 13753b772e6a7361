"""One experiment from its plan to its report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from evokd.akd.agents import open_agents, run_agents
from evokd.akd.designs import open_designs, run_designs
from evokd.akd.experiment import Experiment, Plan, new_experiment, opened
from evokd.akd.mirror import AkdMirror
from evokd.akd.preferences import open_matrix, run_matrix
from evokd.akd.results import Results, render, write_csv
from evokd.akd.square import open_square, run_square
from evokd.report.akd import write_page
from evokd.report.terminal import Terminal


def run_plan(
    plan: Plan, terminal: Terminal, *, folder: Path | None = None, tracking: str | None = None, download: bool = False
) -> Results:
    """Everything that a plan says; what lies in `folder` already is read back.

    Raises:
        EvokdError: anything that cannot work, before there is a folder.
    """
    try:
        name, run = _ready(plan, terminal.status, download)
        folder = folder or new_experiment(plan, Path(plan.config().out), name)
        with opened(plan, folder, terminal) as experiment:
            terminal.done()
            terminal.say(f"evokd akd {plan.kind} · {folder}")
            results, files, mirror = _mirrored(experiment, run, tracking, name)
        hand_over(results, terminal, [f"{folder / 'report.html'}  and {len(files) - 1} files beside it"])
        mirror.finish(results, files)
        return results
    finally:
        terminal.done()


def _ready(plan: Plan, say: Callable[[str], None], download: bool) -> tuple[str, Callable]:
    """(name of the data, what runs on an experiment and a notice of searches), all checked."""
    if plan.kind == "square":
        problem = open_square(plan, say, download)
        return problem.card["data"], partial(run_square, problem=problem)
    if plan.kind == "agents":
        problems = open_agents(plan, say, download)
        return problems[0].card["data"], partial(run_agents, problems=problems)
    if plan.kind == "matrix":
        problems, students = open_matrix(plan, say, download)
        return problems[0].card["data"], lambda experiment, notice: run_matrix(experiment, problems, students)
    trial = open_designs(plan, say, download)
    return trial.problem.card["data"], lambda experiment, notice: run_designs(experiment, trial)


def _mirrored(experiment: Experiment, run: Callable, tracking: str | None, name: str) -> tuple[Results, list[Path], AkdMirror]:
    """The results with their files, while MLflow looks on."""
    mirror = AkdMirror(experiment.plan, experiment.folder, tracking, name, experiment.terminal.warn)
    experiment.notice = mirror.training
    with mirror.tracker.until_the_end():
        results = run(experiment, notice=mirror.search)
    return results, write_results(experiment.folder, results), mirror


def write_results(folder: Path, results: Results) -> list[Path]:
    """report.html, a PNG a picture, a CSV a table."""
    return [*write_page(folder, results), *(write_csv(folder, table) for table in results.tables)]


def hand_over(results: Results, terminal: Terminal, hints: Sequence[str] = ()) -> None:
    """Tell the results."""
    terminal.done()
    blocks = [list(results.about), *(render(table) for table in results.tables), list(hints)]
    for block in blocks:
        for line in block:
            terminal.say(line)
        terminal.say()
