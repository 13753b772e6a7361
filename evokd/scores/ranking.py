"""How well scores rank students whose accuracies are published: correlations with intervals, at the top, and beyond size.

Everything "solves" the bottom half of a space, and size alone solves much: hence the figures of the top tenth, the regret, and the
partial correlation, and the four rows of costs beside every table.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from scipy.stats import kendalltau, rankdata
from torch import Tensor, nn

from evokd.data import Data
from evokd.evaluate.tabular import Table
from evokd.models.teachers import read_weights
from evokd.models.views import augmented, draw_views, normalised
from evokd.models.zoo import build
from evokd.scores import SCORES, initialise, score_all, view_teacher
from evokd.streams import derive, stream
from evokd.students.space import StudentSpace

RESAMPLES = 300
COSTS = ("parameters", "live_parameters", "macs", "depth")


@dataclass(frozen=True)
class Setting:
    """What a ranking is taken under.

    Attributes:
        archs: students drawn from the table, all if there are fewer.
        seeds: repeats, each with weights, teacher and batch of its own, on the same students.
        batch: images.
        teacher: a network of the zoo, untrained, or a safetensors file.
        init: of students and of an untrained teacher.
        seed: of everything drawn.
    """

    archs: int = 100
    seeds: int = 1
    batch: int = 64
    teacher: str = "resnet56"
    init: str = "default"
    seed: int = 0


@dataclass(frozen=True)
class Agreement:
    """A score's values against accuracies, means over seeds; intervals hold 95 % of resamples of the students.

    Attributes:
        score: its name.
        kendall: τ_b.
        kendall_low: of its interval.
        kendall_high: of its interval.
        spearman: likewise, with its interval.
        spearman_low: …
        spearman_high: …
        pearson: of those values that are finite.
        top: τ_b among the tenth of best accuracy.
        regret: percentage points from the best student drawn to the one that the score puts first.
        partial: Spearman's correlation with the ranks of the parameters held fixed.
        seconds: of one student when the score is computed alone; 0 for costs in closed form.
    """

    score: str
    kendall: float
    kendall_low: float
    kendall_high: float
    spearman: float
    spearman_low: float
    spearman_high: float
    pearson: float
    top: float
    regret: float
    partial: float
    seconds: float


def rank(
    names: Sequence[str], space: StudentSpace, table: Table, column: str, data: Data, setting: Setting,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Agreement]:  # fmt: skip
    """One row a score, then one a cost.

    Raises:
        EvokdError: unknown score, teacher or initialisation.
    """
    texts = sorted(table.rows)
    texts = stream(setting.seed, "students").sample(texts, min(setting.archs, len(texts)))
    accuracies = np.array([table.accuracy(text, column) for text in texts])
    genomes = [space.read(text) for text in texts]
    costs = [space.cost(genome, data.classes, data.shape[0], data.shape[1]) for genome in genomes]
    sizes = np.array([cost.parameters for cost in costs], dtype=float)
    values, seconds = _measured(list(dict.fromkeys(names)), space, texts, data, setting, progress)
    values |= {cost: np.array([[getattr(c, cost) for c in costs]], dtype=float) for cost in COSTS}
    return [agreement(name, rows, accuracies, sizes, seconds.get(name, 0.0), setting.seed) for name, rows in values.items()]


def _measured(
    names: list[str], space: StudentSpace, texts: list[str], data: Data, setting: Setting, progress: Callable[[str], None]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """({score: (seeds, students), higher being better}, {score: seconds of one student})."""
    found = {name: np.empty((setting.seeds, len(texts))) for name in names}
    seconds: dict[str, float] = {}
    for repeat in range(setting.seeds):
        seed = derive(setting.seed, "repeat", repeat)
        images, labels = draw_batch(data, setting.batch, seed)
        compares = any(SCORES[name].needs_teacher for name in names if name in SCORES)
        view = view_teacher(open_teacher(setting, data, seed), images, labels) if compares else None
        for i, text in enumerate(texts):
            student = draw_student(space, text, data, setting.init, seed)
            scores = score_all(names, student, view, images, labels, _generator(seed, text))
            seconds = seconds or {n: _seconds(n, student, view, images, labels) for n in names}
            for name, value in scores.items():
                found[name][repeat, i] = value if SCORES[name].higher_is_better else -value
        progress(f"seed {repeat + 1} of {setting.seeds}: {len(texts)} students")
    return found, seconds


def draw_batch(data: Data, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Augmented and normalised training images (count,C,H,W) with their labels."""
    draw = np.random.Generator(np.random.PCG64(derive(seed, "batch")))
    index, pad = draw.integers(0, len(data.train), count), max(1, data.shape[1] // 8)
    images = augmented(torch.from_numpy(data.train.images[index]), draw_views(draw, count, pad, data.flip), pad)
    return normalised(images, data.mean, data.std), torch.from_numpy(data.train.labels[index])


def draw_student(space: StudentSpace, text: str, data: Data, init: str, seed: int) -> nn.Module:
    """The student of a text, its weights from (seed, text)."""
    with torch.random.fork_rng(devices=[]):
        student = space.network(space.read(text), data.classes, data.shape[0])
    return initialise(student, init, derive(seed, "student", text))


def open_teacher(setting: Setting, data: Data, seed: int) -> nn.Module:
    if setting.teacher.endswith(".safetensors"):
        return read_weights(Path(setting.teacher))[0]
    teacher = build(setting.teacher, data.classes, data.shape[0], derive(seed, "teacher"), "--teacher")
    return initialise(teacher, setting.init, derive(seed, "teacher"))


def _generator(seed: int, text: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive(seed, "score", text))


def _seconds(name: str, student: nn.Module, view, images: Tensor, labels: Tensor) -> float:
    start = time.perf_counter()
    SCORES[name].fn(student, view, images, labels, None)
    return time.perf_counter() - start


def agreement(
    name: str, values: np.ndarray, accuracies: np.ndarray, sizes: np.ndarray, seconds: float = 0.0, seed: int = 0
) -> Agreement:
    """The figures of one score.

    Args:
        name: of the score.
        values: (seeds, students), higher being better; −∞ for the dead.
        accuracies: (students,), %.
        sizes: (students,), parameters.
        seconds: of one student.
        seed: of the resamples.
    """

    def over_seeds(statistic: Callable[[np.ndarray], float]) -> float:
        return float(np.mean([statistic(row) for row in values]))

    draw = np.random.Generator(np.random.PCG64(derive(seed, "bootstrap")))
    samples = draw.integers(0, len(accuracies), (RESAMPLES, len(accuracies)))

    def with_interval(statistic: Callable[[np.ndarray, np.ndarray], float]) -> tuple[float, float, float]:
        drawn = [over_seeds(lambda row, chosen=chosen: statistic(row[chosen], accuracies[chosen])) for chosen in samples]
        low, high = np.nanquantile(drawn, (0.025, 0.975)) if np.isfinite(drawn).any() else (np.nan, np.nan)
        return over_seeds(lambda row: statistic(row, accuracies)), float(low), float(high)

    best = np.argsort(-accuracies, kind="stable")[: max(len(accuracies) // 10, 2)]
    return Agreement(
        name,
        *with_interval(kendall),
        *with_interval(spearman),
        over_seeds(lambda row: _pearson(row, accuracies)),
        over_seeds(lambda row: kendall(row[best], accuracies[best])),
        over_seeds(lambda row: float(accuracies.max() - accuracies[row.argmax()])),
        over_seeds(lambda row: partial(row, accuracies, sizes)),
        seconds,
    )


def kendall(x: np.ndarray, y: np.ndarray) -> float:
    """τ_b; NaN where one side is constant."""
    method = "asymptotic" if len(x) > 9 else "auto"  # of a p-value that nobody reads; the exact one is slow
    return float(kendalltau(rankdata(x), y, method=method).statistic)


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation of ranks; NaN where one side is constant."""
    return _pearson(rankdata(x), rankdata(y))


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    finite = np.isfinite(x)
    x, y = x[finite], y[finite]
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x / np.abs(x).max(), y)[0, 1])


def partial(x: np.ndarray, y: np.ndarray, held: np.ndarray) -> float:
    """Spearman's correlation of x and y with a third held fixed; NaN where that one explains either."""
    xy, xh, yh = spearman(x, y), spearman(x, held), spearman(y, held)
    rest = (1 - xh**2) * (1 - yh**2)
    return (xy - xh * yh) / rest**0.5 if rest > 1e-12 else float("nan")


COLUMNS = tuple(f.name for f in fields(Agreement))
