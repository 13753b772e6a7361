"""Some losses on several pairs, unchanged: every pair with the same fresh seeds, told once on test; what transfer and ladder are made of.

Each training is on disk when it is done; a comparison that was cut goes on with what is missing.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from evokd.checkpoint import write_whole
from evokd.compare.loss_plan import Entrant
from evokd.compare.losses import connectors_of
from evokd.config import Config, change_config, read_config
from evokd.errors import EvokdError
from evokd.executor import Terms, check_limits
from evokd.folder import fresh, locked
from evokd.journal import Journal
from evokd.losses.language import parse_loss
from evokd.problem import Problem, misfit, open_problem
from evokd.report.terminal import Terminal
from evokd.run import evaluation_seeds
from evokd.signals import Ending
from evokd.trainings import Trainings

COLUMNS = ("data", "teacher", "teacher_accuracy", "student", "loss", "gamma", "connectors", "seed", "accuracy")


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        kind: the command, `transfer` or `teachers`.
        configs: of the pairs.
        rows: losses, the one that others are compared with first.
        seeds: fresh ones a row.
    """

    kind: str
    configs: tuple[Config, ...]
    rows: tuple[Entrant, ...]
    seeds: int

    def write(self, folder: Path) -> None:
        """As the folder keeps it, for --resume."""
        body = {"kind": self.kind, "pairs": len(self.configs), "seeds": self.seeds, "rows": [asdict(row) for row in self.rows]}
        write_whole(folder / "plan.json", json.dumps(body, indent=1, ensure_ascii=False) + "\n")
        for number, config in enumerate(self.configs):
            (folder / f"pair-{number}").mkdir(exist_ok=True)
            write_whole(folder / f"pair-{number}" / "config.toml", config.to_toml())


def read_plan(folder: Path, kind: str, seeds: int | None = None) -> Plan:
    """The plan of a comparison that goes on, with another number of seeds if one is given.

    Raises:
        EvokdError: not the folder of such a comparison.
    """
    try:
        body = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        rows, count = tuple(Entrant(**row) for row in body["rows"]), range(body["pairs"])
        if body["kind"] != kind:
            raise ValueError(body["kind"])
    except (OSError, ValueError, KeyError, TypeError):
        raise EvokdError("--resume", f"the folder of evokd compare {kind}, with its plan.json", str(folder)) from None
    out = {"out": str(folder.parent)}
    configs = tuple(change_config(read_config(folder / f"pair-{number}" / "config.toml"), out) for number in count)
    return Plan(kind, configs, rows, seeds or body["seeds"])


@dataclass(frozen=True)
class Pair:
    """One pair as it was told.

    Attributes:
        card: figures of data, teacher (accuracy in %, on validation) and student.
        values: row → test accuracy by seed, %; NaN where a training failed or the loss does not fit.
        connectors: row → parameters that the loss trains beside the student.
        misfits: row → why the loss cannot be had here.
    """

    card: dict
    values: dict[str, list[float]]
    connectors: dict[str, int]
    misfits: dict[str, str]

    @property
    def name(self) -> str:
        return f"{self.card['teacher']} → {self.card['student']}, {self.card['data']}"


def train_pairs(plan: Plan, terminal: Terminal, folder: Path | None = None, command: str = "") -> tuple[Path, list[Pair]]:
    """Everything that is missing of a comparison; its folder, with told.csv, and what was told.

    Args:
        plan: what is compared.
        terminal: told of the progress.
        folder: of one that goes on, or that is to be taken.
        command: that goes on with it, where it is part of something larger.

    Raises:
        EvokdError: whatever does not fit, before a folder exists; a folder that another process writes.
    """
    with ExitStack() as stack:
        stack.callback(terminal.done)
        problems = [_opened(plan, config, terminal, stack) for config in plan.configs]
        going, out = folder is not None, Path(plan.configs[0].out)
        folder = folder or fresh(out, f"{plan.kind}-{problems[0].card['data']}")
        stack.enter_context(locked(folder))
        _check_same(folder, problems)
        plan.write(folder)
        ending = stack.enter_context(Ending(folder, command or f"evokd compare {plan.kind} --resume {shlex.quote(str(folder))}"))
        for number, problem in enumerate(problems):
            trainings = Trainings(folder / f"pair-{number}", go_on=going)
            stack.callback(trainings.close)
            memory = int(problem.config.memory_gib * 2**30) if problem.config.memory_gib else None
            problem.executor.terms = Terms(problem.config.timeout_seconds, memory, trainings, ending)
        (folder / "events.jsonl").unlink(missing_ok=True)  # told anew from the trainings, which cost nothing any longer
        journal = stack.enter_context(closing(Journal(folder)))
        terminal.say(f"{len(plan.rows)} rows, {plan.seeds} fresh seeds each, on {len(problems)} pairs · {folder}")
        pairs = [_told(plan, problem, journal, terminal) for problem in problems]
    write_table(folder / "told.csv", plan, pairs)
    return folder, pairs


def _opened(plan: Plan, config: Config, terminal: Terminal, stack: ExitStack) -> Problem:
    """A pair, recorded for the losses that fit it. The first must fit the first pair."""
    problem = open_problem(config, terminal.status, guests=[parse_loss(row.text) for row in plan.rows if row.text])
    check_limits(config.memory_gib, problem.executor)
    stack.callback(problem.executor.close)
    return problem


def _check_same(folder: Path, problems: Sequence[Problem]) -> None:
    """Raises EvokdError where data, a teacher or a student have changed since the comparison began."""
    path, keys = folder / "problems.json", [problem.key for problem in problems]
    if path.exists() and (was := json.loads(path.read_text(encoding="utf-8"))) != keys:
        raise EvokdError("--resume", f"the pairs that {folder} began with, {was}", str(keys))
    write_whole(path, json.dumps(keys) + "\n")


def _told(plan: Plan, problem: Problem, journal: Journal, terminal: Terminal) -> Pair:
    """All rows on one pair, seed by seed, so that one cut short is even."""
    taps, card = problem.examples[:2], problem.card
    reasons = {row.name: misfit(parse_loss(row.text), taps) if row.text else "" for row in plan.rows}
    sound = [row for row in plan.rows if not reasons[row.name]]
    seeds = evaluation_seeds(problem.config.seed, plan.kind, plan.seeds)
    outcomes = problem.executor.map([row.entry.job([seed], "test") for seed in seeds for row in sound])
    values: dict[str, list[float]] = {row.name: [] for row in plan.rows}
    for seed in seeds:
        for row in sound:
            outcome = next(outcomes)
            values[row.name].append(outcome.metrics.get("accuracy", math.nan))
            terminal.status(f"{card['teacher']} → {card['student']}: {row.name}, {len(values[row.name])}/{plan.seeds} seeds")
            told = {name: value for name, value in outcome.metrics.items() if isinstance(value, float)}
            pair = {name: card[name] for name in ("data", "teacher", "student")}
            status = {"status": outcome.status.value, "reason": outcome.reason, "metrics": told}
            journal.write("final", **pair, row=row.name, text=row.text, gamma=row.gamma, seed=seed, **status)
    lost = [math.nan] * plan.seeds
    connectors = {row.name: connectors_of(row, problem) for row in plan.rows}
    misfits = {name: reason for name, reason in reasons.items() if reason}
    return Pair(card, {name: found or lost for name, found in values.items()}, connectors, misfits)


def write_table(path: Path, plan: Plan, pairs: Sequence[Pair]) -> None:
    """One line a training that came to an end."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(COLUMNS)
    for pair, config in zip(pairs, plan.configs, strict=True):
        seeds = evaluation_seeds(config.seed, plan.kind, plan.seeds)
        about = [pair.card[name] for name in ("data", "teacher", "teacher_accuracy", "student")]
        for row in plan.rows:
            for seed, value in zip(seeds, pair.values[row.name], strict=True):
                if math.isfinite(value):
                    lines.writerow([*about, row.name, row.gamma, pair.connectors[row.name], seed, value])
    write_whole(path, text.getvalue())


def distinct(rows: Sequence[Entrant]) -> tuple[Entrant, ...]:
    """The rows, each loss with its γ once, under the name it came with first."""
    found: dict[tuple[str, float], Entrant] = {}
    for row in rows:
        found.setdefault((row.text, row.gamma), row)
    names: dict[str, int] = {}
    kept = []
    for row in found.values():
        names[row.name] = names.get(row.name, 0) + 1
        kept.append(row if names[row.name] == 1 else replace(row, name=f"{row.name} ({names[row.name]})"))
    return tuple(kept)
