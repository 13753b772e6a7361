"""A search for a student from end to end, in seconds: run folder, journal, resume, limits, tables, and what is refused."""

import csv
import json
import math
import random
import re
import shutil
import statistics
from importlib.util import find_spec
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from evokd import evolve_student
from evokd.config import make_config, read_config
from evokd.controllers import CONTROLLERS, OPTUNA, make_student_controller
from evokd.data import read_data
from evokd.errors import EvokdError
from evokd.evaluate.tabular import read_table
from evokd.evolve import main
from evokd.genome.grow import grow_tree, random_chooser
from evokd.journal import individuals, read_events, without_clock
from evokd.models.resnet import ResNet
from evokd.models.zoo import build
from evokd.report.terminal import Terminal
from evokd.search.random import RandomSearch
from evokd.student import StudentResult, Within, random_students, resume, run
from evokd.student_problem import open_student_problem, students_within
from evokd.students import nas_bench_201, read_student_space
from evokd.tabular_search import RUNS, open_table_problem

LINEAGE = {"lineage.html", "lineage.svg", "lineage.png", "lineage.graphml"}
QUIET = Terminal(quiet=True)
TABULAR = [name for name in CONTROLLERS if name not in OPTUNA or (name == "tpe" and find_spec("optuna"))]
LIMIT = 4_000


@pytest.fixture(scope="module")
def small(tiny) -> dict:
    """Settings of a search for a student of seconds."""
    kept = {k: v for k, v in tiny.items() if k not in ("student", "space", "population")}
    return (
        kept
        | {"task": "student", "space": "digits", "population": 4, "promote": 0.5, "max_params": LIMIT, "seed": 1}
        | {"protocol": tiny["protocol"] | {"steps": 4, "transfer": 150}}
    )


def search(settings: dict, **changes) -> StudentResult:
    return run(make_config(settings | changes), QUIET)


@pytest.fixture(scope="module")
def result(small):
    return search(small)


@pytest.fixture(scope="module")
def events(result):
    return read_events(result.run)


def test_the_run_folder_holds_what_the_design_promises(result):
    wanted = {
        "config.toml",
        "space.toml",
        "environment.txt",
        "events.jsonl",
        "state.json",
        "front.csv",
        "report.html",
        "figures",
        "best",
    } | LINEAGE
    assert {p.name for p in result.run.iterdir()} - {".lock"} == wanted
    assert read_config(result.run / "config.toml").task == "student"
    body = json.loads((result.run / "best" / "student.json").read_text())
    assert read_student_space("digits").write(body["genome"]) == body["text"]
    assert result.best.startswith(body["text"])
    assert (body["classes"], body["shape"]) == (10, [1, 8, 8])


def test_the_journal_tells_the_search_from_start_to_end(events, result):
    assert list(dict.fromkeys(e["event"] for e in events)) == [
        "start", "individual", "generation", "confirm", "baseline", "final", "end",
    ]  # fmt: skip
    found = list(individuals(events))
    assert [e["status"] for e in found].count("OK") == 4
    assert len(found) == 8
    assert events[-1]["best"] == result.best


def test_every_student_is_scored_and_those_that_were_not_promoted_keep_score_and_place(events):
    for generation in (0, 1):
        batch = [e for e in individuals(events) if e["generation"] == generation]
        refused, kept = ([e for e in batch if e["status"] == status] for status in ("REJECTED", "OK"))
        assert len(refused) == len(kept) == 2
        assert min(e["metrics"]["score"] for e in kept) >= max(e["metrics"]["score"] for e in refused)
        assert {e["reason"] for e in refused} == {"score: place 3 of 4 by diswot", "score: place 4 of 4 by diswot"}
        assert all(0 < e["metrics"]["parameters"] <= LIMIT for e in batch)


def test_the_winner_is_the_best_confirmed(events, result):
    confirmed = [e for e in events if e["event"] == "confirm"]
    mine, lucky = confirmed[:2], confirmed[2:]
    assert result.best == max(mine, key=lambda e: e["fitness"])["text"]
    assert result.rows[2].entry.text == max(lucky, key=lambda e: e["fitness"])["text"]


def test_random_search_has_as_many_trainings_and_a_row(events, result):
    assert len([e for e in events if e["event"] == "baseline"]) == 4
    assert [row.entry.name for row in result.rows] == [
        "evolved, distilled", "human-designed, distilled", "random search, same trainings",
        "evolved, labels alone", "human-designed, labels alone",
    ]  # fmt: skip
    finals = [e for e in events if e["event"] == "final"]
    for row in result.rows:
        values = [e["accuracy"] for e in finals if e["row"] == row.entry.name]
        assert row.mean == pytest.approx(statistics.fmean(values))
        if row.difference:
            assert row.difference[0] == pytest.approx(row.mean - result.rows[1].mean)
    assert [row.entry.name for row in result.rows if row.difference is None] == ["human-designed, distilled"]


def test_the_front_grows_in_parameters_and_fitness(events, result):
    rows = list(csv.reader((result.run / "front.csv").read_text().splitlines()))
    assert rows[0] == ["parameters", "fitness", "student"]
    assert [(int(p), float(f), t) for p, f, t in rows[1:]] == result.front
    trained = [(e["metrics"]["parameters"], e["fitness"]) for e in individuals(events) if e["status"] == "OK"]
    assert [f for _, f, _ in result.front] == sorted({f for _, f, _ in result.front})
    assert result.front[-1][1] == max(f for _, f in trained)
    assert all(any(q <= p and g >= f for q, g, _ in result.front) for p, f in trained)


def test_the_report_shows_the_student(result):
    page = (result.run / "report.html").read_text()
    assert "Best student" in page
    assert "<svg" in page
    assert "random search, same trainings" in page


def test_the_same_seed_gives_the_same_journal_in_one_process_and_in_two(small, events):
    again = search(small, workers=2)
    assert without_clock(read_events(again.run)) == without_clock(events)


def copied(result: StudentResult, folder: Path, lines: slice | None = None, torn: int = 0) -> Path:
    """A run folder beside a cache, with some lines of its journal and the head of the next."""
    copy = folder / result.run.name
    shutil.copytree(result.run, copy)
    if (result.run.parent / "cache").exists():
        (folder / "cache").symlink_to(result.run.parent / "cache")
    whole = (copy / "events.jsonl").read_bytes().splitlines(keepends=True)
    kept = whole if lines is None else whole[lines]
    (copy / "events.jsonl").write_bytes(b"".join(kept) + (whole[len(kept)][:torn] if torn else b""))
    return copy


@pytest.mark.parametrize("cut", ["after a generation", "within the last generation", "after everything"])
def test_a_run_that_was_cut_goes_on_to_the_same_end(result, events, tmp_path, cut):
    first = next(i for i, e in enumerate(events) if e["event"] == "generation")
    lines, torn = {
        "after a generation": (slice(first + 1), 0),
        "within the last generation": (slice(first + 4), 30),
        "after everything": (None, 0),
    }[cut]
    copy = copied(result, tmp_path, lines, torn)
    again = resume(copy, QUIET, {})
    assert again.best == result.best
    assert without_clock(read_events(copy)) == without_clock(events)


def test_a_finished_run_that_is_extended_equals_one_of_that_length(small, tmp_path):
    short = search(small, generations=1, baselines=False)
    copy = copied(short, tmp_path)
    resume(copy, QUIET, {"generations": 2})
    assert without_clock(read_events(copy)) == without_clock(read_events(search(small, baselines=False).run))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("student --seed 5", "--resume: expected seed = 1 as in"),
        ("student --score nwot", "--resume: expected score = 'diswot'"),
        ("student --max-params 9000", f"max_params = {LIMIT}"),
        ("student --evaluator tabular", "evaluator = 'cascade'"),
        ("student -s promote=0.9", "promote = 0.5"),
        ("student -s protocol.steps=9", "protocol.steps = 4"),
        ("student --generations 0", "--generations"),
        ("distiller", "--resume: expected a search for a distiller"),
    ],
)
def test_what_resume_cannot_do_is_refused(result, options, told, capsys):
    before = (result.run / "events.jsonl").read_bytes()
    task, *rest = options.split()
    assert main([task, "--quiet", "--resume", str(result.run), *rest]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1
    assert (result.run / "events.jsonl").read_bytes() == before


def test_a_search_for_a_loss_is_not_resumed_as_one_for_a_student(tmp_path, capsys):
    (tmp_path / "config.toml").write_text(make_config({}).to_toml())
    assert main(["student", "--quiet", "--resume", str(tmp_path)]) == 2
    assert "expected a search for a student" in capsys.readouterr().err


@pytest.mark.parametrize(("evaluator", "score"), [("score", "loss:sp"), ("distill", "diswot"), ("train", "diswot")])
def test_every_evaluator_runs_to_its_end(small, evaluator, score):
    found = search(small, evaluator=evaluator, score=score, generations=1, population=2, baselines=False)
    mine = list(individuals(read_events(found.run)))
    assert [e["status"] for e in mine] == ["OK", "OK"]
    if evaluator == "score":
        assert all(e["fitness"] == e["metrics"]["score"] for e in mine)
        assert not [e for e in read_events(found.run) if e["event"] == "confirm"]
        assert found.best.startswith(max(mine, key=lambda e: e["fitness"])["text"])
    assert [row.entry.name for row in found.rows][:2] == ["evolved, distilled", "human-designed, distilled"]


def test_a_budget_of_trainings_is_one_of_trainings_in_a_cascade_too(small):
    found = search(small, budget_evals=3, baselines=False)
    generations = [e for e in read_events(found.run) if e["event"] == "generation"]
    assert [(e["sound"], e["trained"]) for e in generations] == [(4, 2), (2, 1)]


def test_a_score_that_no_student_has_is_said_with_its_reason(small):
    with pytest.raises(EvokdError, match=r"at least one student that can be judged.*tokens"):
        search(small, score="loss:l2(tokens)", generations=1)


def test_proposals_within_limits_are_mended_and_none_is_lost():
    space = read_student_space("digits")
    within, _ = students_within(make_config({"task": "student", "max_params": 3000}), space, (10, 1, 8))
    controller, draw = Within(RandomSearch(space.grammar), within), random.Random(0)
    mended = [controller.ask(0, draw) for _ in range(200)]
    assert all(space.cost(space.genome(tree), 10, 1, 8).parameters <= 3000 for tree in mended)
    choose = within.chooser(random_chooser(random.Random(0)))
    grown = {space.key(grow_tree(space.grammar, choose)) for _ in range(200)}
    assert len({space.key(tree) for tree in mended}) >= 0.9 * len(grown)  # as varied as growth within the limits


def test_random_students_are_distinct_and_not_those_of_a_random_search(small):
    problem = open_student_problem(make_config(small), lambda line: None)
    drawn = random_students(problem, 12)
    assert len({problem.space.key(tree) for tree in drawn}) == 12
    assert all(problem.cost(tree).parameters <= LIMIT for tree in drawn)
    assert drawn == random_students(problem, 12)


# Tables


@pytest.fixture(scope="module")
def table(shared_data, tmp_path_factory) -> dict:
    out = str(tmp_path_factory.mktemp("tables"))
    return {"task": "student", "evaluator": "tabular", "tables": str(shared_data), "out": out, "tracking_uri": "none"}


@pytest.fixture(scope="module")
def published(table):
    return search(table, space="nas_bench_201")


def test_a_published_search_is_made_again_from_the_table(published, shared_data):
    cells, events = read_table("nas_bench_201", shared_data), read_events(published.run)
    trained = [e for e in individuals(events) if e["status"] == "OK"]
    spent = sum(e["metrics"]["simulated_seconds"] for e in trained)
    assert 12_000 - 210 < spent <= 12_000
    assert all(e["fitness"] == cells.accuracy(e["text"], "cifar10_12epochs") for e in trained)
    late = [e for e in individuals(events) if e["status"] == "REJECTED"]
    assert spent + cells.seconds(late[0]["text"], "cifar10_12epochs") > 12_000
    assert published.best.startswith(max(trained, key=lambda e: e["fitness"])["text"])


def test_its_closing_figures_stand_beside_random_search_and_the_best_of_all(published, shared_data):
    cells = read_table("nas_bench_201", shared_data)
    rows = {row.entry.name: row for row in published.rows}
    text = published.best.partition("  (")[0]
    assert rows["evolved, cifar100"].mean == cells.accuracy(text, "cifar100")
    assert rows["best of all, cifar10"].mean == pytest.approx(94.37, abs=0.01)
    lucky = rows["random search, cifar10"].values
    assert len(lucky) == RUNS
    assert statistics.fmean(lucky) == pytest.approx(93.70, abs=0.15)  # Dong & Yang (ICLR 2020), table 5: 93.70 ± 0.36
    assert statistics.stdev(lucky) == pytest.approx(0.36, abs=0.1)
    page = (published.run / "report.html").read_text()
    assert "best of all" in page
    assert "ahead of" in page


def test_a_search_on_a_table_says_its_clock_and_its_figures(table, capsys):
    options = [f"--{name.replace('_', '-')}={table[name]}" for name in ("evaluator", "tables", "out", "tracking_uri")]
    assert main(["student", "--space", "nas_bench_201", *options, "--budget-seconds", "900"]) == 0
    said = capsys.readouterr().out
    assert "900 simulated seconds" in said
    assert re.search(r"random search +\d\d\.\d\d ± \d\.\d\d", said)


@pytest.mark.parametrize(
    ("controller", "space", "count"),
    [*((name, "resnet_s0", 16) for name in TABULAR), *((name, "nas_bench_macro", 200) for name in TABULAR if name != "tpe")],
)
def test_tables_without_a_clock_count_students(table, space, count, controller):
    found = search(table, space=space, controller=controller)
    assert sum(e["status"] == "OK" for e in individuals(read_events(found.run))) <= count
    assert len(found.rows) % 3 == 0
    assert found.rows[0].mean <= found.rows[2].mean


@pytest.mark.parametrize("cut", ["after a generation", "after everything"])
def test_a_search_on_a_table_goes_on_to_the_same_end(published, tmp_path, cut):
    events = read_events(published.run)
    place = [i for i, e in enumerate(events) if e["event"] == "generation"][3]
    copy = copied(published, tmp_path, slice(place + 3) if cut == "after a generation" else None)
    assert resume(copy, QUIET, {}).best == published.best
    assert without_clock(read_events(copy)) == without_clock(events)


def test_more_simulated_seconds_go_on_from_where_they_ended(published, tmp_path):
    copy = copied(published, tmp_path)
    resume(copy, QUIET, {"budget_seconds": 14_000.0})
    trained = [e for e in individuals(read_events(copy)) if e["status"] == "OK"]
    assert 13_000 < sum(e["metrics"]["simulated_seconds"] for e in trained) <= 14_000


def test_a_latency_of_the_table_limits_the_students(table, shared_data):
    found = search(table, space="nas_bench_201", max_latency_ms=3.0, latency_device="pixel3", budget_seconds=2000.0)
    cells = read_table("nas_bench_201", shared_data)
    texts = [e["text"] for e in individuals(read_events(found.run))]
    assert max(cells.latency(text, "pixel3") for text in texts) <= 3.0
    best = found.rows[2].entry.text
    fitting = [t for t in cells.rows if cells.latency(t, "pixel3") <= 3.0]
    assert cells.accuracy(best, "cifar10") == max(cells.accuracy(t, "cifar10") for t in fitting)
    assert not any(nas_bench_201.is_dead(nas_bench_201.read(text)) for text in texts)


def test_latencies_of_a_device_are_journalled_and_are_what_nsga2_minimises(table, shared_data):
    found = search(table, space="nas_bench_201", latency_device="pixel3", budget_seconds=3000.0, controller="nsga2")
    cells, events = read_table("nas_bench_201", shared_data), list(individuals(read_events(found.run)))
    dead = [e for e in events if nas_bench_201.is_dead(nas_bench_201.read(e["text"]))]
    assert all(
        e["metrics"]["latency_ms"] == cells.latency(e["text"], "pixel3") for e in events if e["status"] == "OK" and e not in dead
    )
    assert not any("latency_ms" in e["metrics"] for e in dead)
    problem = open_table_problem(
        make_config(table | {"space": "nas_bench_201", "latency_device": "pixel3", "controller": "nsga2"})
    )
    assert make_student_controller(problem).costs == ("parameters", "latency_ms")


def test_a_search_for_a_reward_ends_with_the_best_by_reward(table, shared_data):
    traded = {"reward": "soft", "reward_target": 4.0, "latency_device": "pixel3", "budget_seconds": 3000.0}
    found = search(table, space="nas_bench_201", controller="reinforce", **traded)
    cells = read_table("nas_bench_201", shared_data)
    trained = [e for e in individuals(read_events(found.run)) if e["status"] == "OK" and "latency_ms" in e["metrics"]]
    reward = {e["text"]: e["fitness"] * (cells.latency(e["text"], "pixel3") / 4.0) ** -0.07 for e in trained}
    assert found.rows[0].entry.text == max(reward, key=reward.get)
    assert found.rows[0].entry.text != max(trained, key=lambda e: e["fitness"])["text"]


def test_a_notebook_gives_its_own_teacher_and_data(small):
    teacher = build("resnet8w4", 10, 1, 0)
    before = [p.clone() for p in teacher.parameters()]
    own = {"teacher": teacher, "data": read_data("digits")}
    found = evolve_student(**small | own | {"baselines": False, "generations": 1})
    assert read_config(found.run / "config.toml").teacher == "ResNet"
    assert found.best
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))


def test_the_winner_is_timed_beside_the_human_designed_student(result):
    card = json.loads((result.run / "best" / "student.json").read_text())
    assert 0 < card["latency_ms"] < 10_000
    assert 0 < card["latency_ratio"] < 100


def test_mlflow_holds_score_parts_costs_and_finals_without_nan(small, tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    search(small, tracking_uri=uri, generations=1, children="all", baselines=False)
    client = mlflow.MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name LIKE 'student/%'")
    (parent,) = client.search_runs([experiment.experiment_id], "tags.`evokd.kind` = 'search'")
    assert parent.data.metrics["latency_ratio"] > 0
    for child in client.search_runs([experiment.experiment_id], "tags.`evokd.kind` = 'individual'"):
        assert child.data.metrics.keys() >= {"score", "diswot_semantic", "diswot_relation", "parameters", "macs"}
        assert child.data.params["expression"]
    assert len(client.search_runs([experiment.experiment_id], "tags.`evokd.kind` = 'final'")) == 4


def test_mlflow_takes_a_search_on_a_table_whose_rows_are_single_figures(table, tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    search(table, space="resnet_s0", tracking_uri=uri)
    client = mlflow.MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name LIKE 'student/%'")
    finals = client.search_runs([experiment.experiment_id], "tags.`evokd.kind` = 'final'")
    assert len(finals) == 6
    assert all(math.isfinite(value) for child in finals for value in child.data.metrics.values())


# What is refused


@pytest.fixture(scope="module")
def files(tmp_path_factory, shared_data):
    folder = tmp_path_factory.mktemp("files")
    save_file(ResNet(8, 4, 7, 1).state_dict(), folder / "seven.safetensors")
    save_file(ResNet(8, 4, 10, 3).state_dict(), folder / "colour.safetensors")
    np.savez(folder / "other.npz", x=np.zeros(3))
    return {"files": folder, "tables": shared_data}


TABULAR = "--evaluator tabular --tables {tables}"
BAD = {
    "--space digitz": "--space: .*'digitz'",
    "--space {files}/none.toml": "--space",
    "--score diswott": "--score: .*did you mean 'diswot'",
    "--score loss:nothing": "--score",
    "--score loss:{files}/none.json": "--score: .*loss.json",
    "--evaluator magic": "--evaluator: expected 'cascade', 'score'",
    "--controller annealing": "--controller: expected a controller",
    "--loss magic": "--loss",
    "--teacher resnet9": "--teacher: expected a network",
    "--teacher {files}/seven.safetensors": "10 classes, as digits has",
    "--teacher {files}/colour.safetensors": "--teacher: expected a network for images of shape",
    "--max-params 10": "max_params: expected at least [0-9,]+, the least in resnet, got 10",
    "--max-macs 10": "max_macs: expected at least",
    "--max-params 0": "--max-params",
    "--space digits --max-latency-ms 3 --latency-device pixel3 --tables {tables}": "a space with a published table",
    f"{TABULAR} --space nas_bench_201 --max-latency-ms 3": "--latency-device: expected 1080ti_1, .*titanxp_32, got none",
    f"{TABULAR} --space nas_bench_201 --max-latency-ms 3 --latency-device pixel4": "pixel2, pixel3, .*did you mean 'pixel3'",
    f"{TABULAR} --space nas_bench_201 --max-latency-ms 1 --latency-device pixel3": "max_latency_ms on pixel3: expected at least",
    f"{TABULAR} --space nas_bench_201 --max-params 20": "max_params: expected at least .* the least in nas_bench_201, got 20",
    f"{TABULAR} --space resnet_s0 --max-latency-ms 1 --latency-device pixel3": "--latency-device: expected a table with lat",
    f"{TABULAR} --space resnet_s0 --budget-seconds 100": "--budget-seconds: expected a table with times of training",
    f"{TABULAR} --space digits": "a space with a published table",
    "--evaluator tabular --space nas_bench_201": "--tables: expected the folder of the published tables, or EVOKD_DATA",
    "--evaluator tabular --space nas_bench_201 --tables {files}": "table of nas_bench_201: expected its files in",
}


@pytest.mark.parametrize("options", BAD)
def test_a_mistake_is_said_in_one_line_and_leaves_no_run(options, files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("evokd.models.teachers.train_teacher", lambda *args: None)
    monkeypatch.delenv("EVOKD_DATA", raising=False)
    settings = ["--teacher", "resnet8w8", "--out", str(tmp_path / "out"), "--tracking-uri", "none", "--quiet", "--workers", "1"]
    code = main(["student", *settings, *options.format(**files).split(" ")])
    said = capsys.readouterr()
    assert code == 2, said.err
    assert said.err.startswith("evokd: ")
    assert said.err.count("\n") == 1
    assert re.search(BAD[options], said.err), said.err
    assert not list((tmp_path / "out").glob("*student*"))


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit):
        main(["student", "--help"])
    told = capsys.readouterr().out
    for option in (
        "evaluator",
        "score",
        "max-params",
        "max-macs",
        "max-latency-ms",
        "latency-device",
        "tables",
        "loss",
        "resume",
    ):
        assert f"--{option}" in told
