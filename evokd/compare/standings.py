"""How losses stand that were trained with the same seeds: means, paired differences to one of them, ranks over pairs, and luck."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy import integrate, stats

from evokd.compare.statistics import holm
from evokd.finals import interval

Values = Mapping[str, Sequence[float]]  # loss → value by seed, NaN where a training failed


@dataclass(frozen=True)
class Standing:
    """One loss on one pair.

    Attributes:
        name: of the loss.
        mean: over the seeds that came to an end.
        half: half width of its 95 % t-interval.
        difference: reference − loss by seed: mean and its 95 % t-interval; None for the reference itself.
        p: of the paired t-test, two-sided.
        holm: p after Holm's correction for all losses of the pair.
        seeds: that came to an end.
    """

    name: str
    mean: float
    half: float
    difference: tuple[float, float, float] | None
    p: float
    holm: float
    seeds: int


def standings(values: Values, reference: str) -> list[Standing]:
    """All losses of a pair, the best mean first."""
    rows = [_standing(name, values, reference) for name in values]
    others = [row for row in rows if math.isfinite(row.p)]
    corrected = dict(zip((row.name for row in others), holm([row.p for row in others]), strict=True))
    rows = [replace(row, holm=corrected.get(row.name, math.nan)) for row in rows]
    return sorted(rows, key=lambda row: -row.mean if row.seeds else math.inf)


def _standing(name: str, values: Values, reference: str) -> Standing:
    mine = [v for v in values[name] if math.isfinite(v)]
    mean, low, _ = interval(mine) if mine else (math.nan,) * 3
    gaps = [a - b for a, b in zip(values[reference], values[name], strict=True) if math.isfinite(a - b)]
    other = name != reference and len(gaps) > 1
    return Standing(
        name, mean, mean - low, interval(gaps) if other else None, paired_t(gaps) if other else math.nan, math.nan, len(mine)
    )


def paired_t(gaps: Sequence[float]) -> float:
    """p of the paired t-test, two-sided. With five seeds signed ranks cannot go below 0.06, whatever the difference."""
    spread = statistics.stdev(gaps)
    if not spread:
        return float(not any(gaps))
    return float(2 * stats.t.sf(abs(statistics.fmean(gaps)) * math.sqrt(len(gaps)) / spread, len(gaps) - 1))


class Ranks(NamedTuple):
    """Mean ranks over blocks, 1 the best (Demšar, JMLR 2006).

    Attributes:
        mean: loss → mean rank.
        critical: difference of two mean ranks that Nemenyi's test takes for one at 5 %.
        p: of Friedman's test that all are equal.
        blocks: over which was ranked.
        cliques: runs of neighbours that the test does not tell apart.
    """

    mean: dict[str, float]
    critical: float
    p: float
    blocks: int
    cliques: list[tuple[str, ...]]


def ranks(blocks: Sequence[Mapping[str, float]]) -> Ranks | None:
    """Of the losses that all blocks have a value for; None for fewer than three losses or two blocks.

    A block is a pair, or a seed of a pair: seeds of one pair are no independent data sets, so that a picture over them tells of this
    pair alone.
    """
    names = [name for name in blocks[0] if all(math.isfinite(block.get(name, math.nan)) for block in blocks)] if blocks else []
    if len(names) < 3 or len(blocks) < 2:
        return None
    table = np.array([[block[name] for name in names] for block in blocks])
    placed = stats.rankdata(-table, axis=1).mean(0)
    order = dict(sorted(zip(names, map(float, placed), strict=True), key=lambda pair: pair[1]))
    distance = critical_difference(len(names), len(blocks))
    p = float(stats.friedmanchisquare(*table.T).pvalue) if np.ptp(table, axis=1).any() else 1.0
    return Ranks(order, distance, p, len(blocks), cliques(order, distance))


def critical_difference(losses: int, blocks: int) -> float:
    """q_0.05 · √(k (k + 1) / 6N), with q of the studentized range over √2 (Demšar 2006, section 3.2.2)."""
    q = float(stats.studentized_range.ppf(0.95, losses, np.inf)) / math.sqrt(2)
    return q * math.sqrt(losses * (losses + 1) / (6 * blocks))


def cliques(order: Mapping[str, float], distance: float) -> list[tuple[str, ...]]:
    """Longest runs of two or more, within each of which no two mean ranks differ by `distance`; `order` has the best first."""
    names, places = list(order), list(order.values())
    ends = [max(j for j in range(i, len(names)) if places[j] - places[i] < distance) for i in range(len(names))]
    runs = [(i, end) for i, end in enumerate(ends) if end > i and (i == 0 or ends[i - 1] < end)]
    return [tuple(names[i : end + 1]) for i, end in runs]


def luck(count: int) -> float:
    """Expected greatest of `count` standard normal values: by how many σ the best of so many equal candidates looks better than it is."""
    if count < 2:
        return 0.0
    density = lambda x: x * count * stats.norm.pdf(x) * stats.norm.cdf(x) ** (count - 1)  # noqa: E731
    return float(integrate.quad(density, -8, 10, limit=200)[0])


def noise(values: Values) -> float:
    """Standard deviation between seeds of one loss, pooled over all losses."""
    rows = [[v for v in row if math.isfinite(v)] for row in values.values()]
    rows = [row for row in rows if len(row) > 1]
    freedom = sum(len(row) - 1 for row in rows)
    return math.sqrt(sum((len(row) - 1) * statistics.variance(row) for row in rows) / freedom) if freedom else math.nan
