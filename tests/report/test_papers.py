"""KD-Zero's and DisWOT's tables against the slides, and own runs in their cells."""

import csv
import io
import json
import statistics
from pathlib import Path

import pytest

from evokd.errors import EvokdError
from evokd.report.papers import DISWOT_9, KD_ZERO, Cell, Ran, as_latex, as_text, diswot9, grid, kd_zero, method_of, read_ran

SLIDES = Path(__file__).parents[3] / "shared" / "reference" / "slides"


def slide(name):
    path = SLIDES / name
    if not path.is_file():
        pytest.skip(f"no slides at {path}")
    return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]


def test_kd_zeros_table_is_that_of_the_slide():
    lines = slide("kd_zero.txt")
    start = next(i for i, cells in enumerate(lines) if cells[0] == "Teacher" and cells[1] == "W-16-2")
    rows = lines[start + 1 : start + 14]
    assert len(KD_ZERO) == 10
    for cells in rows:
        name = cells[0].split()[0]
        printed = [float(cell) if cell != "NA" else None for cell in cells[1:]]
        assert [KD_ZERO[pair].get(name) for pair in KD_ZERO] == printed, name
    assert {row[0].split()[0] for row in rows} == {name for pair in KD_ZERO.values() for name in pair}


def test_diswots_table_9_is_that_of_the_slide():
    lines = slide("diswot.txt")
    for teacher, column in (("ResNet34", "resnet34-resnet18"), ("ResNet50", "resnet50-resnet18")):
        at = next(i for i, cells in enumerate(lines) if cells[0] == teacher and cells[2] == "Top-1")
        heads = [head.split()[0] for head in lines[at - 1][3:]]
        assert DISWOT_9[column] == dict(zip(heads, map(float, lines[at][3:]), strict=True))


def test_runs_stand_in_their_cells_and_the_rest_is_quoted():
    pair = "resnet32x4-resnet8x4"
    runs = [
        Ran("cifar100", pair, "KD", (70.0, 72.0), "a"),
        Ran("cifar100", pair, "KD", (74.0,), "b"),
        Ran("digits", "x-y", "KD", (9.0,), "c"),
    ]
    laid = grid(runs, KD_ZERO, "cifar100")
    assert list(laid) == [pair, "x-y (digits)"]
    kd = laid[pair]["KD"]
    assert kd.mean == statistics.fmean([70, 72, 74])
    assert kd.half == pytest.approx(4.302653 * 2 / 3**0.5, rel=1e-5)  # Student's t with two degrees of freedom
    assert kd.runs == ("a", "b")
    assert str(laid[pair]["DIST"]) == "[75.79]"
    assert {name: str(cell) for name, cell in laid["x-y (digits)"].items()} == {"KD": "9.00"}
    text = "\n".join(as_text("t", laid))
    assert "72.00 ± 4.97" in text
    assert "[77.85]" in text
    assert r"resnet8x4 & x-y (digits) \\" in as_latex("t", laid)


def test_without_runs_all_is_quoted():
    lines, table, tex = kd_zero([])
    assert lines[2].split() == ["Teacher", *(f"[{KD_ZERO[pair]['Teacher']:.2f}]" for pair in KD_ZERO)]
    assert {row["source"] for row in csv.DictReader(io.StringIO(table))} == {"published"}
    assert r"MobileNetV2" in tex
    assert "[72.08]" in "\n".join(diswot9([])[0])


def test_folders_are_read(tmp_path):
    compared, odd = tmp_path / "compared", tmp_path / "odd"
    for folder, body in (
        (compared, "pair,loss,seed,accuracy\na → b,dist,0,60\na → b,dist,1,nan\na → b,mine,0,61\n"),
        (odd, "pair,loss\na,b\n"),
    ):
        folder.mkdir()
        (folder / "losses.csv").write_text(body, encoding="utf-8")
    assert [tuple(ran)[1:4] for ran in read_ran(compared)] == [("a-b", "DIST", (60.0,)), ("a-b", "mine", (61.0,))]
    with pytest.raises(EvokdError, match=r"losses\.csv"):
        read_ran(odd)
    full = tmp_path / "full"
    full.mkdir()
    order = {
        "data": "x/cifar100",
        "student": "resnet20",
        "recipe": {"name": "short-3", "epochs": 3},
        "teacher": "x/resnet110.safetensors",
    }
    (full / "order.json").write_text(json.dumps(order | {"loss": ""}))
    seeds = [
        {"event": "seed", "status": s, "metrics": m}
        for s, m in (("ok", {"top1": 50.0}), ("diverged", {}), ("ok", {"top1": 52.0}))
    ]
    (full / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in seeds))
    (full / "summary.json").write_text(json.dumps({"teacher": {"top1": 74.0}}))
    assert read_ran(full) == [
        Ran("cifar100", "resnet110-resnet20", "Student", (50.0, 52.0), "full"),
        Ran("cifar100", "resnet110-resnet20", "Teacher", (74.0,), "full"),
    ]


def test_rows_by_name():
    assert [method_of(n) for n in ("plain, equal steps", "KD (τ=4), as published", "kd", "wsld", "evolved")] == [
        "Student",
        "KD",
        "KD",
        "WSLD",
        "evolved",
    ]
    assert str(Cell(70.0, float("nan"), ("a",))) == "70.00"
