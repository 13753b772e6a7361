"""What MLflow sees of a comparison of losses: its plan, a child a row of every pair with mean and interval, the tables and pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from evokd.compare.loss_plan import Plan
from evokd.compare.loss_tables import Compared
from evokd.folder import commit
from evokd.store import Child, at
from evokd.tracker import Tracker, open_tracker

FILES = ("losses.html", "losses.csv", "standings.csv", "tuning.csv", "accuracy.png", "ranks.png", "events.jsonl")


@contextmanager
def mirrored(plan: Plan, folder: Path, card: dict, warn: Callable[[str], None]) -> Iterator[Callable[[Compared], None]]:
    """One comparison in MLflow.

    Args:
        plan: what is compared.
        folder: where it lies.
        card: figures of the first pair.
        warn: told once when tracking fails.

    Yields:
        what takes the end of it; without a tracking URI that does nothing.
    """
    name = f"losses/{card['data']}-{card['teacher']}-{plan.students[0]}"
    tracker = open_tracker(plan.config.tracking_uri, folder.parent, name, warn)
    tags = {"evokd.kind": "losses", "evokd.git": commit(), "evokd.folder": folder.name, "evokd.state": "going"}
    protocol = {f"protocol.{key}": value for key, value in plan.config.protocol.model_dump().items()}
    params = {k: getattr(plan, k) for k in ("students", "seeds", "trials", "best", "more", "searched")} | protocol | card
    tracker.start(folder.name, params, tags, [folder / "comparison.json", folder / "config.toml"])
    with tracker.until_the_end():
        yield lambda compared: _tell(tracker, compared)
        tracker.finish("FINISHED", {})


def _tell(tracker: Tracker, compared: Compared) -> None:
    entrants = {each.name: each for each in compared.entrants}
    for pair, rows in compared.standings.items():
        for row in rows:
            entrant, gap = entrants[row.name], row.difference or (math.nan,) * 3
            told = {
                "test_accuracy": row.mean,
                "half": row.half,
                "difference": gap[0],
                "low": gap[1],
                "high": gap[2],
                "p_holm": row.holm,
            }
            tags = {"evokd.kind": "final", "evokd.expression": entrant.text or "cross-entropy alone", "evokd.row": row.name}
            tracker.child(Child(f"{pair}: {row.name}", asdict(entrant) | {"pair": pair}, tags, at(0, told)))
    tracker.files([path for name in FILES if (path := compared.folder / name).exists()])
