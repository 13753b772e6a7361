"""A run told again from its folder: the page without network resources, with an ablation, and with pictures."""

import re

import pytest

from evokd.commands import main
from evokd.config import make_config
from evokd.distiller import run
from evokd.errors import EvokdError
from evokd.report.terminal import Terminal
from evokd.retell import retell

QUIET = (lambda line: None, lambda line: None)


@pytest.fixture(scope="module")
def folder(tiny):
    """A finished search."""
    return run(make_config(tiny | {"baselines": False, "generations": 1}), Terminal(quiet=True)).run


def outside(page: str) -> list[str]:
    """Addresses that a browser would fetch."""
    return re.findall(r"(?:src|href)=[\"'](?!#|data:)[^\"']*|url\((?!#|data:)[^)]*", page)


def unnamed(page: str) -> str:
    """Without the ids of clipping regions: the layout's solver differs in a last digit from call to call, and they are hashes of it."""
    return re.sub(r"p[0-9a-f]{10}", "", page)


def test_the_cheap_report_is_that_of_the_search(folder):
    page = folder / "report.html"
    before = unnamed(page.read_text(encoding="utf-8"))
    journal = (folder / "events.jsonl").read_bytes()
    told = retell(folder, *QUIET, ablation=False, pictures=False)
    assert told.page == page
    cheap = unnamed(page.read_text(encoding="utf-8"))
    assert cheap[: cheap.index("<h2>Finals")] == before[: before.index("<h2>Finals")]
    assert cheap[cheap.index("<h2>Search") :] == before[before.index("<h2>Search") :]
    assert (folder / "events.jsonl").read_bytes() == journal
    assert not outside(before)
    assert before.count("<svg") == 5
    assert {path.stem for path in (folder / "figures").glob("*.png")} == {"search", "funnel", "front", "tree", "operators"}


def test_an_ablation_is_told_and_not_trained_twice(folder, capsys, tmp_path):
    table = tmp_path / "t.csv"
    assert main(["report", str(folder), "--no-pictures", "--seeds", "2", "--csv", str(table)]) == 0
    assert "the whole loss" in capsys.readouterr().out
    kept = (folder / "ablation" / "trainings.jsonl").read_bytes()
    rows = table.read_text(encoding="utf-8")
    assert "ablation,weight" in rows
    assert main(["report", str(folder), "--no-pictures", "--seeds", "2", "--csv", str(table)]) == 0
    assert (folder / "ablation" / "trainings.jsonl").read_bytes() == kept
    assert table.read_text(encoding="utf-8") == rows
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Ablation of the winner" in page
    assert not outside(page)


@pytest.mark.slow
def test_pictures_are_drawn(folder):
    told = retell(folder, *QUIET, ablation=False)
    drawn = {path.stem for path in (folder / "figures").glob("*.svg")}
    assert {"training", "embeddings", "correlation", "cam", "cam_plus"} <= drawn
    page = told.page.read_text(encoding="utf-8")
    assert page.count("<svg") == 10
    assert not outside(page)


@pytest.mark.parametrize(("arguments", "message"), [([], "one run folder"), (["a", "b"], "one run folder"), (["none"], "none")])
def test_what_is_no_run_is_refused(arguments, message):
    from evokd.commands.report import main as report

    with pytest.raises(EvokdError, match=message):
        report(arguments)
