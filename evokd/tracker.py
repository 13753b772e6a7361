"""MLflow, its only door: the mirror of a run. Every call happens on one background thread, from the driver alone.

If MLflow is missing, slow or away the search goes on: the first failure is said once, and the journal stays the truth, from which
`evokd track sync` fills the mirror in.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

PARAM_LIMIT, TAG_LIMIT, BATCH = 6000, 8000, 100
PATIENCE = 60.0  # seconds that the end of a run waits for a slow server
DEFAULTS = {  # MLflow itself would try for many minutes
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


@dataclass(frozen=True)
class Story:
    """A run as its journal tells it.

    Attributes:
        generations: summaries, as `Tracker.generation` takes them.
        children: (name, params, tags, metrics, curve), as `Tracker.child` takes them.
        files: artifacts.
        status: FINISHED or KILLED.
        metrics: of the end.
    """

    generations: Sequence[Mapping[str, Any]]
    children: Sequence[tuple]
    files: Sequence[Path]
    status: str
    metrics: dict[str, float]


class Tracker:
    """One parent run, children for elites.

    Args:
        uri: tracking URI.
        experiment: its name, one a task.
        artifacts: where a new experiment keeps artifacts; None leaves it to the server.
        warn: told once when tracking fails.
    """

    def __init__(self, uri: str, experiment: str, artifacts: Path | None, warn: Callable[[str], None]) -> None:
        self.uri, self.experiment, self.artifacts, self.warn = uri, experiment, artifacts, warn
        self.run_id = self._experiment_id = ""
        self._client: Any = None
        self._failed = self._closed = False
        self._name = ""
        self._tasks: SimpleQueue = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)  # which a process does not wait for
        self._thread.start()

    def start(self, name: str, params: dict[str, Any], tags: dict[str, str], files: Iterable[Path]) -> None:
        self._name = name
        self._do(self._start, name, params, tags, list(files))

    def generation(self, summary: dict) -> None:
        """Figures of a generation in one batch, step = generation; best so far also against evaluations."""
        self._do(self._generation, dict(summary))

    def child(self, name: str, params: dict[str, Any], tags: dict[str, str], metrics: dict[str, float], curve: list) -> None:
        """A nested run for one individual or one finalist, with its learning curve (step, cross-entropy, distillation loss)."""
        self._do(self._child, name, params, tags, metrics, curve)

    def files(self, paths: Iterable[Path], folder: str | None = None) -> None:
        self._do(self._files, list(paths), folder)

    def finish(self, status: str, metrics: dict[str, float], tags: dict[str, str]) -> None:
        """Close the parent run and wait for everything to be written, within reason; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._do(self._finish, status, metrics, tags)
            self._tasks.put(None)
            self._thread.join(PATIENCE)
            if self._thread.is_alive():
                self._fail(f"the server is {PATIENCE:g} seconds late")

    def _do(self, fn: Callable, *args: Any) -> None:
        self._tasks.put((fn, args))

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            self._guarded(*task)

    def _guarded(self, fn: Callable, args: tuple) -> None:
        if self._failed:
            return
        try:
            fn(*args)
        except Exception as error:  # whatever goes wrong in tracking must not end a search
            self._fail(f"{type(error).__name__}: {error}".splitlines()[0][:160])

    def _fail(self, reason: str) -> None:
        if self._failed:
            return
        self._failed = True
        self.warn(f"tracking stopped, the search goes on: {reason}; later: evokd track sync {self._name}")

    def _start(self, name: str, params: dict, tags: dict, files: list[Path]) -> None:
        self._connect()
        if self._reopened(name):
            return
        self.run_id = self._client.create_run(self._experiment_id, run_name=name, tags=_cut(tags, TAG_LIMIT)).info.run_id
        self._log(self.run_id, params={k: str(v) for k, v in params.items()})
        self._files(files, None)

    def _connect(self) -> None:
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        import mlflow

        self._client = mlflow.MlflowClient(self.uri)
        found = self._client.get_experiment_by_name(self.experiment)
        location = self.artifacts.resolve().as_uri() if self.artifacts else None
        self._experiment_id = found.experiment_id if found else self._client.create_experiment(self.experiment, location)

    def sync(self, name: str, params: dict, tags: dict, told: Story) -> dict[str, int]:
        """Fill in what a run's mirror lacks, here and now; how many generations, children and files were written.

        What is there stays: generations are told apart by their step, children by their name.

        Raises:
            whatever MLflow does.
        """
        self._start(name, params, tags, [])
        known = {m.step for m in self._client.get_metric_history(self.run_id, "evaluations")}
        missing = [g for g in told.generations if g["generation"] not in known]
        for summary in missing:
            self._generation(dict(summary))
        nested = f"tags.`mlflow.parentRunId` = '{self.run_id}'"
        names = {run.info.run_name for run in self._all(nested)}
        children = [child for child in told.children if child[0] not in names]
        for child in children:
            self._child(*child)
        for path in told.files:
            self._files([path], "best" if path.parent.name == "best" else None)
        self._finish(told.status, told.metrics, tags | {"evokd.state": told.status.lower()})
        return {"generations": len(missing), "children": len(children), "files": len(told.files)}

    def _all(self, wanted: str) -> list:
        found, token = [], None
        while True:
            page = self._client.search_runs([self._experiment_id], wanted, max_results=1000, page_token=token)
            found, token = [*found, *page], page.token
            if not token:
                return found

    def _reopened(self, name: str) -> bool:
        """A resumed run goes on in the run that mirrors its folder."""
        wanted = f"tags.`evokd.folder` = '{name}'"
        for run in self._client.search_runs([self._experiment_id], wanted, max_results=1):
            self.run_id = run.info.run_id
            self._client.update_run(self.run_id, status="RUNNING")
            self._client.set_tag(self.run_id, "evokd.state", "going")
        return bool(self.run_id)

    def _generation(self, summary: dict) -> None:
        text = summary.pop("best_text", "")
        step, evaluations = summary.pop("generation"), summary["evaluations"]
        metrics = [(k, v, step) for k, v in summary.items() if isinstance(v, int | float) and k != "best_id"]
        if summary.get("best") is not None:
            metrics.append(("best_by_evaluations", summary["best"], evaluations))
        self._log(self.run_id, metrics=metrics, tags={"evokd.best": text})

    def _child(self, name: str, params: dict, tags: dict, metrics: dict, curve: list) -> None:
        tags = {"mlflow.parentRunId": self.run_id, **tags}
        run = self._client.create_run(self._experiment_id, run_name=name, tags=_cut(tags, TAG_LIMIT))
        rows = [(k, v, 0) for k, v in metrics.items()]
        rows += [(k, v, int(step)) for step, ce, kd in curve for k, v in (("train_ce", ce), ("train_distill", kd))]
        self._log(run.info.run_id, params={k: str(v) for k, v in params.items()}, metrics=rows)
        self._client.set_terminated(run.info.run_id)

    def _files(self, paths: list[Path], folder: str | None) -> None:
        for path in paths:
            self._client.log_artifact(self.run_id, str(path), folder)

    def _finish(self, status: str, metrics: dict[str, float], tags: dict[str, str]) -> None:
        self._log(self.run_id, metrics=[(k, v, 0) for k, v in metrics.items()], tags=tags)
        self._client.set_terminated(self.run_id, status)

    def _log(self, run_id: str, params: dict | None = None, metrics: list | None = None, tags: dict | None = None) -> None:
        """In batches below MLflow's limits; a value too long is cut where the cut is marked, the whole text is in an artifact."""
        import time

        from mlflow.entities import Metric, Param, RunTag

        now = int(time.time() * 1000)
        rows = [Metric(k, float(v), now, step) for k, v, step in metrics or []]
        for at in range(0, len(rows), 1000):
            self._client.log_batch(run_id, metrics=rows[at : at + 1000])
        pairs = [Param(k, v) for k, v in _cut(params or {}, PARAM_LIMIT).items()]
        for at in range(0, len(pairs), BATCH):
            self._client.log_batch(run_id, params=pairs[at : at + BATCH])
        if tags:
            self._client.log_batch(run_id, tags=[RunTag(k, v) for k, v in _cut(tags, TAG_LIMIT).items()])


def _cut(values: dict[str, str], limit: int) -> dict[str, str]:
    mark = " …(cut; whole in events.jsonl)"
    return {k: v if len(v) <= limit else v[: limit - len(mark)] + mark for k, v in values.items()}


def tracking_uri(configured: str | None, out: Path) -> str | None:
    """The URI to track to: the configured one, the environment's, or SQLite beside the runs; None when it is `none`."""
    uri = configured or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(out / 'mlflow.db').resolve()}"
    return None if uri == "none" else uri
