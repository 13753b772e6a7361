"""Trials of hand-made losses: one form, other numbers, the same count for all."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evokd.compare.tuning import scaled, variants
from evokd.losses import KNOWN, parse_loss
from evokd.losses.language import to_terms


@settings(deadline=None, max_examples=40)
@given(name=st.sampled_from(sorted(KNOWN)), trials=st.integers(1, 20), seed=st.integers(0, 5))
def test_every_loss_gets_as_many_different_trials_published_first(name, trials, seed):
    found = variants(name, KNOWN[name], 0.1, trials, seed)
    assert len(found) == len(set(found)) == trials
    assert found[0] == (KNOWN[name], 0.1)
    assert variants(name, KNOWN[name], 0.1, trials, seed) == found
    shape = [term.distance.name for term in to_terms(parse_loss(KNOWN[name]))]
    for text, gamma in found:
        assert [term.distance.name for term in to_terms(parse_loss(text))] == shape
        assert gamma in (0.0, 0.1, 0.3, 1.0)


def test_more_trials_are_the_same_ones_and_more():
    assert variants("kd", KNOWN["kd"], 0.1, 12, 0)[:6] == variants("kd", KNOWN["kd"], 0.1, 6, 0)


def test_six_in_a_row_have_all_weights():
    found = variants("sp", KNOWN["sp"], 1.0, 7, 3)[1:]
    assert sorted(float(text.partition("*")[0]) for text, _ in found) == [300, 900, 3000, 9000, 30000, 90000]


def test_weights_and_temperatures_move_together():
    terms = to_terms(parse_loss("0.9*kl(logits, tau=4) + 3*l2(softmax_C(temper(logits, tau=2)))"))
    assert " + ".join(map(str, scaled(terms, 10, 0.5))) == "9*kl(logits, tau=2) + 30*l2(softmax_C(temper(logits, tau=1)))"
    moving = to_terms(parse_loss("ramp(0, 3)*kl(logits, tau=anneal(8, 1))"))
    assert str(scaled(moving, 2, 0.5)[0]) == "ramp(0, 6)*kl(logits, tau=anneal(4, 0.5))"


@pytest.mark.parametrize("name", ["at", "crd"])
def test_without_a_temperature_the_grid_is_that_of_weights_and_gammas(name):
    text = KNOWN.get(name, "0.8*crd")
    assert len(variants(name, text, 0.7, 1000, 0)) == 25  # 4 · 6 points, and γ as published
