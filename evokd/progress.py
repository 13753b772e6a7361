"""How a search stands after each generation: the figures that MLflow draws, the same from a search at work and from its journal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, final

from evokd.search.front import hypervolume, undominated
from evokd.store import Generation, Metric, at

if TYPE_CHECKING:
    from evokd.config import Config

NODES = 100  # of a loss: far above what grows, so that the volume of any front can be compared with any other's
POPULATION = "population.json"
COLUMNS = ("id", "generation", "op", "parents", "fitness", "cost", "expression")


@final
class Progress:
    """What has to be known of earlier generations: the best so far, and the front of fitness against cost.

    The volume under the front is measured from an accuracy of nought and from the greatest cost that is allowed: 100 nodes of a loss,
    `max_params` of a student. Where either is unknown the worst candidate so far takes its place.

    Args:
        config: of the search.
    """

    def __init__(self, config: Config) -> None:
        self.size = config.population
        self.cost = "size" if config.task == "distiller" else "parameters"
        limit = NODES if config.task == "distiller" else config.max_params
        self.corner = [0.0 if _is_accuracy(config) else math.inf, float(limit or 0)]
        self.limits = self.corner[0] == 0, bool(limit)
        self.best: list[Mapping] = []
        self.front: list[tuple[float, float]] = []

    def generation(self, summary: Mapping, new: Sequence[Mapping]) -> Generation:
        """What is told of a generation.

        Args:
            summary: its event in the journal.
            new: the events of its candidates.
        """
        sound = [event for event in new if event["fitness"] is not None]
        self._take(sound)
        step = summary["generation"]
        metrics = at(step, {k: v for k, v in summary.items() if k not in ("best_id", "generation", "time")})
        metrics += at(step, rejected(summary) | {"diversity": diversity([event["tree"] for event in sound])} | self._volume())
        if summary.get("best") is not None:
            metrics += at(summary["evaluations"], {"best_by_evaluations": summary["best"]})
        told = {POPULATION: self.table()} if self.best else {}
        return Generation(step, metrics, {"evokd.best": summary.get("best_text") or ""}, told, list(told))

    def _take(self, sound: Sequence[Mapping]) -> None:
        ranked = sorted([*self.best, *sound], key=lambda event: (-event["fitness"], len(event["tree"]), event["id"]))
        self.best = ranked[: self.size]
        points = [(event["fitness"], float(cost)) for event in sound if (cost := event["metrics"].get(self.cost)) is not None]
        self.front = undominated([*self.front, *points])
        for fitness, cost in points:
            self.corner = [
                self.corner[0] if self.limits[0] else min(self.corner[0], fitness),
                self.corner[1] if self.limits[1] else max(self.corner[1], cost),
            ]

    def _volume(self) -> dict[str, float]:
        return {"front_hypervolume": hypervolume(self.front, self.corner), "front_size": len(self.front)} if self.front else {}

    def table(self) -> str:
        """The best so far, as many as the population has, as a table that the UI draws."""
        rows = [
            [e["id"], e["generation"], e["op"], named(e["parents"]), e["fitness"], e["metrics"].get(self.cost), e["text"]]
            for e in self.best
        ]
        return json.dumps({"columns": COLUMNS, "data": rows}, ensure_ascii=False)


def _is_accuracy(config: Config) -> bool:
    """Whether a fitness is one, and no loss or score."""
    return config.fitness == "accuracy" and getattr(config, "evaluator", "") != "score"


def named(parents: Sequence[int]) -> str:
    """Ids as tags and tables write them; a comma stands between two."""
    return ",".join(f"i{parent:04d}" for parent in parents)


def rejected(summary: Mapping) -> dict[str, int]:
    """Gate or rung → how many it stopped."""
    return {
        f"rejected_{name.replace(' ', '_')}": each["entered"] - each["left"] for name, each in summary.get("funnel", {}).items()
    }


def diversity(trees: Sequence[Sequence[str]]) -> float:
    """Mean over pairs of trees of 1 − Jaccard's index of their multisets of nodes: the share that two have not in common. 0 of one tree."""
    import numpy as np

    if len(trees) < 2:
        return 0.0
    columns = {name: place for place, name in enumerate(dict.fromkeys(name for tree in trees for name in tree))}
    counts = np.zeros((len(trees), len(columns)), np.int64)
    for row, tree in zip(counts, trees, strict=True):
        np.add.at(row, [columns[name] for name in tree], 1)
    apart = []
    for place, row in enumerate(counts[:-1]):
        others = counts[place + 1 :]
        apart.append(1 - np.minimum(row, others).sum(1) / np.maximum(row, others).sum(1))
    return float(np.concatenate(apart).mean())


def curves_of(curve: Sequence[Sequence[float]]) -> list[Metric]:
    """A learning curve of (step, cross-entropy, distillation loss, terms of it …) as metrics, each term its own."""
    names = ("train_ce", "train_distill")
    return [
        (names[place] if place < 2 else f"train_term_{place - 1}", float(value), int(step))
        for step, *values in curve
        for place, value in enumerate(values)
    ]


def by_epoch(rows: Sequence[Mapping]) -> list[Metric]:
    """The epochs of a full training as metrics: losses, learning rate, and top-1 where test was looked at."""
    losses = curves_of([(row["epoch"], row["ce"], row["distill"], *row.get("terms", ())) for row in rows])
    return losses + [metric for row in rows for metric in at(row["epoch"], {name: row.get(name) for name in ("lr", "top1")})]
