"""From end to end on real digits, in seconds: the run folder, the journal, and resume."""

import csv
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

from evokd import evolve_distiller
from evokd.checkpoint import read_state
from evokd.config import read_config
from evokd.distiller import resume
from evokd.errors import EvokdError
from evokd.export import read_loss
from evokd.journal import individuals, read_events, without_clock
from evokd.losses import parse_loss, write_loss
from evokd.models.resnet import ResNet
from evokd.report.terminal import Terminal
from evokd.space import read_space

LINEAGE = {"lineage.html", "lineage.svg", "lineage.png", "lineage.graphml"}
FILES = {
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
BEST = {"loss.json", "loss.py", "loss.tex", "loss.sympy.txt"}


@pytest.fixture(scope="module")
def result(tiny):
    """A whole search with its baselines."""
    return evolve_distiller(**tiny, seed=1)


@pytest.fixture(scope="module")
def events(result):
    return read_events(result.run)


class Balanced(HTMLParser):
    VOID = frozenset({"meta", "br", "hr", "img", "link", "input", "col"})

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.addresses = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href") and not (value or "").startswith("#")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_run_folder_holds_what_the_design_promises(result, tiny):
    assert {p.name for p in result.run.iterdir()} - {".lock"} == FILES
    assert {p.name for p in (result.run / "best").iterdir()} == BEST
    assert not list(Path(tiny["out"]).rglob("*.part"))
    assert read_config(result.run / "config.toml").seed == 1
    assert (result.run / "space.toml").read_text() == read_space("compact").text
    assert f"torch {torch.__version__.split('+')[0]}" in (result.run / "environment.txt").read_text()


def test_the_journal_tells_the_search_from_start_to_end(events, result):
    kinds = list(dict.fromkeys(e["event"] for e in events))
    assert kinds == ["start", "individual", "generation", "confirm", "baseline", "final", "end"]
    assert events[0]["version"] == 1
    assert {e["name"] for e in events if e["event"] == "baseline"} == {"kd", "random"}
    trained = [e for e in individuals(events) if e["status"] != "REJECTED"]
    assert len(trained) == 6
    assert all(write_loss(parse_loss(e["text"])) == e["text"] for e in individuals(events))
    assert events[-1]["best"] == result.best


def test_the_winner_is_the_best_confirmed_and_is_among_the_candidates(events, result):
    confirmed = [e for e in events if e["event"] == "confirm"]
    assert result.best == max(confirmed, key=lambda e: e["fitness"])["text"]
    by_id = {e["id"]: e for e in individuals(events)}
    assert all(by_id[e["id"]]["text"] == e["text"] for e in confirmed)


def test_every_final_row_is_the_mean_of_its_journal_lines(events, result):
    finals = [e for e in events if e["event"] == "final"]
    assert len({e["seed"] for e in finals}) == 2
    assert {r.entry.name for r in result.rows} >= {"evolved", "random search, same budget", "plain, equal steps"}
    for row in result.rows:
        mine = [e["metrics"]["accuracy"] for e in finals if (e["text"], e["gamma"]) == (row.entry.text, row.entry.gamma)]
        assert row.mean == pytest.approx(sum(mine) / 2)
    reference = [r for r in result.rows if r.difference is None]
    assert [r.entry.name for r in reference] == ["KD, tuned with as many trials"]
    for row in result.rows:
        if row.difference:
            assert row.difference[0] == pytest.approx(row.mean - reference[0].mean)


def test_no_search_seed_is_a_final_seed(events):
    from evokd.run import evaluation_seeds

    used = set(evaluation_seeds(1, "search", 1)) | set(evaluation_seeds(1, "confirm", 1))
    assert not used & {e["seed"] for e in events if e["event"] == "final"}


def test_the_front_grows_in_size_and_fitness(result, events):
    rows = list(csv.reader((result.run / "front.csv").read_text().splitlines()))
    assert rows[0] == ["size", "fitness", "loss", "gain", "picked"]
    told = [(int(size), float(fitness), text) for size, fitness, text, _, _ in rows[1:]]
    assert [row[4] for row in rows[1:]].count("1") == 1
    assert told == result.front
    sizes, fits = [r[0] for r in told], [r[1] for r in told]
    assert sizes == sorted(set(sizes))
    assert fits == sorted(set(fits))
    sound = [e for e in individuals(events) if e["status"] == "OK"]
    assert fits[-1] == max(e["fitness"] for e in sound)
    for e in sound:
        assert any(size <= len(e["tree"]) and fitness >= e["fitness"] for size, fitness, _ in told)


def test_the_report_is_one_whole_page_that_loads_nothing(result):
    page = Balanced()
    page.feed((result.run / "report.html").read_text())
    assert page.open == []
    assert {"svg", "math", "table"} <= set(page.seen)
    assert not [a for a in page.addresses if "://" in a]


def test_the_exported_loss_is_the_winner(result):
    body = json.loads((result.run / "best" / "loss.json").read_text())
    assert write_loss(read_loss(str(result.run / "best" / "loss.json"))) == body["text"] == result.best
    assert body["gamma"] == 1.0
    assert body["run"] == result.run.name


def test_the_state_names_the_last_generation(result, events):
    last = [e for e in events if e["event"] == "generation"][-1]
    state = read_state(result.run / "state.json")
    assert (state["generation"], state["best"], state["evaluations"]) == (1, last["best"], 6)


def test_the_same_seed_gives_the_same_journal_in_one_process_and_in_two(tiny, events):
    again = evolve_distiller(**{**tiny, "workers": 2}, seed=1)
    assert without_clock(read_events(again.run)) == without_clock(events)


@pytest.mark.parametrize("cut", ["nothing but a torn first line", "within the last generation", "after everything"])
def test_a_run_that_was_cut_goes_on_to_the_same_end(result, events, tmp_path, cut):
    copy = tmp_path / result.run.name
    shutil.copytree(result.run, copy)
    (tmp_path / "cache").symlink_to(result.run.parent / "cache")
    lines = (copy / "events.jsonl").read_bytes().splitlines(keepends=True)
    place = [i for i, e in enumerate(events) if e["event"] == "individual"][-1]
    kept = {"n": b'{"event": "sta', "w": b"".join(lines[:place]) + lines[place][:30], "a": b"".join(lines)}[cut[0]]
    (copy / "events.jsonl").write_bytes(kept)
    again = resume(copy, Terminal(quiet=True))
    assert again.run == copy
    assert again.best == result.best
    assert without_clock(read_events(copy)) == without_clock(events)


def test_a_finished_run_that_is_extended_equals_one_of_that_length(result, tiny, tmp_path):
    copy = tmp_path / result.run.name
    shutil.copytree(result.run, copy)
    (tmp_path / "cache").symlink_to(result.run.parent / "cache")
    resume(copy, Terminal(quiet=True), {"generations": 3, "tracking_uri": "none"})
    whole = evolve_distiller(**tiny | {"generations": 3}, seed=1)
    assert without_clock(read_events(copy)) == without_clock(read_events(whole.run))


def test_what_decides_the_search_may_not_change_on_resume(result):
    with pytest.raises(EvokdError, match="seed"):
        resume(result.run, Terminal(quiet=True), {"seed": 2})
    with pytest.raises(EvokdError, match="population"):
        resume(result.run, Terminal(quiet=True), {"population": 9})


def test_resume_of_something_else_is_refused(tmp_path):
    with pytest.raises(EvokdError, match=r"config\.toml"):
        resume(tmp_path, Terminal(quiet=True))


class Own(nn.Module):
    """A user's teacher: pools to 4×4 and has two stages."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 5, 3, 2, 1)
        self.head = nn.Linear(5, 10)

    def forward(self, x):
        return self.head(self.two(self.one(x).relu()).relu().mean((2, 3)))


def own_student(classes: int) -> nn.Module:
    return ResNet(8, 4, classes, channels=1)


def test_a_users_own_training_is_the_fitness(tiny):
    """Losses come in compiled, scores go home, and failures cost their candidate alone."""
    got = []

    def evaluate(loss):
        got.append(loss)
        if len(got) == 2:
            raise ZeroDivisionError("the user's own mistake")
        return float("nan") if len(got) == 3 else float(-len(got))

    settings = {k: v for k, v in tiny.items() if k not in ("teacher", "student", "data")}
    network = Own()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    result = evolve_distiller(network, own_student, "digits", evaluate, **settings)
    found = [e for e in individuals(read_events(result.run)) if e["status"] != "REJECTED"]
    assert [e["status"] for e in found] == ["OK", "CRASHED", "DIVERGED", "OK", "OK", "OK"]
    assert found[1]["reason"] == "ZeroDivisionError: the user's own mistake"
    assert [e["fitness"] for e in found if e["status"] == "OK"] == [-1.0, -4.0, -5.0, -6.0]
    assert result.best == found[0]["text"]
    assert result.rows == []
    assert all(isinstance(loss, nn.Module) for loss in got)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_a_search_in_which_nothing_trains_says_why(tiny):
    def evaluate(loss):
        raise RuntimeError("no luck")

    with pytest.raises(EvokdError, match="no luck"):
        evolve_distiller(**tiny, evaluate=evaluate, seed=9)


def test_the_first_generation_starts_from_the_seeds(tiny):
    result = evolve_distiller(
        **tiny, evaluate=lambda loss: float(loss.terms[0].weight), seed_with=("kd", "0.5*l1(logits)"), seed=5
    )
    first = list(individuals(read_events(result.run)))[:2]
    assert [(e["op"], e["text"]) for e in first] == [("seed", "0.9*kl(logits, tau=4)"), ("seed", "0.5*l1(logits)")]
