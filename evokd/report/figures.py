"""The figures that a run's journal tells by itself, each as inline SVG and, in `figures/` of the run folder, as SVG and PNG."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evokd.checkpoint import write_whole
from evokd.report.sizes import Size

if TYPE_CHECKING:
    from evokd.funnel import Passage
    from evokd.shrink import Evidence

INK, RED, BLUE, GREY, PALE = "#1a1a2e", "#d1495b", "#30638e", "#8d99ae", "#e4e8ee"
HOME = "figures"


class Figure(NamedTuple):
    """A drawn figure: its heading, what it shows, and itself as SVG for a page."""

    title: str
    note: str
    svg: str


def drawn(folder: Path | None, name: str, size: tuple[float, float], draw: Callable[[Any], None], dpi: int = 150) -> str:
    """What `draw` puts on a matplotlib figure, as inline SVG.

    Args:
        folder: of the run, whose `figures/NAME.svg` and `.png` are written; None for none.
        name: of the files.
        size: width and height, inches.
        draw: given the figure.
        dpi: of the PNG, and of pictures inside the SVG.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    with matplotlib.rc_context({"svg.hashsalt": name, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = plt.figure(figsize=size, layout="constrained")
        try:
            draw(figure)
            text = io.StringIO()
            figure.savefig(text, format="svg", metadata={"Date": None}, dpi=dpi)
            if folder is not None:
                (folder / HOME).mkdir(exist_ok=True)
                write_whole(folder / HOME / f"{name}.svg", text.getvalue())
                figure.savefig(folder / HOME / f"{name}.png", dpi=dpi)
        finally:
            plt.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]


def draw_search(folder: Path | None, values: Sequence[float]) -> str:
    """Fitness of the candidates by order of training, with the best so far."""

    def draw(figure) -> None:
        axes = figure.subplots()
        best = [max(values[: n + 1]) for n in range(len(values))]
        axes.scatter(range(1, len(values) + 1), values, s=12, color=GREY, label="candidate")
        axes.step(range(1, len(best) + 1), best, where="post", color=RED, label="best so far")
        low, high = sorted(values)[len(values) // 5] if values else 0, max(values, default=1)
        room = max(0.08 * (high - low), 1e-3)
        axes.set(xlabel="candidates trained in full", ylabel="validation fitness", ylim=(low - room, high + room))
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)

    return drawn(folder, "search", (8, 3.2), draw)


def draw_funnel(folder: Path | None, rows: Mapping[str, Passage]) -> str:
    """Of what entered each gate or rung, how much left it."""

    def draw(figure) -> None:
        axes = figure.subplots()
        names, places = list(rows), range(len(rows))
        axes.barh(places, [rows[n].entered for n in names], color=PALE, label="entered")
        axes.barh(places, [rows[n].left for n in names], color=BLUE, label="left", height=0.55)
        for place, name in enumerate(names):
            axes.text(rows[name].entered, place, f" {rows[name].entered} → {rows[name].left}", va="center", fontsize=9)
        axes.set(
            yticks=places, yticklabels=names, xlabel="candidates", xlim=(0, 1.2 * max([r.entered for r in rows.values()] + [1]))
        )
        axes.invert_yaxis()
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)

    return drawn(folder, "funnel", (8, 0.36 * len(rows) + 1.2), draw)


def draw_front(folder: Path | None, trained: Iterable[tuple[float, float]], unit: str, sizes: Sequence[Size]) -> str:
    """Fitness against size in some unit: all that was trained, and the best of every size that no smaller one beats."""

    def draw(figure) -> None:
        axes = figure.subplots()
        points = list(trained)
        axes.scatter([size for size, _ in points], [value for _, value in points], s=14, color=GREY, label="candidate")
        axes.step([s.size for s in sizes], [s.fitness for s in sizes], where="post", color=RED, marker="o", ms=4, label="front")
        picked = [s for s in sizes if s.picked]
        rings = {"s": 110, "facecolors": "none", "edgecolors": INK, "zorder": 3}
        if picked:
            axes.scatter([s.size for s in picked], [s.fitness for s in picked], **rings, label="worth its size")
        axes.set(xlabel=unit, ylabel="validation fitness")
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)

    return drawn(folder, "front", (8, 3.2), draw)


def draw_operators(folder: Path | None, evidence: Sequence[Evidence]) -> str:
    """Mean rank of the candidates that hold a transform, distance, weight mode or position, the best on top; size: how many do."""
    kinds = [
        kind for kind in ("transforms", "distances", "modes", "positions") if any(e.kind == kind and e.count for e in evidence)
    ]
    rows = {kind: sorted((e for e in evidence if e.kind == kind and e.count), key=lambda e: e.rank) for kind in kinds}
    inches = [0.24 * len(rows[kind]) + 0.35 for kind in kinds]

    def draw(figure) -> None:
        panels = figure.subplots(len(kinds), 1, squeeze=False, sharex=True, height_ratios=inches)[:, 0] if kinds else []
        for axes, kind in zip(panels, kinds, strict=True):
            found = rows[kind]
            axes.axvline(0.5, color=PALE, zorder=0)
            axes.hlines(range(len(found)), 0.5, [e.rank for e in found], color=GREY, lw=1)
            axes.scatter([e.rank for e in found], range(len(found)), s=[14 + 2 * e.count for e in found], color=BLUE, zorder=2)
            for place, e in enumerate(found):
                axes.text(1.04, place, f"{e.count} ({e.failures})", va="center", fontsize=8.5, clip_on=False)
            axes.set(xlim=(0, 1), ylim=(-0.6, len(found) - 0.4), yticks=range(len(found)), yticklabels=[e.name for e in found])
            axes.set_title(kind, loc="left", fontsize=10)
        if kinds:
            panels[-1].set_xlabel("mean rank among candidates of the same generation and origin, 1 is best")

    return drawn(folder, "operators", (8, sum(inches) + 0.5), draw)
