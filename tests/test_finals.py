import math

import numpy as np
import pytest
from scipy import stats

from evokd.finals import GAMMAS, PUBLISHED, TAUS, WEIGHTS, Entry, choose, confirm, final_rows, interval, tune_kd
from evokd.genome.codec import to_names
from evokd.genome.individual import Individual, Outcome, Status
from evokd.journal import Journal, read_events
from evokd.losses import parse_loss, write_loss
from evokd.losses.language import tree_from_names
from evokd.losses.language import write_loss as text_of


class Judge:
    """An executor that looks accuracies up: text → function of (gamma, seed)."""

    def __init__(self, scores):
        self.scores, self.jobs = scores, []

    def map(self, jobs, ahead=None):
        for job in jobs:
            self.jobs.append(job)
            text = text_of(tree_from_names(job.loss)) if job.loss else None
            values = [self.scores(text, job.gamma, seed) for seed in job.seeds]
            if None in values:
                yield Outcome(Status.DIVERGED, reason="toy")
            else:
                mean = sum(values) / len(values)
                yield Outcome(Status.OK, mean, {"accuracy": mean, "fitness_by_seed": values, "curve": [[0, 1.0, 2.0]]})


KD, L2 = "0.9*kl(logits, tau=4)", "l2(logits)"


def wobble(base: float, seed: int) -> float:
    return base + math.sin(seed) * 3


def test_intervals_are_scipys():
    values = [91.0, 93.5, 92.25, 95.0, 90.5, 92.0]
    mean, low, high = interval(values)
    expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert (low, high) == pytest.approx(expected)
    assert mean == pytest.approx(np.mean(values))


@pytest.fixture
def journal(tmp_path):
    made = Journal(tmp_path)
    yield made
    made.close()


def test_differences_are_paired_by_seed(journal):
    bases = {KD: 90, L2: 91}
    judge = Judge(lambda text, gamma, seed: wobble(bases[text], seed) + (0.1 * (seed % 2) if text == L2 else 0))
    seeds = range(10)
    kd, l2 = final_rows([Entry("kd", KD), Entry("mine", L2)], "kd", judge, seeds, journal)
    a, b = (np.array([judge.scores(t, None, s) for s in seeds]) for t in (KD, L2))
    expected = stats.ttest_rel(b, a).confidence_interval(0.95)
    assert kd.difference is None
    assert l2.difference == pytest.approx((np.mean(b - a), expected.low, expected.high))
    assert l2.half == pytest.approx(stats.t.interval(0.95, 9, 0, stats.sem(b))[1])
    assert l2.values == pytest.approx(tuple(b))
    assert l2.difference[2] - l2.difference[1] < l2.half, "pairing takes the common part of the noise away"


def test_a_loss_that_stands_in_two_rows_is_trained_once_and_weights_apart_twice(journal, tmp_path):
    judge = Judge(lambda text, gamma, seed: 50.0 + seed)
    entries = [
        Entry("best", L2),
        Entry("simplest", L2),
        Entry("kd", KD, 0.1),
        Entry("other γ", KD, 1.0),
        Entry("plain", None, 1.0),
    ]
    rows = final_rows(entries, "kd", judge, [1, 2], journal)
    assert len(judge.jobs) == 4 * 2
    assert {job.split for job in judge.jobs} == {"test"}
    assert [r.entry.name for r in rows] == [e.name for e in entries]
    assert rows[0].values == rows[1].values == (51, 52)
    assert len(read_events(tmp_path)) == 8


def test_a_seed_that_failed_is_left_out_of_both_sides_of_a_difference(journal, tmp_path):
    judge = Judge(lambda text, gamma, seed: None if (text, seed) == (L2, 3) else 90.0 + seed + (text == L2))
    _, row = final_rows([Entry("kd", KD), Entry("mine", L2)], "kd", judge, [1, 2, 3, 4], journal)
    assert row.values == (92, 93, 95)
    assert row.difference == pytest.approx((1, 1, 1))
    assert [e["status"] for e in read_events(tmp_path)].count("DIVERGED") == 1


def individual(text: str, number: int, fitness: float | None) -> Individual:
    made = Individual(list(parse_loss(text)))
    made.id = number
    outcome = Outcome(Status.OK, fitness, {"fitness_by_seed": [fitness]}) if fitness is not None else Outcome(Status.DIVERGED)
    made.settle(outcome)
    return made


def test_confirmation_means_over_search_and_fresh_seeds(journal):
    judge = Judge(lambda text, gamma, seed: float(seed))
    first = {"a": Outcome(Status.OK, 10.0, {"fitness_by_seed": [10.0]})}
    (entry,) = confirm([Entry("a", L2)], first, judge, [1, 2, 5])
    values = [10, 1, 2, 5]
    assert entry.fitness == pytest.approx(np.mean(values))
    assert entry.error == pytest.approx(stats.sem(values))


def test_luck_in_the_search_does_not_survive_confirmation():
    later = {L2: 80.0, KD: 90.0}
    judge = Judge(lambda text, gamma, seed: later[text])
    candidates = [individual(L2, 0, 99.0), individual(KD, 1, 91.0), individual("l1(logits)", 2, None)]
    scored, _ = choose(candidates, write_loss, judge, 0, 5, 9)
    assert [e.text for e in scored] == [KD, L2]
    assert {job.split for job in judge.jobs} == {"validation"}


@pytest.mark.parametrize(("gap", "expected"), [(0.2, L2), (5.0, "l2(softmax_C(logits)) + l2(logits)")])
def test_the_simplest_within_one_standard_error_is_chosen(gap, expected):
    big = "l2(softmax_C(logits)) + l2(logits)"
    judge = Judge(lambda text, gamma, seed: 90 + (seed % 3) - (gap if text == L2 else 0))
    candidates = [individual(big, 0, 91.0), individual(L2, 1, 91.0 - gap)]
    scored, simplest = choose(candidates, write_loss, judge, 0, 2, 8)
    assert scored[0].text == write_loss(parse_loss(big))
    assert scored[0].error > 0.2
    assert simplest.text == write_loss(parse_loss(expected))


def test_only_the_best_few_are_confirmed():
    judge = Judge(lambda text, gamma, seed: 1.0)
    candidates = [individual(f"{n}*l2(logits)", n, float(n)) for n in range(1, 8)]
    scored, _ = choose(candidates, write_loss, judge, 0, 3, 2)
    assert {e.name for e in scored} == {"7", "6", "5"}
    assert len(judge.jobs) == 3


@pytest.mark.parametrize("trials", [1, 2, 36, 145, 500])
def test_tuned_kd_tries_the_published_point_first_and_distinct_points_after(trials):
    judge = Judge(lambda text, gamma, seed: 1.0)
    tune_kd(trials, judge, 0, 1, 2, 1)
    searched = judge.jobs[: min(trials, 145)]
    points = [(job.gamma, text_of(tree_from_names(job.loss))) for job in searched]
    assert len(set(points)) == len(points) == min(trials, 145)
    assert points[0] == (0.1, "0.9*kl(logits, tau=4)")
    assert len(judge.jobs) - len(searched) == min(2, trials)
    assert {job.split for job in judge.jobs} == {"validation"}
    assert PUBLISHED[0] in GAMMAS
    assert PUBLISHED[2] in TAUS
    assert len(GAMMAS) * len(WEIGHTS) * len(TAUS) == 144


def test_tuning_finds_the_best_point_and_passes_failures_by():
    def score(text, gamma, seed):
        return None if gamma == 0.0 else 90 + gamma if "tau=8" in text else 50.0

    best = tune_kd(145, Judge(score), 0, 1, 3, 2)[0]
    assert best.gamma == 1.0
    assert "tau=8" in best.text
    assert best.fitness == pytest.approx(91)


def test_a_job_is_plain_data_that_names_the_tree():
    job = Entry("x", KD, 0.5).job([1, 2], "test")
    assert (job.loss, job.gamma, job.seeds, job.split) == (tuple(to_names(parse_loss(KD))), 0.5, (1, 2), "test")
    assert Entry("plain", None).job([1], "test").loss is None
