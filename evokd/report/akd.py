"""Pictures and the page of AKD's experiments: the 2 × 2, architectures in the plane, teachers' preferences."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import numpy as np

from evokd.akd.figures import Cells, project, spread
from evokd.akd.results import Picture, told
from evokd.checkpoint import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from evokd.akd.results import Results
    from evokd.akd.table import Optima
    from evokd.students.space import Genome, StudentSpace

_PAGE = Path(__file__).with_suffix(".html")
GREY, ORANGE, BLUE = "#8d99ae", "#e08e45", "#2b6cb0"
COLOURS = (ORANGE, BLUE, "#d1495b", "#2a9d8f", "#7b5ea7", "#5c4033", "#0b3954", "#b5a642")
MARKS = "o^sDvPX*"
CELLS = ("CLS(NAS)", "KD(NAS)", "CLS(AKD)", "KD(AKD)")
MOST = 12  # columns of a heat map whose cells still bear their figures


def write_page(folder: Path, results: Results) -> list[Path]:
    """report.html, self-contained, and a PNG a picture; the paths."""
    page = jinja2.Environment(autoescape=True).from_string(_PAGE.read_text(encoding="utf-8"))
    write_whole(folder / "report.html", page.render(results=results, told=told, name=folder.name))
    for name, picture in results.pictures.items():
        (folder / f"{name}.png").write_bytes(picture.png)
    return [folder / "report.html", *(folder / f"{name}.png" for name in results.pictures)]


def draw_cells(figures: Mapping[str, Sequence[Cells]]) -> Picture:
    """The four cells of every setting, a line a search seed, with means and 95 % intervals; one panel a setting."""
    across = min(len(figures), 3)
    figure, panels = _panels(len(figures), across, 3.9, 3.3)
    for axes, (setting, each) in zip(panels, figures.items(), strict=False):
        for cells in each:
            for pair, colour in ((slice(0, 2), ORANGE), (slice(2, 4), BLUE)):
                axes.plot(range(4)[pair], cells[pair], color=colour, alpha=0.35, marker="o", markersize=3, linewidth=1)
        for at, column in enumerate(zip(*each, strict=True)):
            mean, half = spread(column)
            error = half if math.isfinite(half) else 0
            axes.errorbar(at, mean, error, color=(ORANGE, BLUE)[at // 2], marker="D", markersize=7, capsize=5, linewidth=2)
        axes.set_xticks(range(4), CELLS, fontsize=8)
        axes.set_title(setting, fontsize=9)
        axes.set_ylabel("test accuracy (%)", fontsize=8)
        axes.margins(x=0.12)
    return _picture(figure)


def draw_architectures(
    space: StudentSpace, initial: Sequence[Genome], finals: Mapping[str, Sequence[Genome]], title: str
) -> Picture:
    """Genomes in the plane of their two principal components: first generations in grey, finds by group.

    Equal finds of a group make a larger mark; marks of later groups are smaller, so that none is hidden.
    """
    genomes = [*initial, *(genome for each in finals.values() for genome in each)]
    places, shares = project(genomes, space.slots)
    figure, (axes,) = _panels(1, 1, 6.4, 4.6)
    axes.scatter(*places[: len(initial)].T, s=16, color=GREY, alpha=0.5, linewidths=0, label=f"initial ({len(initial)})")
    start = len(initial)
    for i, (name, each) in enumerate(finals.items()):
        spots, counts = np.unique(places[start : start + len(each)].round(6), axis=0, return_counts=True)
        style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKS[i % len(MARKS)], "alpha": 0.75, "edgecolors": "white"}
        axes.scatter(
            *spots.T, s=max(110 - 35 * i, 30) + 30 * (counts - 1), linewidths=0.8, label=f"{name} ({len(each)})", **style
        )
        start += len(each)
    axes.set(xlabel=f"component 1 ({shares[0]:.0%} of variance)", ylabel=f"component 2 ({shares[1]:.0%})")
    axes.set_title(title, fontsize=10)
    legend = axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    for handle in legend.legend_handles:
        handle.set_sizes([40])
    return _picture(figure)


def draw_preferences(
    means: Mapping[str, Sequence[float]], names: Sequence[str], taus: Mapping[tuple[str, str], float]
) -> Picture:
    """Left: every student's accuracy less the mean of its column. Right: Kendall's τ-b between columns."""
    figure, (lines, heat) = _panels(2, 2, 4.8, 3.8)
    columns = list(means)
    table = np.array([means[column] for column in columns])
    table = table - np.nanmean(table, axis=1, keepdims=True)
    for i, name in enumerate(names):
        colour = COLOURS[i % len(COLOURS)]
        lines.plot(range(len(columns)), table[:, i], marker=MARKS[i % len(MARKS)], label=name, color=colour, linewidth=1.4)
    lines.set_xticks(range(len(columns)), columns, rotation=30, ha="right", fontsize=8)
    lines.set_ylabel("points above the column's mean", fontsize=8)
    lines.legend(frameon=False, fontsize=8, ncols=min(len(names), 5), loc="lower left", bbox_to_anchor=(0, 1))
    matrix = np.array([[taus[a, b] for b in columns] for a in columns])
    shown = heat.imshow(matrix, cmap="RdBu", vmin=-1, vmax=1)
    for row, column in np.ndindex(matrix.shape) if len(columns) <= MOST else ():
        value = matrix[row, column]
        text = f"{value:+.2f}" if math.isfinite(value) else "–"
        heat.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if abs(value) > 0.6 else "black")
    heat.set_xticks(range(len(columns)), columns, rotation=30, ha="right", fontsize=8)
    heat.set_yticks(range(len(columns)), columns, fontsize=8)
    heat.set_title("Kendall's τ-b", fontsize=9)
    figure.colorbar(shown, ax=heat, shrink=0.8).ax.tick_params(labelsize=7)
    return _picture(figure)


def draw_optima(points: Mapping[str, tuple[float, float, float]], optima: Mapping[str, Optima]) -> Picture:
    """Distilled against plain accuracy, coloured by MACs; an arrow a budget from the NAS optimum to the AKD optimum.

    Args:
        points: student → plain accuracy, distilled accuracy (%), millions of MACs.
        optima: budget → its optima.
    """
    figure, (axes,) = _panels(1, 1, 7.2, 4.8)
    plain, distilled, macs = zip(*points.values(), strict=True)
    shown = axes.scatter(plain, distilled, c=macs, s=26, cmap="viridis", alpha=0.8)
    for i, (budget, found) in enumerate(optima.items()):
        start, end = (points[text][:2] for text in (found.nas, found.akd))
        colour = COLOURS[(i + 1) % len(COLOURS)]
        axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": colour, "lw": 1.6})
        same = found.nas == found.akd
        label = (
            f"{budget}: {found.nas} best by both"
            if same
            else f"{budget}: {found.nas} → {found.akd}, {found.cells.knowledge:+.2f}"
        )
        axes.scatter(*zip(start, end, strict=True), s=90, facecolors="none", edgecolors=colour, linewidths=1.6, label=label)
    left, low = (min(min(o.cells[i::2]) for o in optima.values()) - 2 for i in (0, 1))
    note = f"{sum(p < left or d < low for p, d, _ in points.values())} of {len(points)} students lie outside"
    axes.set(xlabel="trained with labels (%)", ylabel="trained with distillation (%)", xlim=(left, None), ylim=(low, None))
    axes.set_title(note, fontsize=8, loc="left")
    axes.legend(
        frameon=False, fontsize=8, loc="lower right", title="best by labels → best distilled, equation (1)", title_fontsize=8
    )
    figure.colorbar(shown, ax=axes, label="millions of MACs", shrink=0.85)
    return _picture(figure)


def draw_designs(means: Mapping[str, Mapping[str, tuple[float, float]]]) -> Picture:
    """Students side by side, a bar a way of training; design → way → (mean, half width)."""
    figure, (axes,) = _panels(1, 1, 1.6 + 1.5 * len(means), 3.6)
    ways = list(next(iter(means.values())))
    width = 0.8 / len(ways)
    for i, way in enumerate(ways):
        places = [at + (i - (len(ways) - 1) / 2) * width for at in range(len(means))]
        heights, halves = zip(*(each[way] for each in means.values()), strict=True)
        errors = [half if math.isfinite(half) else 0 for half in halves]
        axes.bar(places, heights, width * 0.92, yerr=errors, color=(GREY, ORANGE, BLUE)[i % 3], capsize=3, label=way)
    axes.set_xticks(range(len(means)), list(means), fontsize=8)
    lows = [mean - (half if math.isfinite(half) else 0) for each in means.values() for mean, half in each.values()]
    sound = [low for low in lows if math.isfinite(low)]
    axes.set_ylim(bottom=max(0, min(sound, default=0) - 3))
    axes.set_ylabel("test accuracy (%)", fontsize=8)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    return _picture(figure)


def _panels(count: int, across: int, width: float, height: float) -> tuple[Figure, list]:
    """A figure of its own, unknown to pyplot's global state, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    down = -(-count // across)
    figure = Figure(figsize=(width * across, height * down), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for unused in axes[count:]:
        unused.axis("off")
    return figure, axes[:count]


def _picture(figure: Figure) -> Picture:
    from matplotlib import rc_context

    vector, pixels = io.StringIO(), io.BytesIO()
    with rc_context({"svg.hashsalt": "evokd"}):  # the same ids for the same picture
        figure.savefig(vector, format="svg", metadata={"Date": None})
    figure.savefig(pixels, format="png", dpi=110)
    return Picture(vector.getvalue()[vector.getvalue().index("<svg") :], pixels.getvalue())
