"""What MLflow sees of a run: a metric row a generation on the parent, children for elites and finalists, the files at the end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, final

from evokd.folder import commit
from evokd.genome.individual import Individual, rank
from evokd.tracker import Tracker, tracking_uri

if TYPE_CHECKING:
    from collections.abc import Callable

    from evokd.finals import Row
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
        name = f"{self.config.task}/{card['data']}-{card['teacher']}-{card['student']}"
        self.tracker = Tracker(uri, name, local, warn) if uri else None
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
        protocol = {f"protocol.{k}": v for k, v in self.config.protocol.model_dump().items()}
        return self.config.model_dump(exclude={"protocol"}) | protocol | self.problem.card

    def tags(self) -> dict[str, str]:
        return {
            "evokd.kind": "search",
            "evokd.controller": self.config.controller,
            "evokd.space": self.problem.grammar.name,
            "evokd.space_hash": self.problem.space_hash,
            "evokd.git": commit(),
            "evokd.folder": self.folder.name,
            "evokd.state": "going",
        }

    def generation(self, search: Search, summary: dict) -> None:
        """Figures of a generation, and a child for each of its elites (or for all, or none)."""
        if self.tracker is None:
            return
        left = {f"left_{name.replace(' ', '_')}": each["left"] for name, each in summary.get("funnel", {}).items()}
        self.tracker.generation(summary | left)
        for individual in self.chosen(search, summary["generation"]):
            self.individual(individual)

    def chosen(self, search: Search, generation: int) -> Sequence[Individual]:
        """Elites are those that were the best so far when their generation ended."""
        new = [i for i in search.individuals if i.generation == generation]
        if self.config.children == "elites":
            best = min(search.individuals, key=rank)
            return [i for i in new if i.ok and i is best]
        return new if self.config.children == "all" else []

    def individual(self, i: Individual) -> None:
        text, outcome = self.problem.grammar.write(i), i.outcome
        tags = {
            "evokd.kind": "individual",
            "evokd.id": f"i{i.id:04d}",
            "evokd.parents": ",".join(f"i{p:04d}" for p in i.parents),
            "evokd.op": i.op,
            "evokd.generation": str(i.generation),
            "evokd.status": outcome.status.value,
            "evokd.fitness": str(outcome.fitness),
            "evokd.expression": text,
        }
        figures = {k: v for k, v in outcome.metrics.items() if isinstance(v, float)}
        figures |= {"fitness": outcome.fitness} if i.ok else {}
        name = f"g{i.generation:03d}-i{i.id:04d}"
        self.tracker.child(name, {"expression": text}, tags, figures, outcome.metrics.get("curve", []))

    def finish(self, rows: Sequence[Row], files: Sequence[Path], figures: Mapping[str, float] = NOTHING) -> None:
        """Finalists as children, files as artifacts, figures of the winner, and the end."""
        if self.tracker is None:
            return
        for row in rows:
            tags = {"evokd.kind": "final", "evokd.expression": str(row.entry.text), "evokd.gamma": str(row.entry.gamma)}
            told = {"test_accuracy": row.mean, "test_half_width": row.half}
            if row.difference:
                told |= dict(zip(("difference", "difference_low", "difference_high"), row.difference, strict=True))
            finite = {name: value for name, value in told.items() if math.isfinite(value)}  # a single value has no interval
            self.tracker.child(f"final: {row.entry.name}", {}, tags, finite, [])
        for path in files:
            self.tracker.files([path], "best" if path.parent.name == "best" else None)
        accuracy = {"test_accuracy": rows[0].mean} if rows else {}
        self.tracker.finish("FINISHED", accuracy | dict(figures), {"evokd.state": "finished"})

    @contextmanager
    def until_the_end(self, on_interrupt: Callable[[], None]) -> Iterator[None]:
        """KILLED or FAILED if what happens inside is cut off or fails; `on_interrupt` may then say how to go on."""
        try:
            yield
        except KeyboardInterrupt:
            self.stop("KILLED")
            on_interrupt()
            raise
        except BaseException:
            self.stop("FAILED")
            raise

    def stop(self, status: str) -> None:
        """KILLED or FAILED; what was logged stays."""
        if self.tracker is not None:
            self.tracker.finish(status, {}, {"evokd.state": status.lower()})
