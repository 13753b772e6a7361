"""What MLflow sees of an experiment: its plan, a child a search and a student trained, the figures and files at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, final

from evokd.folder import commit
from evokd.tracker import Tracker, tracking_uri

if TYPE_CHECKING:
    from evokd.akd.experiment import Plan, Training
    from evokd.akd.results import Results
    from evokd.akd.searches import Found


@final
class AkdMirror:
    """One experiment in MLflow; without a tracking URI every call does nothing.

    Args:
        plan: what is done.
        folder: where it is kept.
        configured: tracking URI of the command line.
        subject: of the experiment's name, such as the data.
        warn: told once when tracking fails.
    """

    def __init__(self, plan: Plan, folder: Path, configured: str | None, subject: str, warn: Callable[[str], None]) -> None:
        out = folder.parent
        uri = tracking_uri(configured, out)
        local = out / "artifacts" if uri and uri.startswith("sqlite") else None
        self.tracker = Tracker(uri, f"akd/{subject}", local, warn) if uri else None
        if self.tracker:
            params = {k: v for k, v in asdict(plan).items() if k not in ("values", "options")} | plan.values | plan.options
            tags = {"evokd.kind": "akd", "evokd.git": commit(), "evokd.folder": folder.name, "evokd.state": "going"}
            self.tracker.start(folder.name, params, tags, [folder / "plan.json"])

    def search(self, found: Found) -> None:
        """One search with its student."""
        if self.tracker:
            tags = {"evokd.kind": "akd-search", "evokd.expression": found.student, "evokd.group": found.task.group}
            figures = {"best": found.fitness, "evaluations": float(found.trained), "seconds": found.seconds}
            params = {
                "controller": found.task.config.controller,
                "evaluator": found.task.config.evaluator,
                "seed": found.task.seed,
            }
            self.tracker.child(
                f"search: {found.task.name}", params | dict([found.task.budget or ("limit", "none")]), tags, figures, []
            )

    def training(self, training: Training, accuracy: float) -> None:
        """One final training."""
        if self.tracker and math.isfinite(accuracy):
            tags = {"evokd.kind": "final", "evokd.expression": training.student}
            params = {"teacher": training.teacher, "way": training.way, "seed": training.seed}
            self.tracker.child(f"final: {training.student} {training.way}", params, tags, {"test_accuracy": accuracy}, [])

    def finish(self, results: Results, files: Sequence[Path]) -> None:
        """Figures and files, and the end."""
        if self.tracker:
            self.tracker.files(files)
            sound = {name: value for name, value in results.metrics.items() if math.isfinite(value)}
            self.tracker.finish("FINISHED", sound, {"evokd.state": "finished"})

    def stop(self, status: str) -> None:
        """KILLED or FAILED; what was logged stays."""
        if self.tracker:
            self.tracker.finish(status, {}, {"evokd.state": status.lower()})
