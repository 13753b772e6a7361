"""A ladder of teachers as a picture: the accuracy of one student against that of its teachers, a curve a loss (KD-Zero, figure 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from evokd.report.losses import saved

COLOURS = ("#d1495b", "#30638e", "#edae49", "#00798c", "#66717e", "#8f5db7")


def draw_ladder(
    folder: Path, teachers: Sequence[tuple[str, float]], curves: Mapping[str, Sequence[tuple[float, float, float]]]
) -> None:
    """ladder.svg and ladder.png.

    Args:
        folder: where they go.
        teachers: (name, accuracy in %), the weakest first.
        curves: loss → mean with its 95 % interval under each teacher, %.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    x = [accuracy for _, accuracy in teachers]
    shift = 0.006 * (max(x) - min(x) or 1.0)
    for place, (name, rows) in enumerate(curves.items()):
        means, low, high = zip(*rows, strict=True)
        reach = [[m - a for m, a in zip(means, low, strict=True)], [b - m for m, b in zip(means, high, strict=True)]]
        aside = [value + shift * (place - (len(curves) - 1) / 2) for value in x]  # so that intervals do not hide each other
        look = {"fmt": "o-", "color": COLOURS[place % len(COLOURS)], "markersize": 4, "capsize": 2, "linewidth": 1.2}
        axes.errorbar(aside, means, yerr=reach, label=name, **look)
    top = axes.secondary_xaxis("top")
    labels = _together(teachers, 0.02 * (max(x) - min(x)))
    top.set_xticks(list(labels), list(labels.values()), fontsize=7, rotation=90)
    axes.set_xlabel("teacher's accuracy on validation, %", fontsize=9)
    axes.set_ylabel("student's accuracy on test, %", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(linewidth=0.3)
    axes.legend(frameon=False, fontsize=8)
    saved(folder, "ladder", figure)


def _together(teachers: Sequence[tuple[str, float]], near: float) -> dict[float, str]:
    """Place → names; teachers nearer to each other than that share a label, so that none hides another."""
    labels: dict[float, str] = {}
    for name, accuracy in teachers:
        place = next((place for place in labels if accuracy - place <= near), accuracy)
        labels[place] = f"{labels[place]}, {name}" if place in labels else name
    return labels
