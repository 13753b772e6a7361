"""A loss that is kept: what is trained, told and written down is its sum with what the search added."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import kl_div, log_softmax, softmax

from evokd import evolve_distiller
from evokd.config import make_config
from evokd.distiller import resume
from evokd.errors import EvokdError
from evokd.evaluate.distill import Job
from evokd.genome.codec import to_names
from evokd.genome.individual import Individual
from evokd.journal import individuals, read_events, without_clock
from evokd.losses import compile_loss, parse_loss, write_loss
from evokd.problem import open_problem
from evokd.report.terminal import Terminal

LIGHT = {"base": "kd", "baselines": False, "seed": 3}


@pytest.fixture(scope="module")
def found(tiny):
    return evolve_distiller(**tiny | LIGHT)


@pytest.fixture(scope="module")
def problem(tiny):
    return open_problem(make_config(tiny | LIGHT), lambda line: None)


def hinton(student, teacher, tau=4.0):
    return 0.9 * tau**2 * kl_div(log_softmax(student / tau, 1), softmax(teacher / tau, 1), reduction="batchmean")


def test_the_sum_is_hintons_loss_and_the_added_term(problem):
    student, teacher, labels = problem.examples
    whole = compile_loss(problem.whole(parse_loss("3*l2(logits)")), student, teacher)
    expected = hinton(student.logits, teacher.logits) + 3 * (student.logits - teacher.logits).square().mean()
    torch.testing.assert_close(whole(student, teacher, labels), expected)


def test_an_added_term_of_the_same_form_joins_the_one_that_is_kept(problem):
    assert problem.text(parse_loss("2.1*kl(logits, tau=4)")) == "3*kl(logits, tau=4)"


def test_what_changes_nothing_is_a_copy_of_what_is_kept(problem):
    assert "copy" in problem.funnel()(parse_loss("0.001*kl(logits, tau=4)"))
    assert problem.funnel()(parse_loss("3*l2(logits)")) == ""


def test_a_candidate_is_trained_as_the_sum(problem):
    tree = parse_loss("3*l2(logits)")
    job = problem.job(Individual(tree), (5,))
    by_hand = Job(tuple(to_names(parse_loss("0.9*kl(logits, tau=4) + 3*l2(logits)"))), (5,))
    assert problem.executor.evaluate(job).metrics["ce"] == problem.executor.evaluate(by_hand).metrics["ce"]
    assert (
        problem.executor.evaluate(job).metrics["ce"] != problem.executor.evaluate(Job(tuple(to_names(tree)), (5,))).metrics["ce"]
    )


def test_winner_exports_and_finals_hold_the_sum(found):
    assert "kl(logits, tau=4)" in found.best
    body = json.loads((found.run / "best" / "loss.json").read_text())
    assert body["text"] == found.best
    for name in ("loss.py", "loss.tex"):
        assert found.best in (found.run / "best" / name).read_text()
    added = {e["text"] for e in individuals(read_events(found.run))}
    assert found.best not in added
    assert all(found.best in text for text in (found.run / "front.csv").read_text().splitlines()[-1:])
    rows = {row.entry.name: row for row in found.rows}
    assert rows["kd alone"].difference is None
    assert rows["kd alone"].entry.text == "0.9*kl(logits, tau=4)"
    assert rows["evolved"].difference[0] == pytest.approx(rows["evolved"].mean - rows["kd alone"].mean)


def test_a_search_that_was_cut_goes_on_to_the_same_journal(found, tiny):
    whole = without_clock(read_events(found.run))
    lines = (found.run / "events.jsonl").read_text().splitlines(keepends=True)
    first = next(i for i, e in enumerate(whole) if e["event"] == "generation")
    (found.run / "events.jsonl").write_text("".join(lines[: first + 3]))
    resume(found.run, Terminal(quiet=True))
    assert without_clock(read_events(found.run)) == whole


@pytest.mark.parametrize(
    ("base", "told"), [("nosuch", "--base"), (" + ".join(f"kl(logits, tau={t})" for t in range(1, 8)), "at most 5 terms")]
)
def test_a_base_that_cannot_be_is_refused(tiny, base, told):
    with pytest.raises(EvokdError, match=told):
        open_problem(make_config(tiny | {"base": base}), lambda line: None)


def test_random_search_keeps_the_same_loss(tiny, tmp_path):
    found = evolve_distiller(**tiny | {"base": "kd", "out": str(tmp_path), "generations": 1})
    lucky = next(row for row in found.rows if row.entry.name.startswith("random search"))
    assert "kl(logits, tau=4)" in write_loss(parse_loss(lucky.entry.text))
    assert Path(tmp_path / "cache" / "baselines").is_dir()
