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
from evokd.tracker import Tracker, tracking_uri

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
    out, uri = folder.parent, tracking_uri(plan.config.tracking_uri, folder.parent)
    if uri is None:
        yield lambda compared: None
        return
    name = f"losses/{card['data']}-{card['teacher']}-{plan.students[0]}"
    tracker = Tracker(uri, name, out / "artifacts" if uri.startswith("sqlite") else None, warn)
    tags = {"evokd.kind": "losses", "evokd.git": commit(), "evokd.folder": folder.name, "evokd.state": "going"}
    protocol = {f"protocol.{key}": value for key, value in plan.config.protocol.model_dump().items()}
    params = {k: getattr(plan, k) for k in ("students", "seeds", "trials", "best", "more", "searched")} | protocol | card
    tracker.start(folder.name, params, tags, [folder / "comparison.json", folder / "config.toml"])
    status = "FAILED"
    try:
        yield lambda compared: _tell(tracker, compared)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.finish(status, {}, {"evokd.state": status.lower()})


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
            figures = {name: value for name, value in told.items() if math.isfinite(value)}
            tracker.child(f"{pair}: {row.name}", asdict(entrant) | {"pair": pair}, tags, figures, [])
    tracker.files([path for name in FILES if (path := compared.folder / name).exists()])
