"""`evokd oneshot` from the command line to result.json, and what it refuses."""

import json
import math
import statistics

import pytest

from evokd.commands.oneshot import main
from evokd.config import read_config
from evokd.errors import EvokdError
from evokd.oneshot import decided, job_of, rank_paths, told
from evokd.students import nas_bench_201, read_student_space
from evokd.students.oneshot import Recipe

SIZES = ["--channels", "4", "--cells", "1", "--steps", "3", "--batch", "16", "--samples", "4", "--transfer", "150"]
SPACE = nas_bench_201.space(channels=4, cells=1)


def called(out, method, *more, uri="none"):
    """(result, folder, what was said is the test's)."""
    assert main([method, *SIZES, "--out", str(out), "--device", "cpu", "-s", f"tracking_uri={uri}", *more]) == 0
    path = max(out.glob("*/result.json"), key=lambda p: p.stat().st_mtime_ns)
    return json.loads(path.read_text()), path.parent


@pytest.mark.parametrize("method", ["rsps", "gdas", "darts"])
def test_a_search_writes_its_cell_and_its_protocol(method, tmp_path, capsys):
    result, folder = called(tmp_path, method, "--no-finals")
    genome = SPACE.read(result["architecture"])
    assert result["parameters"] == SPACE.cost(genome, 10, 1, 8).parameters
    assert result["recipe"] | {} == Recipe(epochs=50 if method == "darts" else 250, steps=3, batch=16).__dict__
    assert (result["method"], result["channels"], result["cells"], result["images"]) == (method, 4, 1, 150)
    assert result["search_seconds"] > 0
    assert "distilled" not in result
    if method == "rsps":
        assert result["probabilities"] is None
    else:
        assert genome == {slot: max(row, key=row.get) for slot, row in result["probabilities"].items()}
    config = read_config(folder / "config.toml")
    assert (config.controller, config.data) == (method, "digits")
    assert read_student_space(config.space).network.args == (4, 1)
    said = capsys.readouterr().out
    assert result["architecture"] in said
    assert ("choices hardly moved" in said) == (method != "rsps")  # after three steps


def test_the_same_seed_finds_the_same_and_another_trains_another(tmp_path):
    first, again, other = (called(tmp_path / str(i), "gdas", "--no-finals", "--seed", s)[0] for i, s in enumerate("112"))
    clock = {"search_seconds"}
    assert {k: v for k, v in first.items() if k not in clock} == {k: v for k, v in again.items() if k not in clock}
    assert first["curve"] != other["curve"]


def test_the_cell_is_distilled_with_the_final_seeds(tiny, tmp_path, capsys):
    from pathlib import Path

    out = Path(tiny["out"])
    more = ["--teacher", "resnet8w8", "--workers", "1", "-s", "teacher_epochs=3", "-s", "finals=2", "-s", "protocol.steps=4"]
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    result, folder = called(out, "gdas", *more, uri=uri)
    check_mirror(uri, folder, result)
    from evokd.config import read_config
    from evokd.evaluate.students import StudentJob
    from evokd.run import evaluation_seeds
    from evokd.student_problem import open_student_problem

    config = read_config(folder / "config.toml")
    judge = open_student_problem(config, lambda line: None).executor.evaluate
    names = job_of(SPACE, SPACE.read(result["architecture"])).student
    seeds = evaluation_seeds(0, "final", 2)
    assert result["distilled"] == [judge(StudentJob(names, "distill", (seed,), "test")).fitness for seed in seeds]
    assert f"distilled {statistics.fmean(result['distilled']):.2f}" in capsys.readouterr().out


def check_mirror(uri, folder, result):
    """Configuration, curve of the supernet, cell, figures, a child for what it reaches on test."""
    import mlflow

    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("oneshot/digits").experiment_id
    (run,) = client.search_runs([experiment], "tags.`evokd.kind` = 'oneshot'")
    assert (run.info.status, run.info.run_name, run.data.tags["evokd.best"]) == ("FINISHED", folder.name, result["architecture"])
    assert run.data.metrics["test_accuracy"] == statistics.fmean(result["distilled"])
    curve = [[m.step, m.value] for m in client.get_metric_history(run.info.run_id, "train_ce")]
    assert curve == [[step, pytest.approx(value)] for step, value in result["curve"]]
    (child,) = client.search_runs([experiment], "tags.`evokd.kind` = 'final'")
    assert child.data.metrics["seeds"] == 2
    assert {"result.json", "config.toml", "space.toml"} <= {file.path for file in client.list_artifacts(run.info.run_id)}


def test_rsps_takes_the_best_of_its_samples():
    class Counts:
        """Cells by their number of 3×3 convolutions; those with a pool fail."""

        def __init__(self):
            self.seen = []

        def __call__(self, job):
            from types import SimpleNamespace

            self.seen.append(job.student)
            failed = any("avg_pool" in name for name in job.student)
            return SimpleNamespace(fitness=None if failed else float(sum("3x3" in name for name in job.student)))

    judge = Counts()
    genome = rank_paths(judge, SPACE, 60, 5)
    sound = [names for names in judge.seen if not any("avg_pool" in name for name in names)]
    assert len(judge.seen) == 60
    assert len(set(judge.seen)) > 50
    assert list(genome.values()).count("nor_conv_3x3") == max(sum("3x3" in name for name in names) for names in sound) > 1
    assert rank_paths(Counts(), SPACE, 60, 5) == genome


DEAD = "|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|nor_conv_3x3~2|"


def test_what_is_weak_about_a_result_is_said():
    even = {"0<1": dict.fromkeys("abcde", 0.2)}
    sure = {"0<1": {"a": 0.6, "b": 0.1, "c": 0.1, "d": 0.1, "e": 0.1}}
    assert decided(even) == pytest.approx(0)
    assert decided(sure) == pytest.approx(0.4)
    assert decided(None) == math.inf
    base = {"architecture": DEAD, "probabilities": sure, "shared_accuracy": None, "parameters": 1, "search_seconds": 1.0}
    text = "\n".join(told(base | {"distilled": []}))
    assert "no path leads through this cell" in text
    assert "not finite" in text
    assert "no training gave a figure" in text
    assert "hardly moved" not in text
    assert "hardly moved" in "\n".join(told(base | {"probabilities": even}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["enas"], "a one-shot method"),
        (["gdas", "--space", "digits", "--no-finals"], "language nas_bench_201"),
        (["gdas", "--space", "digits", "--channels", "4"], "channels"),
        (["gdas", "--cells", "0"], "cells"),
        (["gdas", "--batch", "1"], "--batch: expected at least 2"),
        (["gdas", "--lr", "nan"], "--lr"),
        (["gdas", "--choice-lr", "0"], "--choice-lr"),
        (["rsps", "--samples", "0"], "--samples"),
        (["gdas", "-s", "max_params=9", "--no-finals"], "one-shot searches keep none"),
        (["gdas", "--data", "nowhere", "--no-finals"], "--data"),
        (["gdas", "--transfer", "9999", "--no-finals"], "transfer"),
    ],
)
def test_mistakes_are_said_before_a_folder_exists(options, message, tmp_path):
    with pytest.raises(EvokdError, match=message) as caught:
        main([*options, "--out", str(tmp_path)])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*-student-*"))
