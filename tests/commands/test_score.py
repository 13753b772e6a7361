"""`evokd score`: tables, pictures, and refusals in one line."""

import csv
import struct

import numpy as np
import pytest

from evokd.commands import main
from evokd.commands.score import shortened, write_csv
from evokd.errors import EvokdError
from evokd.report.scores import draw_ranking, floor, mean_ranks
from evokd.scores.diswot import DISWOT
from evokd.scores.ranking import COSTS, Measured, rank

QUICK = ["--data", "digits", "--teacher", "resnet8w4", "--batch", "4"]


@pytest.fixture
def ranked(shared_data):
    return ["rank", "--tables", str(shared_data), *QUICK, "--archs", "4", "--scores", "logit_spread", "--tracking-uri", "none"]


def size(path):
    """(width, height) of a PNG."""
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    return struct.unpack(">II", head[16:])


def refused(capsys, *options):
    assert main(["score", *options]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith("evokd: ")
    assert found.err.count("\n") == 1
    return found.err


def test_a_table_is_ranked_printed_written_and_drawn(ranked, tmp_path, capsys):
    table, picture = tmp_path / "rows.csv", tmp_path / "rows.png"
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    options = [*ranked, "--against", "resnet_s0:distilled", "--csv", str(table), "--picture", str(picture)]
    options += ["--out", str(tmp_path), "--tracking-uri", store]
    assert main(["score", *options]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "seed 1 of 1: 4 of 4 students"
    assert said[1].split()[:3] == ["score", "Kendall", "Spearman"]
    assert "residual" in said[1]
    assert [line.split()[0] for line in said[2:]] == ["logit_spread", *COSTS]
    assert len({len(line) for line in said[1:]}) == 1
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["score"] for row in rows] == ["logit_spread", *COSTS]
    assert all(-1 <= float(row[field]) <= 1 for row in rows for field in ("kendall", "residual"))
    width, height = size(picture)
    assert width > 800
    assert height > 500
    check_mirror(store, rows)


def check_mirror(store, rows):
    """A child a score, with the figures of its line, and the files."""
    import mlflow

    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name("score/resnet_s0").experiment_id
    (parent,) = client.search_runs([experiment], "tags.`evokd.kind` = 'score'")
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {c.info.run_name: c.data.metrics["kendall"] for c in children} == {
        row["score"]: pytest.approx(float(row["kendall"])) for row in rows
    }
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {"rows.csv", "rows.png"}


def test_a_difference_of_columns_is_a_target(ranked, capsys):
    assert main(["score", *ranked, "--against", "resnet_s0:distilled-plain"]) == 0
    assert "residual" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "about"),
    [
        (["--against", "resnet_s1"], "table"),
        (["--against", "resnet_s0:distiled"], "distilled"),
        (["--against", "resnet_s0:distilled-"], "COLUMN-COLUMN"),
        (["--against", "resnet_s0", "--scores", "diswot,nvot"], "nwot"),
        (["--against", "resnet_s0", "--space", "nas_bench_201"], "space of the table"),
        (["--against", "resnet_s0", "--data", "nowhere"], "--data"),
        (["--against", "resnet_s0", "--tables", "nowhere"], "nowhere"),
        (["--against", "resnet_s0", "--scores", "kd", "--teacher", "resnet9"], "--teacher"),
        (["--against", "resnet_s0", "--scores", "kd", "--teacher", "no.safetensors"], "--teacher"),
        (["--against", "resnet_s0", "--picture", "rows.doc"], ".png"),
        (["--against", "resnet_s0", "--csv", "nowhere/rows.csv"], "folder"),
    ],
)
def test_what_cannot_be_ranked_is_refused_in_one_line(options, about, ranked, capsys):
    assert about in refused(capsys, *ranked, *options)


def test_a_student_is_explained_and_drawn(tmp_path, capsys):
    picture = tmp_path / "why.png"
    assert main(["score", "explain", "311", "--space", "resnet_s0", *QUICK, "--images", "2", "--out", str(picture)]) == 0
    said = capsys.readouterr().out
    assert all(any(line.split()[:1] == [name] for line in said.splitlines()) for name in DISWOT)
    assert "student 311 of resnet_s0: " in said
    assert size(picture)[0] > 800


@pytest.mark.parametrize(
    ("options", "about"),
    [
        (["999", "--space", "resnet_s0"], "999"),
        (["311", "--space", "resnet_s00"], "resnet_s0"),
        (["311", "--space", "resnet_s0", "--data", "nowhere"], "--data"),
        (["311", "--space", "resnet_s0", "--teacher", "resnet9"], "--teacher"),
        (["311", "--space", "resnet_s0", "--out", "nowhere/why.png"], "folder"),
        (["|none~0|+|none~0|none~1|+|none~0|none~1|none~2|", "--space", "nas_bench_201"], "dead"),
    ],
)
def test_what_cannot_be_explained_is_refused_in_one_line(options, about, capsys):
    assert about in refused(capsys, "explain", *QUICK, *options)


@pytest.mark.parametrize("option", [["--archs", "0"], ["--batch", "1"], ["--seeds", "x"]])
def test_numbers_have_a_least_value(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["score", "rank", "--against", "resnet_s0", *option])
    assert "a whole number of at least" in capsys.readouterr().err


def test_what_cannot_be_written_is_said_in_one_line(tmp_path):
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    (tmp_path / "loop.png").symlink_to("loop.png")
    with pytest.raises(EvokdError, match="--csv"):
        write_csv(tmp_path / "loop.csv", [])
    found = Measured(["a"] * 3, np.arange(3.0), None, np.arange(1, 4.0), {"x": np.ones((1, 3))}, {})
    with pytest.raises(EvokdError, match="picture"):
        draw_ranking(tmp_path / "loop.png", found, rank(found), "accuracy")


def test_ranks_are_means_over_seeds_and_the_dead_leave_the_axis():
    assert mean_ranks(np.array([[3.0, 1.0, 2.0], [1.0, 1.0, 5.0]])).tolist() == [2.25, 1.25, 2.5]
    usual = np.linspace(60, 70, 99)
    assert floor(usual) == 60
    assert floor(np.append(usual, 1.0)) > 60
    assert shortened("x" * 30) == "x" * 23 + "…"
