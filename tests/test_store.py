"""MLflow's mirror on a SQLite store and on servers, read back with MLflow's own client."""

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from evokd.store import BATCH, METRICS, TAG_LIMIT, Child, Generation, Store, Story, Winner, at

PARENTED = "evokd.parents"


def generation(step, best, evaluations, **more):
    """As `Progress` tells one."""
    metrics = at(step, {"best": best, "median": 0.25, "evaluations": evaluations} | more)
    metrics += at(evaluations, {"best_by_evaluations": best})
    table = json.dumps({"columns": ["id"], "data": [[step]]})
    return Generation(step, metrics, {"evokd.best": "kl(logits, tau=4)"}, {"population.json": table}, ["population.json"])


GENERATIONS = [generation(0, 90.0, 16), generation(1, 92.5, 32), generation(2, None, 40)]
CURVE = [("train_ce", 2.0, 0), ("train_distill", 3.0, 0), ("train_ce", 1.0, 5), ("train_distill", 2.0, 5)]
CHILDREN = [
    Child("g000-i0003", {"expression": "a"}, {PARENTED: ""}, [("fitness", 90.0, 0), *CURVE]),
    Child("g001-i0017", {"expression": "b" * 9000}, {PARENTED: "i0003,i0009"}, at(0, {"fitness": 92.5})),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A parent run with three generations, two children and a file, and another that was killed."""
    import mlflow

    folder = tmp_path_factory.mktemp("mlflow")
    (folder / "events.jsonl").write_text("{}\n")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    made = Store(uri, "distiller/test", folder / "artifacts")
    params = {"seed": 3, **{f"p{i}": i for i in range(BATCH + 5)}}
    made.open("run", params, {"evokd.kind": "search", "evokd.folder": "run"}, [folder / "events.jsonl"])
    for told in GENERATIONS:
        made.generation(told)
    for child in CHILDREN:
        made.child(child)
    made.finish("FINISHED", {"test_accuracy": 91.0}, {"evokd.state": "finished", "long": "x" * 9000})
    killed = Store(uri, "distiller/test", folder / "artifacts")
    killed.open("killed", {}, {}, [])
    killed.finish("KILLED", {"nothing": float("nan")}, {"evokd.state": "killed"})
    client = mlflow.MlflowClient(uri)
    return client, client.get_experiment_by_name("distiller/test").experiment_id, made.run_id, killed.run_id, folder


@pytest.fixture
def another(store):
    """Makes stores of an experiment of its own on the same database, whose schema costs seconds."""
    *_, folder = store
    return lambda experiment: Store(f"sqlite:///{folder / 'mlflow.db'}", experiment, folder / experiment)


def history(client, run, key):
    return [(m.step, m.value) for m in client.get_metric_history(run, key)]


def test_generations_are_steps_of_the_parent(store):
    client, _, run, _, _ = store
    assert history(client, run, "best") == [(0, 90.0), (1, 92.5)]
    assert history(client, run, "median") == [(0, 0.25), (1, 0.25), (2, 0.25)]
    assert history(client, run, "evaluations") == [(0, 16), (1, 32), (2, 40)]


def test_the_best_also_stands_against_evaluations(store):
    client, _, run, _, _ = store
    assert history(client, run, "best_by_evaluations") == [(16, 90.0), (32, 92.5)]


def test_the_best_expression_stands_on_the_parent(store):
    client, _, run, _, _ = store
    data = client.get_run(run).data
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
    assert child.data.params["expression"].endswith("…(cut; whole in whole/expression.txt)")
    assert text_of(client, child.info.run_id, "whole/expression.txt") == "b" * 9000
    assert len(client.get_run(run).data.tags["long"]) == TAG_LIMIT
    assert text_of(client, run, "whole/long.txt") == "x" * 9000


def text_of(client, run, path) -> str:
    return Path(client.download_artifacts(run, path)).read_text()


def test_files_lie_in_the_artifacts_folder(store):
    client, _, run, _, folder = store
    assert [f.path for f in client.list_artifacts(run)] == ["events.jsonl", "population.json", "whole"]
    assert list((folder / "artifacts").rglob("events.jsonl"))


def test_ends_are_told_apart(store):
    client, _, run, killed, _ = store
    assert client.get_run(run).info.status == "FINISHED"
    assert client.get_run(run).data.metrics["test_accuracy"] == 91.0
    assert client.get_run(killed).info.status == "KILLED"
    assert client.get_run(killed).data.tags["evokd.state"] == "killed"


def test_whatever_is_logged_keeps_to_the_limits_of_a_batch(monkeypatch):
    """1,000 metrics, 100 parameters, 100 tags, and no more than 1,000 entries in all."""
    batches = []

    class Client:
        def log_batch(self, run_id, metrics, params, tags):
            batches.append((len(metrics), len(params), len(tags)))

    made = Store("sqlite://", "x", None)
    made.client = Client()
    values = {f"k{i}": "v" for i in range(250)}
    made.log("run", params=values, metrics=[("m", float(i), i) for i in range(2500)], tags=values)
    assert [sum(column) for column in zip(*batches, strict=True)] == [2500, 250, 250]
    assert all(m <= METRICS and p <= 100 and t <= 100 and m + p + t <= 1000 for m, p, t in batches)


def test_a_generation_is_one_batch(monkeypatch):
    calls = []

    class Client:
        def __getattr__(self, name):
            return lambda *args, **more: calls.append(name)

    made = Store("sqlite://", "x", None)
    made.client = Client()
    made.generation(GENERATIONS[0])
    assert calls == ["log_batch", "log_text"]


def test_names_that_mlflow_refuses_are_mended(another):
    made = another("names")
    made.open("run", {"a=b": 1, "c" * 300: 2}, {}, [])
    made.finish("FINISHED", {"acc, %": 1.0}, {})
    data = made.client.get_run(made.run_id).data
    assert set(data.params) == {"a_b", "c" * 250}
    assert data.metrics == {"acc_ _": 1.0}


def test_a_reopened_run_gets_what_it_lacks_once(another):
    """As after a kill: one generation and one child had arrived. What had changed stands in tags, for parameters are written once."""
    params, first = {"generations": 2, "seed": 1}, another("reopened")
    first.open("folder", params, {"evokd.folder": "folder"}, [])
    first.generation(GENERATIONS[0])
    first.child(CHILDREN[0])
    again = another("reopened")
    again.open("folder", params | {"generations": 4}, {"evokd.folder": "folder"}, [])
    assert again.run_id == first.run_id
    story = Story(GENERATIONS, CHILDREN)
    assert again.fill(story) == {"generations": 2, "children": 1, "files": 0}
    third = another("reopened")
    third.open("folder", params, {"evokd.folder": "folder"}, [])
    assert third.fill(story) == {"generations": 0, "children": 0, "files": 0}
    client, run = third.client, third.client.get_run(third.run_id)
    assert run.data.tags["evokd.now.generations"] == "4"
    assert [step for step, _ in history(client, run.info.run_id, "evaluations")] == [0, 1, 2]


def champion(store: Store):
    return store.client.get_model_version_by_alias("distiller-x", "champion")


def test_the_fittest_winner_of_an_experiment_is_its_champion(another, tmp_path):
    (tmp_path / "loss.py").write_text("# source")
    versions = []
    for name, fitness in (("a", 70.0), ("b", 60.0), ("c", 75.0)):
        made = another("distiller/x")
        made.open(name, {}, {"evokd.folder": name}, [])
        made.winner(Winner("loss", f"{name} + " + "y" * 9000, fitness, [tmp_path / "loss.py"]))
        versions.append((champion(made).version, champion(made).tags["evokd.fitness"]))
    assert versions == [(1, "70.0"), (1, "70.0"), (3, "75.0")]
    (model,) = made.client.search_logged_models([made.experiment_id], f"source_run_id = '{made.run_id}'")
    assert (model.name, model.model_type, model.status) == ("loss", "loss", "READY")
    assert champion(made).source == model.artifact_location
    assert next(Path(model.artifact_location.removeprefix("file://")).rglob("loss.py")).read_text() == "# source"
    assert made.fill(Story(winner=Winner("loss", "again", 99.0))) == {"generations": 0, "children": 0, "files": 0}
    assert champion(made).version == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:mlflow")
@pytest.mark.filterwarnings("ignore:.*inferred as AnyType")
def test_a_student_can_be_loaded_by_its_alias(another):
    import mlflow.pytorch
    import torch
    from torch import nn

    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    images = torch.randn(5, 1, 8, 8)
    made = another("student/x")
    made.open("a", {}, {}, [])
    made.winner(Winner("student", "w=4", 70.0, [], network.eval(), (1, 8, 8)))
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(made.uri)
    try:
        loaded = mlflow.pytorch.load_model("models:/student-x@champion")
    finally:
        mlflow.set_tracking_uri(before)
    assert torch.allclose(loaded(images), network(images), atol=1e-5)


# Servers


POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_for(answers, seconds: float = 400.0) -> None:
    for _ in itertools.takewhile(lambda start: time.monotonic() - start < seconds, itertools.repeat(time.monotonic())):
        try:
            answers()
            return
        except (OSError, subprocess.CalledProcessError):
            time.sleep(0.3)
    pytest.fail(f"no answer within {seconds:g} seconds")


def as_postgres(*command):
    """PostgreSQL refuses to run as root."""
    return ["runuser", "-u", "postgres", "--", *map(str, command)] if os.geteuid() == 0 else [*map(str, command)]


@pytest.fixture
def database(request, tmp_path):
    """URI of an empty database: a SQLite file, or a PostgreSQL cluster of its own on loopback."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'server.db'}"
        return
    if POSTGRES is None or not (POSTGRES / "initdb").exists():
        pytest.skip("no PostgreSQL server on this machine")
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed")
    home, port = Path("/tmp") / f"evokd-postgres-{os.getpid()}", free_port()
    subprocess.run(as_postgres(POSTGRES / "initdb", "-D", home, "-U", "evokd", "-A", "trust"), check=True, capture_output=True)
    server = subprocess.Popen(
        as_postgres(POSTGRES / "postgres", "-D", home, "-p", port, "-h", "127.0.0.1", "-k", ""), stderr=subprocess.DEVNULL
    )
    try:
        ready = as_postgres(POSTGRES / "pg_isready", "-h", "127.0.0.1", "-p", port)
        wait_for(lambda: subprocess.run(ready, check=True, capture_output=True))
        yield f"postgresql+psycopg2://evokd@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run(as_postgres(POSTGRES / "pg_ctl", "-D", home, "stop", "-m", "immediate"), capture_output=True, check=False)
        server.wait(30)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def server(database, tmp_path):
    """Address of an MLflow server on loopback."""
    port = free_port()
    address, options = f"http://127.0.0.1:{port}", ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    options += ["--backend-store-uri", database, "--artifacts-destination", str(tmp_path / "served")]
    log = (tmp_path / "server.log").open("w")
    running = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *options], stdout=log, stderr=log, start_new_session=True
    )
    try:
        wait_for(lambda: urllib.request.urlopen(f"{address}/health", timeout=2).close())
        yield address
    finally:
        os.killpg(running.pid, 15)
        running.wait(30)
        log.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
def test_a_search_is_mirrored_by_a_server(server, tiny, monkeypatch):
    """Whole, with its champion, found again by its ancestors; and a second time nothing is lacking."""
    import mlflow

    from evokd import evolve_distiller
    from evokd.mirror import sync

    scores = iter(range(1, 100))
    settings = tiny | {"tracking_uri": server, "generations": 3, "children": "all", "controller": "evolution"}
    result = evolve_distiller(**settings, evaluate=lambda loss: float(next(scores)))
    client = mlflow.MlflowClient(server)
    (experiment,) = client.search_experiments(filter_string="name LIKE 'distiller/%'")
    (parent,) = client.search_runs([experiment.experiment_id], "tags.`evokd.kind` = 'search'")
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", result.run.name)
    assert history(client, parent.info.run_id, "best_by_evaluations") == [(3, 3.0), (6, 6.0), (9, 9.0)]
    assert {"individuals.parquet", "population.json", "space.toml", "report.html"} <= {
        f.path for f in client.list_artifacts(parent.info.run_id)
    }
    children = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    named = [child.data.tags[PARENTED] for child in children if child.data.tags[PARENTED]]
    assert named
    assert client.search_runs([experiment.experiment_id], f"tags.`{PARENTED}` LIKE '%{named[0][:5]}%'")
    (model,) = client.search_registered_models()
    version = client.get_model_version_by_alias(model.name, "champion")
    assert version.tags["evokd.expression"] == result.best
    assert sync(result.run)["generations"] == 0
