"""How well scores rank students whose accuracies are published: correlations with intervals, at the top, and beyond size.

Everything "solves" the bottom half of a space, and size alone solves much: hence the figures of the top tenth, the regret, and the
partial correlation, and the four rows of costs beside every table.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from scipy.stats import kendalltau, rankdata
from torch import Tensor, nn

from evokd.data import Data
from evokd.errors import EvokdError, unknown
from evokd.evaluate.tabular import Table
from evokd.models.teachers import read_weights
from evokd.models.views import augmented, draw_views, normalised, plain_strides
from evokd.models.zoo import build
from evokd.scores import AZ_NAS, SCORES, TeacherView, az_nas, initialise, score_all, view_teacher
from evokd.streams import derive, stream
from evokd.students.space import StudentSpace

RESAMPLES = 300
POPULATION = "az_nas"  # a ranking of all students together, of scores that each of them has
Scored = Callable[[list[tuple[int, str]]], Iterable[dict[str, float]]]  # jobs (repeat, text) → score → value, in their order
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
        distinct: whether of students that are one network, written twice, the first stands for all.
    """

    archs: int = 100
    seeds: int = 1
    batch: int = 64
    teacher: str = "resnet56"
    init: str = "default"
    seed: int = 0
    distinct: bool = False


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
        residual: Spearman's correlation with the points above the plain accuracy; NaN where the table has none.
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
    residual: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Measured:
    """Scores of students beside what a table says of them.

    Attributes:
        texts: of the students.
        accuracies: (students,), %, or the difference of two columns in points.
        residual: (students,), points that the column lies above the table's `plain` one; None where that cannot be told.
        sizes: (students,), parameters.
        values: score or cost → (seeds, students), higher being better; −∞ for the dead. Costs have one row.
        seconds: score → of one student.
    """

    texts: list[str]
    accuracies: np.ndarray
    residual: np.ndarray | None
    sizes: np.ndarray
    values: dict[str, np.ndarray]
    seconds: dict[str, float]


def rank(found: Measured, seed: int = 0) -> list[Agreement]:
    """One row a score or cost; the seed is that of the resamples."""
    target, beyond = found.accuracies, found.residual
    return [
        agreement(name, rows, target, found.sizes, found.seconds.get(name, 0.0), seed, beyond)
        for name, rows in found.values.items()
    ]


def measure(
    names: Sequence[str], space: StudentSpace, table: Table, column: str, data: Data, setting: Setting,
    progress: Callable[[str], None] = lambda line: None, scored: Scored | None = None,
) -> Measured:  # fmt: skip
    """Students of a table drawn and scored; costs are added to the scores. With `scored`, by others: as a `Scorer` does it.

    Raises:
        EvokdError: unknown score, column, teacher or initialisation, or a teacher of other images or classes.
    """
    check_scores(names)
    texts = sorted(table.rows)
    if setting.distinct:
        texts = list({space.key_of(space.read(text)): text for text in reversed(texts)}.values())[::-1]
    texts = stream(setting.seed, "students").sample(texts, min(setting.archs, len(texts)))
    accuracies, residual = targets(table, texts, column)
    costs = [space.cost(space.read(text), data.classes, data.shape[0], data.shape[1]) for text in texts]
    measured = parts_of(names)
    values, seconds = _measured(measured, space, texts, data, setting, progress, scored)
    values |= {cost: np.array([[getattr(c, cost) for c in costs]], dtype=float) for cost in COSTS}
    if POPULATION in names:
        seconds[POPULATION] = sum(seconds.get(part, 0.0) for part in AZ_NAS)
        values = {POPULATION: _population(values)} | values
    return Measured(texts, accuracies, residual, values["parameters"][0], values, seconds)


def check_scores(names: Sequence[str]) -> None:
    """Raises EvokdError for a name that is no score."""
    for name in names:
        if name not in SCORES and name != POPULATION:
            raise unknown("--scores", "scores", name, [*SCORES, POPULATION])


def parts_of(names: Sequence[str]) -> list[str]:
    """The scores to be measured for some names; costs are in closed form."""
    parts = (part for name in names for part in (AZ_NAS if name == POPULATION else (name,)))
    return list(dict.fromkeys(part for part in parts if part not in COSTS))


def _population(values: dict[str, np.ndarray]) -> np.ndarray:
    """AZ-NAS's sum of ranks, seed by seed."""
    columns = np.broadcast_arrays(*(values[part] for part in AZ_NAS))
    return np.array([az_nas(dict(zip(AZ_NAS, rows, strict=True))) for rows in zip(*columns, strict=True)])


def targets(table: Table, texts: Sequence[str], column: str) -> tuple[np.ndarray, np.ndarray | None]:
    """(what the column says, its residual over the column `plain` or None); COLUMN-COLUMN is a difference.

    Raises:
        EvokdError: a column that the table does not have.
    """
    first, minus, second = column.partition("-")
    if minus and not (first and second):
        raise EvokdError("--against", "COLUMN or COLUMN-COLUMN", repr(column)[:60])

    def read(name: str) -> np.ndarray:
        return np.array([table.accuracy(text, name) for text in texts])

    found = read(first)
    if minus:
        return found - read(second), None
    known = "plain" in table.accuracies and (first or next(iter(table.accuracies))) != "plain"
    return found, found - read("plain") if known else None


def _measured(
    names: list[str], space: StudentSpace, texts: list[str], data: Data, setting: Setting, progress: Callable[[str], None],
    scored: Scored | None,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:  # fmt: skip
    """({score: (seeds, students), higher being better}, {score: seconds of one student})."""
    found, scorer = {name: np.empty((setting.seeds, len(texts))) for name in names}, Scorer(names, space, data, setting)
    seconds = scorer.seconds(texts[0])
    jobs = [(repeat, text) for repeat in range(setting.seeds) for text in texts]
    for place, scores in enumerate(scored(jobs) if scored else map(scorer, jobs)):
        repeat, i = divmod(place, len(texts))
        for name, value in scores.items():
            found[name][repeat, i] = value if SCORES[name].higher_is_better else -value
        if (i + 1) % 50 == 0 or i + 1 == len(texts):
            progress(f"seed {repeat + 1} of {setting.seeds}: {i + 1} of {len(texts)} students")
    return found, seconds


class Scorer:
    """Scores students one at a time, with one batch and one view of the teacher for each repeat; what a worker holds.

    Args:
        names: of the scores.
        space: of the students.
        data: whose images they see.
        setting: batch, teacher, initialisation and seed.
    """

    def __init__(self, names: Sequence[str], space: StudentSpace, data: Data, setting: Setting) -> None:
        self.names, self.space, self.data, self.setting = list(names), space, data, setting
        self.batches: dict[int, tuple[int, TeacherView | None, Tensor, Tensor]] = {}

    def __call__(self, job: tuple[int, str]) -> dict[str, float]:
        """Score → value of a student, named by (repeat, its text)."""
        (seed, view, images, labels), text = self.batch(job[0]), job[1]
        student = draw_student(self.space, text, self.data, self.setting.init, seed)
        return score_all(self.names, student, view, images, labels, generator_of(seed, text))

    def batch(self, repeat: int) -> tuple[int, TeacherView | None, Tensor, Tensor]:
        """(seed, teacher's view, images, labels)."""
        if repeat not in self.batches:
            seed = derive(self.setting.seed, "repeat", repeat)
            images, labels = draw_batch(self.data, self.setting.batch, seed)
            needed = any(SCORES[name].needs_teacher for name in self.names)
            view = see_teacher(self.setting, self.data, seed, images, labels) if needed else None
            self.batches = {repeat: (seed, view, images, labels)}
        return self.batches[repeat]

    def seconds(self, text: str) -> dict[str, float]:
        """Score → seconds of one student when it is computed alone."""
        seed, view, images, labels = self.batch(0)
        student = draw_student(self.space, text, self.data, self.setting.init, seed)
        score_all(self.names, student, view, images, labels, generator_of(seed, text))  # what is computed of the teacher once
        return {name: _seconds(name, student, view, images, labels) for name in self.names}


def draw_batch(data: Data, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Augmented and normalised training images (count,C,H,W) with their labels."""
    draw = np.random.Generator(np.random.PCG64(derive(seed, "batch")))
    index, pad = draw.integers(0, len(data.train), count), max(1, data.shape[1] // 8)
    images = augmented(torch.from_numpy(data.train.images[index]), draw_views(draw, count, pad, data.flip), pad)
    return normalised(plain_strides(images), data.mean, data.std), torch.from_numpy(data.train.labels[index])


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


def see_teacher(setting: Setting, data: Data, seed: int, images: Tensor, labels: Tensor) -> TeacherView:
    """The teacher's view of a batch.

    Raises:
        EvokdError: an unknown teacher, or one of other images or classes.
    """
    teacher = open_teacher(setting, data, seed)
    try:
        view = view_teacher(teacher, images, labels)
    except RuntimeError as error:
        got = str(error).splitlines()[0][:80]
        raise EvokdError("--teacher", f"a network for images of shape {data.shape}", got) from None
    if view.taps.logits.shape[1] != data.classes:
        raise EvokdError("--teacher", f"{data.classes} classes, as {data.name} has", str(view.taps.logits.shape[1]))
    return view


def generator_of(seed: int, text: str) -> torch.Generator:
    """Of what the scores of a student draw."""
    return torch.Generator().manual_seed(derive(seed, "score", text))


def _seconds(name: str, student: nn.Module, view, images: Tensor, labels: Tensor) -> float:
    start = time.perf_counter()
    SCORES[name].fn(student, view, images, labels, None)
    return time.perf_counter() - start


def agreement(
    name: str, values: np.ndarray, accuracies: np.ndarray, sizes: np.ndarray, seconds: float = 0.0, seed: int = 0,
    residual: np.ndarray | None = None,
) -> Agreement:  # fmt: skip
    """The figures of one score.

    Args:
        name: of the score.
        values: (seeds, students), higher being better; −∞ for the dead.
        accuracies: (students,), %.
        sizes: (students,), parameters.
        seconds: of one student.
        seed: of the resamples.
        residual: (students,), points above the plain accuracy, if known.
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
        float("nan") if residual is None else over_seeds(lambda row: spearman(row, residual)),
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
