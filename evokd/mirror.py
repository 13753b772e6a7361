"""What MLflow sees of a run: a metric row a generation on the parent, children for elites and finalists, the files at the end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, final

from evokd.config import read_config
from evokd.errors import EvokdError
from evokd.finals import Entry, Row, row_of
from evokd.folder import commit, locked
from evokd.genome.individual import Individual
from evokd.journal import individuals, read_events
from evokd.tracker import Story, Tracker, tracking_uri

if TYPE_CHECKING:
    from collections.abc import Callable

    from evokd.config import Config
    from evokd.problem import Problem
    from evokd.run import Search

NOTHING: Mapping[str, float] = MappingProxyType({})


@final
class Mirror:
    """One search in MLflow; without a tracking URI every call does nothing."""

    def __init__(self, problem: Problem, folder: Path, warn: Callable[[str], None]) -> None:
        self.problem, self.config, self.folder = problem, problem.config, folder
        out = Path(self.config.out)
        uri, card = tracking_uri(self.config.tracking_uri, out), problem.card
        local = out / "artifacts" if uri and uri.startswith("sqlite") else None
        self.tracker = Tracker(uri, experiment_of(self.config, card), local, warn) if uri else None
        if self.tracker:
            files = [folder / "config.toml", folder / "space.toml", folder / "environment.txt"]
            self.tracker.start(folder.name, self.params(), self.tags(), files)

    @property
    def command(self) -> str:
        """How to look at it: a command, or the server's address."""
        if self.tracker is None:
            return ""
        out = Path(self.config.out)
        if self.tracker.uri == tracking_uri(None, out) and self.tracker.uri.startswith("sqlite"):
            return "evokd ui" + ("" if self.config.out == "runs" else f" --out {self.config.out}")
        return f"mlflow ui --backend-store-uri {self.tracker.uri}" if self.tracker.uri.startswith("sqlite") else self.tracker.uri

    def params(self) -> dict:
        return params_of(self.config, self.problem.card)

    def tags(self) -> dict[str, str]:
        space = {"evokd.space": self.problem.grammar.name, "evokd.space_hash": self.problem.space_hash}
        return tags_of(self.config, self.folder) | space | {"evokd.git": commit(), "evokd.state": "going"}

    def generation(self, search: Search, summary: dict) -> None:
        """Figures of a generation, and a child for each of its elites (or for all, or none)."""
        if self.tracker is None:
            return
        self.tracker.generation(figures_of(summary))
        for individual in self.chosen(search, summary["generation"]):
            self.individual(individual)

    def chosen(self, search: Search, generation: int) -> Sequence[Individual]:
        """Elites are those that were the best so far when their generation ended."""
        new = search.standing.born(generation)
        if self.config.children == "elites":
            return [i for i in new if i is search.standing.caught_up().best]
        return new if self.config.children == "all" else []

    def individual(self, i: Individual) -> None:
        told = {"id": i.id, "generation": i.generation, "op": i.op, "parents": i.parents, "status": i.outcome.status}
        told |= {"fitness": i.outcome.fitness, "metrics": i.outcome.metrics, "text": self.problem.grammar.write(i)}
        self.tracker.child(*child_of(told))

    def finish(self, rows: Sequence[Row], files: Sequence[Path], figures: Mapping[str, float] = NOTHING) -> None:
        """Finalists as children, files as artifacts, figures of the winner, and the end."""
        if self.tracker is None:
            return
        for row in rows:
            self.tracker.child(*final_of(row))
        for path in files:
            self.tracker.files([path], "best" if path.parent.name == "best" else None)
        accuracy = {"test_accuracy": rows[0].mean} if rows else {}
        self.tracker.finish("FINISHED", accuracy | dict(figures), {"evokd.state": "finished"})

    @contextmanager
    def until_the_end(self) -> Iterator[None]:
        """KILLED or FAILED if what happens inside is cut off or fails."""
        try:
            yield
        except KeyboardInterrupt:
            self.stop("KILLED")
            raise
        except BaseException:
            self.stop("FAILED")
            raise

    def stop(self, status: str) -> None:
        """KILLED or FAILED; what was logged stays."""
        if self.tracker is not None:
            self.tracker.finish(status, {}, {"evokd.state": status.lower()})


def experiment_of(config: Config, card: Mapping) -> str:
    """One experiment a task and pair."""
    return f"{config.task}/{card['data']}-{card['teacher']}-{card['student']}"


def params_of(config: Config, card: Mapping) -> dict:
    protocol = {f"protocol.{k}": v for k, v in config.protocol.model_dump().items()}
    return config.model_dump(exclude={"protocol"}) | protocol | dict(card)


def tags_of(config: Config, folder: Path) -> dict[str, str]:
    return {"evokd.kind": "search", "evokd.controller": config.controller, "evokd.folder": folder.name}


def figures_of(summary: Mapping) -> dict:
    """A generation's summary with what its gates let through."""
    left = {f"left_{name.replace(' ', '_')}": each["left"] for name, each in summary.get("funnel", {}).items()}
    return {name: value for name, value in summary.items() if name not in ("event", "arm", "time")} | left


def child_of(event: Mapping) -> tuple:
    """(name, params, tags, metrics, curve) of an individual as the journal tells it."""
    tags = {
        "evokd.kind": "individual",
        "evokd.id": f"i{event['id']:04d}",
        "evokd.parents": ",".join(f"i{p:04d}" for p in event["parents"]),
        "evokd.op": event["op"],
        "evokd.generation": str(event["generation"]),
        "evokd.status": str(event["status"]),
        "evokd.fitness": str(event["fitness"]),
        "evokd.expression": event["text"],
    }
    figures = {k: v for k, v in event["metrics"].items() if isinstance(v, float)}
    figures |= {"fitness": event["fitness"]} if event["fitness"] is not None else {}
    name = f"g{event['generation']:03d}-i{event['id']:04d}"
    return name, {"expression": event["text"]}, tags, figures, event["metrics"].get("curve", [])


def final_of(row: Row) -> tuple:
    """(name, params, tags, metrics, curve) of a row of the closing table; a single value has no interval."""
    tags = {"evokd.kind": "final", "evokd.expression": str(row.entry.text), "evokd.gamma": str(row.entry.gamma)}
    told = {"test_accuracy": row.mean, "test_half_width": row.half}
    if row.difference:
        told |= dict(zip(("difference", "difference_low", "difference_high"), row.difference, strict=True))
    return f"final: {row.entry.name}", {}, tags, {name: value for name, value in told.items() if math.isfinite(value)}, []


def sync(folder: Path) -> dict[str, int]:
    """Fill in the mirror of a run from its folder alone; what was written.

    Raises:
        EvokdError: no run folder, one that is still written, or one that is not tracked.
    """
    config = read_config(folder / "config.toml")
    with locked(folder):
        events = read_events(folder)
        begun = next((event for event in events if event["event"] == "start"), {})
        uri, card = tracking_uri(config.tracking_uri, folder.parent), begun.get("card")
        if not uri or not card:
            raise EvokdError(str(folder), "a run that is tracked", "tracking_uri none" if card else "one of an earlier version")
        local = folder.parent / "artifacts" if uri.startswith("sqlite") else None
        tracker = Tracker(uri, experiment_of(config, card), local, lambda line: None)
        try:
            return tracker.sync(folder.name, params_of(config, card), tags_of(config, folder), story(folder, config, events))
        except Exception as error:  # MLflow's errors are many, and none of them is ours
            raise EvokdError(
                uri, "a tracking store that answers", f"{type(error).__name__}: {error}".splitlines()[0][:160]
            ) from None


def story(folder: Path, config: Config, events: Sequence[Mapping]) -> Story:
    """A run as its journal tells it: elites are those that were the best so far when their generation ended."""
    generations = [figures_of(e) for e in events if e["event"] == "generation"]
    elites = {(g["best_id"], g["generation"]) for g in generations}
    children = [
        child_of(e)
        for e in individuals(events)
        if config.children == "all" or (config.children == "elites" and (e["id"], e["generation"]) in elites)
    ]
    rows = list(_rows(events))
    names = ["config.toml", "space.toml", "environment.txt", "events.jsonl", "report.html", "front.csv"]
    files = [folder / name for name in names] + sorted((folder / "best").glob("*"))
    status = "FINISHED" if events and events[-1]["event"] == "end" else "KILLED"
    accuracy = {"test_accuracy": rows[0].mean} if rows and status == "FINISHED" else {}
    return Story(generations, [*children, *map(final_of, rows)], [f for f in files if f.is_file()], status, accuracy)


def _rows(events: Sequence[Mapping]) -> Iterator[Row]:
    """Rows of the closing table from their trainings; two rows of one loss are one here."""
    values: dict[str, list[float]] = {}
    entries: dict[str, Entry] = {}
    for event in events:
        if event["event"] == "final":
            accuracy = event["accuracy"] if "accuracy" in event else event["metrics"].get("accuracy")
            entries.setdefault(event["row"], Entry(event["row"], event.get("text"), event.get("gamma")))
            values.setdefault(event["row"], []).append(math.nan if accuracy is None else accuracy)
    for row, entry in entries.items():
        yield row_of(entry, values[row], None)
