"""Pictures of scores: how they rank students, and what DisWOT compares."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evokd.errors import EvokdError

if TYPE_CHECKING:
    from evokd.scores.explain import Explanation, Pair
    from evokd.scores.ranking import Agreement, Measured

FORMATS = (".png", ".svg", ".pdf")
RED = "#d1495b"


def check_target(path: str | None, option: str, formats: Sequence[str] = FORMATS) -> None:
    """What would fail once all is computed fails here.

    Raises:
        EvokdError: a file that cannot be written, or of another format.
    """
    if path is None:
        return
    if formats and Path(path).suffix.lower() not in formats:
        raise EvokdError(option, "a file that ends in " + ", ".join(formats), repr(path)[:80])
    if not Path(path).parent.is_dir() or Path(path).is_dir():
        raise EvokdError(option, "a file in a folder that exists", repr(path)[:80])


def draw_ranking(path: Path, found: Measured, rows: Sequence[Agreement], what: str) -> None:
    """Small multiples: ranks of each score against what it should predict, darker for more parameters.

    Args:
        path: of the picture.
        found: the students measured.
        rows: of the scores, as they are to be shown.
        what: the name of what they should predict.
    """
    sides = [(found.accuracies, what, "spearman")]
    if found.residual is not None:
        sides.append((found.residual, "points above plain", "residual"))
    across = min(len(rows), 4 if len(sides) == 1 else 2) * len(sides)
    down = -(-len(rows) * len(sides) // across)
    plt = _pyplot()
    figure, grid = plt.subplots(down, across, figsize=(2.6 * across, 2.3 * down + 0.5), layout="constrained", squeeze=False)
    places = iter(grid.flat)
    for row in rows:
        for target, label, field in sides:
            axes = next(places)
            dots = _scatter(axes, mean_ranks(found.values[row.score]), target, np.log10(found.sizes))
            axes.set_title(f"{row.score}  ρ {getattr(row, field):.2f}", fontsize=9)
            axes.set_ylabel(label, fontsize=8)
    for axes in places:
        axes.axis("off")
    note = f"rank by the score, best at the right ({len(found.texts)} students, mean of seeds); ▾ below the axis"
    figure.supxlabel(note, fontsize=9)
    figure.colorbar(dots, ax=grid, label="log₁₀ parameters", shrink=0.5, aspect=30)
    _save(figure, path)


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """(seeds, students) → rank of each student, 1 the worst, mean over seeds; students alike share theirs."""
    from scipy.stats import rankdata

    return rankdata(values, axis=1).mean(0)


def _scatter(axes, ranks: np.ndarray, target: np.ndarray, colour: np.ndarray):
    dots = axes.scatter(ranks, target, s=9, c=colour, cmap="viridis_r", linewidths=0)
    low, high = floor(target), target.max()
    margin, below = 0.07 * (high - low), target < low
    axes.set_ylim(low - 1.5 * margin, high + margin)
    axes.scatter(ranks[below], np.full(below.sum(), low - margin), s=12, color=RED, marker="v", linewidths=0)
    axes.tick_params(labelsize=7)
    return dots


def floor(target: np.ndarray) -> float:
    """The least value to be drawn to scale: the dead of a space would squeeze all others into a line."""
    low, usual = target.min(), np.quantile(target, 0.05)
    return float(low if target.max() - low <= 3 * (target.max() - usual) else usual)


def draw_explanation(path: Path, found: Explanation, images: np.ndarray, names: tuple[str, str], count: int) -> None:
    """Teacher's and student's matrices with their difference, and under them images with both class activation maps.

    Args:
        path: of the picture.
        found: what is to be shown.
        images: (N,H,W,C) or (N,H,W), 0…1, in the batch's order.
        names: of teacher and student.
        count: images to be shown, taken evenly from the batch.
    """
    plt = _pyplot()
    shown = np.unique(np.linspace(0, len(found.labels) - 1, count).astype(int))
    figure = plt.figure(figsize=(11, 12), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(7, 5))
    grid = above.subplots(2, 3)
    of = "channels" if found.channels else "samples"
    _matrices(grid[0], found.semantic, names, of, f"semantic: {of} in the classifier's gradient", found.parts["diswot_semantic"])
    _matrices(grid[1], found.relation, names, "samples", "relation: samples in the last maps", found.parts["diswot_relation"])
    _cameras(below.subplots(3, len(shown), squeeze=False), found, images, names, shown)
    below.suptitle("Grad-CAM of the label's class: red where it finds most evidence, blue where none", fontsize=11)
    _save(figure, path)


def _matrices(places, pair: Pair, names: tuple[str, str], of: str, what: str, value: float) -> None:
    """Teacher, student, student − teacher, each with its own scale; samples are in the order of their labels."""
    for axes, matrix, name in zip(places, (*pair, pair[1] - pair[0]), (*names, "student − teacher"), strict=True):
        top = np.abs(matrix).max() or 1.0
        shown = axes.imshow(matrix, cmap="RdBu_r", vmin=-top, vmax=top, interpolation="nearest")
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(of + (" by label" if of == "samples" else ""), fontsize=8)
        axes.tick_params(labelsize=7)
        axes.figure.colorbar(shown, ax=axes, shrink=0.8).ax.tick_params(labelsize=7)
    places[0].set_ylabel(f"{what}\nscore {value:.4g}", fontsize=9)


def _cameras(grid, found: Explanation, images: np.ndarray, names: tuple[str, str], shown: np.ndarray) -> None:
    for column, at in enumerate(shown):
        picture = images[found.order[at]]
        grid[0][column].set_title(f"class {found.labels[at]}", fontsize=9)
        height, width = picture.shape[:2]
        for row, heat in enumerate((None, *(maps[at] for maps in found.activations))):
            axes = grid[row][column]
            axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
            if heat is not None:
                whole = (-0.5, width - 0.5, height - 0.5, -0.5)
                axes.imshow(heat, cmap="jet", alpha=0.5, vmin=0, vmax=1, extent=whole, interpolation="bilinear")
            axes.set(xticks=[], yticks=[])
    for row, name in enumerate(("image", *names)):
        grid[row][0].set_ylabel(name.replace(" ", "\n", 1), fontsize=9)


def _pyplot():
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure, path: Path) -> None:
    try:
        figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
    except OSError as error:
        raise EvokdError("picture", "a file that can be written", str(error)[:120]) from None
    finally:
        _pyplot().close(figure)
