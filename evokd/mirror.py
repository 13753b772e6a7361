"""What MLflow sees of a search: a row of figures a generation on the parent, children for elites and finalists, files and model at the end.

All of it is told from the events of the journal, by a search at work as by `evokd track sync`, so that both tell the same.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import takewhile
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, final

from evokd.config import TABLES, read_config
from evokd.errors import EvokdError
from evokd.finals import Entry, Row, row_of
from evokd.folder import locked
from evokd.journal import candidate, individuals, read_events
from evokd.parquet import write_individuals
from evokd.progress import Progress, curves_of, named
from evokd.store import Child, Generation, Store, Story, Winner, at
from evokd.tracker import local_artifacts, open_tracker, tracking_uri

if TYPE_CHECKING:
    from evokd.config import Config
    from evokd.problem import Problem
    from evokd.run import Search

NOTHING: Mapping[str, float] = MappingProxyType({})
VERBATIM = ("config.toml", "space.toml", "environment.txt")
PICTURES = ("lineage.html", "lineage.svg", "lineage.png", "lineage.graphml")


@final
class Mirror:
    """One search in MLflow; without a tracking URI every call does nothing.

    Args:
        problem: opened.
        folder: of the run; what its journal holds already is told again where the mirror lacks it.
        warn: told once when tracking fails.
    """

    def __init__(self, problem: Problem, folder: Path, warn: Callable[[str], None]) -> None:
        self.config, self.folder = problem.config, folder
        self.tracker = open_tracker(
            self.config.tracking_uri, Path(self.config.out), experiment_of(self.config, problem.card), warn
        )
        self.progress, self.told = Progress(self.config), []
        if self.on:
            tags = tags_of(self.config, folder) | {"evokd.space": problem.grammar.name, "evokd.space_hash": problem.space_hash}
            files = [folder / name for name in VERBATIM]
            params = params_of(self.config, problem.card) | {"space_hash": problem.space_hash}
            self.tracker.start(folder.name, params, tags | {"evokd.state": "going"}, files)
            self._recall(read_events(folder))

    @property
    def on(self) -> bool:
        return self.tracker.uri is not None

    def _recall(self, events: Sequence[dict]) -> None:
        """What a resumed run has told, or would have told, had it not been cut."""
        self.told = list(individuals(events))
        if any(event["event"] == "generation" for event in events):
            self.tracker.fill(Story(*_generations(self.config, events, self.progress)))

    @property
    def command(self) -> str:
        """How to look at it: a command, or the server's address."""
        uri, out = self.tracker.uri, Path(self.config.out)
        if uri is None or not uri.startswith("sqlite"):
            return uri or ""
        if uri == tracking_uri(None, out):
            return f"evokd ui {self.folder}"
        return f"mlflow ui --backend-store-uri {uri}"

    def generation(self, search: Search, summary: dict) -> None:
        """Figures of a generation, and a child for each of its elites (or for all, or none)."""
        if not self.on:
            return
        settled = takewhile(
            lambda i: i.outcome is not None, search.individuals[len(self.told) :]
        )  # a steady state has some in flight
        new = [candidate(i, search.key(i), search.text(i)) for i in settled]
        self.told += new
        self.tracker.generation(self.progress.generation(summary, new))
        for event in elites(self.config, summary, new):
            self.tracker.child(child_of(event))

    def finish(self, rows: Sequence[Row], files: Sequence[Path], best: Entry, figures: Mapping[str, float] = NOTHING) -> None:
        """Finalists as children, files as artifacts, the winner as a model, its figures, and the end.

        Args:
            rows: of the closing table.
            files: of the run folder.
            best: the winner.
            figures: of it.
        """
        if not self.on:
            return
        for row in rows:
            self.tracker.child(final_of(row))
        self.tracker.files(files)
        self.tracker.files(self._table())
        self.tracker.winner(lambda: winner_of(self.folder, self.config, best.text, best.fitness))
        self.tracker.finish("FINISHED", accuracy_of(rows) | dict(figures))

    def _table(self) -> Iterator[Path]:
        """All candidates, written when the tracker comes to it: what goes wrong there costs the mirror alone."""
        yield write_individuals(self.folder, self.told)

    def until_the_end(self) -> AbstractContextManager[None]:
        """KILLED or FAILED if what happens inside is cut off or fails; what was told stays, and the candidates are kept whole."""
        return self.tracker.until_the_end(self._table())


def experiment_of(config: Config, card: Mapping) -> str:
    """One experiment a task and pair."""
    return f"{config.task}/{card['data']}-{card['teacher']}-{card['student']}"


def params_of(config: Config, card: Mapping) -> dict[str, Any]:
    """The whole configuration, its tables with a dot, and the figures of the pair."""
    flat = config.model_dump()
    tables = {f"{table}.{name}": value for table in TABLES for name, value in flat.pop(table).items()}
    return flat | tables | dict(card)


def tags_of(config: Config, folder: Path) -> dict[str, str]:
    """By which runs are found and grouped: what and who searched, in which folder, from which commit, with which versions, on what."""
    about = {
        "evokd.kind": "search",
        "evokd.controller": config.controller,
        "evokd.folder": folder.name,
        "evokd.seed": str(config.seed),
    }
    return about | surroundings(folder / "environment.txt")


def surroundings(environment: Path) -> dict[str, str]:
    """Tags of commit, versions, platform and hardware, from what a run folder keeps of them."""
    lines = environment.read_text(encoding="utf-8").splitlines() if environment.is_file() else []
    told = dict(line.partition(" ")[::2] for line in lines if not line.startswith("drift "))
    known = {f"evokd.env.{name}": value for name, value in told.items()}
    return known | {"evokd.git": told.get("commit", "none"), "evokd.cores": str(os.cpu_count() or 1)}


def elites(config: Config, summary: Mapping, new: Sequence[Mapping]) -> list[Mapping]:
    """Which of a generation become children: the best so far if it is among them, or all, or none."""
    if config.children == "all":
        return list(new)
    return [event for event in new if config.children == "elites" and event["id"] == summary["best_id"]]


def child_of(event: Mapping) -> Child:
    """An individual as the journal tells it, with the learning curve of its first training."""
    metrics, text = event["metrics"], event["text"]
    tags = {
        "evokd.kind": "individual",
        "evokd.id": f"i{event['id']:04d}",
        "evokd.parents": named(event["parents"]),
        "evokd.op": event["op"],
        "evokd.generation": str(event["generation"]),
        "evokd.status": str(event["status"]),
        "evokd.fitness": str(event["fitness"]),
        "evokd.expression": text,
    }
    figures = {k: v for k, v in metrics.items() if isinstance(v, float)} | {"fitness": event["fitness"]}
    name = f"g{event['generation']:03d}-i{event['id']:04d}"
    return Child(name, {"expression": text}, tags, [*at(0, figures), *curves_of(metrics.get("curve", ()))])


def final_of(row: Row) -> Child:
    """A row of the closing table: mean, interval and the value of each seed; a single value has no interval."""
    tags = {"evokd.kind": "final", "evokd.expression": str(row.entry.text), "evokd.gamma": str(row.entry.gamma)}
    told = {"test_accuracy": row.mean, "test_half_width": row.half}
    told |= {"test_low": row.mean - row.half, "test_high": row.mean + row.half, "seeds": len(row.values)}
    if row.difference:
        told |= dict(zip(("difference", "difference_low", "difference_high"), row.difference, strict=True))
    by_seed = [("test_accuracy_by_seed", value, place) for place, value in enumerate(row.values)]
    return Child(f"final: {row.entry.name}", {}, tags, [*at(0, told), *by_seed])


def accuracy_of(rows: Sequence[Row]) -> dict[str, float]:
    """What the parent says of the winner."""
    return {"test_accuracy": rows[0].mean, "test_half_width": rows[0].half} if rows else {}


def winner_of(folder: Path, config: Config, text: str, fitness: float) -> Winner:
    """The winner, fitness on validation included: a loss as text and source, a trained student as a network that can be loaded."""
    files = sorted(path for path in (folder / "best").glob("*") if path.suffix != ".onnx")
    if config.task == "distiller" or not (folder / "best" / "student.safetensors").exists():
        return Winner("loss" if config.task == "distiller" else "student", text, fitness, files)
    from evokd.student_export import Logits, read_student

    network, card = read_student(folder / "best" / "student.json")
    return Winner("student", text, fitness, files, Logits(network), tuple(card["shape"]))


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
        space = {"space_hash": begun.get("space") or hashlib.sha256((folder / "space.toml").read_bytes()).hexdigest()[:12]}
        store = Store(uri, experiment_of(config, card), local_artifacts(uri, folder.parent))
        told = story(folder, config, events)
        tags = tags_of(config, folder) | {"evokd.space": config.space, "evokd.space_hash": space["space_hash"]}
        try:
            store.open(folder.name, params_of(config, card) | space, tags, [])
            written = store.fill(told)
            store.finish(told.status, told.metrics, {"evokd.state": told.status.lower()})
        except Exception as error:  # MLflow's errors are many, and none of them is ours
            raise EvokdError(
                uri, "a tracking store that answers", f"{type(error).__name__}: {error}".splitlines()[0][:160]
            ) from None
    return written


def story(folder: Path, config: Config, events: Sequence[dict]) -> Story:
    """A run as its journal tells it."""
    generations, children = _generations(config, events, Progress(config))
    rows, told = list(_rows(events)), list(individuals(events))
    ended = bool(events) and events[-1]["event"] == "end"
    names = [*VERBATIM, "events.jsonl", "report.html", "front.csv", *PICTURES]
    files = [folder / name for name in names] + sorted((folder / "best").glob("*"))
    files = [path for path in files if path.is_file()] + ([write_individuals(folder, told)] if told else [])
    winner = winner_of(folder, config, best := events[-1]["best"], fitness_of(best, events)) if ended else None
    status, figures = ("FINISHED", accuracy_of(rows)) if ended else ("KILLED", NOTHING)
    return Story(generations, [*children, *map(final_of, rows)], files, status, figures, winner)


def fitness_of(text: str, events: Sequence[Mapping]) -> float:
    """Of a winner, after its confirmation where there was one; students are told with their size."""
    names = text, text.partition("  (")[0]
    found = [e["fitness"] for e in events if e["event"] in ("individual", "confirm") and e["text"] in names]
    return next((value for value in reversed(found) if value is not None), math.nan)


def _generations(config: Config, events: Sequence[dict], progress: Progress) -> tuple[list[Generation], list[Child]]:
    """What is told of the generations of a journal, and the children of it."""
    generations, children, new = [], [], []
    for event in events:
        if event["event"] == "individual":
            new.append(event)
        elif event["event"] == "generation":
            summary = {k: v for k, v in event.items() if k not in ("event", "arm")}
            generations.append(progress.generation(summary, new))
            children += map(child_of, elites(config, summary, new))
            new = []
    return generations, children


def _rows(events: Sequence[Mapping]) -> Iterator[Row]:
    """Rows of the closing table from their trainings; two rows of one loss are one here."""
    values: dict[str, list[float]] = {}
    entries: dict[str, Entry] = {}
    reference = ""
    for event in events:
        if event["event"] == "final":
            accuracy = event["accuracy"] if "accuracy" in event else event["metrics"].get("accuracy")
            entries.setdefault(event["row"], Entry(event["row"], event.get("text"), event.get("gamma")))
            values.setdefault(event["row"], []).append(math.nan if accuracy is None else accuracy)
            reference = event["row"] if event.get("reference") else reference
    for row, entry in entries.items():
        yield row_of(entry, values[row], values[reference] if reference and row != reference else None)
