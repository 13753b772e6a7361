"""The figures of AKD against its own slides, against formulas written out, and against what they must be by construction."""

import itertools
import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evokd.akd.figures import (
    Cells,
    agreement,
    gap,
    hamming,
    level_distances,
    mean_cells,
    one_hot,
    order,
    project,
    resampled_agreement,
    separation,
    spread,
)  # fmt: skip
from evokd.akd.table import PAPER

# AKD (CVPR 2020), slides: top-1 of five students, trained on labels (GT) and with four of the teachers.
SLIDES = {
    "GT": (65.5, 65.4, 65.6, 65.6, 65.5),
    "A": (65.8, 66.6, 66.5, 66.3, 66.0),  # EfficientNet-B7
    "B": (65.7, 65.4, 66.9, 66.1, 66.4),  # PNASNet-large
    "E": (67.4, 66.1, 66.5, 67.0, 66.9),  # Inception-ResNet-v2
    "F": (67.1, 66.0, 66.3, 66.6, 67.1),  # ResNeXt-101
}
TAUS = {
    "AE": -0.80, "AF": -0.95, "EF": 0.74, "GT B": 0.67, "GT E": 0.22, "GT A": 0.0, "GT F": 0.0, "AB": 0.0, "BE": -0.20, "BF": 0.11,
}  # fmt: skip
SLOTS = {"a": ("x", "y", "z"), "b": ("x", "y"), "c": ("x", "y", "z", "w"), "d": ("x", "y")}
genomes = st.fixed_dictionaries({slot: st.sampled_from(choices) for slot, choices in SLOTS.items()})


@pytest.mark.parametrize(("pair", "tau"), TAUS.items())
def test_teachers_agree_as_the_slides_columns_do(pair, tau):
    first, second = pair.split() if " " in pair else pair
    assert agreement(SLIDES[first], SLIDES[second]) == pytest.approx(tau, abs=0.006)


def test_orders_are_written_as_on_the_slides():
    names = ("1", "2", "3", "4", "5")
    assert [order(SLIDES[t], names) for t in ("GT", "A", "B", "E", "F")] == [
        "3=4>1=5>2", "2>3>4>5>1", "3>5>4>1>2", "1>4>5>3>2", "1=5>4>3>2",
    ]  # fmt: skip
    assert order((math.nan, 1.0, 2.0), "abc") == "c>b>a"


@pytest.mark.parametrize(
    ("latency", "figure", "wanted", "ahead"),
    [
        ("15 ± 1 ms", 0, 0.93, 2.6), ("25 ± 1 ms", 0, 1.30, 1.5), ("75 ± 1 ms", 0, 0.20, 0.8),
        ("15 ± 1 ms", 1, 1.53, 3.24), ("25 ± 1 ms", 1, 1.00, 1.1), ("75 ± 1 ms", 1, 0.46, 0.56),
    ],
)  # fmt: skip
def test_equation_1_comes_out_of_the_papers_cells(latency, figure, wanted, ahead):
    cells = PAPER[latency][figure]
    assert cells.knowledge == pytest.approx(wanted)
    assert cells.ahead == pytest.approx(ahead)


def test_the_slides_57_7_does_not_give_its_0_93():
    cells = PAPER["15 ± 1 ms"][0]
    assert cells._replace(cls_nas=57.7).knowledge == pytest.approx(-1.10)


def test_a_bad_cls_raises_equation_1_but_not_the_figure_beside_it():
    fair, bad = Cells(60, 62, 60, 62), Cells(60, 62, 55, 62)
    assert (bad.knowledge - fair.knowledge, bad.ahead - fair.ahead) == (5, 0)


def test_a_final_seed_counts_if_all_four_of_its_trainings_ended_well():
    nan = math.nan
    assert mean_cells([[1, 2, 9], [3, 4, 9], [5, 6, nan], [7, 8, 9]]) == (1.5, 3.5, 5.5, 7.5)
    assert all(math.isnan(value) for value in mean_cells([[nan], [1], [1], [1]]))


def test_intervals_are_students_t():
    values = [1.0, 2.0, 4.0]
    half = 4.302652729911275 * statistics.stdev(values) / math.sqrt(3)  # t(.975) of two degrees of freedom
    assert spread([*values, math.nan]) == pytest.approx((statistics.fmean(values), half))
    assert gap(values) == pytest.approx((7 / 3, 7 / 3 - half, 7 / 3 + half))
    assert math.isnan(spread([1.0]).half)
    assert math.isnan(gap([math.nan]).mean)


def kendall(x, y):
    """τ-b, written out."""
    pairs = list(itertools.combinations(range(len(x)), 2))
    signs = [(np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i, j in pairs]
    untied = math.prod(sum(s[side] != 0 for s in signs) for side in (0, 1))
    return sum(a * b for a, b in signs) / math.sqrt(untied) if untied else math.nan


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=8))
def test_agreement_is_kendalls_tau_b(pairs):
    x, y = zip(*pairs, strict=True)
    assert agreement(x, y) == pytest.approx(kendall(x, y), nan_ok=True)


def test_resamples_hold_the_point_and_shrink_to_it_without_noise():
    means = np.array([1.0, 2.0, 3.0, 4.0])
    certain = np.tile(means, (3, 1))
    assert resampled_agreement(certain, -certain) == (-1, -1, -1)
    draw = np.random.Generator(np.random.PCG64(0))
    noisy = certain + draw.normal(0, 3, certain.shape)
    found = resampled_agreement(noisy, certain)
    assert found.low < found.high
    assert found == resampled_agreement(noisy, certain)


@given(genomes, genomes)
def test_one_hot_rows_differ_by_twice_the_hamming_distance(a, b):
    rows = one_hot([a, b], SLOTS)
    assert rows.sum() == 2 * len(SLOTS)
    assert np.abs(rows[0] - rows[1]).sum() == 2 * hamming(a, b)


def near(genome, draw, changes=1):
    """A copy with some slots drawn anew."""
    changed = draw.sample(list(SLOTS), changes)
    return genome | {slot: draw.choice(SLOTS[slot]) for slot in changed}


def test_clear_groups_reach_the_least_p_that_there_is():
    first, second = dict.fromkeys(SLOTS, "x"), dict.fromkeys(SLOTS, "y")
    apart = separation({"A": [[first]] * 3, "B": [[second]] * 3})
    assert (apart.between, apart.within) == (4, 0)
    assert (apart.ways, apart.least, apart.p) == (20, 0.1, 0.1)
    uneven = separation({"A": [[first]] * 2, "B": [[second]] * 3})
    assert (uneven.ways, uneven.least, uneven.p) == (10, 0.1, 0.1)


def test_p_is_the_share_of_labellings_at_least_as_far_apart():
    draw = random.Random(3)
    searches = [[near(dict.fromkeys(SLOTS, "x"), draw, 3) for _ in range(2)] for _ in range(5)]
    distance = lambda a, b: statistics.fmean(hamming(g, h) for g in a for h in b)  # noqa: E731

    def parted(group):
        pairs = list(itertools.combinations(range(5), 2))
        same = [distance(searches[i], searches[j]) for i, j in pairs if (i in group) == (j in group)]
        other = [distance(searches[i], searches[j]) for i, j in pairs if (i in group) != (j in group)]
        return statistics.fmean(other) - statistics.fmean(same)

    gaps = [parted(group) for group in itertools.combinations(range(5), 2)]
    found = separation({"A": searches[:2], "B": searches[2:]})
    assert found.p == pytest.approx(sum(g >= gaps[0] - 1e-9 for g in gaps) / 10)
    assert found.between - found.within == pytest.approx(gaps[0])


def test_groups_of_one_kind_are_not_told_apart():
    """Uniform p: over many draws of like groups, p below .2 comes about one time in five."""
    draw = random.Random(0)
    found = []
    for _ in range(120):
        searches = [[near(dict.fromkeys(SLOTS, "x"), draw, 3)] for _ in range(8)]
        found.append(separation({"A": searches[:4], "B": searches[4:]}).p)
    assert 0.08 < sum(p <= 0.2 for p in found) / 120 < 0.32


def test_many_searches_are_labelled_by_draws_that_repeat():
    draw = random.Random(1)
    groups = {n: [[near(dict.fromkeys(SLOTS, n), draw)] for _ in range(6)] for n in ("x", "y")}
    many = groups | {"z": [[near(dict.fromkeys(SLOTS, "x"), draw)] for _ in range(6)]}
    assert separation(groups).ways == 924
    found = separation(many)
    assert found.ways > 20_000
    assert found == separation(many)
    assert found.least <= found.p < 0.05


def test_levels_are_means_of_their_pairs():
    x, y = dict.fromkeys(SLOTS, "x"), dict.fromkeys(SLOTS, "y")
    mixed = x | {"a": "y"}
    found = level_distances({"A": [[x, mixed], [x]], "B": [[y]]})
    assert list(found.values()) == [1, 0.5, pytest.approx((3.5 + 4) / 2)]
    assert math.isnan(level_distances({"A": [[x]], "B": [[y]]})["one search"])


@settings(deadline=None)
@given(st.lists(genomes, min_size=2, max_size=12))
def test_the_plane_keeps_what_principal_components_keep(found):
    places, shares = project(found, SLOTS)
    rows = one_hot(found, SLOTS)
    rows = rows - rows.mean(axis=0)
    values = np.sort(np.linalg.eigvalsh(rows @ rows.T))[::-1]
    assert np.allclose(np.sort((places**2).sum(axis=0))[::-1], values[:2], atol=1e-8)
    assert 0 <= shares[1] <= shares[0] <= 1
    assert np.array_equal(places, project(found, SLOTS)[0])


def test_two_genomes_lie_in_the_plane_as_far_apart_as_they_are():
    places, shares = project([{"a": "x", "b": "x"}, {"a": "y", "b": "x"}], {"a": ("x", "y"), "b": ("x", "y")})
    assert np.linalg.norm(places[0] - places[1]) == pytest.approx(math.sqrt(2))
    assert shares == pytest.approx((1, 0))
