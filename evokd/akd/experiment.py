"""An experiment's folder: its plan, its searches, and a journal of its trainings, so that a death keeps what is done."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from evokd.checkpoint import write_whole
from evokd.config import StudentConfig, make_config
from evokd.errors import EvokdError
from evokd.evaluate.students import StudentJob
from evokd.executor import Serial, Workers
from evokd.folder import fresh
from evokd.journal import Journal, read_events
from evokd.report.terminal import Terminal
from evokd.run import evaluation_seeds

FORMAT = "evokd-akd-1"
FIXED = ("task", "evaluator", "controller", "seed", "out", "baselines", "tracking_uri")  # what an experiment sets by itself
Budget = tuple[str, float]  # max_macs, max_params or max_latency_ms, and the limit
UNITS = {"max_macs": "MACs", "max_params": "parameters", "max_latency_ms": "ms"}


@dataclass(frozen=True)
class Plan:
    """What an experiment does, whole: the same plan gives the same figures.

    Attributes:
        kind: square, matrix, agents or designs.
        values: fields of `StudentConfig` that all searches and trainings share.
        overrides: further ones, `key=value`.
        budgets: each a limit of its own.
        controllers: by name.
        teachers: of matrix and agents; elsewhere `values` has the one.
        students: of matrix and designs; empty: drawn.
        count: students that are drawn.
        seeds: searches of each kind.
        finals: trainings of each student in each way.
        top: final architectures of a search that distances are of.
        options: whatever else a kind needs.
    """

    kind: str
    values: dict[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    budgets: tuple[Budget, ...] = ()
    controllers: tuple[str, ...] = ("evolution",)
    teachers: tuple[str, ...] = ()
    students: tuple[str, ...] = ()
    count: int = 0
    seeds: int = 3
    finals: int = 5
    top: int = 3
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        return int(self.values.get("seed", 0))

    def config(self, budget: Budget | None = None, **changes: Any) -> StudentConfig:
        """The configuration of one search; a budget is the only limit, but for those in `overrides`.

        Raises:
            EvokdError: a value out of range, or an override of what the experiment itself sets.
        """
        for text in self.overrides:
            if text.partition("=")[0].strip() in FIXED:
                raise EvokdError(
                    "-s", "a setting that searches share", repr(text)[:60], f"evokd akd {self.kind} sets it by itself"
                )
        limits = {} if budget is None else dict.fromkeys(UNITS) | {budget[0]: _whole(budget[1])}
        own = {"task": "student", "baselines": False, "tracking_uri": "none"}
        return make_config(self.values | limits | own | changes, self.overrides)

    def key(self) -> str:
        """Four hexadecimal digits of its content."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:4]


def _whole(limit: float) -> float:
    return int(limit) if float(limit).is_integer() else limit


def told_budget(budget: Budget | None) -> str:
    return f"{budget[1]:,g} {UNITS[budget[0]]}" if budget else "no limit"


def read_plan(folder: Path) -> Plan:
    """The plan of an experiment's folder.

    Raises:
        EvokdError: not such a folder.
    """
    try:
        body = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        if body.pop("format") != FORMAT:
            raise ValueError("another format")
        return Plan(**{name: _tuples(value) for name, value in body.items()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise EvokdError("--resume", "the folder of an experiment of evokd akd", f"{folder} ({error})"[:160]) from None


def _tuples(value: Any) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value


def new_experiment(plan: Plan, out: Path, data: str) -> Path:
    """A fresh folder with its plan."""
    folder = fresh(out, f"akd-{plan.kind}-{data}-{plan.key()}")
    write_plan(folder, plan)
    return folder


def write_plan(folder: Path, plan: Plan) -> None:
    write_whole(folder / "plan.json", json.dumps({"format": FORMAT, **asdict(plan)}, indent=1, ensure_ascii=False) + "\n")


class Training(NamedTuple):
    """One final training, told on test.

    Attributes:
        teacher: its name; empty where labels alone are used.
        student: text in its space, or the name of a network.
        way: plain, kd or rco.
        seed: of initialisation and order.
        job: as the judge takes it; None where there are no jobs yet.
    """

    teacher: str
    student: str
    way: str
    seed: int
    job: StudentJob

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.teacher, self.student, self.way, self.seed


@dataclass
class Experiment:
    """An experiment at work.

    Attributes:
        plan: what is to be done.
        folder: where it is kept.
        terminal: where it is told.
        journal: of final trainings.
        done: training → test accuracy (%), NaN where it failed; those of earlier processes included.
        notice: called with every training that ended now.
    """

    plan: Plan
    folder: Path
    terminal: Terminal
    journal: Journal
    done: dict[tuple, float]
    notice: Callable[[Training, float], None] = lambda training, accuracy: None

    def train(self, executor: Serial | Workers, wanted: Sequence[Training]) -> None:
        """Those that are not done yet, one journal line each."""
        missing = list({t.key: t for t in wanted if t.key not in self.done}.values())
        for number, (training, outcome) in enumerate(zip(missing, executor.map([t.job for t in missing]), strict=True), 1):
            accuracy = outcome.metrics.get("accuracy", math.nan)
            self.done[training.key] = accuracy
            told = accuracy if math.isfinite(accuracy) else None
            fields = dict(zip(("teacher", "student", "way", "seed"), training.key, strict=True))
            self.journal.write("final", **fields, accuracy=told, status=outcome.status.value, reason=outcome.reason)
            self.notice(training, accuracy)
            self.terminal.status(f"finals: {number}/{len(missing)} trained, told on test")

    def accuracies(self, teacher: str, student: str, way: str) -> list[float]:
        """One a final seed."""
        return [self.done[teacher, student, way, seed] for seed in self.seeds]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Fresh ones: no search has seen them; the same for all students, teachers and ways."""
        return evaluation_seeds(self.plan.seed, "akd", self.plan.finals)


@contextmanager
def opened(plan: Plan, folder: Path, terminal: Terminal) -> Iterator[Experiment]:
    """The experiment of a folder, which no other process may write meanwhile.

    Raises:
        EvokdError: a folder that another process writes, or a broken journal.
    """
    try:
        with FileLock(folder / ".lock", timeout=0):
            finals = folder / "finals"
            finals.mkdir(exist_ok=True)
            events = read_events(finals) if (finals / "events.jsonl").exists() else []
            write_whole(finals / "events.jsonl", "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in events))
            with closing(Journal(finals)) as journal:
                yield Experiment(
                    plan, folder, terminal, journal, {_key(e): _accuracy(e) for e in events if e["event"] == "final"}
                )
    except Timeout:
        hint = "wait for it, or stop it"
        raise EvokdError(str(folder), "an experiment that no other process writes", "a locked one", hint) from None
    except KeyboardInterrupt:
        terminal.say(f"\n stopped; to go on: evokd akd --resume {folder}")
        raise


def _key(event: dict) -> tuple:
    return event["teacher"], event["student"], event["way"], event["seed"]


def _accuracy(event: dict) -> float:
    return math.nan if event["accuracy"] is None else event["accuracy"]


def with_seeds(plan: Plan, seeds: int | None) -> Plan:
    """The plan with more searches.

    Raises:
        EvokdError: fewer than there were.
    """
    if seeds is None:
        return plan
    if seeds < plan.seeds:
        raise EvokdError("--seeds", f"at least the {plan.seeds} of the experiment", str(seeds))
    return replace(plan, seeds=seeds)
