"""Comparisons of controllers: each search is the one that runs alone, figures are those of the journals, and nothing is repeated."""

import csv
import math
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import mlflow
import numpy as np
import pytest

from evokd.compare import controllers as compare
from evokd.compare.arms import DISTILLED, LABELS, Losses, finals_of
from evokd.compare.controllers import Arm, Compared, Measure, Plan, compare_controllers, make_plan, read_found, written
from evokd.config import make_config, read_config
from evokd.errors import EvokdError
from evokd.evaluate.tabular import read_table
from evokd.genome.individual import Outcome, Status
from evokd.journal import individuals, read_events, without_clock
from evokd.report.terminal import Terminal
from evokd.run import evaluation_seeds
from evokd.student import run as run_student

QUIET = Terminal(quiet=True)


def events_of(found: Compared, name: str) -> list[dict]:
    return read_events(found.folder / name)


def searched(events: list[dict]) -> list[dict]:
    """What a search did, without what the winner was told with."""
    return without_clock([e for e in events if e["event"] in ("individual", "generation")])


# Losses, trained


@pytest.fixture(scope="module")
def losses(tiny, tmp_path_factory) -> Compared:
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    values = tiny | {"task": "distiller", "tracking_uri": uri, "population": 2, "seed": 3}
    return compare_controllers(make_plan(values, (), ["evolution", "random"], 2), QUIET)


def test_winners_are_told_with_seeds_that_all_searches_share(losses):
    assert [found.arm for found in losses.found] == [("evolution", 3), ("random", 3), ("evolution", 4), ("random", 4)]
    for found in losses.found:
        events = events_of(losses, found.arm.name)
        finals, confirmed = ([e for e in events if e["event"] == kind] for kind in ("final", "confirm"))
        assert [e["seed"] for e in finals] == list(evaluation_seeds(3, "final", 2))
        assert found.winner == max(confirmed, key=lambda e: e["fitness"])["text"] == finals[0]["text"]
        assert found.finals == {DISTILLED: pytest.approx(np.mean([e["metrics"]["accuracy"] for e in finals]))}
    assert [measure.name for measure in losses.measures] == [DISTILLED, "validation accuracy"]
    assert losses.measures[0].values["random"] == [losses.found[1].finals[DISTILLED], losses.found[3].finals[DISTILLED]]


def test_every_search_is_a_run_of_one_experiment_in_mlflow(losses):
    client = mlflow.MlflowClient(losses.plan.config.tracking_uri)
    experiments = [e.experiment_id for e in client.search_experiments(filter_string="name LIKE 'distiller/%'")]
    runs = client.search_runs(experiments, f"tags.`evokd.compare` = '{losses.folder.name}'")
    assert sorted(run.info.run_name for run in runs) == sorted(f"{losses.folder.name}/{f.arm.name}" for f in losses.found)
    for run in runs:
        found = next(f for f in losses.found if run.info.run_name.endswith(f.arm.name))
        curve = client.get_metric_history(run.info.run_id, "best_by_evaluations")
        assert {m.step: m.value for m in curve} == {n: found.best[n - 1] for n in {m.step for m in curve}}
        assert max(m.step for m in curve) == len(found.best) == 4
        assert run.data.metrics["test_accuracy_distilled"] == pytest.approx(found.finals[DISTILLED])
        assert run.data.tags["evokd.controller"] == found.arm.controller
        assert run.info.status == "FINISHED"


def test_seconds_are_those_of_whole_generations(losses):
    for found in losses.found:
        ends = np.cumsum([e["seconds"] for e in events_of(losses, found.arm.name) if e["event"] == "generation"])
        assert found.seconds.tolist() == pytest.approx(np.repeat(ends, 2).tolist())


def test_a_search_that_trains_goes_on_from_its_last_whole_generation(losses):
    path = losses.folder / "evolution-4" / "events.jsonl"
    whole, lines = events_of(losses, "evolution-4"), path.read_bytes().splitlines(keepends=True)
    first = next(i for i, e in enumerate(whole) if e["event"] == "generation")
    path.write_bytes(b"".join(lines[: first + 2]) + lines[first + 2][:20])
    plan = make_plan({"task": "distiller"}, folder=losses.folder)
    again = compare_controllers(plan, QUIET, folder=losses.folder)
    assert without_clock(events_of(again, "evolution-4")) == without_clock(whole)
    assert path.read_bytes().startswith(b"".join(lines[: first + 1]))
    assert again.measures == losses.measures


class DeathError(BaseException):
    pass


@pytest.mark.slow
def test_what_was_trained_in_an_unfinished_generation_or_for_the_winner_is_not_trained_again(tiny, monkeypatch):
    """Every fifth training is the last of its process."""
    from evokd.evaluate.distill import Distiller

    calls, deaths, train = [], 0, Distiller.__call__

    def dies(self, job):
        calls.append(job)
        if len(calls) % 5 == 0 and deaths < 4:
            raise DeathError
        return train(self, job)

    plan = make_plan(tiny | {"task": "distiller", "seed": 8}, (), ["evolution", "random"], 2)
    whole = compare_controllers(plan, QUIET)
    monkeypatch.setattr(Distiller, "__call__", dies)
    folder, before = None, set(Path(tiny["out"]).glob("*compare*"))
    while True:
        try:
            found = compare_controllers(plan, QUIET, folder=folder)
            break
        except DeathError:
            deaths += 1
            (folder,) = set(Path(tiny["out"]).glob("*compare*")) - before
    assert deaths == 4
    assert len(calls) == 4 * (6 + 2 + 2) + deaths, "six trainings, two confirmations and two finals a search"
    for name in (each.arm.name for each in whole.found):
        assert without_clock(events_of(found, name)) == without_clock(events_of(whole, name))
        assert not list((found.folder / name).glob("trainings*"))


class Recorder:
    """An executor that trains nothing."""

    def __init__(self):
        self.seeds = []

    def map(self, jobs, ahead=None):
        for job in jobs:
            self.seeds.append(job.seeds)
            yield Outcome(Status.OK, 1.0, {"fitness_by_seed": [1.0]})


def test_seed_k_of_every_controller_trains_with_the_same_seeds(problem, tiny):
    field, recorder = Losses.__new__(Losses), Recorder()
    field.problem, field.seeds = replace(problem, executor=recorder), []
    plan = Plan(make_config(tiny | {"protocol": tiny["protocol"] | {"repeats": 3}}), ("evolution", "random", "local"), 2)
    for arm in plan.arms:
        search = field.search(plan.config_of(arm))
        batch, _ = search.propose(1)
        list(search.evaluate(batch))
    first, second = recorder.seeds[:3], recorder.seeds[3:]
    assert len(set(first)) == len(set(second)) == 1
    assert set(first[0]).isdisjoint(second[0])
    assert len(first[0]) == 3


# Students


@pytest.fixture(scope="module")
def student(tiny) -> dict:
    kept = {k: v for k, v in tiny.items() if k not in ("student", "space")}
    own = {"task": "student", "evaluator": "train", "population": 2, "generations": 1, "max_params": 4_000, "baselines": False}
    return kept | own | {"protocol": tiny["protocol"] | {"steps": 4, "transfer": 150}}


def test_searches_for_students_train_their_winners_as_they_searched(student):
    found = compare_controllers(make_plan(student, (), ["random", "ageing"], 2), QUIET)
    alone = run_student(found.plan.config_of(Arm("ageing", 1)), QUIET)
    assert searched(events_of(found, "ageing-1")) == searched(read_events(alone.run))
    assert [measure.name for measure in found.measures] == [LABELS, "validation accuracy"]
    assert all(len(values) == 2 for values in found.measures[0].values.values())
    mine = next(f for f in found.found if f.arm == ("ageing", 1))
    assert alone.best.startswith(mine.winner)
    said = [e["seed"] for f in found.found for e in events_of(found, f.arm.name) if e["event"] == "final"]
    assert said == list(evaluation_seeds(0, "final", 2)) * 4


def test_without_finals_the_searches_are_told_by_what_they_saw(student):
    plan = make_plan(student | {"evaluator": "score"}, (), ["random", "evolution"], 2, finals=False)
    found = compare_controllers(plan, QUIET)
    assert [measure.name for measure in found.measures] == ["score diswot"]
    assert found.measures[0].values["random"] == [f.best[-1] for f in found.found if f.arm.controller == "random"]
    assert not [e for e in events_of(found, "random-0") if e["event"] in ("final", "confirm")]


# Tables


@pytest.fixture(scope="module")
def values(shared_data, tmp_path_factory) -> dict:
    out = str(tmp_path_factory.mktemp("tables"))
    own = {"space": "nas_bench_201", "budget_seconds": 2500.0, "workers": 1}
    return {"task": "student", "evaluator": "tabular", "tables": str(shared_data), "out": out, "tracking_uri": "none"} | own


NAMES = ("evolution", "random", "local")


@pytest.fixture(scope="module")
def table(values) -> Compared:
    return compare_controllers(make_plan(values, (), NAMES, 3), QUIET)


def test_figures_are_those_of_the_journal_and_the_table(table, shared_data):
    cells = read_table("nas_bench_201", shared_data)
    for found in table.found:
        trained = [e for e in individuals(events_of(table, found.arm.name)) if e["status"] == "OK"]
        assert found.best.tolist() == [max(e["fitness"] for e in trained[: n + 1]) for n in range(len(trained))]
        prices = [cells.seconds(e["text"], "cifar10_12epochs") for e in trained]
        assert found.seconds.tolist() == pytest.approx(np.cumsum(prices).tolist())
        top = max(trained, key=lambda e: e["fitness"])["text"]
        assert found.winner == found.incumbents[-1] == top
        assert found.finals == {c: cells.accuracy(top, c) for c in ("cifar10", "cifar100")}
    assert [measure.name for measure in table.measures] == ["cifar10", "cifar100", "cifar10_12epochs"]


def test_a_search_of_a_comparison_is_the_one_that_runs_alone(table):
    alone = run_student(table.plan.config_of(Arm("local", 2)), QUIET)
    assert searched(events_of(table, "local-2")) == searched(read_events(alone.run))
    assert read_config(table.folder / "local-2" / "config.toml").controller == "local"


def test_bands_end_at_the_quartiles_of_the_final_values(table):
    axes = [(panel.what, panel.axis) for panel in table.panels]
    assert axes == [
        (w, a) for w in ("cifar10_12epochs", "cifar10 of the incumbent") for a in ("evaluations", "simulated seconds")
    ]
    for panel, name in zip(table.panels, ["cifar10_12epochs"] * 2 + ["cifar10"] * 2, strict=True):
        measure = next(m for m in table.measures if m.name == name)
        for controller, band in panel.bands.items():
            quartiles = np.percentile(measure.values[controller], (25, 50, 75))
            assert (band.low[-1], band.median[-1], band.high[-1]) == pytest.approx(tuple(quartiles))


def test_the_files_say_what_was_found(table):
    rows = list(csv.DictReader((table.folder / "searches.csv").read_text().splitlines()))
    assert [(r["controller"], int(r["seed"])) for r in rows] == [f.arm for f in table.found]
    for row, found in zip(rows, table.found, strict=True):
        assert float(row["cifar100"]) == found.finals["cifar100"]
        assert float(row["cifar10_12epochs"]) == found.best[-1]
        assert (int(row["evaluations"]), row["winner"]) == (len(found.best), found.winner)
    gaps = {
        (r["figure"], r["first"], r["second"]): float(r["difference"])
        for r in csv.DictReader((table.folder / "pairs.csv").read_text().splitlines())
    }
    assert len(gaps) == 9
    for (figure, first, second), gap in gaps.items():
        values = next(m.values for m in table.measures if m.name == figure)
        assert gap == pytest.approx(np.mean(values[first]) - np.mean(values[second]))
        assert np.median(values[first]) >= np.median(values[second])
    curves = list(csv.DictReader((table.folder / "curves.csv").read_text().splitlines()))
    assert {(r["what"], r["axis"], r["controller"]) for r in curves} == {(p.what, p.axis, n) for p in table.panels for n in NAMES}
    assert all(float(r["low"]) <= float(r["median"]) <= float(r["high"]) for r in curves)


class Addresses(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.found += [v for k, v in attrs if k in ("src", "href", "xlink:href") and not (v or "").startswith("#")]


def test_the_page_needs_no_other_file(table):
    page, reader = (table.folder / "compare.html").read_text(), Addresses()
    reader.feed(page)
    assert reader.found == []
    assert "script" not in reader.tags
    assert reader.tags.count("svg") == 1
    first = table.measures[0].summaries[0]
    assert f"{first.mean:.2f} ± {first.deviation:.2f}" in page
    assert not re.search(r"\bnan\b", re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL))
    assert (table.folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def again(table: Compared, folder, **changes) -> Compared:
    plan = make_plan({"task": "student"} | changes.pop("values", {}), (), folder=folder, **changes)
    return compare_controllers(plan, QUIET, folder=folder)


@pytest.fixture
def copy(table, tmp_path):
    shutil.copytree(table.folder, tmp_path / table.folder.name)
    return tmp_path / table.folder.name


def test_what_is_whole_is_not_repeated_and_what_was_cut_goes_on(table, copy):
    torn, lost = copy / "evolution-1" / "events.jsonl", copy / "random-2"
    lines = torn.read_bytes().splitlines(keepends=True)
    torn.write_bytes(b"".join(lines[: len(lines) // 2]) + lines[len(lines) // 2][:30])
    shutil.rmtree(lost)
    before = {p: p.read_bytes() for p in copy.glob("*/events.jsonl") if p != torn}
    found = again(table, copy)
    assert {p: p.read_bytes() for p in before} == before
    for name in ("evolution-1", "random-2"):
        assert without_clock(events_of(found, name)) == without_clock(events_of(table, name))
    assert found.measures == table.measures


def test_more_seeds_and_controllers_join_those_that_are_there(table, copy):
    before = (copy / "local-0" / "events.jsonl").read_bytes()
    found = again(table, copy, controllers=["local", "ageing"], count=4)
    assert list(found.measures[0].values) == ["local", "ageing"]
    assert found.measures[0].values["local"][:3] == table.measures[0].values["local"]
    assert (copy / "local-0" / "events.jsonl").read_bytes() == before
    assert again(table, copy, count=2).plan.controllers == ("local", "ageing")


def test_searches_that_may_go_on_longer_do(table, copy, values):
    found = again(table, copy, values={"budget_seconds": 4000.0})
    fresh = compare_controllers(make_plan(values | {"budget_seconds": 4000.0}, (), NAMES, 3), QUIET)
    assert found.measures == fresh.measures
    assert all(each.seconds[-1] > 2500 for each in found.found)


def test_worker_processes_find_the_same(table, values, monkeypatch):
    monkeypatch.setattr(compare, "PARALLEL", 2)
    found = compare_controllers(make_plan(values | {"workers": 2}, (), NAMES, 3), QUIET)
    assert found.folder != table.folder
    assert found.measures == table.measures


def test_a_table_without_a_clock_has_no_seconds_and_mlflow_is_shown_its_first_seeds(values, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "MIRRORED", 1)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    kept = {k: v for k, v in values.items() if k != "budget_seconds"}
    found = compare_controllers(make_plan(kept | {"space": "resnet_s0", "tracking_uri": uri}, (), ["random", "local"], 2), QUIET)
    runs = mlflow.MlflowClient(uri).search_runs(["1"], f"tags.`evokd.compare` = '{found.folder.name}'")
    assert {run.data.tags["evokd.folder"] for run in runs} == {f"{found.folder.name}/{name}-0" for name in ("random", "local")}
    assert [(panel.what, panel.axis) for panel in found.panels] == [("distilled", "evaluations")]
    assert [measure.name for measure in found.measures] == ["distilled", "plain"]


# Plans


def test_operators_of_a_folder_are_not_loaded_unless_they_are_named_again(tmp_path):
    plan = make_plan({"task": "distiller", "operators": ("mine.py:soft",)}, (), ["random", "local"], 2)
    plan.write(tmp_path)
    with pytest.raises(EvokdError, match=r"--operators mine\.py:soft"):
        make_plan({"task": "distiller"}, folder=tmp_path)
    assert make_plan({"task": "distiller", "operators": ("mine.py:soft",)}, folder=tmp_path).controllers == ("random", "local")


def test_searches_are_taken_seed_by_seed():
    plan = make_plan({"task": "student", "seed": 5}, (), ["random", "ageing"], 2)
    assert plan.arms == [("random", 5), ("ageing", 5), ("random", 6), ("ageing", 6)]
    assert [plan.config_of(arm).seed for arm in plan.arms] == [5, 5, 6, 6]


# Searches that find nothing


def event(place: int, status: str, fitness=None, reason="", generation=0, **metrics) -> dict:
    told = {"fitness": fitness, "reason": reason, "metrics": metrics, "seconds": 1.0, "tree": ["a"], "text": f"t{place}"}
    return {"event": "individual", "id": place, "generation": generation, "status": status} | told


def test_only_what_was_trained_in_full_is_an_evaluation():
    events = [
        event(0, "DIVERGED"), event(1, "REJECTED", reason="probe: no gradient"), event(2, "OK", 3.0),
        event(3, "REJECTED", reason="rung 1: place 4 of 4"), event(4, "CRASHED", reason="rung 1: raised"), event(5, "OK", 3.0),
        {"event": "generation", "seconds": 2.5}, event(6, "OK", 9.0), {"event": "end", "best": ""},
    ]  # fmt: skip
    found = read_found(Arm("random", 0), events)
    assert found.best.tolist() == pytest.approx([math.nan, 3.0, 3.0], nan_ok=True)
    assert found.seconds.tolist() == [2.5] * 3
    assert found.incumbents == ["", "t2", "t2"]


def test_a_search_that_found_nothing_is_told_as_such(table, tmp_path):
    nothing = [event(0, "DIVERGED"), {"event": "generation", "seconds": 1.0}, {"event": "end", "best": ""}]
    found = [*table.found[:8], read_found(Arm("local", 2), nothing)]
    values = {c: [f.finals.get("cifar10", math.nan) for f in found if f.arm.controller == c] for c in NAMES}
    lost = values | {"random": [math.nan] * 3}
    measures = [Measure("cifar10", values), Measure("other", lost)]
    assert {row.controller: row.count for row in measures[0].summaries} == {"evolution": 3, "random": 3, "local": 2}
    assert measures[1].summaries[-1].controller == "random"
    written(replace(table, folder=tmp_path, found=found, measures=measures))
    assert "found nothing" in (tmp_path / "compare.html").read_text()
    assert any("found nothing" in line for line in compare.told(replace(table, measures=measures)))


def test_finals_are_means_of_what_is_finite():
    rows = [("x", 1.0), ("x", None), ("x", 3.0), ("y", None)]
    events = [{"event": "final", "row": row, "accuracy": value} for row, value in rows]
    assert finals_of([*events, {"event": "final", "row": "z", "metrics": {"accuracy": 5.0}}]) == {"x": 2.0, "z": 5.0}
