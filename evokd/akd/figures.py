"""The figures of AKD: equation (1), how far teachers agree on students, and how far architectures lie apart."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np
from scipy.stats import kendalltau

from evokd.finals import interval
from evokd.streams import stream
from evokd.students.space import Genome

LISTED = 20_000  # ways to label searches that are all tried; of more, so many are drawn
RESAMPLES = 300


class Cells(NamedTuple):
    """Accuracies (%) of the student searched with labels (NAS) and of the one searched with distillation (AKD), each trained both ways.

    CLS is training with labels alone, KD with distillation.
    """

    cls_nas: float
    kd_nas: float
    cls_akd: float
    kd_akd: float

    @property
    def knowledge(self) -> float:
        """Equation (1) of AKD: [KD(AKD) − CLS(AKD)] − [KD(NAS) − CLS(NAS)], points. A bad CLS(AKD) raises it too."""
        return (self.kd_akd - self.cls_akd) - (self.kd_nas - self.cls_nas)

    @property
    def ahead(self) -> float:
        """KD(AKD) − KD(NAS), points: what a user gains who distils anyway."""
        return self.kd_akd - self.kd_nas


class Spread(NamedTuple):
    """A mean with the half width of its 95 % t-interval; NaN where there is but one value."""

    mean: float
    half: float


class Gap(NamedTuple):
    """A difference or coefficient with its 95 % interval."""

    mean: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Of those values that are finite."""
    sound = [v for v in values if math.isfinite(v)]
    if not sound:
        return Spread(math.nan, math.nan)
    mean, _, high = interval(sound)
    return Spread(mean, high - mean)


def gap(values: Sequence[float]) -> Gap:
    """Of paired differences, those that are finite."""
    sound = [v for v in values if math.isfinite(v)]
    return Gap(*interval(sound)) if sound else Gap(math.nan, math.nan, math.nan)


def mean_cells(columns: Sequence[Sequence[float]]) -> Cells:
    """Means of four columns with one entry a seed; a seed counts if all four trainings of it ended well."""
    sound = [row for row in zip(*columns, strict=True) if all(map(math.isfinite, row))]
    return Cells(*(statistics.fmean(column) for column in zip(*sound, strict=True))) if sound else Cells(*[math.nan] * 4)


def agreement(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's τ-b of the accuracies that the same students reach with two teachers; NaN where one is the same for all."""
    pairs = [pair for pair in zip(first, second, strict=True) if all(map(math.isfinite, pair))]
    if len(pairs) < 2:
        return math.nan
    return float(kendalltau(*zip(*pairs, strict=True)).statistic)


def resampled_agreement(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Gap:
    """τ-b of the means of two (seeds, students) arrays, with the interval that holds 95 % of resamples of the seeds."""
    draw, count = stream(seed, "akd", "resample"), len(first)
    found = []
    for _ in range(RESAMPLES):
        rows = draw.choices(range(count), k=count)
        found.append(agreement(first[rows].mean(axis=0), second[rows].mean(axis=0)))
    sound = [value for value in found if math.isfinite(value)]
    low, high = np.quantile(sound, [0.025, 0.975]) if sound else (math.nan, math.nan)
    return Gap(agreement(first.mean(axis=0), second.mean(axis=0)), float(low), float(high))


def order(accuracies: Sequence[float], names: Sequence[str], digits: int = 1) -> str:
    """Names best first, such as `3=4>1=5>2`; equal are those that print equally."""
    rounded = [round(value, digits) if math.isfinite(value) else -math.inf for value in accuracies]
    places = sorted(range(len(names)), key=lambda i: (-rounded[i], i))
    signs = ["=" if rounded[a] == rounded[b] else ">" for a, b in pairwise(places)]
    return "".join(names[place] + sign for place, sign in zip(places, [*signs, ""], strict=True))


def hamming(first: Genome, second: Genome) -> int:
    """Slots in which two genomes of one space differ."""
    return sum(choice != second[slot] for slot, choice in first.items())


def mean_distance(first: Sequence[Genome], second: Sequence[Genome]) -> float:
    """Mean Hamming distance from one set of genomes to another."""
    return statistics.fmean(hamming(a, b) for a in first for b in second)


class Separation(NamedTuple):
    """How far groups of searches lie apart.

    Attributes:
        between: mean distance of two searches of different groups.
        within: of two searches of one group.
        p: share of all ways to label the searches that part them at least as much.
        ways: the number of those ways; no p is below `least`.
        least: the smallest p that so many searches can give.
    """

    between: float
    within: float
    p: float
    ways: int
    least: float


def separation(groups: Mapping[str, Sequence[Sequence[Genome]]], seed: int = 0) -> Separation:
    """Permutation test of between- less within-group distance; whole searches are permuted, since finds of one depend on each other.

    Args:
        groups: name → searches → their final genomes; at least two groups, each of at least two searches.
        seed: of the drawn labellings, where there are too many to try all.
    """
    searches = [genomes for each in groups.values() for genomes in each]
    distances = np.array([[mean_distance(a, b) for b in searches] for a in searches])
    labels = tuple(i for i, each in enumerate(groups.values()) for _ in each)
    between, within = _parted(distances, labels)
    ways = _ways(labels)
    tried = list(_labellings(labels)) if ways <= LISTED else [labels, *_drawn(labels, seed)]
    gaps = np.array([np.subtract(*_parted(distances, each)) for each in tried])
    least = _symmetries(labels) / ways if ways <= LISTED else 1 / len(tried)
    return Separation(between, within, float((gaps >= between - within - 1e-9).mean()), ways, least)


def _parted(distances: np.ndarray, labels: Sequence[int]) -> tuple[float, float]:
    """Mean distance (between, within) of a labelling."""
    rows, columns = np.triu_indices(len(labels), 1)
    same = np.asarray(labels)[rows] == np.asarray(labels)[columns]
    pairs = distances[rows, columns]
    return float(pairs[~same].mean()), float(pairs[same].mean())


def _ways(labels: Sequence[int]) -> int:
    return math.factorial(len(labels)) // math.prod(math.factorial(labels.count(each)) for each in set(labels))


def _symmetries(labels: Sequence[int]) -> int:
    """Labellings that part the searches alike: groups of one size may exchange their names."""
    sizes = [labels.count(each) for each in set(labels)]
    return math.prod(math.factorial(sizes.count(size)) for size in set(sizes))


def _labellings(labels: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Every distinct order of the labels, once."""
    if not labels:
        yield ()
    for first in sorted(set(labels)):
        at = labels.index(first)
        yield from ((first, *rest) for rest in _labellings(labels[:at] + labels[at + 1 :]))


def _drawn(labels: tuple[int, ...], seed: int) -> Iterator[tuple[int, ...]]:
    draw = stream(seed, "akd", "permutation")
    return (tuple(draw.sample(labels, len(labels))) for _ in range(LISTED - 1))


def level_distances(groups: Mapping[str, Sequence[Sequence[Genome]]]) -> dict[str, float]:
    """Mean distance of two finds of one search, of two searches of one group, and of two groups; NaN where there is no pair."""
    found: dict[str, list[float]] = {"one search": [], "one group, two searches": [], "two groups": []}
    for searches in groups.values():
        found["one search"] += [float(hamming(a, b)) for finds in searches for a, b in combinations(finds, 2)]
        found["one group, two searches"] += [mean_distance(a, b) for a, b in combinations(searches, 2)]
    for one, other in combinations(groups.values(), 2):
        found["two groups"] += [mean_distance(a, b) for a in one for b in other]
    return {level: statistics.fmean(values) if values else math.nan for level, values in found.items()}


def one_hot(genomes: Sequence[Genome], slots: Mapping[str, Sequence[str]]) -> np.ndarray:
    """(genomes, choices of all slots), 0 and 1."""
    return np.array([[float(g[slot] == choice) for slot, choices in slots.items() for choice in choices] for g in genomes])


def project(genomes: Sequence[Genome], slots: Mapping[str, Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """First two principal components of one-hot genomes, (genomes, 2), and the shares of variance that they hold, (2,).

    Nothing is drawn; the sign of a component is that of its greatest loading.
    """
    rows = one_hot(genomes, slots)
    rows = rows - rows.mean(axis=0)
    _, scales, axes = np.linalg.svd(rows, full_matrices=False)
    axes, scales = np.vstack([axes, np.zeros((2, rows.shape[1]))])[:2], np.concatenate([scales, [0.0, 0.0]])
    signs = np.sign(axes[np.arange(2), np.abs(axes).round(9).argmax(axis=1)])
    total = (scales**2).sum()
    return rows @ (axes * np.where(signs, signs, 1)[:, None]).T, scales[:2] ** 2 / total if total else np.zeros(2)
