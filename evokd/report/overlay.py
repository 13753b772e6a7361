"""Several searches side by side as one picture and one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from evokd.checkpoint import write_whole
from evokd.report.curves import COLOURS, DASHES

if TYPE_CHECKING:
    from evokd.compare.runs import Overlay, Ran

NAME = "compare-runs"
SHOWN = 40  # of the candidates in common
_PAGE = Path(__file__).with_suffix(".html")


def write_overlay(folder: Path, overlay: Overlay) -> list[Path]:
    """compare-runs.html, .svg and .png in a folder; their paths."""
    paths = [folder / f"{NAME}.{ending}" for ending in ("html", "svg", "png")]
    _draw(paths[1], paths[2], overlay)
    drawn = paths[1].read_text(encoding="utf-8")
    text = (
        jinja2.Environment(autoescape=True)
        .from_string(_PAGE.read_text(encoding="utf-8"))
        .render(
            overlay=overlay,
            labels=[each.label for each in overlay.ran],
            drawn=drawn[drawn.index("<svg") :],
            common=overlay.common[:SHOWN],
            colours=[_look(place)[0] for place in range(len(overlay.ran))],
        )
    )
    write_whole(paths[0], text)
    return paths


def _look(place: int) -> tuple[str, str]:
    """Colour and dash."""
    return COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]


def _draw(svg: Path, png: Path, overlay: Overlay) -> None:
    """Best so far against evaluations, and the fronts of fitness against cost."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4), layout="constrained")
    _curves(left, overlay.ran)
    _fronts(right, overlay.ran)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", frameon=False, ncols=min(len(labels), 4), fontsize=9)
    with matplotlib.rc_context({"svg.hashsalt": "evokd"}):
        figure.savefig(svg, metadata={"Date": None})
    figure.savefig(png, dpi=150)
    plt.close(figure)


def _curves(axes, ran: Sequence[Ran]) -> None:
    """Steps that go on to the last evaluation of their search, those that failed included."""
    lows = []
    for place, each in enumerate(ran):
        colour, dash = _look(place)
        points = [*each.curve, (each.evaluations, each.curve[-1][1])] if each.curve else []
        axes.step([x for x, _ in points], [y for _, y in points], where="post", color=colour, linestyle=dash, label=each.label)
        lows += [y for _, y in points[len(points) // 10 :]]  # the first steps would flatten all that follows
    if lows:
        margin = 0.05 * (max(lows) - min(lows)) or 0.5
        axes.set_ylim(min(lows) - margin, max(lows) + margin)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("evaluations", fontsize=9)
    axes.set_ylabel("validation fitness, best so far", fontsize=9)


def _fronts(axes, ran: Sequence[Ran]) -> None:
    """Up to the right: what the next step of fitness costs."""
    for place, each in enumerate(ran):
        (colour, dash), front = _look(place), each.front[::-1]
        axes.step(
            [cost for _, cost in front],
            [y for y, _ in front],
            where="post",
            color=colour,
            linestyle=dash,
            marker="o",
            markersize=4,
        )
    axes.set_xlabel({"size": "nodes of the loss", "parameters": "parameters of the student"}[ran[0].cost], fontsize=9)
    axes.set_ylabel("validation fitness, front", fontsize=9)
