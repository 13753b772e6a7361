"""Published methods alone and with an evolved term, as a picture (KD-Zero's figure): two bars a method, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evokd.report.losses import FOUND, LINE, OTHER, saved

Reach = tuple[float, float, float]


def draw_bases(folder: Path, methods: Mapping[str, tuple[Reach, Reach]]) -> None:
    """bases.svg and bases.png.

    Args:
        folder: where they go.
        methods: name → (mean, low, high) of the method alone and with its term, %.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(1.8 + 0.9 * len(methods), 3.8), layout="constrained")
    for side, (label, colour) in enumerate((("alone", OTHER), ("with its evolved term", FOUND))):
        rows = [both[side] for both in methods.values()]
        reach = [[mean - low for mean, low, _ in rows], [high - mean for mean, _, high in rows]]
        places = [place + 0.38 * (side - 0.5) for place in range(len(rows))]
        look = {"capsize": 2, "error_kw": {"linewidth": 1, "ecolor": LINE}}
        axes.bar(places, [mean for mean, _, _ in rows], 0.36, yerr=reach, color=colour, label=label, **look)
    lows = [value for both in methods.values() for _, value, _ in both if value == value]
    axes.set_ylim(bottom=max(0.0, min(lows, default=0.0) - 3))  # bars need not begin at 0: said in the label
    axes.set_xticks(range(len(methods)), list(methods), fontsize=8, rotation=30 if len(methods) > 5 else 0)
    axes.set_ylabel("test accuracy, % (axis does not begin at 0)", fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    saved(folder, "bases", figure)
