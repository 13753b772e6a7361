"""The mirror's thread: every call to MLflow happens there, from the driver alone, and none of them can end a search.

If MLflow is missing, slow or away the search goes on: the first failure is said once, and the journal stays the truth, from which
`evokd track sync` fills the mirror in.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from evokd.store import Child, Generation, Store, Story, Winner

PATIENCE = 120.0  # seconds that the end of a run waits for a slow server, and for a student to be exported


class Tracker:
    """One run in MLflow; without a URI every call does nothing.

    Args:
        uri: tracking URI, or None.
        experiment: its name, one a task.
        artifacts: where a new experiment keeps artifacts; None leaves it to the server.
        warn: told once when tracking fails.
    """

    def __init__(self, uri: str | None, experiment: str, artifacts: Path | None, warn: Callable[[str], None]) -> None:
        self.uri, self.warn, self.store = uri, warn, Store(uri or "", experiment, artifacts)
        self._failed = self._closed = uri is None
        self._name = ""
        self._tasks: SimpleQueue = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)  # which a process does not wait for
        if uri:
            self._thread.start()

    @property
    def run_id(self) -> str:
        """Of the parent run; empty before it is there."""
        return self.store.run_id

    def start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str], files: Iterable[Path]) -> None:
        """Open the parent run, or the one that mirrors this folder already."""
        self._name = name
        self._do(self.store.open, name, dict(params), dict(tags), list(files))

    def fill(self, told: Story) -> None:
        """What a reopened run lacks."""
        self._do(self.store.fill, told)

    def generation(self, told: Generation) -> None:
        """Figures of a generation in one batch, and what shows its best and its population."""
        self._do(self.store.generation, told)

    def child(self, child: Child) -> None:
        """A nested run for one individual, finalist or training."""
        self._do(self.store.child, child)

    def files(self, paths: Iterable[Path]) -> None:
        """Artifacts of the parent run; they may be made as they are asked for."""
        self._do(self.store.files, paths)

    def winner(self, make: Callable[[], Winner]) -> None:
        """A logged and registered model."""
        self._do(lambda: self.store.winner(make()))

    def finish(self, status: str, metrics: Mapping[str, float], tags: Mapping[str, str] | None = None) -> None:
        """Close the parent run and wait for everything to be written, within reason; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._do(self.store.finish, status, dict(metrics), {"evokd.state": status.lower(), **(tags or {})})
            self._tasks.put(None)
            self._thread.join(PATIENCE)
            if self._thread.is_alive():
                self._fail(f"the server is {PATIENCE:g} seconds late")

    @contextmanager
    def until_the_end(self, kept: Iterable[Path] = ()) -> Iterator[None]:
        """KILLED or FAILED if what happens inside is cut off or fails; what was told stays, and some files are kept then."""
        try:
            yield
        except BaseException as error:
            self.files(kept)
            self.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", {})
            raise

    def _do(self, fn: Callable, *args: Any) -> None:
        if not self._failed:
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


def open_tracker(configured: str | None, out: Path, experiment: str, warn: Callable[[str], None]) -> Tracker:
    """A tracker on the store that is meant; artifacts of a SQLite store lie beside the runs."""
    uri = tracking_uri(configured, out)
    return Tracker(uri, experiment, local_artifacts(uri, out), warn)


def local_artifacts(uri: str | None, out: Path) -> Path | None:
    """Where a store without a server keeps artifacts."""
    return out / "artifacts" if uri and uri.startswith("sqlite") else None


def tracking_uri(configured: str | None, out: Path) -> str | None:
    """The URI to track to: the configured one, the environment's, or SQLite beside the runs; None when it is `none`."""
    uri = configured or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(out / 'mlflow.db').resolve()}"
    return None if uri == "none" else uri
