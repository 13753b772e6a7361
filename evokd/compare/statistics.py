"""What a comparison of searches is told with: bands of curves, probability of superiority, paired differences, Holm's correction."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

from evokd.finals import interval

POINTS = 200  # of a curve, beyond which no eye can tell two apart


class Bands(NamedTuple):
    """Quartiles of several curves, each array (G,): where `x`, and the quartiles there."""

    x: np.ndarray
    low: np.ndarray
    median: np.ndarray
    high: np.ndarray


def held(x: Sequence[float], y: Sequence[float], grid: np.ndarray) -> np.ndarray:
    """A step function (x ascending, its value from x on) at the places of `grid` (G,): NaN before the first, the last for ever."""
    place = np.searchsorted(np.asarray(x, float), grid, side="right") - 1
    return np.where(place < 0, np.nan, np.asarray([*y, np.nan], float)[place])


def bands(curves: Sequence[tuple[Sequence[float], Sequence[float]]], points: int = POINTS) -> Bands:
    """Median and quartiles of step functions (x, y), from where all of them have a value to where the last one ends.

    A search that ended early keeps its last value: its answer does not become worse by waiting.
    """
    grid = np.unique(np.concatenate([np.asarray(x, float) for x, _ in curves]))
    if len(grid) > points:
        grid = np.linspace(grid[0], grid[-1], points)
    values = np.array([held(x, y, grid) for x, y in curves])
    known = ~np.isnan(values).any(0)
    if not known.any():
        return Bands(*[np.zeros(0)] * 4)
    return Bands(grid[known], *np.percentile(values[:, known], (25, 50, 75), axis=0))


def superiority(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """P(first > second) + ½ P(first = second) over all pairs, with its 95 % interval: (value, low, high).

    The estimate is Mann and Whitney's U over the number of pairs. The interval is method 5 of Newcombe ("Confidence intervals for an
    effect size measure based on the Mann–Whitney statistic, part 2", Statistics in Medicine 2006): like Wilson's for a proportion it
    asks which true values do not reject the estimate, so that it keeps its level with ten values and has a width at 0 and 1. NaN if
    one side is empty. Seeds that two searches share are taken as independent; where they help both, the interval is too wide.
    """
    n, m = len(first), len(second)
    if not n or not m:
        return math.nan, math.nan, math.nan
    value = float(stats.mannwhitneyu(first, second).statistic) / (n * m)
    return value, _lower(value, n, m), 1 - _lower(1 - value, n, m)


def _lower(value: float, n: int, m: int) -> float:
    """The smallest true superiority that an estimate of `value` does not reject at 5 %."""
    many, z = (n + m) / 2 - 1, float(stats.norm.ppf(0.975))

    def apart(true: float) -> float:
        spread = true * (1 - true) * (1 + many * ((1 - true) / (2 - true) + true / (1 + true))) / (n * m)
        return value - true - z * math.sqrt(spread)

    return 0.0 if value <= 0 else float(optimize.brentq(apart, 0.0, min(value, 1 - 1e-12)))


def signed_rank(differences: Sequence[float]) -> float:
    """p of Wilcoxon's signed-rank test, two-sided (Demšar, JMLR 2006, recommends it for pairs); 1 where nothing differs."""
    if not any(differences):
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # with zeros or ties the normal approximation takes over, as it should
        return float(stats.wilcoxon(differences).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values of Holm's step-down procedure (1979): all below α hold together with a family-wise error of α."""
    order, adjusted, worst = sorted(range(len(p)), key=lambda i: p[i]), [math.nan] * len(p), 0.0
    for place, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - place) * p[i]))
        adjusted[i] = worst
    return adjusted


@dataclass(frozen=True)
class Pair:
    """Two arms that share seeds.

    Attributes:
        first: name of one.
        second: name of the other.
        superiority: probability that the first is ahead, with its 95 % interval.
        difference: mean of first − second by seed, with its 95 % t-interval; without bounds where fewer than two seeds remain.
        p: of Wilcoxon's signed-rank test of these differences.
        holm: p after Holm's correction for all pairs of the comparison.
        seeds: for which both have a value.
    """

    first: str
    second: str
    superiority: tuple[float, float, float]
    difference: tuple[float, float, float]
    p: float
    holm: float
    seeds: int


def pair_of(names: tuple[str, str], first: Sequence[float], second: Sequence[float]) -> Pair:
    """Two arms, values by seed; NaN where a search found nothing, which leaves its seed out of the differences."""
    gaps = [a - b for a, b in zip(first, second, strict=True) if math.isfinite(a - b)]
    ahead = superiority(*([v for v in values if math.isfinite(v)] for values in (first, second)))
    mean = interval(gaps) if gaps else (math.nan,) * 3
    return Pair(*names, ahead, mean, signed_rank(gaps), math.nan, len(gaps))


def pairs(values: Mapping[str, Sequence[float]]) -> list[Pair]:
    """All pairs of arms, in the order of the arms.

    Args:
        values: name → value by seed, NaN where there is none.
    """
    found = [pair_of((a, b), values[a], values[b]) for a, b in combinations(values, 2)]
    return [replace(pair, holm=p) for pair, p in zip(found, holm([pair.p for pair in found]), strict=True)]
