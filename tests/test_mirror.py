"""What a search leaves in MLflow, finished, failed and interrupted."""

import mlflow
import pytest

from evokd import evolve_distiller


def search(tiny, tmp_path, evaluate, **more):
    settings = tiny | {"tracking_uri": f"sqlite:///{tmp_path / 'mlflow.db'}", **more}
    return evolve_distiller(**settings, evaluate=evaluate)


def runs(tmp_path, filter_string: str = ""):
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name LIKE 'distiller/%'")
    return client, client.search_runs([experiment.experiment_id], filter_string)


def rising():
    scores = iter(range(1, 100))
    return lambda loss: float(next(scores))


def test_a_finished_search(tiny, tmp_path):
    result = search(tiny, tmp_path, rising(), generations=3)
    client, (parent,) = runs(tmp_path, "tags.`evokd.kind` = 'search'")
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", result.run.name)
    assert parent.data.tags["evokd.state"] == "finished"
    assert parent.data.params["protocol.steps"] == "8"
    assert parent.data.params["student"] == "resnet8w4"
    assert [(m.step, m.value) for m in client.get_metric_history(parent.info.run_id, "best")] == [(0, 3), (1, 6), (2, 9)]
    assert {f.path for f in client.list_artifacts(parent.info.run_id)} >= {
        "events.jsonl",
        "best",
        "report.html",
        "config.toml",
    }
    _, children = runs(tmp_path, "tags.`evokd.kind` = 'individual'")
    assert sorted(c.data.metrics["fitness"] for c in children) == [3, 6, 9], (
        "the best of each generation, as each was the best so far"
    )
    best = next(c for c in children if c.data.metrics["fitness"] == 9)
    assert best.data.params["expression"] == best.data.tags["evokd.expression"] == result.best
    assert best.data.tags["mlflow.parentRunId"] == parent.info.run_id


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "KILLED"), (None, "FAILED")])
def test_a_search_that_ends_early_says_so_and_keeps_what_it_told(tiny, tmp_path, error, status):
    """Interrupted in its second generation; or without a candidate that trains."""
    calls = []

    def evaluate(loss):
        calls.append(loss)
        if error is None:
            raise ValueError("never trains")
        if len(calls) == 4:
            raise error
        return 1.0

    with pytest.raises(error or Exception, match=None if error else "never trains"):
        search(tiny, tmp_path, evaluate)
    client, (parent,) = runs(tmp_path, "tags.`evokd.kind` = 'search'")
    assert parent.info.status == status
    assert parent.data.tags["evokd.state"] == status.lower()
    assert client.get_metric_history(parent.info.run_id, "evaluations")[0].value == 3


def test_a_resumed_search_goes_on_in_its_own_run(tiny, tmp_path):
    from evokd.distiller import resume
    from evokd.report.terminal import Terminal

    settings = {"finals": 2, "baselines": False, "tracking_uri": f"sqlite:///{tmp_path / 'mlflow.db'}"}
    first = evolve_distiller(**tiny | settings, seed=21)
    resume(first.run, Terminal(quiet=True), {"generations": 3})
    client, (parent,) = runs(tmp_path, "tags.`evokd.kind` = 'search'")
    assert parent.info.status == "FINISHED"
    assert sorted({m.step for m in client.get_metric_history(parent.info.run_id, "evaluations")}) == [0, 1, 2]


@pytest.mark.parametrize(("children", "count"), [("all", 4), ("none", 0)])
def test_children_are_as_many_as_wanted(tiny, tmp_path, children, count):
    search(tiny, tmp_path, rising(), children=children, generations=1, population=4)
    found = [r for r in runs(tmp_path)[1] if r.data.tags["evokd.kind"] == "individual" and r.data.tags["evokd.status"] == "OK"]
    assert len(found) == count


def test_a_server_that_is_away_does_not_stop_a_search(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    result = evolve_distiller(**tiny | {"tracking_uri": "http://127.0.0.1:9"}, evaluate=rising(), quiet=False)
    assert (result.run / "report.html").exists()
    said = capsys.readouterr().err
    assert said.count("warning: tracking stopped") == said.count("\n") == 1
