"""One student under a ladder of teachers: does a better teacher make a better student?

KD-Zero's figure 2 and DisWOT's Table 9 ask it of KD and of a found loss: the more the student follows its teacher, the nearer is the rank
correlation of their accuracies to 1; where KD meets the capacity gap it falls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from evokd.compare.loss_plan import named
from evokd.compare.pairs import Pair, Plan, distinct
from evokd.compare.standings import standings
from evokd.config import make_config
from evokd.errors import EvokdError
from evokd.export import loss_file
from evokd.finals import interval
from evokd.report.ladder import draw_ladder
from evokd.streams import derive

RESAMPLES = 2000


def make_plan(
    values: dict[str, Any], overrides: Sequence[str], losses: Sequence[str], teachers: Sequence[str], seeds: int = 5
) -> Plan:
    """What is asked for.

    Args:
        values: fields of the configuration that all teachers share.
        overrides: likewise, as `key=value`.
        losses: known names, texts, loss.json files or folders of finished searches; the first is the one others are compared with.
        teachers: names or files.
        seeds: fresh ones a row.

    Raises:
        EvokdError: fewer than three teachers, which no rank correlation can be told of, no loss, or one seed.
    """
    for option, count, least in (("--teachers", len(set(teachers)), 3), ("--loss", len(losses), 1), ("--seeds", seeds, 2)):
        if count < least:
            raise EvokdError(option, f"at least {least}", str(count))
    configs = tuple(make_config(values | {"teacher": teacher}, overrides) for teacher in dict.fromkeys(teachers))
    rows = [named(loss_file(spec), configs[0].protocol.gamma) for spec in losses]
    return Plan("teachers", configs, distinct(rows), seeds)


@dataclass(frozen=True)
class Correlation:
    """Rank correlation of a student's accuracy with its teacher's: value, low, high by 95 % of resamples."""

    spearman: tuple[float, float, float]
    kendall: tuple[float, float, float]


def correlation(teachers: Sequence[float], students: Sequence[Sequence[float]], resamples: int = RESAMPLES) -> Correlation:
    """Of the mean accuracies over seeds.

    The teachers are fixed; what is drawn again, with replacement, are the seeds, together for all teachers, since they are paired.
    NaN where all students are equal. Seeds of which a training failed are left out.

    Args:
        teachers: accuracy (T,).
        students: accuracy by teacher and seed (T,S).
        resamples: of the seeds.
    """
    values = np.asarray(students, float)
    values = values[:, np.isfinite(values).all(0)]
    draw = np.random.Generator(np.random.PCG64(derive(0, "ladder"))).integers(0, values.shape[1], (resamples, values.shape[1]))
    means = np.concatenate([values.mean(1)[None], values[:, draw].mean(2).T])  # the sample itself first
    return Correlation(*(_told(measure(np.asarray(teachers, float), means)) for measure in (_spearman, _kendall)))


def _told(found: np.ndarray) -> tuple[float, float, float]:
    sound = found[1:][np.isfinite(found[1:])]
    low, high = np.percentile(sound, (2.5, 97.5)) if len(sound) else (np.nan, np.nan)
    return float(found[0]), float(low), float(high)


@np.errstate(invalid="ignore", divide="ignore")
def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's correlation of the mid-ranks of x (T,) and every row of y (B,T)."""
    a, b = stats.rankdata(x), stats.rankdata(y, axis=1)
    a, b = a - a.mean(), b - b.mean(1, keepdims=True)
    return b @ a / np.sqrt(a @ a * np.square(b).sum(1))


@np.errstate(invalid="ignore", divide="ignore")
def _kendall(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """τ-b of x (T,) and every row of y (B,T)."""
    i, j = np.triu_indices(len(x), 1)
    a, b = np.sign(x[i] - x[j]), np.sign(y[:, i] - y[:, j])
    return b @ a / np.sqrt(np.square(a).sum() * np.square(b).sum(1))


def correlations(plan: Plan, pairs: Sequence[Pair]) -> dict[str, Correlation]:
    """Row → rank correlation over the ladder."""
    taught = [pair.card["teacher_accuracy"] for pair in pairs]
    sound = [row.name for row in plan.rows if all(np.isfinite(pair.values[row.name]).any() for pair in pairs)]
    return {name: correlation(taught, [pair.values[name] for pair in pairs]) for name in sound}


def told(plan: Plan, pairs: Sequence[Pair]) -> list[str]:
    """Lines for a terminal: a row a teacher, the weakest first, then the correlations."""
    first, pairs = plan.rows[0].name, sorted(pairs, key=lambda pair: pair.card["teacher_accuracy"])
    lines = [
        f"student {pairs[0].card['student']}, {pairs[0].card['data']}: test accuracy %, mean ± 95 %; {first} − row, paired by seed"
    ]
    for pair in pairs:
        lines.append(f" teacher {pair.card['teacher']} ({pair.card['teacher_accuracy']:.1f} % on validation)")
        for row in standings(pair.values, first):
            gap = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*row.difference) if row.difference else ""
            lines.append(f"   {row.name:<32} {row.mean:5.1f} ± {row.half:<5.1f} {gap}")
    lines.append(" rank correlation of student and teacher accuracy, 95 % of resampled seeds")
    for name, found in correlations(plan, pairs).items():
        rho, tau = ("{:+.2f} [{:+.2f}, {:+.2f}]".format(*each) for each in (found.spearman, found.kendall))
        lines.append(f"   {name:<32} Spearman {rho}   Kendall {tau}")
    return lines


def draw(folder: Path, plan: Plan, pairs: Sequence[Pair]) -> None:
    """ladder.svg and ladder.png."""
    pairs = sorted(pairs, key=lambda pair: pair.card["teacher_accuracy"])
    taught = [(pair.card["teacher"], pair.card["teacher_accuracy"]) for pair in pairs]
    curves = {}
    for row in plan.rows:
        sound = [[value for value in pair.values[row.name] if np.isfinite(value)] for pair in pairs]
        if all(sound):
            curves[row.name] = [interval(values) for values in sound]
    draw_ladder(folder, taught, curves)
