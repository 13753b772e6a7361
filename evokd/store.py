"""MLflow, its only door: what a run writes into a tracking store, call by call. `Tracker` makes the calls, on a thread of its own.

MLflow's limits are kept, and nothing is cut in silence: a value too long ends in a mark that names the artifact which holds it whole.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

PARAM_LIMIT, TAG_LIMIT, NAME_LIMIT = 6000, 8000, 250  # characters
BATCH, METRICS = 100, 800  # parameters or tags, and metrics beside them: 1,000 entries in all
DEFAULTS = {  # MLflow itself would try for many minutes
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
CHAMPION = "champion"
Metric = tuple[str, float, int]  # name, value, step


@dataclass(frozen=True)
class Generation:
    """What is told after a generation.

    Attributes:
        step: its number.
        metrics: (name, value, step), `evaluations` at its own step among them.
        tags: of the parent run.
        texts: artifacts by path; each is written anew every time, so that a run that was killed shows its last.
        tables: those of them that the UI shall draw as tables.
    """

    step: int
    metrics: Sequence[Metric]
    tags: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    tables: Sequence[str] = ()


@dataclass(frozen=True)
class Child:
    """A nested run: one individual, one finalist, one training."""

    name: str
    params: Mapping[str, Any]
    tags: Mapping[str, str]
    metrics: Sequence[Metric] = ()


@dataclass(frozen=True)
class Winner:
    """What a run came to, as a model that is registered.

    Attributes:
        kind: `loss` or `student`.
        text: its expression.
        fitness: on validation, by which the champion is chosen.
        files: what is kept of it.
        network: images (N,C,H,W) → logits (N,K), in eval mode; None where there is nothing to be run.
        shape: (C,H,W) of its images.
    """

    kind: str
    text: str
    fitness: float
    files: Sequence[Path] = ()
    network: nn.Module | None = None
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Story:
    """A run as its journal tells it; `status` is FINISHED or KILLED, `metrics` are of the end."""

    generations: Sequence[Generation] = ()
    children: Sequence[Child] = ()
    files: Sequence[Path] = ()
    status: str = "KILLED"
    metrics: Mapping[str, float] = field(default_factory=dict)
    winner: Winner | None = None


def at(step: int, figures: Mapping[str, float | None]) -> list[Metric]:
    """Figures as metrics of a step; what is no finite number is left out."""
    return [(k, float(v), step) for k, v in figures.items() if isinstance(v, int | float) and math.isfinite(v)]


class Store:
    """One parent run in an experiment, its children, files and model.

    Args:
        uri: tracking URI.
        experiment: its name, one a task.
        artifacts: where a new experiment keeps artifacts; None leaves it to the server.
    """

    def __init__(self, uri: str, experiment: str, artifacts: Path | None) -> None:
        self.uri, self.experiment, self.artifacts = uri, experiment, artifacts
        self.run_id = self.experiment_id = ""
        self.client: Any = None
        self.known: set[str] = set()  # names of the children that a reopened run had

    def open(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str], files: Iterable[Path]) -> None:
        """A new run, or the one that mirrors this folder already."""
        self.connect()
        if not self._reopened(name, params):
            self.run_id = self._create(name, tags)
            self.log(self.run_id, params=params)
        self.files(files)

    def load(self) -> None:
        """MLflow itself, whose import costs seconds."""
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        import mlflow

        self.client = mlflow.MlflowClient(self.uri)

    def connect(self) -> None:
        """MLflow, and the experiment, which is made if missing."""
        self.load()
        found = self.client.get_experiment_by_name(self.experiment)
        location = self.artifacts.resolve().as_uri() if self.artifacts else None
        kind = {"mlflow.experimentKind": "custom_model_development"}  # or the UI shows it as one of language models
        self.experiment_id = found.experiment_id if found else self.client.create_experiment(self.experiment, location, kind)

    def _reopened(self, name: str, params: Mapping[str, Any]) -> bool:
        """A resumed run goes on in the run that mirrors its folder. Parameters cannot be rewritten: what has changed becomes tags."""
        runs = self.client.search_runs([self.experiment_id], f"tags.`evokd.folder` = '{name}'", max_results=1)
        for run in runs:
            self.run_id = run.info.run_id
            self.client.update_run(self.run_id, status="RUNNING")
            was = run.data.params
            changed = {f"evokd.now.{k}": str(v) for k, v in params.items() if k in was and was[k] != str(v)[:PARAM_LIMIT]}
            self.log(self.run_id, tags=changed | {"evokd.state": "going"})
            self.known = {run.info.run_name for run in self._children()}
        return bool(runs)

    def _children(self) -> list:
        found, token, wanted = [], None, f"tags.`mlflow.parentRunId` = '{self.run_id}'"
        while True:
            page = self.client.search_runs([self.experiment_id], wanted, max_results=1000, page_token=token)
            found, token = [*found, *page], page.token
            if not token:
                return found

    def generation(self, told: Generation) -> None:
        """One batch, and its texts."""
        drawn = json.dumps([{"path": path, "type": "table"} for path in told.tables])
        shown = {"mlflow.loggedArtifacts": drawn} if told.tables else {}
        self.log(self.run_id, metrics=told.metrics, tags={**told.tags, **shown})
        for path, text in told.texts.items():
            self.client.log_text(self.run_id, text, path)

    def child(self, child: Child) -> None:
        """A nested run, whole at once; one that a reopened run had is not told again."""
        if child.name in self.known:
            return
        run_id = self._create(child.name, {"mlflow.parentRunId": self.run_id, **child.tags})
        self.log(run_id, params=child.params, metrics=child.metrics)
        self.client.set_terminated(run_id)

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        short = {k: v for k, v in tags.items() if len(v) <= TAG_LIMIT}
        run_id = self.client.create_run(self.experiment_id, run_name=name, tags=short).info.run_id
        self.log(run_id, tags={k: v for k, v in tags.items() if k not in short})
        return run_id

    def files(self, paths: Iterable[Path]) -> None:
        """Artifacts; those of a folder `best` stay in one."""
        for path in paths:
            self.client.log_artifact(self.run_id, str(path), "best" if path.parent.name == "best" else None)

    def winner(self, winner: Winner) -> None:
        """The winner as a logged model, registered; the fittest of the experiment's winners is the champion."""
        from mlflow.entities import LoggedModelOutput

        tags = {"evokd.expression": winner.text, "evokd.fitness": str(winner.fitness)}
        tags = self._short(self.run_id, tags, TAG_LIMIT)
        made = {"source_run_id": self.run_id, "tags": tags, "model_type": winner.kind}
        model = self.client.create_logged_model(self.experiment_id, name=winner.kind, **made)
        self._fill_model(model.model_id, winner)
        model = self.client.finalize_logged_model(model.model_id, "READY")
        self.client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step=0)])
        self.client.log_metric(self.run_id, "validation_fitness", winner.fitness, model_id=model.model_id)
        self._register(model, tags)

    def _fill_model(self, model_id: str, winner: Winner) -> None:
        for path in winner.files:
            self.client.log_model_artifact(model_id, str(path))
        if winner.network is not None:
            with warnings.catch_warnings(), tempfile.TemporaryDirectory() as home:
                warnings.simplefilter("ignore")  # what MLflow says of its own code
                self.client.log_model_artifacts(model_id, _saved(winner, Path(home) / "model"))

    def _register(self, model: Any, tags: Mapping[str, str]) -> None:
        name = re.sub(r"[^\w.-]+", "-", self.experiment)
        if not self.client.search_registered_models(f"name = '{name}'"):
            self.client.create_registered_model(name)
        made = {"run_id": self.run_id, "model_id": model.model_id, "tags": dict(tags), "await_creation_for": 0}
        number = self.client.create_model_version(name, model.artifact_location, **made).version
        holder = self.client.get_registered_model(name).aliases.get(CHAMPION)
        best = float(self.client.get_model_version(name, holder).tags["evokd.fitness"]) if holder else -math.inf
        if float(tags["evokd.fitness"]) >= best:
            self.client.set_registered_model_alias(name, CHAMPION, number)

    def fill(self, told: Story) -> dict[str, int]:
        """Write what the run lacks; how many generations and children that was. Generations are told apart by their step."""
        there = {m.step for m in self.client.get_metric_history(self.run_id, "evaluations")}
        generations = [each for each in told.generations if each.step not in there]
        for each in generations:
            self.generation(each)
        children = [child for child in told.children if child.name not in self.known]
        for child in children:
            self.child(child)
        if told.winner and not self.client.search_logged_models([self.experiment_id], f"source_run_id = '{self.run_id}'"):
            self.winner(told.winner)
        self.files(told.files)
        return {"generations": len(generations), "children": len(children), "files": len(told.files)}

    def finish(self, status: str, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        self.log(self.run_id, metrics=at(0, metrics), tags=tags)
        self.client.set_terminated(self.run_id, status)

    def log(
        self, run_id: str, params: Mapping[str, Any] | None = None, metrics: Sequence[Metric] = (), tags: Mapping[str, str] | None = None
    ) -> None:  # fmt: skip
        """In one batch, or in as few as MLflow's limits allow."""
        from mlflow.entities import Metric as Point
        from mlflow.entities import Param, RunTag

        now = int(time.time() * 1000)
        points = [Point(_name(k), v, now, step) for k, v, step in metrics]
        texts = {_name(k): str(v) for k, v in (params or {}).items()}
        pairs = [Param(k, v) for k, v in self._short(run_id, texts, PARAM_LIMIT).items()]
        marks = [RunTag(_name(k), v) for k, v in self._short(run_id, tags or {}, TAG_LIMIT).items()]
        while points or pairs or marks:
            self.client.log_batch(run_id, metrics=points[:METRICS], params=pairs[:BATCH], tags=marks[:BATCH])
            points, pairs, marks = points[METRICS:], pairs[BATCH:], marks[BATCH:]

    def _short(self, run_id: str, values: Mapping[str, str], limit: int) -> dict[str, str]:
        """Values within a limit; one beyond it is kept whole as an artifact, which the end of its cut form names."""
        kept = dict(values)
        for name, value in values.items():
            if len(value) > limit:
                path = "whole/" + re.sub(r"[^\w.-]+", "_", name) + ".txt"
                mark = f" …(cut; whole in {path})"
                self.client.log_text(run_id, value, path)
                kept[name] = value[: limit - len(mark)] + mark
        return kept


def _saved(winner: Winner, folder: Path) -> str:
    """A network as MLflow loads it, a program of torch.export, with an example of its input."""
    import mlflow.pytorch
    import numpy as np

    example = np.zeros((2, *winner.shape), np.float32)  # images of the mean colour
    needs = [f"torch=={version('torch').partition('+')[0]}"]  # which MLflow would find out in seconds
    mlflow.pytorch.save_model(winner.network, str(folder), input_example=example, pip_requirements=needs)
    return str(folder)


def address(uri: str, folder: str) -> str:
    """Where the UI shows the run that mirrors a folder, after the server's own address; empty if there is none."""
    made = Store(uri, "", None)
    made.load()
    ids = [experiment.experiment_id for experiment in made.client.search_experiments()]
    for run in made.client.search_runs(ids, f"tags.`evokd.folder` = '{folder}'", max_results=1):
        return f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    return ""


def _name(text: str) -> str:
    """A name as MLflow takes it."""
    return re.sub(r"[^\w\-. :/]", "_", text)[:NAME_LIMIT]
