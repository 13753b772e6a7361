"""An ablation against a hand list of variants, differences by hand, and what is trained once is not trained again."""

import math
import statistics
from pathlib import Path

import pytest
from scipy import stats

from evokd.ablation import ablate, variants
from evokd.errors import EvokdError
from evokd.executor import Serial
from evokd.genome.individual import Outcome, Status
from evokd.losses.language import parse_loss, tree_from_names, write_loss

LOSS = "0.5*focal*l2(norm_C(mm(features[-1]))) + ramp(0, 3)*kl(zscore_C(logits), tau=4)"


def test_the_variants_are_those_of_a_hand_list():
    rest, first = "ramp(0, 3)*kl(zscore_C(logits), tau=4)", "0.5*focal*l2(norm_C(mm(features[-1])))"
    assert [(v.change, v.text) for v in variants(LOSS)] == [
        ("without term 1", rest),
        ("weight of term 1 halved", f"0.25*focal*l2(norm_C(mm(features[-1]))) + {rest}"),
        ("weight of term 1 doubled", f"focal*l2(norm_C(mm(features[-1]))) + {rest}"),
        ("without focal of term 1", f"0.5*l2(norm_C(mm(features[-1]))) + {rest}"),
        ("without norm_C of term 1", f"0.5*focal*l2(mm(features[-1])) + {rest}"),
        ("without mm of term 1", f"0.5*focal*l2(norm_C(features[-1])) + {rest}"),
        ("without term 2", first),
        ("weight of term 2 halved", f"{first} + ramp(0, 1.5)*kl(zscore_C(logits), tau=4)"),
        ("weight of term 2 doubled", f"{first} + ramp(0, 6)*kl(zscore_C(logits), tau=4)"),
        ("without zscore_C of term 2", f"{first} + ramp(0, 3)*kl(logits, tau=4)"),
    ]


def test_a_single_term_is_not_removed_and_each_transform_is_by_itself():
    assert [v.change for v in variants("3*cosine(transpose(logits))")] == ["weight halved", "weight doubled", "without transpose"]
    assert [v.text for v in variants("crd")] == ["0.5*crd", "2*crd"]
    first, second = (v for v in variants("l2(mm(transpose(logits)))") if v.change.startswith("without"))
    assert (first.text, second.text) == ("l2(transpose(logits))", "l2(mm(logits))")


def test_what_is_left_and_does_not_fit_says_so():
    bare = next(v for v in variants("25*smooth_l1(meannorm(pdist(embedding)))") if v.change == "without pdist")
    assert bare.text is None
    assert bare.why == "what is left does not fit: expected meannorm to be given relation or columns, got rows from embedding"


def test_of_two_arguments_the_other_one_stays():
    around = "frobenius(norm_all(gram_C(class_gradient({}, embedding))))"
    found = [v.text for v in variants(around.format("norm_C(zscore_C(logits))"))]
    assert {around.format("zscore_C(logits)"), around.format("norm_C(logits)")} <= set(found)


@pytest.mark.parametrize("text", [LOSS, "30*pearson(transpose(norm_C(logits)))", "kl(teacher.temper(logits, tau=2), tau=4)"])
def test_variants_are_losses_in_canonical_text(text):
    for variant in variants(text):
        if variant.text is not None:
            assert write_loss(parse_loss(variant.text)) == variant.text
            assert variant.text != text


class Judge:
    """Accuracy from the text of a loss and the seed; counts how often it is asked."""

    def __init__(self, accuracy):
        self.accuracy, self.asked = accuracy, 0

    def __call__(self, job):
        self.asked += 1
        value = self.accuracy(write_loss(tree_from_names(job.loss)), job.seeds[0])
        if math.isnan(value):
            return Outcome(Status.DIVERGED, reason="loss inf at step 3")
        return Outcome(Status.OK, value, {"accuracy": value, "fitness_by_seed": [value]})


def accuracy(text, seed):
    if text.startswith("2*"):
        return math.nan
    return 50.0 + seed % 7 - (5 + seed % 3 if text.startswith("0.5*") else 0)


def test_differences_are_paired_and_failures_say_why(tmp_path: Path):
    judge, said = Judge(accuracy), []
    whole, half, twice, bare = ablate("cosine(transpose(logits))", Serial(judge), 3, 4, tmp_path, said.append)
    assert judge.asked == 16
    assert [row.variant.change for row in (whole, half, twice, bare)][1:] == [
        "weight halved",
        "weight doubled",
        "without transpose",
    ]
    assert whole.row.difference is None
    gaps = [b - a for a, b in zip(whole.row.values, half.row.values, strict=True)]
    spread = stats.t.ppf(0.975, 3) * statistics.stdev(gaps) / 2
    mean = statistics.fmean(gaps)
    assert half.row.difference == pytest.approx((mean, mean - spread, mean + spread))
    assert (twice.row.values, twice.row.difference, twice.why) == ((), None, "loss inf at step 3")
    assert bare.row.difference == pytest.approx((0, 0, 0))
    assert "16 of 16" in said[-1]


def test_what_was_trained_is_not_trained_again(tmp_path: Path):
    first, second, third = Judge(accuracy), Judge(accuracy), Judge(accuracy)

    def run(judge, seeds):
        return ablate("cosine(transpose(logits))", Serial(judge), 3, seeds, tmp_path, lambda line: None)

    before = run(first, 2)
    assert run(second, 2) == before
    assert second.asked == 0
    assert [each.row.values[:2] for each in run(third, 3)] == [each.row.values for each in before]
    assert third.asked == 4


def test_a_loss_that_never_trains_is_refused(tmp_path: Path):
    with pytest.raises(EvokdError, match="fails with every seed"):
        ablate("2*cosine(logits)", Serial(Judge(accuracy)), 0, 2, tmp_path, lambda line: None)
