"""A comparison of losses as pictures and one self-contained page: differences with their intervals, and mean ranks (Demšar, JMLR 2006)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from evokd.checkpoint import write_whole

if TYPE_CHECKING:
    from evokd.compare.loss_tables import Compared
    from evokd.compare.standings import Ranks, Standing

_PAGE = Path(__file__).with_suffix(".html")
FOUND, OTHER, LINE = "#d1495b", "#30638e", "#1a1a2e"


def write_page(folder: Path, compared: Compared, verdict: Sequence[str]) -> Path:
    """losses.html with accuracy.svg, accuracy.png and, where there are ranks, ranks.svg and ranks.png."""
    found, placed = compared.by_search, compared.ranks
    pictures = {"accuracy": saved(folder, "accuracy", _accuracy(compared.standings, found))}
    if placed:
        pictures["ranks"] = saved(folder, "ranks", draw_ranks(placed, found))
    text = (
        jinja2.Environment(autoescape=True)
        .from_string(_PAGE.read_text(encoding="utf-8"))
        .render(
            name=folder.name,
            compared=compared,
            verdict=verdict,
            pictures=pictures,
            ranks=placed,
        )
    )
    write_whole(folder / "losses.html", text)
    return folder / "losses.html"


def saved(folder: Path, name: str, figure) -> str:
    """The figure as name.svg and name.png; its SVG without a prologue."""
    import matplotlib
    from matplotlib import pyplot as plt

    with matplotlib.rc_context({"svg.hashsalt": "evokd"}):
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    figure.savefig(folder / f"{name}.png", dpi=150)
    plt.close(figure)
    text = (folder / f"{name}.svg").read_text(encoding="utf-8")
    return text[text.index("<svg") :]


def _accuracy(pairs: Mapping[str, Sequence[Standing]], found: set[str]):
    """Mean test accuracy of every row with its 95 % interval, a panel a pair."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    rows = max(map(len, pairs.values()))
    figure, grid = plt.subplots(
        1, len(pairs), figsize=(1.5 + 5.2 * len(pairs), 0.8 + 0.3 * rows), layout="constrained", squeeze=False
    )
    for axes, (pair, standings) in zip(grid.flat, pairs.items(), strict=True):
        shown = [row for row in standings if row.seeds][::-1]
        for place, row in enumerate(shown):
            colour = FOUND if row.name in found else OTHER
            axes.errorbar(row.mean, place, xerr=row.half, fmt="o", color=colour, markersize=4, capsize=2, linewidth=1.2)
        axes.set_yticks(range(len(shown)), [row.name for row in shown], fontsize=8)
        axes.set_title(pair, fontsize=9)
        axes.set_xlabel("test accuracy, %", fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", linewidth=0.3)
    return figure


def draw_ranks(ranks: Ranks, found: set[str]):
    """The critical-difference picture: mean ranks on an axis, and a bar over every run that Nemenyi's test does not tell apart."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    names, count = list(ranks.mean), len(ranks.mean)
    left = (count + 1) // 2
    top = 1.6 + 0.45 * len(ranks.cliques)
    depth = top + 0.55 * left
    figure, axes = plt.subplots(figsize=(9, 0.9 + 0.42 * depth), layout="constrained")
    axes.set_xlim(1 - 0.75 * (count - 1), count + 0.75 * (count - 1))
    axes.set_ylim(depth + 0.3, -1.6)
    axes.axis("off")
    axes.hlines(0, 1, count, color=LINE, linewidth=1)
    for tick in range(1, count + 1):
        axes.vlines(tick, -0.15, 0.15, color=LINE, linewidth=1)
        axes.text(tick, -0.3, str(tick), ha="center", va="bottom", fontsize=8)
    axes.hlines(-1.2, 1, 1 + ranks.critical, color=LINE, linewidth=2)
    axes.text(1 + ranks.critical, -1.2, f"  critical difference {ranks.critical:.2f}", ha="left", va="center", fontsize=8)
    for place, name in enumerate(names):
        _label(axes, ranks.mean[name], name, place, left, count, top, FOUND if name in found else LINE)
    for place, clique in enumerate(ranks.cliques):
        ends = ranks.mean[clique[0]], ranks.mean[clique[-1]]
        axes.hlines(0.6 + 0.45 * place, ends[0] - 0.05, ends[1] + 0.05, color=OTHER, linewidth=3)
    return figure


def _label(axes, rank: float, name: str, place: int, left: int, count: int, top: float, colour: str) -> None:
    """Better half to the left, the best on top; the other to the right, the worst on top: no two lines cross."""
    first = place < left
    height = top + 0.55 * (place if first else count - 1 - place)
    edge = 1 - 0.1 * (count - 1) if first else count + 0.1 * (count - 1)
    axes.plot([rank, rank, edge], [0, height, height], color=colour, linewidth=0.8)
    axes.text(
        edge,
        height,
        f"{name} ({rank:.1f}) " if first else f" ({rank:.1f}) {name}",
        ha="right" if first else "left",
        va="center",
        fontsize=8,
        color=colour,
    )
