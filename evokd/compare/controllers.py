"""Several controllers and seeds on one space, evaluator and budget, told as curves, distributions and paired differences.

Data, teacher, bank and workers are opened once. Seed k of every controller trains with the same evaluation seeds and passes the same
funnel, so that differences are paired; the winners meet on test with fresh seeds that all searches share.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from evokd.checkpoint import write_whole
from evokd.compare.arms import Losses, Students, finals_of, is_whole, open_field, run_arm, tracked
from evokd.compare.statistics import Bands, Pair, bands, pairs
from evokd.config import Config, change_config, make_config, resumed_config
from evokd.controllers import check_controller
from evokd.errors import EvokdError
from evokd.executor import Terms, Workers, count_workers
from evokd.folder import locked, new_folder
from evokd.funnel import stopped
from evokd.genome.individual import Outcome, Status
from evokd.journal import read_events, read_outcome
from evokd.report.curves import draw_curves, write_page
from evokd.report.terminal import Terminal
from evokd.run import evaluation_seeds
from evokd.signals import Ending

if TYPE_CHECKING:
    from evokd.tabular_search import Published

USUAL, SEEDS = ("evolution", "random"), 10
MIRRORED = 20  # seeds of a comparison on a table that MLflow is shown, which costs four times the search
PARALLEL = 40  # searches on a table from which on worker processes are worth their start


class Arm(NamedTuple):
    """One search of a comparison."""

    controller: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.controller}-{self.seed}"


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        config: of every search, but for controller and seed; its own seed is the first.
        controllers: by name.
        count: seeds of each controller.
        finals: whether winners are trained again and told on test; a table tells its columns in any case.
    """

    config: Config
    controllers: tuple[str, ...]
    count: int
    finals: bool = True

    @property
    def seeds(self) -> range:
        return range(self.config.seed, self.config.seed + self.count)

    @property
    def arms(self) -> list[Arm]:
        """Seed by seed, so that a comparison that is cut short is even."""
        return [Arm(name, seed) for seed in self.seeds for name in self.controllers]

    @property
    def told(self) -> tuple[int, ...] | None:
        """Seeds of the final trainings, the same for every search."""
        return evaluation_seeds(self.config.seed, "final", self.config.finals) if self.finals else None

    def config_of(self, arm: Arm) -> Config:
        return change_config(self.config, {"controller": arm.controller, "seed": arm.seed})

    def write(self, folder: Path) -> None:
        """The plan as a run folder keeps it, for --resume."""
        body = {"controllers": self.controllers, "seeds": self.count, "finals": self.finals}
        write_whole(folder / "comparison.json", json.dumps(body) + "\n")
        write_whole(folder / "config.toml", self.config.to_toml())


def make_plan(
    values: Mapping[str, Any], overrides: Sequence[str] = (), controllers: Sequence[str] = (), count: int | None = None,
    finals: bool | None = None, folder: Path | None = None,
) -> Plan:  # fmt: skip
    """What is asked for; with a folder what was compared there, with other controllers or more seeds if they are given.

    Raises:
        EvokdError: fewer than two controllers or seeds, a name twice or unknown, or the folder of another comparison; operators that
            a comparison had and that are not named again: a folder alone makes no code run.
    """
    known = _planned(folder) if folder else {"controllers": USUAL, "seeds": SEEDS, "finals": True}
    config = resumed_config(folder, values["task"], values, overrides) if folder else make_config(values, overrides)
    if folder and config.operators and not values.get("operators"):
        raise EvokdError("--resume", "--operators " + " ".join(config.operators) + ", as the comparison had", "none")
    names, count = tuple(controllers or known["controllers"]), known["seeds"] if count is None else count
    if len(set(names)) < max(2, len(names)):
        raise EvokdError("--controllers", "two or more, none twice", repr(",".join(names)))
    if count < 2:
        raise EvokdError("--seeds", "at least 2", str(count))
    plan = Plan(config, names, count, known["finals"] if finals is None else finals)
    for name in names:
        check_controller(plan.config_of(Arm(name, config.seed)))
    return plan


def _planned(folder: Path) -> dict[str, Any]:
    try:
        known = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
        return {"controllers": tuple(known["controllers"]), "seeds": int(known["seeds"]), "finals": bool(known["finals"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise EvokdError("--resume", "the folder of a comparison, with its comparison.json", str(folder)) from None


@dataclass(frozen=True)
class Found:
    """One search as its journal tells it.

    Attributes:
        arm: controller and seed.
        best: (E,) greatest fitness after each of its E evaluations; NaN before the first that succeeded.
        seconds: (E,) when that was known: at the end of a generation, or on a table's simulated clock.
        incumbents: (E) text of the best.
        finals: row → mean of its winner on test, %; of a table the told columns.
        winner: its text; the incumbent's where there were no finals.
    """

    arm: Arm
    best: np.ndarray
    seconds: np.ndarray
    incumbents: list[str]
    finals: dict[str, float]
    winner: str


def read_found(arm: Arm, events: Sequence[dict]) -> Found:
    """A search from its journal, finished or not. What a gate, a score or a rung refused is no evaluation."""
    best, text, clock, told, pending = (math.inf, 0, 0), "", 0.0, [], []
    for event in events:
        if event["event"] == "generation":
            clock += event["seconds"]
            told += [(*each, clock) for each in pending]
            pending = []
        elif event["event"] == "individual" and event["status"] != Status.REJECTED and not stopped(read_outcome(event)):
            if event["status"] == Status.OK:
                best, text = min((best, text), ((-event["fitness"], len(event["tree"]), event["id"]), event["text"]))
            pending.append((-best[0] if text else math.nan, text, event["metrics"].get("simulated_seconds", math.nan)))
    prices, walls = (np.array([each[place] for each in told]) for place in (2, 3))
    seconds = np.nancumsum(prices) if np.isfinite(prices).any() else walls
    winner = events[-1].get("best") or text
    return Found(arm, np.array([each[0] for each in told]), seconds, [each[1] for each in told], finals_of(events), winner)


class Panel(NamedTuple):
    """Best so far against evaluations or seconds: median and quartiles of every controller."""

    what: str
    axis: str
    bands: dict[str, Bands]


class Summary(NamedTuple):
    """The distribution of a figure over the searches of a controller; quartiles as NumPy interpolates them."""

    controller: str
    count: int
    mean: float
    deviation: float
    low: float
    median: float
    high: float
    best: float


@dataclass(frozen=True)
class Measure:
    """A figure of every search.

    Attributes:
        name: of the figure.
        values: controller → value by seed; NaN where a search found nothing.
    """

    name: str
    values: dict[str, list[float]]

    @property
    def summaries(self) -> list[Summary]:
        """One a controller, the greatest median first."""
        rows = [_summary(name, [v for v in values if math.isfinite(v)]) for name, values in self.values.items()]
        return sorted(rows, key=lambda row: -row.median if row.count else math.inf)

    @property
    def pairs(self) -> list[Pair]:
        """Of all controllers, the one with the greater median first."""
        return pairs({row.controller: self.values[row.controller] for row in self.summaries})


def _summary(controller: str, values: Sequence[float]) -> Summary:
    if not values:
        return Summary(controller, 0, *[math.nan] * 6)
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return Summary(
        controller, len(values), statistics.fmean(values), deviation, *np.percentile(values, (25, 50, 75)), max(values)
    )


@dataclass(frozen=True)
class Compared:
    """What a comparison hands over.

    Attributes:
        plan: what was compared.
        folder: of the comparison; each search has its own in it.
        found: the searches, seed by seed.
        measures: what the winners reach, first what decides; then what the searches saw.
        panels: curves.
        about: the first lines of the report.
    """

    plan: Plan
    folder: Path
    found: list[Found]
    measures: list[Measure]
    panels: list[Panel]
    about: list[str]


def compare_controllers(plan: Plan, terminal: Terminal, *, folder: Path | None = None, download: bool = False) -> Compared:
    """All searches, or those of a folder that are not whole, and everything that is written of them.

    Raises:
        EvokdError: whatever a search would refuse, before a folder exists; a folder that another process writes.
    """
    field = open_field(plan.config, terminal, download)
    try:
        for name in plan.controllers:
            field.search(plan.config_of(Arm(name, plan.config.seed)))  # what cannot be had is refused now
        folder = folder or new_folder(plan.config, f"compare-{field.problem.card['data']}", field.space)
        command = f"evokd compare controllers {plan.config.task} --resume {shlex.quote(str(folder))}"
        with locked(folder), Ending(folder, command) as ending:
            plan.write(folder)
            run_arms(field, plan, folder, terminal, ending)
            return written(read_comparison(field, plan, folder))
    finally:
        terminal.done()
        field.problem.executor.close()


def run_arms(field: Losses | Students, plan: Plan, folder: Path, terminal: Terminal, ending: Ending) -> None:
    """Every search that is not whole yet, one after the other; many on a table in worker processes."""
    arms = [arm for arm in plan.arms if not is_whole(_events(folder, arm), plan.config_of(arm), plan.finals)]
    total, done = len(plan.arms), len(plan.arms) - len(arms)
    terminal.say(f"{total} searches, {done} of them whole · {folder}")
    warn = cache(terminal.warn)  # of many searches that are not tracked one says so
    if field.table:
        searched = _looked_up(field, plan, folder, arms, warn, ending)
    else:
        searched = _trained(field, plan, folder, arms, terminal, warn, ending)
    for arm in searched:
        done += 1
        if not field.table:
            found = read_found(arm, _events(folder, arm))
            terminal.done()
            terminal.say(f" {done:>4}/{total}  {arm.name:<20} {len(found.best):>5} evaluations  {_told_best(found)}")
        terminal.status(f"searches: {done}/{total} done, the last {arm.name}")


def _told_best(found: Found) -> str:
    figures = [f"best {found.best[-1]:.2f}" if len(found.best) else "nothing", *(f"{k} {v:.2f}" for k, v in found.finals.items())]
    return "  ".join([*figures, found.winner])


def _trained(
    field: Losses | Students, plan: Plan, folder: Path, arms: Iterable[Arm], terminal: Terminal, warn, ending: Ending
) -> Iterator[Arm]:
    for arm in arms:
        config = plan.config_of(arm)
        with tracked(field, config, folder / arm.name, warn) as tell:
            run_arm(field, config, folder / arm.name, plan.told, terminal, tell, ending)
        yield arm


def _looked_up(
    field: Students, plan: Plan, folder: Path, arms: Sequence[Arm], warn: Callable[[str], None], ending: Ending
) -> Iterator[Arm]:
    """Searches on a table, the first of them mirrored when they are whole."""
    count = count_workers(plan.config)
    workers = Workers(count, open_lookup, (plan, folder)) if count > 1 and len(arms) >= PARALLEL else None
    if workers:
        workers.terms = Terms(ending=ending)
    outcomes = workers.map(arms) if workers else map(partial(_look_up, field, plan, folder), arms)
    try:
        for arm, outcome in zip(arms, outcomes, strict=True):
            if outcome.status is not Status.OK:
                raise EvokdError(str(folder / arm.name), "a search that comes to its end", outcome.reason)
            if arm.seed in plan.seeds[:MIRRORED]:
                _mirror(field, plan, folder, arm, warn)
            ending.check_generation()
            yield arm
    finally:
        if workers:
            workers.close()


def _mirror(field: Students, plan: Plan, folder: Path, arm: Arm, warn: Callable[[str], None]) -> None:
    with tracked(field, plan.config_of(arm), folder / arm.name, warn) as tell:
        for event in (event for event in _events(folder, arm) if event["event"] == "generation"):
            tell({name: value for name, value in event.items() if name != "time"})


def open_lookup(recipe: tuple[Plan, Path]) -> Callable[[Arm], Outcome]:
    """A worker's own table, and what runs a search on it."""
    plan, folder = recipe
    return partial(_look_up, open_field(plan.config, Terminal(quiet=True)), plan, folder)


def _look_up(field: Students, plan: Plan, folder: Path, arm: Arm) -> Outcome:
    run_arm(field, plan.config_of(arm), folder / arm.name, plan.told, Terminal(quiet=True), lambda summary: None)
    return Outcome(Status.OK, 0.0)


def _events(folder: Path, arm: Arm) -> list[dict]:
    return read_events(folder / arm.name) if (folder / arm.name / "events.jsonl").exists() else []


def read_comparison(field: Losses | Students, plan: Plan, folder: Path) -> Compared:
    """All figures from the journals."""
    found = [read_found(arm, _events(folder, arm)) for arm in plan.arms]
    table = field.table
    seen = table.figures.fitness if table else _fitness(plan.config)
    rows = list(dict.fromkeys(row for each in found for row in each.finals))
    measures = [_measure(plan, found, row, lambda each, row=row: each.finals.get(row, math.nan)) for row in rows]
    if seen not in rows:
        measures.append(_measure(plan, found, seen, lambda each: each.best[-1] if len(each.best) else math.nan))
    panels = [_panel(plan, found, seen, axis, lambda each: each.best) for axis in _axes(table)]
    if table and table.figures.told[0] != seen:
        told = table.figures.told[0]
        look = cache(lambda text: table.table.accuracy(text, told) if text else math.nan)
        shown = f"{told} of the incumbent"
        panels += [
            _panel(plan, found, shown, axis, lambda each: np.array([*map(look, each.incumbents)])) for axis in _axes(table)
        ]
    return Compared(plan, folder, found, measures, panels, _about(field, plan, folder))


def _fitness(config: Config) -> str:
    """What searches see, by name."""
    alone = config.task == "student" and config.evaluator == "score"
    return f"score {config.score}" if alone else f"validation {config.fitness}"


def _axes(table: Published | None) -> list[str]:
    if table is None:
        return ["evaluations", "seconds"]
    return ["evaluations", "simulated seconds"] if table.table.training else ["evaluations"]


def _measure(plan: Plan, found: Sequence[Found], name: str, value: Callable[[Found], float]) -> Measure:
    return Measure(name, {c: [float(value(each)) for each in found if each.arm.controller == c] for c in plan.controllers})


def _panel(plan: Plan, found: Sequence[Found], what: str, axis: str, curve: Callable[[Found], np.ndarray]) -> Panel:
    """Without searches that found nothing, which have no curve."""
    curves: dict[str, list] = {name: [] for name in plan.controllers}
    for each in found:
        y = curve(each)
        known = np.isfinite(y)
        if known.any():
            x = np.arange(1, len(y) + 1) if axis == "evaluations" else each.seconds
            curves[each.arm.controller].append((x[known], y[known]))
    return Panel(what, axis, {name: bands(mine) for name, mine in curves.items() if mine})


def _about(field: Losses | Students, plan: Plan, folder: Path) -> list[str]:
    config, lines = plan.config, field.problem.heading(folder)
    limits = {"evaluations": config.budget_evals, f"{'simulated ' if field.table else ''}seconds": config.budget_seconds}
    budget = "".join(f", at most {limit:,g} {name}" for name, limit in limits.items() if limit)
    return [
        *lines[: 2 if config.task == "student" else 1],
        f"{', '.join(plan.controllers)} · seeds {plan.seeds[0]}–{plan.seeds[-1]} · each at most {config.generations} generations of "
        f"{config.population}{budget}",
    ]


def told(compared: Compared) -> list[str]:
    """Lines for a terminal: every measure, and of the first one the pairs."""
    width = max(map(len, compared.plan.controllers)) + 3
    lines = list(compared.about)
    for measure in compared.measures:
        lines += ["", f"{measure.name}: searches, mean ± standard deviation, median [quartiles], best"]
        lines += [_told_row(row, width) for row in measure.summaries]
    first = compared.measures[0]
    lines += ["", f"{first.name}, pairs: P(first ahead), difference by seed with 95 % intervals, p of signed ranks after Holm"]
    return [*lines, *(_told_pair(pair, 2 * width + 3) for pair in first.pairs)]


def _told_row(row: Summary, width: int) -> str:
    figures = f"{row.mean:8.2f} ± {row.deviation:<6.2f} {row.median:8.2f} [{row.low:.2f}, {row.high:.2f}] {row.best:8.2f}"
    return f"  {row.controller:<{width}}{row.count:>5}" + (figures if row.count else "   found nothing")


def _told_pair(pair: Pair, width: int) -> str:
    ahead, gap = "{:.2f} [{:.2f}, {:.2f}]".format(*pair.superiority), "{:+.2f} [{:+.2f}, {:+.2f}]".format(*pair.difference)
    return f"  {pair.first + ' – ' + pair.second:<{width}}{ahead:<22}{gap:<26}{told_p(pair.holm)}"


def told_p(p: float) -> str:
    """A p-value to three decimals."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def written(compared: Compared) -> Compared:
    """searches.csv, curves.csv, pairs.csv, curves.png, curves.svg and compare.html in the folder of the comparison."""
    folder, names = compared.folder, [measure.name for measure in compared.measures]
    columns = ["controller", "seed", "evaluations", "seconds", *names, "winner"]
    _write_csv(folder / "searches.csv", [columns, *_search_rows(compared)])
    _write_csv(
        folder / "curves.csv", [["what", "axis", "controller", "x", "low", "median", "high"], *_curve_rows(compared.panels)]
    )
    _write_csv(folder / "pairs.csv", [PAIRED, *_pair_rows(compared.measures)])
    draw_curves(folder, compared.panels, compared.measures[0])
    write_page(folder, compared, told_p)
    return compared


PAIRED = [
    "figure", "first", "second", "superiority", "superiority_low", "superiority_high", "difference", "difference_low",
    "difference_high", "p", "p_holm", "seeds",
]  # fmt: skip


def _search_rows(compared: Compared) -> Iterator[list]:
    for place, each in enumerate(compared.found):
        at = place // len(compared.plan.controllers)
        figures = [measure.values[each.arm.controller][at] for measure in compared.measures]
        seconds = round(float(each.seconds[-1]), 3) if len(each.seconds) else 0
        yield [*each.arm, len(each.best), seconds, *figures, each.winner]


def _curve_rows(panels: Sequence[Panel]) -> Iterator[list]:
    for what, axis, curves in panels:
        for name, band in curves.items():
            yield from ([what, axis, name, *map(float, row)] for row in zip(*band, strict=True))


def _pair_rows(measures: Sequence[Measure]) -> Iterator[list]:
    for measure in measures:
        for pair in measure.pairs:
            yield [measure.name, pair.first, pair.second, *pair.superiority, *pair.difference, pair.p, pair.holm, pair.seeds]


def _write_csv(path: Path, rows: Iterable[Sequence]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_whole(path, text.getvalue())
