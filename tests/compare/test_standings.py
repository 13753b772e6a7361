"""Standings of losses against textbook formulas, a published example and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evokd.compare.standings import cliques, critical_difference, luck, noise, paired_t, ranks, standings

VALUES = {"found": [3.0, 4.0, 5.5], "a": [1.0, 3.0, 2.5], "b": [3.5, 4.5, 5.0]}


def test_means_intervals_and_paired_differences():
    best, *others = standings(VALUES, "found")
    rows = {row.name: row for row in (best, *others)}
    assert [row.name for row in (best, *others)] == ["b", "found", "a"]
    gaps = np.array([2.0, 1.0, 3.0])
    half = stats.t.ppf(0.975, 2) * gaps.std(ddof=1) / math.sqrt(3)
    assert rows["a"].difference == pytest.approx((2.0, 2 - half, 2 + half))
    assert rows["a"].p == pytest.approx(stats.ttest_rel(VALUES["found"], VALUES["a"]).pvalue)
    assert rows["a"].holm == pytest.approx(2 * min(rows["a"].p, rows["b"].p))  # the smaller of two
    assert rows["found"].difference is None
    assert math.isnan(rows["found"].holm)
    assert rows["found"].half == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem(VALUES["found"]))


def test_a_seed_that_failed_is_left_out_of_its_pairs_alone():
    rows = {row.name: row for row in standings(VALUES | {"a": [1.0, math.nan, 2.5]}, "found")}
    assert rows["a"].seeds == 2
    assert rows["a"].difference[0] == pytest.approx(2.5)
    assert rows["b"].seeds == 3
    none = {row.name: row for row in standings(VALUES | {"a": [math.nan] * 3}, "found")}["a"]
    assert (none.seeds, none.difference) == (0, None)
    assert standings(VALUES | {"a": [math.nan] * 3}, "found")[-1].name == "a"


@settings(deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=2, max_size=8))
def test_paired_t_is_that_of_scipy(gaps):
    if np.std(gaps) > 1e-6:
        assert paired_t(gaps) == pytest.approx(stats.ttest_1samp(gaps, 0).pvalue, rel=1e-6, abs=1e-12)


def test_differences_that_are_all_equal_leave_no_doubt():
    assert paired_t([0.0, 0.0]) == 1.0
    assert paired_t([0.5, 0.5]) == 0.0


def test_critical_differences_of_demsars_table():
    """Demšar (JMLR 2006), section 3.2.2: 4 classifiers on 14 data sets differ by 1.25; table 5(a): q_0.05 of 10 is 3.164."""
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert critical_difference(10, 60) == pytest.approx(3.164 * math.sqrt(10 * 11 / 360), abs=0.001)


def test_mean_ranks_of_demsars_example():
    """Demšar (JMLR 2006), table 6: AUC of C4.5 and its variants on 14 data sets; mean ranks 3.143, 2.000, 2.893, 1.964."""
    table = """.763 .768 .771 .798
        .599 .591 .590 .569
        .954 .971 .968 .967
        .628 .661 .654 .657
        .882 .888 .886 .898
        .936 .931 .916 .931
        .661 .668 .609 .685
        .583 .583 .563 .625
        .775 .838 .866 .875
        1.00 1.00 1.00 1.00
        .940 .962 .965 .962
        .619 .666 .614 .669
        .972 .981 .9751 .975
        .957 .978 .946 .970"""
    names = ("C4.5", "m", "cf", "m+cf")
    found = ranks([dict(zip(names, map(float, line.split()), strict=True)) for line in table.splitlines()])
    assert [found.mean[name] for name in names] == pytest.approx([3.143, 2.0, 2.893, 1.964], abs=0.001)
    assert found.critical == pytest.approx(1.25, abs=0.005)
    assert next(iter(found.mean)) == "m+cf"
    assert found.cliques == [("m+cf", "m", "cf", "C4.5")]  # 3.143 − 1.964 = 1.18 < 1.25
    assert found.p < 0.05


def test_no_ranks_without_three_losses_and_two_blocks():
    assert ranks([]) is None
    assert ranks([{"a": 1.0, "b": 2.0, "c": 3.0}]) is None
    assert ranks([{"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.0}]) is None
    assert ranks([{"a": 1.0, "b": 2.0, "c": math.nan}, {"a": 1.0, "b": 2.0, "c": 3.0}]) is None


def test_rows_that_are_all_equal_are_not_told_apart():
    found = ranks([{"a": 1.0, "b": 1.0, "c": 1.0}] * 3)
    assert (found.p, found.cliques) == (1.0, [("a", "b", "c")])


def test_cliques_are_the_longest_runs():
    order = {"a": 1.0, "b": 1.5, "c": 2.4, "d": 4.0}
    assert cliques(order, 1.0) == [("a", "b"), ("b", "c")]
    assert cliques(order, 1.45) == [("a", "b", "c")]
    assert cliques(order, 0.1) == []


@pytest.mark.parametrize(
    ("count", "expected"), [(1, 0.0), (2, 1 / math.sqrt(math.pi)), (5, 1.16296), (10, 1.53875), (100, 2.50759)]
)
def test_luck_is_the_expected_greatest_of_normal_values(count, expected):
    """Order statistics of the normal distribution, as tabulated (Harter 1961)."""
    assert luck(count) == pytest.approx(expected, abs=1e-4)


def test_noise_is_pooled_within_losses():
    rng = np.random.default_rng(0)
    values = {str(n): list(rng.normal(50 * n, 2.0, 40)) for n in range(30)}
    assert noise(values) == pytest.approx(2.0, rel=0.05)
    assert math.isnan(noise({"a": [1.0]}))
