"""DisWOT's Table 8 laid out: published figures as printed, own runs from their folders, and what does not divide out."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from evokd.commands.report import main
from evokd.config import make_config
from evokd.errors import EvokdError
from evokd.evaluate.tabular import Table
from evokd.report.layouts import (
    PUBLISHED,
    SETS,
    TYPES,
    Ran,
    agrees,
    as_csv,
    as_latex,
    as_text,
    divided,
    lay_out,
    method_of,
    read_ran,
    set_of,
)

CELL = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|"


def test_the_published_table_is_that_of_the_slides():
    """Against the slides themselves, where they are at hand."""
    slides = Path(__file__).parents[3] / "shared" / "reference" / "slides" / "diswot.txt"
    if not slides.is_file():
        pytest.skip(f"no slides at {slides}")
    lines = slides.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Table 8"))
    rows = [line.split("\t")[1:] for line in lines[start : start + 14] if "×" in line]
    assert len(rows) == len(TYPES)
    for name, cells in zip(TYPES, rows, strict=True):
        assert cells[0].split()[0] in (name, "\\mathcal{M}_s", "\\mathcal{M}_r")
        for data, (accuracy, seconds, speedup) in zip(PUBLISHED, zip(*[iter(cells[1:])] * 3, strict=True), strict=True):
            figure = PUBLISHED[data][name]
            factor = 1000 if seconds.endswith("M") else 1
            printed = (float(accuracy), factor * float(seconds.rstrip("KM")), float(speedup.rstrip("×")))
            assert tuple(figure) == printed, (name, data)


def test_the_printed_speed_ups_that_do_not_divide_out():
    slips = {
        (data, method): round(divided(data, method), 1) for data in PUBLISHED for method in TYPES if not agrees(data, method)
    }
    assert slips == {
        ("cifar10", "GDAS"): 9.8, ("cifar100", "RSPS"): 10.0, ("cifar100", "DisWOT"): 50.0, ("cifar100", "DisWOT, M_r"): 25.0,
        ("imagenet16", "DisWOT"): 50.0, ("imagenet16", "DisWOT, M_r"): 25.0,
    }  # fmt: skip


def test_without_runs_everything_is_quoted_as_published():
    laid = lay_out([])
    assert list(laid) == list(SETS)
    assert all([row.method for row in rows] == list(TYPES) for rows in laid.values())
    assert all(row.source.startswith("not run; published") for rows in laid.values() for row in rows)
    slip = next(row for row in laid["cifar100"] if row.method == "RSPS")
    assert slip.source == "not run; published; printed 21.6×, its seconds give 10.0×"
    assert tuple(slip)[2:5] == (57.99, 46_000, 21.6)
    text = "\n".join(as_text(laid))
    assert "[57.99]" in text
    assert "[46,000]" in text


def ran(method, seconds, accuracies=(), tabulated=None, data="cifar100", run="r"):
    return Ran(method, data, tuple(accuracies), tabulated, seconds, run)


def test_runs_stand_in_their_rows_and_speed_up_is_against_the_own_random_search():
    runs = [
        ran("RS", 1000.0, [60.0, 62.0]),
        ran("GDAS", 100.0, [61.0], 70.5),
        ran("GDAS", 300.0, [64.0]),
        ran("ageing", 500.0, (), 72.0),
    ]
    laid = lay_out(runs)
    assert list(laid) == ["cifar100"]
    rows = {row.method: row for row in laid["cifar100"]}
    assert list(rows) == [*TYPES, "ageing"]
    assert tuple(rows["RS"])[2:5] == (61.0, 1000.0, 1.0)
    assert tuple(rows["GDAS"])[:5] == ("weight-sharing", "GDAS", 62.5, 200.0, 5.0)
    assert rows["GDAS"].source == "run r r; the cell's table accuracy 70.50"
    assert tuple(rows["ageing"])[2:5] == (72.0, 500.0, 2.0)
    assert rows["ageing"].source.endswith("the cell's table accuracy, not distilled")
    assert rows["DARTS"].source == "not run; published"
    text = "\n".join(as_text(laid))
    assert "62.50" in text
    assert "[62.50]" not in text
    assert "[66.24]" in text


def test_without_a_random_search_there_is_no_speed_up_and_other_data_have_nothing_published():
    rows = {row.method: row for row in lay_out([ran("GDAS", 5.0, data="digits")])["digits"]}
    assert tuple(rows["GDAS"])[2:] == (None, 5.0, None, "run r; not distilled")
    assert rows["RS"].source == "not run; nothing published on digits; published on CIFAR-10: 93.63 %, 216,000 s"
    assert tuple(rows["RS"])[2:5] == (None, None, None)


@pytest.mark.parametrize(
    ("controller", "evaluator", "score", "row"),
    [
        ("random", "tabular", "diswot", "RS"),
        ("reinforce-lstm", "train", "diswot", "RL"),
        ("ppo", "tabular", "diswot", "RL"),
        ("tpe", "tabular", "diswot", "BOHB"),
        ("random", "shared", "diswot", "RSPS"),
        ("ageing", "tabular", "diswot", "ageing"),
        ("diswot", "score", "diswot", "DisWOT"),
        ("evolution", "cascade", "diswot_relation", "DisWOT, M_r"),
        ("random", "score", "nwot", "NWOT"),
        ("random", "cascade", "te_nas", "TE-NAS"),
        ("local", "score", "zen", "local, zen"),
        ("local", "shared", "zen", "local, shared weights"),
    ],
)
def test_the_row_of_a_search(controller, evaluator, score, row):
    assert method_of(controller, evaluator, score) == row


def test_data_sets_by_name_or_path():
    assert [set_of(d) for d in ("cifar10", "x/cifar100", "CIFAR-10.npz", "digits", "ImageNet16-120")] == [
        "cifar10", "cifar100", "cifar10", "digits", "imagenet16",
    ]  # fmt: skip


def one_shot(folder, **changes):
    folder.mkdir()
    told = {
        "method": "gdas",
        "data": "cifar100",
        "architecture": CELL,
        "search_seconds": 12.5,
        "distilled": [50.0, 52.0],
    } | changes
    (folder / "result.json").write_text(json.dumps(told))
    return folder


def searched(folder, events, **config):
    folder.mkdir()
    kept = {"task": "student", "space": "nas_bench_201", "data": "cifar100"} | config
    (folder / "config.toml").write_text(make_config(kept).to_toml())
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


EVENTS = [
    {"event": "start"},
    {"event": "individual", "status": "OK", "metrics": {"simulated_seconds": 100.0}},
    {"event": "individual", "status": "REJECTED", "metrics": {"simulated_seconds": 7.0}},
    {"event": "individual", "status": "OK", "metrics": {"simulated_seconds": 50.0}},
    {"event": "generation", "seconds": 3.0},
    {"event": "generation", "seconds": 4.5},
    {"event": "final", "row": "evolved, distilled", "accuracy": 70.0},
    {"event": "final", "row": "evolved, distilled", "accuracy": None},
    {"event": "final", "row": "evolved, distilled", "accuracy": 72.0},
    {"event": "final", "row": "human-designed, distilled", "accuracy": 99.0},
    {"event": "final", "row": "random search, same trainings", "accuracy": 98.0},
    {"event": "end", "best": f"{CELL}  (1,000 parameters)"},
]
TABLE = Table("nas_bench_201", {CELL: 0}, {"cifar10": np.array([91.0]), "cifar100": np.array([68.0])})


def test_folders_are_read(tmp_path):
    assert read_ran(one_shot(tmp_path / "a"), TABLE) == Ran("GDAS", "cifar100", (50.0, 52.0), 68.0, 12.5, "a")
    assert read_ran(one_shot(tmp_path / "b", data="digits"), TABLE).tabulated is None
    live = searched(tmp_path / "c", EVENTS, controller="random", evaluator="distill")
    assert read_ran(live, None) == Ran("RS", "cifar100", (70.0, 72.0), None, 7.5, "c")
    tabular = searched(tmp_path / "d", [*EVENTS[:6], EVENTS[-1]], controller="ageing", evaluator="tabular")
    assert read_ran(tabular, TABLE) == Ran("ageing", "cifar10", (), 91.0, 150.0, "d")


def test_the_command_prints_and_writes(tmp_path, capsys):
    files = [tmp_path / "t.csv", tmp_path / "t.tex"]
    runs = [one_shot(tmp_path / "a_1"), searched(tmp_path / "c", EVENTS, controller="random", evaluator="distill")]
    assert main([*map(str, runs), "--layout", "diswot8", "--csv", str(files[0]), "--latex", str(files[1])]) == 0
    said = capsys.readouterr().out
    assert "GDAS" in said
    assert "51.00" in said
    rows = list(csv.DictReader(files[0].read_text().splitlines()))
    mine = next(row for row in rows if row["method"] == "GDAS")
    assert (float(mine["accuracy"]), float(mine["seconds"]), float(mine["speedup"])) == (51.0, 12.5, 0.6)
    assert len(rows) == len(TYPES)
    tex = files[1].read_text()
    assert tex.count(r"\begin{tabular}") == 1
    assert r"weight-sharing & GDAS & 51.00 & 12.5 & 0.6$\times$ \\" in tex
    assert r"DisWOT, M\_r & [73.62] & [18,400] & [300.0$\times$] \\" in tex
    assert as_csv(lay_out([])).count("\n") == 31
    assert as_latex(lay_out([])).count(r"\begin{table}") == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tmp: [str(tmp / "none")], "events.jsonl"),
        (lambda tmp: ["--layout", "table9"], "--layout"),
        (lambda tmp: [str(one_shot(tmp / "a", search_seconds="soon"))], "one-shot"),
        (lambda tmp: [str(searched(tmp / "b", EVENTS[:-1]))], "has ended"),
        (lambda tmp: [str(searched(tmp / "c", []))], "has ended"),
        (lambda tmp: [str(searched(tmp / "d", EVENTS, task="distiller", space="compact"))], "for a student"),
        (lambda tmp: ["--csv", str(tmp / "no" / "x.csv")], "--csv"),
        (lambda tmp: ["--tables", str(tmp)], "table of nas_bench_201"),
    ],
)
def test_mistakes_are_said(make, message, tmp_path, monkeypatch):
    monkeypatch.delenv("EVOKD_DATA", raising=False)
    with pytest.raises(EvokdError, match=message) as caught:
        main(["--layout", "diswot8", *make(tmp_path)])
    assert "\n" not in str(caught.value)
