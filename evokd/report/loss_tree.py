"""A loss as the picture of its tree: sum, weights, distances, transforms down to the positions that are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from evokd.losses import schedules
from evokd.losses.language import NO, POSITIONS, Call, Term, parse_loss, to_terms
from evokd.report.figures import BLUE, GREY, INK, RED, drawn

FILLS = {"sum": "#eef0f4", "weight": "#fdebd3", "distance": "#f9dfe3", "transform": "#dfeaf5", "position": "#dff3e4"}
EDGES = {"sum": GREY, "weight": "#c07a1a", "distance": RED, "transform": BLUE, "position": "#1d6b3a"}


class Node(NamedTuple):
    """A node of the picture: what it says, what sort it is, and what is below."""

    label: str
    sort: str
    below: tuple[Node, ...]


class Place(NamedTuple):
    """Where a node stands: column (leaves are 1 apart) and level, with the place of the node above."""

    node: Node
    x: float
    y: int
    above: tuple[float, int] | None


def picture(text: str) -> Node:
    """The tree of a loss; a sum of one term is that term.

    Raises:
        EvokdError: a text that is no loss.
    """
    terms = [_term(term) for term in to_terms(parse_loss(text))]
    return terms[0] if len(terms) == 1 else Node("+", "sum", tuple(terms))


def _term(term: Term) -> Node:
    mode = "" if term.mode == NO else f"\n{term.mode}"
    return Node(f"× {schedules.write(term.weight)}{mode}", "weight", (_value(term.distance, "distance"),))


def _value(call: Call, sort: str) -> Node:
    if not call.args:
        return Node(call.name, "position" if call.name in POSITIONS else "distance", ())
    shown = str(Call(call.name, (Call("·"),), call.params, call.side))
    label = shown.replace("(·)", "").replace("(·, ", "\n").removesuffix(")") if call.params else shown.removesuffix("(·)")
    return Node(label, sort, tuple(_value(arg, "transform") for arg in call.args))


def places(root: Node) -> list[Place]:
    """A node stands over the middle of what is below it; leaves side by side, in the order of the text."""
    return list(_placed(root, 0, [0.0], None))[::-1]


def _placed(node: Node, level: int, next_leaf: list[float], above: None) -> Iterator[Place]:
    below = [list(_placed(child, level + 1, next_leaf, None)) for child in node.below]
    if below:
        x = (below[0][-1].x + below[-1][-1].x) / 2
    else:
        x, next_leaf[0] = next_leaf[0], next_leaf[0] + 1
    for rows in below:
        yield from rows[:-1]
        yield rows[-1]._replace(above=(x, level))
    yield Place(node, x, level, above)


def draw_tree(folder: Path | None, text: str) -> str:
    """The picture as inline SVG, and in the run's `figures/`."""
    standing = places(picture(text))
    wide, deep = 1 + max(p.x for p in standing), 1 + max(p.y for p in standing)
    size = (max(1.75 * wide, 3.2), 0.72 * deep + 0.2)
    return drawn(folder, "tree", size, lambda figure: _draw(figure, standing, wide, deep))


def _draw(figure, standing: Sequence[Place], wide: float, deep: int) -> None:
    axes = figure.subplots()
    axes.set(xlim=(-0.6, wide - 0.4), ylim=(deep - 0.5, -0.5))
    axes.axis("off")
    for node, x, y, above in standing:
        if above:
            axes.plot([above[0], x], [above[1], y], color=GREY, lw=1.2, zorder=1)
        box = {"boxstyle": "round,pad=0.4", "fc": FILLS[node.sort], "ec": EDGES[node.sort]}
        axes.text(x, y, node.label, ha="center", va="center", fontsize=9.5, color=INK, bbox=box, zorder=2, family="monospace")
