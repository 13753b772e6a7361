"""Statistics of a comparison against definitions, other formulas and simulation."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from evokd.compare.statistics import bands, held, holm, pair_of, pairs, signed_rank, superiority

SAMPLES = st.lists(st.integers(0, 8).map(float), min_size=1, max_size=12)


@given(SAMPLES, SAMPLES)
def test_superiority_counts_all_pairs_and_its_interval_holds_it(first, second):
    counted = np.mean([(a > b) + (a == b) / 2 for a, b in product(first, second)])
    value, low, high = superiority(first, second)
    assert value == pytest.approx(counted)
    assert 0 <= low <= value + 1e-9
    assert value - 1e-9 <= high <= 1
    assert superiority(second, first) == pytest.approx((1 - value, 1 - high, 1 - low))


def test_superiority_without_an_overlap_still_has_a_width():
    value, low, high = superiority([5.0, 6, 7], [1.0, 2, 3])
    assert (value, high) == (1, 1)
    assert 0.3 < low < 0.9
    assert superiority(range(100, 150), range(50))[1] > 0.9
    assert all(map(math.isnan, superiority([], [1.0])))


def test_bounds_solve_the_quadratic_of_newcombes_method_5():
    """(θ̂ − θ)² = z² θ(1−θ)[1 + N(1−θ)/(2−θ) + Nθ/(1+θ)]/nm with N = (n+m)/2 − 1, as a polynomial whose roots numpy finds."""
    first, second = [3.0, 5, 6, 9], [1.0, 4, 5, 5, 7, 2]
    value, low, high = superiority(first, second)
    t, n, m, z = np.polynomial.Polynomial([0, 1]), len(first), len(second), stats.norm.ppf(0.975)
    many = (n + m) / 2 - 1
    fraction = (2 - t) * (1 + t) + many * (1 - t) * (1 + t) + many * t * (2 - t)
    roots = ((value - t) ** 2 * (2 - t) * (1 + t) * n * m - z**2 * t * (1 - t) * fraction).roots()
    assert sorted(r.real for r in roots if abs(r.imag) < 1e-9 and 0 < r.real < 1) == pytest.approx([low, high])


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0])
def test_the_interval_of_superiority_holds_the_truth_as_often_as_it_says(shift):
    draw = np.random.default_rng(0)
    truth = stats.norm.cdf(shift / math.sqrt(2))
    found = [superiority(draw.normal(shift, 1, 10), draw.normal(0, 1, 10))[1:] for _ in range(600)]
    assert 0.92 <= np.mean([low <= truth <= high for low, high in found]) <= 0.985


def test_paired_differences_are_those_of_a_t_test():
    draw = np.random.default_rng(1)
    first, second = draw.normal(1, 1, 12), draw.normal(0, 1, 12)
    pair = pair_of(("a", "b"), first, second)
    published = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert pair.difference == pytest.approx((np.mean(first - second), published.low, published.high))
    assert pair.seeds == 12


@pytest.mark.parametrize("count", [3, 6, 9])
def test_p_is_that_of_all_signs(count):
    """Of every way to give the ranks their signs, the share whose sum is as far from the middle."""
    gaps = np.random.default_rng(count).normal(0.7, 1, count)
    ranks = stats.rankdata(abs(gaps))
    sums = [abs(sum(s * r for s, r in zip(signs, ranks, strict=True))) for signs in product((-1, 1), repeat=count)]
    mine = abs((np.sign(gaps) * ranks).sum())
    assert signed_rank(gaps) == pytest.approx(np.mean(np.array(sums) >= mine - 1e-9))


@pytest.mark.parametrize("gaps", [[0.0, 0, 0], []])
def test_where_nothing_differs_p_is_one(gaps):
    assert signed_rank(gaps) == 1


def test_equal_gaps_of_few_seeds_prove_little():
    assert signed_rank([1.0, 1.0]) > 0.1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_procedure_rejects(p):
    for alpha in (0.01, 0.05, 0.2):
        rejected, left = set(), sorted(range(len(p)), key=lambda i: p[i])
        while left and p[left[0]] <= alpha / len(left):
            rejected.add(left.pop(0))
        sharp = [abs(a - alpha) < 1e-12 for a in holm(p)]  # α/k and k·p round apart on the edge
        if not any(sharp):
            assert {i for i, a in enumerate(holm(p)) if a <= alpha} == rejected


def test_holms_own_figures():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_a_seed_without_a_value_is_left_out_of_its_pairs_alone():
    values = {"a": [1.0, math.nan, 3.0, 5.0], "b": [0.0, 1.0, 1.0, 2.0], "c": [0.0, 1.0, 1.0, 4.0]}
    found = {(p.first, p.second): p for p in pairs(values)}
    assert list(found) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [p.seeds for p in found.values()] == [3, 3, 4]
    assert found["a", "b"].difference[0] == pytest.approx(2.0)
    assert found["a", "b"].superiority[0] == pytest.approx((1 + 2 * 0.5 + 4 + 4) / 12)
    assert [p.holm for p in found.values()] == pytest.approx(holm([p.p for p in found.values()]))


def test_pairs_of_nothing_are_told_as_such():
    (pair,) = pairs({"a": [math.nan, math.nan], "b": [1.0, 2.0]})
    assert math.isnan(pair.difference[0])
    assert (pair.seeds, pair.p) == (0, 1)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(-5, 5)), min_size=1, max_size=10), st.integers(-2, 25))
def test_a_step_function_holds_its_last_value(steps, at):
    steps = sorted(dict(steps).items())
    before = [y for x, y in steps if x <= at]
    value = held([x for x, _ in steps], [y for _, y in steps], np.array([float(at)]))[0]
    assert value == before[-1] if before else math.isnan(value)


def test_bands_are_quartiles_where_all_curves_have_a_value():
    curves = [([1, 3], [10, 20]), ([2, 3], [30, 40]), ([1], [0]), ([2], [50])]
    found = bands(curves)
    assert found.x.tolist() == [2, 3]
    for place, values in enumerate([(10, 30, 0, 50), (20, 40, 0, 50)]):
        expected = [np.quantile(values, q) for q in (0.25, 0.5, 0.75)]
        assert [found.low[place], found.median[place], found.high[place]] == pytest.approx(expected)


def test_a_curve_that_never_rises_from_nothing_gives_no_band():
    assert len(bands([([1, 2], [1, 2]), ([], [])]).x) == 0
    assert len(bands([([1, 2], [math.nan, math.nan])]).x) == 0


def test_long_curves_are_thinned_to_their_ends():
    x = np.arange(1.0, 1001.0)
    found = bands([(x, x), (x, x + 1)], points=50)
    assert len(found.x) == 50
    assert (found.x[0], found.x[-1]) == (1, 1000)
    assert found.median == pytest.approx(np.floor(found.x) + 0.5)
