"""What MLflow sees of an experiment: its plan, a child a search and a student trained, the figures and files at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, final

from evokd.folder import commit
from evokd.store import Child, at
from evokd.tracker import open_tracker

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
        params = {k: v for k, v in asdict(plan).items() if k not in ("values", "options")} | plan.values | plan.options
        tags = {"evokd.kind": "akd", "evokd.git": commit(), "evokd.folder": folder.name, "evokd.state": "going"}
        self.tracker = open_tracker(configured, folder.parent, f"akd/{subject}", warn)
        self.tracker.start(folder.name, params, tags, [folder / "plan.json"])

    def search(self, found: Found) -> None:
        """One search with its student."""
        task = found.task
        tags = {"evokd.kind": "akd-search", "evokd.expression": found.student, "evokd.group": task.group}
        figures = {"best": found.fitness, "evaluations": float(found.trained), "seconds": found.seconds}
        params = {"controller": task.config.controller, "evaluator": task.config.evaluator, "seed": task.seed}
        params |= dict([task.budget or ("limit", "none")])
        self.tracker.child(Child(f"search: {task.name}", params, tags, at(0, figures)))

    def training(self, training: Training, accuracy: float) -> None:
        """One final training."""
        tags = {"evokd.kind": "final", "evokd.expression": training.student}
        params = {"teacher": training.teacher, "way": training.way, "seed": training.seed}
        name = f"final: {training.student} {training.way} {training.teacher} {training.seed}"
        self.tracker.child(Child(name, params, tags, at(0, {"test_accuracy": accuracy})))

    def finish(self, results: Results, files: Sequence[Path]) -> None:
        """Figures and files, and the end."""
        self.tracker.files(files)
        self.tracker.finish("FINISHED", results.metrics)
