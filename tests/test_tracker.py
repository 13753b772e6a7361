"""MLflow's mirror on a SQLite store, read back with MLflow's own client."""

import os
import subprocess
import sys

import pytest

from evokd.tracker import BATCH, TAG_LIMIT, Tracker, tracking_uri

SUMMARY = {"best_id": 3, "median": 0.25, "proposed": 9, "best_text": "kl(logits, tau=4)"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A parent run with two generations, two children and a file, and another that was killed."""
    import mlflow

    folder = tmp_path_factory.mktemp("mlflow")
    (folder / "events.jsonl").write_text("{}\n")
    uri, warnings = f"sqlite:///{folder / 'mlflow.db'}", []
    tracker = Tracker(uri, "distiller/test", folder / "artifacts", warnings.append)
    tracker.start(
        "run", {"seed": 3, **{f"p{i}": i for i in range(BATCH + 5)}}, {"evokd.kind": "search"}, [folder / "events.jsonl"]
    )
    for generation, best in enumerate([90.0, 92.5]):
        tracker.generation(SUMMARY | {"generation": generation, "best": best, "evaluations": 16 * (generation + 1)})
    tracker.generation(SUMMARY | {"generation": 2, "best": None, "median": None, "evaluations": 40})
    tracker.child("g000-i0003", {"expression": "a"}, {"evokd.parents": ""}, {"fitness": 90.0}, [(0, 2.0, 3.0), (5, 1.0, 2.0)])
    tracker.child("g001-i0017", {"expression": "b" * 9000}, {"evokd.parents": "i0003,i0009"}, {"fitness": 92.5}, [])
    tracker.finish("FINISHED", {"test_accuracy": 91.0}, {"evokd.state": "finished", "long": "x" * 9000})
    killed = Tracker(uri, "distiller/test", folder / "artifacts", warnings.append)
    killed.start("killed", {}, {}, [])
    killed.finish("KILLED", {}, {"evokd.state": "killed"})
    assert warnings == []
    client = mlflow.MlflowClient(uri)
    return client, client.get_experiment_by_name("distiller/test").experiment_id, tracker.run_id, killed.run_id, folder


def history(client, run, key):
    return [(m.step, m.value) for m in client.get_metric_history(run, key)]


def test_generations_are_steps_of_the_parent(store):
    client, _, run, _, _ = store
    assert history(client, run, "best") == [(0, 90.0), (1, 92.5)]
    assert history(client, run, "median") == [(0, 0.25), (1, 0.25)]
    assert history(client, run, "evaluations") == [(0, 16), (1, 32), (2, 40)]


def test_the_best_also_stands_against_evaluations(store):
    client, _, run, _, _ = store
    assert history(client, run, "best_by_evaluations") == [(16, 90.0), (32, 92.5)]


def test_identifiers_are_no_metrics(store):
    client, _, run, _, _ = store
    data = client.get_run(run).data
    assert "best_id" not in data.metrics
    assert data.tags["evokd.best"] == "kl(logits, tau=4)"


def test_parameters_beyond_one_batch_arrive(store):
    client, _, run, _, _ = store
    assert len(client.get_run(run).data.params) == BATCH + 6
    assert client.get_run(run).data.params["seed"] == "3"


def test_children_are_found_by_their_ancestors(store):
    client, experiment, run, _, _ = store
    (child,) = client.search_runs([experiment], "tags.`evokd.parents` LIKE '%i0003%'")
    assert child.info.run_name == "g001-i0017"
    nested = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run}'")
    assert {c.info.run_name for c in nested} == {"g000-i0003", "g001-i0017"}
    assert {c.info.status for c in nested} == {"FINISHED"}


def test_a_child_keeps_its_learning_curve(store):
    client, experiment, _, _, _ = store
    (child,) = client.search_runs([experiment], "attributes.run_name = 'g000-i0003'")
    assert history(client, child.info.run_id, "train_ce") == [(0, 2.0), (5, 1.0)]
    assert history(client, child.info.run_id, "train_distill") == [(0, 3.0), (5, 2.0)]


def test_long_values_are_cut_where_they_say_so(store):
    client, experiment, run, _, _ = store
    (child,) = client.search_runs([experiment], "attributes.run_name = 'g001-i0017'")
    assert len(child.data.params["expression"]) == 6000
    assert child.data.params["expression"].endswith("(cut; whole in events.jsonl)")
    assert len(client.get_run(run).data.tags["long"]) == TAG_LIMIT


def test_files_lie_in_the_artifacts_folder(store):
    client, _, run, _, folder = store
    assert [f.path for f in client.list_artifacts(run)] == ["events.jsonl"]
    assert list((folder / "artifacts").rglob("events.jsonl"))


def test_ends_are_told_apart(store):
    client, _, run, killed, _ = store
    assert client.get_run(run).info.status == "FINISHED"
    assert client.get_run(run).data.metrics["test_accuracy"] == 91.0
    assert client.get_run(killed).info.status == "KILLED"
    assert client.get_run(killed).data.tags["evokd.state"] == "killed"


def use(tracker: Tracker) -> None:
    tracker.start("run", {"a": 1}, {}, [])
    for generation in range(5):
        tracker.generation(SUMMARY | {"generation": generation, "best": 1.0, "evaluations": 1})
    tracker.child("c", {}, {}, {}, [])
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

    monkeypatch.setattr(Tracker, "_start", fails)
    warnings = []
    use(Tracker("sqlite://", "x", None, warnings.append))
    assert len(warnings) == 1
    assert type(error).__name__ in warnings[0]


def test_a_run_may_be_stopped_after_its_end(monkeypatch):
    """An error after the last call must not be covered by one of tracking."""
    monkeypatch.setattr(Tracker, "_start", lambda self, *args: None)
    monkeypatch.setattr(Tracker, "_finish", lambda self, *args: None)
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
    code = "import sys, evokd.tracker; print('mlflow' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert told.stdout == "False\n"
