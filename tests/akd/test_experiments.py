"""AKD's experiments from end to end, in seconds: what they find, what they keep, and that a death costs nothing that was done."""

import csv
import json
import math
import shutil
import statistics

import pytest

from evokd.akd.experiment import Plan, Training, opened, read_plan
from evokd.akd.results import render, told
from evokd.akd.run import run_plan
from evokd.akd.square import cells_of
from evokd.errors import EvokdError
from evokd.evaluate.students import StudentJob
from evokd.executor import Serial
from evokd.finals import interval
from evokd.genome.individual import Outcome, Status
from evokd.journal import individuals, read_events, without_clock
from evokd.report.terminal import Terminal

QUIET = Terminal(quiet=True)


@pytest.fixture(scope="module")
def shared(tiny) -> dict:
    kept = {k: v for k, v in tiny.items() if k not in ("task", "student", "population", "finals", "tracking_uri")}
    protocol = tiny["protocol"] | {"steps": 3, "transfer": 120}
    return kept | {"space": "digits", "population": 2, "generations": 2, "confirm": 1, "seed": 5, "protocol": protocol}


@pytest.fixture(scope="module")
def plan(shared):
    return Plan("square", shared, (), (("max_macs", 150_000.0),), ("evolution",), seeds=2, finals=2)


@pytest.fixture(scope="module")
def square(plan, tmp_path_factory):
    """(results, folder) of a whole 2 × 2."""
    plan = Plan(**vars(plan) | {"values": plan.values | {"out": str(tmp_path_factory.mktemp("square"))}})
    results = run_plan(plan, QUIET, tracking="none")
    return results, next(iter(sorted(p for p in (folder for folder in _children(plan)) if "akd" in p.name)))


def _children(plan):
    from pathlib import Path

    return list(Path(plan.values["out"]).iterdir())


def finals(folder):
    return [e for e in read_events(folder / "finals") if e["event"] == "final"]


def test_both_searches_see_the_same_first_students_and_judge_them_otherwise(square):
    folder = square[1] / "searches"
    assert len(list(folder.iterdir())) == 4
    nas, akd = (list(individuals(read_events(folder / f"evolution-macs150000-{who}-s0"))) for who in ("labels", "resnet8w8"))
    assert [e["text"] for e in nas[:2]] == [e["text"] for e in akd[:2]]
    assert [e["metrics"]["ce"] for e in nas[:2]] != [e["metrics"]["ce"] for e in akd[:2]]
    assert all(e["metrics"]["macs"] <= 150_000 for e in nas + akd)


def test_the_square_is_made_of_the_trainings_in_the_journal(square):
    results, folder = square
    found = {(e["student"], e["way"], e["seed"]): e["accuracy"] for e in finals(folder)}
    rows = [dict(zip(results.tables[2].columns, row, strict=True)) for row in results.tables[2].rows]
    mean = lambda student, way: statistics.fmean(v for (s, w, _), v in found.items() if (s, w) == (student, way))  # noqa: E731
    gains = []
    for nas, akd in zip(rows[::2], rows[1::2], strict=True):
        assert (nas["searched with"], akd["searched with"]) == ("labels", "resnet8w8")
        by = {who: mean(row["student"], "kd") - mean(row["student"], "plain") for who, row in (("nas", nas), ("akd", akd))}
        gains.append(by["akd"] - by["nas"])
    assert results.tables[0].rows[0][6] == pytest.approx(interval(gains), nan_ok=True)
    assert results.metrics["equation_1"] == pytest.approx(statistics.fmean(gains))


def test_final_seeds_are_shared_and_fresh(square):
    seeds = {e["seed"] for e in finals(square[1])}
    assert len(seeds) == 2
    assert len({(e["student"], e["way"], e["seed"]) for e in finals(square[1])}) == len(finals(square[1]))


def test_tables_pictures_and_page_are_written(square):
    results, folder = square
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")
    for name in ("cells", "architectures-evolution-macs150000"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((folder / "square.csv").read_text().splitlines()))
    assert float(rows[0]["equation (1)"]) == pytest.approx(results.metrics["equation_1"], abs=1e-6)
    assert "equation (1) low" in rows[0]


def test_a_finished_experiment_is_read_back_without_any_training(square, tmp_path, monkeypatch):
    results, folder = square
    copy = shutil.copytree(folder, tmp_path / folder.name)
    monkeypatch.setattr("evokd.evaluate.students.Judge.__call__", lambda self, job: pytest.fail("trained again"))
    again = run_plan(read_plan(copy), QUIET, folder=copy, tracking="none")
    assert [render(table) for table in again.tables] == [render(table) for table in results.tables]


def test_an_experiment_that_died_ends_as_if_it_had_not(square, tmp_path):
    results, folder = square
    copy = shutil.copytree(folder, tmp_path / folder.name)
    shutil.rmtree(copy / "searches" / "evolution-macs150000-resnet8w8-s1")
    torn = copy / "searches" / "evolution-macs150000-labels-s1" / "events.jsonl"
    torn.write_bytes(b"\n".join(torn.read_bytes().split(b"\n")[:5]) + b'\n{"event": "ind')
    journal = copy / "finals" / "events.jsonl"
    journal.write_bytes(b"\n".join(journal.read_bytes().split(b"\n")[:2]) + b'\n{"even')
    again = run_plan(read_plan(copy), QUIET, folder=copy, tracking="none")
    assert without_clock(read_events(torn.parent)) == without_clock(read_events(folder / "searches" / torn.parent.name))
    assert [told(c) for c in again.tables[0].rows[0]] == [told(c) for c in results.tables[0].rows[0]]
    assert sorted(map(str, without_clock(finals(copy)))) == sorted(map(str, without_clock(finals(folder))))


def test_a_plan_survives_its_file(square):
    folder = square[1]
    assert json.loads((folder / "plan.json").read_text())["kind"] == "square"
    with pytest.raises(EvokdError, match="--resume"):
        read_plan(folder / "searches")


@pytest.mark.parametrize(
    ("changes", "about"),
    [
        ({"budgets": ()}, "budget"), ({"seeds": 1}, "--seeds"), ({"controllers": ("evolutoin",)}, "evolution"),
        ({"controllers": ("random", "random")}, "once"), ({"budgets": (("max_macs", 10.0),)}, "max_macs"),
        ({"overrides": ("seed=3",)}, "-s"), ({"overrides": ("nothing=3",)}, "-s"),
        ({"kind": "matrix", "teachers": ("resnet8w8",)}, "--teachers"),
        ({"kind": "matrix", "teachers": ("resnet8w8", "resnet9"), "count": 2}, "--teachers"),
        ({"kind": "matrix", "teachers": ("resnet8w8", "no.safetensors"), "count": 2}, "--teachers"),
        ({"kind": "matrix", "teachers": ("resnet8w8", "resnet8w4"), "students": ()}, "--students"),
        ({"kind": "agents", "teachers": ("resnet8w8", "resnet8w8")}, "once"),
        ({"kind": "agents", "teachers": ("resnet8w8", "resnet8w4"), "seeds": 1}, "--agents"),
        ({"kind": "designs", "options": {"equal": "latency", "checkpoints": 2}}, "--student"),
        ({"kind": "designs", "students": ("basic8-1-1-1",), "options": {"equal": "size", "checkpoints": 2}}, "--equal"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_there_is_a_folder(plan, changes, about, tmp_path):
    values = plan.values | {"out": str(tmp_path)}
    with pytest.raises(EvokdError, match=about):
        run_plan(Plan(**vars(plan) | {"values": values} | changes), QUIET, tracking="none")
    assert not list(tmp_path.glob("*akd*"))


def test_teachers_are_compared_on_named_students(shared, tmp_path):
    teachers, students = ("resnet8w8", "resnet8w4"), ("basic4-1-1-1", "mobile4-1-1-1", "basic6-1-1-1")
    found = run_plan(
        Plan("matrix", shared | {"out": str(tmp_path)}, (), (), teachers=teachers, students=students, finals=2),
        QUIET,
        tracking="none",
    )
    assert found.tables[0].columns[4:] == ("GT", *teachers)
    assert [row[1] for row in found.tables[0].rows] == list(students)
    assert [row[0] for row in found.tables[2].rows] == ["GT", *teachers]
    folder = next(tmp_path.glob("*akd-matrix*"))
    assert len(finals(folder)) == 3 * 3 * 2
    assert {e["teacher"] for e in finals(folder) if e["way"] == "plain"} == {""}


def test_agents_are_searches_of_every_teacher_and_of_labels(shared, tmp_path):
    plan = Plan(
        "agents", shared | {"out": str(tmp_path)}, (), (("max_params", 8000.0),), teachers=("resnet8w8", "resnet8w4"), seeds=2
    )
    found = run_plan(plan, QUIET, tracking="none")
    assert [row[0] for row in found.tables[0].rows] == ["labels and resnet8w8", "labels and resnet8w4", "resnet8w8 and resnet8w4"]
    assert [row[:2] for row in found.tables[2].rows] == [(t, s) for t in ("labels", "resnet8w8", "resnet8w4") for s in ("0", "1")]
    assert found.tables[0].rows[0][5] == "0.333"


def test_a_training_that_fails_is_kept_as_failed_and_not_tried_again(plan, tmp_path):
    outcomes = iter([Outcome(Status.DIVERGED, reason="NaN"), Outcome(Status.OK, 50.0, {"accuracy": 50.0})])
    wanted = [Training("", "s", "plain", seed, StudentJob("s", "train", (seed,), "test")) for seed in (1, 2)]
    with opened(plan, tmp_path, QUIET) as experiment:
        experiment.train(Serial(lambda job: next(outcomes)), [*wanted, *wanted])
    with opened(plan, tmp_path, QUIET) as experiment:
        experiment.train(Serial(lambda job: pytest.fail("trained again")), wanted)
        assert math.isnan(experiment.done[wanted[0].key])
        assert experiment.done[wanted[1].key] == 50


def test_two_processes_do_not_write_one_experiment(plan, tmp_path):
    with opened(plan, tmp_path, QUIET), pytest.raises(EvokdError, match="locked"), opened(plan, tmp_path, QUIET):
        pass


def test_each_cell_is_of_its_own_student_and_way():
    class Told:
        def accuracies(self, teacher, student, way):
            assert bool(teacher) == (way == "kd")
            return {
                ("nas", "plain"): [1.0, 3.0],
                ("nas", "kd"): [20.0, 40.0],
                ("akd", "plain"): [500.0] * 2,
                ("akd", "kd"): [8e3] * 2,
            }[student, way]

    cells = cells_of(Told(), "teacher", "nas", "akd")
    assert (cells.cls_nas, cells.kd_nas, cells.cls_akd, cells.kd_akd) == (2.0, 30.0, 500.0, 8000.0)
    assert cells.knowledge == (8000.0 - 500.0) - (30.0 - 2.0)
