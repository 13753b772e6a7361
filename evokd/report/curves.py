"""A comparison of searches: curves with bands and final distributions as a picture, and all of it as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import numpy as np

from evokd.checkpoint import write_whole

if TYPE_CHECKING:
    from evokd.compare.controllers import Compared, Measure, Panel

_PAGE = Path(__file__).with_suffix(".html")
COLOURS = ("#d1495b", "#30638e", "#edae49", "#3d9970", "#8e6c8a", "#00798c", "#a0522d", "#6b7280")
DASHES = ("-", "--", "-.", ":")  # with the colours 32 controllers that differ


def draw_curves(folder: Path, panels: Sequence[Panel], measure: Measure) -> None:
    """curves.png and curves.svg: a panel for each pair of figure and axis, and the final values of every search.

    Args:
        folder: of the comparison.
        panels: medians as lines, quartiles as bands.
        measure: whose values are dots, one a search, with their median.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    across = min(3, len(panels) + 1)
    down = -(-(len(panels) + 1) // across)
    figure, grid = plt.subplots(down, across, figsize=(4.6 * across, 3.5 * down + 0.3), layout="constrained", squeeze=False)
    places, looks = list(grid.flat), _looks(measure.values)
    for axes, panel in zip(places, panels, strict=False):
        _curves(axes, panel, looks)
    _distribution(places[len(panels)], measure, looks)
    for axes in places[len(panels) + 1 :]:
        axes.axis("off")
    handles, labels = places[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", frameon=False, ncols=min(len(labels), 6), fontsize=9)
    with matplotlib.rc_context({"svg.hashsalt": "evokd"}):
        figure.savefig(folder / "curves.svg", metadata={"Date": None})
    figure.savefig(folder / "curves.png", dpi=150)
    plt.close(figure)


def _looks(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and dash of every controller."""
    count = len(COLOURS)
    return {name: (COLOURS[i % count], DASHES[i // count % len(DASHES)]) for i, name in enumerate(names)}


def _curves(axes, panel: Panel, looks: dict[str, tuple[str, str]]) -> None:
    lows, end = [], max((band.x[-1] for band in panel.bands.values() if len(band.x)), default=0.0)
    for name, band in panel.bands.items():
        colour, dash = looks[name]
        band = type(band)(np.append(band.x, end), *(np.append(each, each[-1:]) for each in band[1:])) if len(band.x) else band
        axes.step(band.x, band.median, where="post", color=colour, linestyle=dash, linewidth=1.6, label=name)
        axes.fill_between(band.x, band.low, band.high, step="post", color=colour, alpha=0.15, linewidth=0)
        lows += list(band.low[-max(1, len(band.low) * 9 // 10) :])  # the first steps would flatten all that follows
    if lows:
        top = max(float(band.high.max()) for band in panel.bands.values() if len(band.x))
        margin = 0.05 * (top - min(lows)) or 0.5
        axes.set_ylim(min(lows) - margin, top + margin)
    if panel.axis == "evaluations":
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel(panel.axis, fontsize=9)
    axes.set_ylabel(f"{panel.what}, best so far" if "incumbent" not in panel.what else panel.what, fontsize=9)
    axes.tick_params(labelsize=8)


def _distribution(axes, measure: Measure, looks: dict[str, tuple[str, str]]) -> None:
    """One dot a search, side by side where they would hide each other; the line is the median."""
    names = [row.controller for row in measure.summaries]
    for place, name in enumerate(names):
        values = np.sort([v for v in measure.values[name] if np.isfinite(v)])
        if len(values):
            axes.scatter(place + _aside(len(values)), values, s=16, color=looks[name][0], alpha=0.6, linewidths=0)
            axes.hlines(np.median(values), place - 0.35, place + 0.35, color="#1a1a2e", linewidth=1.5)
    axes.set_xticks(range(len(names)), names, fontsize=8, rotation=20 if len(names) > 3 else 0)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylabel(measure.name, fontsize=9)
    axes.tick_params(axis="y", labelsize=8)


def _aside(count: int) -> np.ndarray:
    """(count,) places across ±0.3: multiples of the golden ratio, which keep neighbours apart without a draw."""
    return 0.6 * (np.arange(count) * 0.618034 % 1) - 0.3 if count > 1 else np.zeros(1)


def write_page(folder: Path, compared: Compared, told_p: Callable[[float], str]) -> Path:
    """compare.html: curves, distributions, pairs and searches on one page that needs no other file."""
    config = compared.plan.config
    live = getattr(config, "evaluator", "") != "tabular"
    drawn = (folder / "curves.svg").read_text(encoding="utf-8")
    rows = zip(compared.found, _figures(compared), strict=True)
    text = (
        jinja2.Environment(autoescape=True)
        .from_string(_PAGE.read_text(encoding="utf-8"))
        .render(
            name=folder.name,
            about=compared.about,
            curves=drawn[drawn.index("<svg") :],
            measures=compared.measures,
            rows=list(rows),
            told_p=told_p,
            live=live,
            finals=config.finals if compared.plan.finals and live else 0,
        )
    )
    write_whole(folder / "compare.html", text)
    return folder / "compare.html"


def _figures(compared: Compared) -> list[list[float]]:
    """A row of every measure for each search, seed by seed."""
    columns = [np.array(list(measure.values.values())).T.ravel() for measure in compared.measures]
    return np.stack(columns, axis=1).tolist()
