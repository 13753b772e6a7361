"""A loss on two pairs of digits, trained for a few steps: what is told is what its trainings give one by one."""

import csv
import statistics

import pytest

from evokd.compare.loss_plan import KD, PLAIN
from evokd.compare.pairs import COLUMNS, read_plan, train_pairs
from evokd.compare.transfer import make_plan, told
from evokd.config import change_config
from evokd.errors import EvokdError
from evokd.finals import Entry
from evokd.journal import read_events, without_clock
from evokd.problem import open_problem
from evokd.report.terminal import Terminal

LOSS = "30*pearson(transpose(logits)) + l2(features[-1])"
PAIRS = ["resnet8w8,resnet8w4", "resnet8w8, resnet8w8"]


@pytest.fixture(scope="module")
def plan(tiny):
    return make_plan(dict(tiny), (), [LOSS, "0.9*kl(logits, tau=4)"], PAIRS, seeds=2)


@pytest.fixture(scope="module")
def trained(plan):
    return train_pairs(plan, Terminal(quiet=True))


def test_a_loss_is_trained_as_it_stands(trained, plan, tiny):
    folder, pairs = trained
    problem = open_problem(change_config(plan.configs[0], {}), lambda line: None)
    seed = next(e["seed"] for e in read_events(folder) if e["event"] == "final")
    outcome = problem.executor.evaluate(Entry("by hand", LOSS, tiny["protocol"]["gamma"]).job([seed], "test"))
    assert pairs[0].values[LOSS][0] == outcome.metrics["accuracy"]


def test_rows_are_the_losses_kd_and_plain_training(plan):
    assert [row.name for row in plan.rows] == [LOSS, "0.9*kl(logits, tau=4)", KD, PLAIN]
    assert plan.rows[1].gamma != plan.rows[2].gamma


def test_connectors_are_counted_where_shapes_differ(trained):
    """By hand: a 1×1 connector from 16 to 32 channels; equal networks need none."""
    _, (narrow, equal) = trained
    assert narrow.connectors == {LOSS: 16 * 32, "0.9*kl(logits, tau=4)": 0, KD: 0, PLAIN: 0}
    assert set(equal.connectors.values()) == {0}


def test_table_and_lines_tell_the_same_means(trained, plan):
    folder, pairs = trained
    rows = list(csv.DictReader((folder / "told.csv").read_text().splitlines()))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 2 * 4 * 2
    mine = [float(r["accuracy"]) for r in rows if r["loss"] == KD and r["student"] == "resnet8w4"]
    assert any(KD in line and f"{statistics.fmean(mine):5.1f}" in line for line in told(plan, pairs))


def test_what_was_cut_goes_on_without_training_anew(trained, monkeypatch):
    folder, pairs = trained
    before, lines = without_clock(read_events(folder)), (folder / "pair-0" / "trainings.jsonl").read_text().splitlines(True)
    (folder / "pair-0" / "trainings.jsonl").write_text("".join(lines[:-1]))
    again = read_plan(folder, "transfer")
    trainings = []
    from evokd.evaluate.distill import Distiller

    call = Distiller.__call__
    monkeypatch.setattr(Distiller, "__call__", lambda self, job: trainings.append(job) or call(self, job))
    assert train_pairs(again, Terminal(quiet=True), folder)[1] == pairs
    assert len(trainings) == 1
    assert without_clock(read_events(folder)) == before


@pytest.mark.parametrize(
    ("losses", "pairs", "seeds", "told"),
    [([], PAIRS, 2, "--loss"), (["kd"], ["resnet8w8"], 2, "--pair"), (["kd"], PAIRS, 1, "--seeds"), (["kd"], [], 2, "--pair")],
)
def test_what_cannot_be_compared_is_refused(losses, pairs, seeds, told):
    with pytest.raises(EvokdError, match=told):
        make_plan({}, (), losses, pairs, seeds)


def test_a_folder_of_another_comparison_is_refused(trained):
    with pytest.raises(EvokdError, match="evokd compare teachers"):
        read_plan(trained[0], "teachers")
