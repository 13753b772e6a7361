"""The mirror's thread: whatever becomes of MLflow, the search goes on."""

import os
import subprocess
import sys
import threading

import pytest

from evokd.store import Child, Generation, Store
from evokd.tracker import Tracker, open_tracker, tracking_uri


def use(tracker: Tracker) -> None:
    tracker.start("run", {"a": 1}, {}, [])
    for step in range(5):
        tracker.generation(Generation(step, [("best", 1.0, step)]))
    tracker.child(Child("c", {}, {}))
    tracker.finish("FINISHED", {}, {})


def test_a_dead_server_costs_one_warning(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    warnings = []
    use(Tracker("http://127.0.0.1:9", "x", None, warnings.append))
    assert len(warnings) == 1
    assert warnings[0].startswith("tracking stopped, the search goes on: ")
    assert "\n" not in warnings[0]


@pytest.mark.parametrize("error", [RuntimeError("first\nsecond"), RuntimeError(), OSError(28, "No space left on device")])
def test_whatever_tracking_raises_is_said_once(monkeypatch, error):
    def fails(self, *args):
        raise error

    monkeypatch.setattr(Store, "open", fails)
    warnings = []
    use(Tracker("sqlite://", "x", None, warnings.append))
    assert len(warnings) == 1
    assert type(error).__name__ in warnings[0]


def test_a_run_may_be_stopped_after_its_end(monkeypatch):
    """An error after the last call must not be covered by one of tracking."""
    monkeypatch.setattr(Store, "open", lambda self, *args: None)
    monkeypatch.setattr(Store, "finish", lambda self, *args: None)
    tracker = Tracker("sqlite://", "x", None, pytest.fail)
    tracker.start("run", {}, {}, [])
    tracker.finish("FINISHED", {}, {})
    tracker.finish("FAILED", {}, {})


def test_the_uri_is_the_configured_one_then_the_environments_then_sqlite_beside_the_runs(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    assert tracking_uri(None, tmp_path) == "http://elsewhere"
    assert tracking_uri("sqlite:///x", tmp_path) == "sqlite:///x"
    assert tracking_uri("none", tmp_path) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "none")
    assert tracking_uri(None, tmp_path) is None


def test_the_module_does_not_load_mlflow_before_it_tracks():
    code = "import sys, evokd.tracker, evokd.store; print('mlflow' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert told.stdout == "False\n"


def test_without_a_store_nothing_is_called_and_no_thread_is_started(tmp_path):
    before = threading.active_count()
    tracker = open_tracker("none", tmp_path, "x", pytest.fail)
    use(tracker)
    assert (tracker.uri, tracker.run_id, threading.active_count()) == (None, "", before)
    assert list(tmp_path.iterdir()) == []


def test_every_call_is_made_by_the_thread_of_the_driver(monkeypatch):
    """No worker writes, and the search waits for none of it."""
    threads = set()
    for name in ("open", "generation", "child", "files", "finish"):
        monkeypatch.setattr(Store, name, lambda self, *args: threads.add(threading.current_thread().name))
    use(Tracker("sqlite://", "x", None, pytest.fail))
    assert threads == {"mlflow"}


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "KILLED"), (ValueError, "FAILED")])
def test_what_is_cut_off_says_so_and_keeps_files(monkeypatch, tmp_path, error, status):
    told = []
    monkeypatch.setattr(Store, "open", lambda self, *args: None)
    monkeypatch.setattr(Store, "files", lambda self, paths: told.append(list(paths)))
    monkeypatch.setattr(Store, "finish", lambda self, *args: told.append(args))
    tracker = Tracker("sqlite://", "x", None, pytest.fail)
    with pytest.raises(error), tracker.until_the_end([tmp_path]):
        raise error
    assert told == [[tmp_path], (status, {}, {"evokd.state": status.lower()})]
