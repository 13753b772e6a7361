"""The family tree of a candidate as a picture that is not drawn yet: what stands where, in which words and colours."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles

import networkx as nx

from evokd.lineage import Edit, Member, changes, tuning
from evokd.report.layers import places, routed, via

CROWD = 16  # candidates in a column, above which they are drawn small, without their expressions
FEW = 5  # candidates in a column, up to which there is room for long expressions
LONG, SHORT = 5, 3  # lines of an expression
WIDE, SIZE = 1230, 10.5  # pixels that a picture should fit into, and of the letters of an expression
LETTER, PLAIN = 0.605, 5.6  # width of a letter in a monospaced font by its size; pixels of one in small print
HEAD, LANE = 46, 4  # pixels above the columns, and of a lane
SCALE = ((222, 235, 247), (107, 174, 214), (8, 69, 148))  # fitness from low to high


@dataclass(frozen=True)
class Card:
    """A candidate's place, in pixels from the top left corner.

    Attributes:
        member: whom it shows.
        box: left, top, width, height.
        lines: of its expression; none where it is drawn small.
        change: what made it, as far as it fits.
        colour: of its fitness; None of a failure.
        dark: whether letters on that colour have to be white.
        marks: ★ of the focus, ≈ of a copy, ≈2 of one that two were copies of.
    """

    member: Member
    box: tuple[float, float, float, float]
    lines: tuple[str, ...]
    change: str
    colour: str | None
    dark: bool
    marks: str


@dataclass(frozen=True)
class Link:
    """From parent to child: a start, then three points for each curve and one for each straight piece."""

    parent: int
    child: int
    first: bool
    start: tuple[float, float]
    pieces: tuple[tuple[tuple[float, float], ...], ...]


@dataclass(frozen=True)
class Picture:
    """What is to be drawn; columns are (left, width, title, note), and `lit` are the ids that stand out."""

    cards: list[Card]
    links: list[Link]
    columns: list[tuple[float, float, str, str]]
    width: float
    height: float
    focus: int | None
    small: bool
    lit: frozenset[int]


def family_graph(members: Mapping[int, Member]) -> nx.DiGraph:
    """Edges go from parent to child; `first` is whether the child is a change of this parent."""
    graph = nx.DiGraph()
    for member in members.values():
        graph.add_node(member.id)
        graph.add_edges_from((parent, member.id, {"first": place == 0}) for place, parent in enumerate(member.parents))
    return graph


def to_graphml(members: Mapping[int, Member], shown: Collection[int]) -> str:
    """Some candidates as a directed graph with expression, fitness, operator and change on every node, in GraphML."""
    graph = family_graph(members).subgraph(sorted(shown)).copy()
    for i in graph:
        member = members[i]
        fitness = {} if member.fitness is None else {"fitness": member.fitness}
        copy = {} if member.copy_of is None else {"copy_of": member.copy_of}
        change = "; ".join(map(str, changes(member, members)))
        about = {"expression": member.text, "generation": member.generation, "operator": member.op, "status": member.status}
        graph.nodes[i].update(about | fitness | copy | {"change": change})
    return "\n".join(nx.generate_graphml(graph)) + "\n"


def ancestry(focus: int, members: Mapping[int, Member]) -> set[int]:
    """A candidate and all it descends from."""
    return nx.ancestors(family_graph(members), focus) | {focus}


def arrange(
    members: Mapping[int, Member], shown: Collection[int], focus: int | None, merged: Mapping[int, tuple[int, int]]
) -> Picture:
    """Generations as columns, candidates near their relatives; long edges run in lanes between the cards.

    Args:
        members: all candidates.
        shown: ids of those to be drawn.
        focus: the one whose ancestors stand out; all do if None.
        merged: generation → (proposals, duplicates), for the heads of the columns.
    """
    graph = family_graph(members).subgraph(sorted(shown))
    generations = sorted({members[i].generation for i in shown})
    column = {i: generations.index(members[i].generation) for i in sorted(shown)}
    crowd = max(Counter(column.values()).values())
    small = crowd > CROWD
    width, gap = _widths(len(generations), small)
    words = {i: ((), "") if small else _words(members[i], members, width, LONG if crowd <= FEW else SHORT) for i in column}
    tall = {i: 15.0 if small else 30 + 13.5 * len(lines) + (17 if change else 4) for i, (lines, change) in words.items()}
    middle = places(*routed(graph, column), lambda node: tall.get(node, LANE), 4 if small else 16)
    left = [12 + at * (width + gap) for at in range(len(generations))]
    boxes = {i: (left[column[i]], HEAD + middle[i] - tall[i] / 2, width, tall[i]) for i in column}
    colours, copied = _colours(members, shown), Counter(m.copy_of for m in members.values())
    return Picture(
        cards=[Card(members[i], boxes[i], *words[i], *colours[i], _marks(members[i], focus, copied[i])) for i in column],
        links=[
            _link(p, c, d["first"], column, left, middle, width)
            for p, c, d in sorted(graph.edges(data=True), key=lambda e: e[:2])
        ],
        columns=[(x, width, *_head(g, merged.get(g), small)) for x, g in zip(left, generations, strict=True)],
        width=left[-1] + width + 12,
        height=max(HEAD + y + tall.get(node, LANE) / 2 for node, y in middle.items()) + 14,
        focus=focus,
        small=small,
        lit=frozenset(shown if focus is None else ancestry(focus, members)),
    )


def _widths(columns: int, small: bool) -> tuple[float, float]:
    """Of a card and of the gap between two columns: as wide as the picture may be, within what can be read."""
    each = WIDE / columns
    if small:
        return min(max(each * 0.5, 78.0), 110.0), min(max(each * 0.5, 26.0), 110.0)
    return min(max(each - 46, 190.0), 300.0), 46.0


def _words(member: Member, members: Mapping[int, Member], width: float, most: int) -> tuple[tuple[str, ...], str]:
    """The lines of an expression, and what was changed, both as they fit on a card."""
    found = [*changes(member, members), *tuning(member)]
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    change = brief(found[0], int((width - 22) / PLAIN) - len(more)) + more if found else ""
    return tuple(wrapped(member.text, int((width - 26) / (LETTER * SIZE)), most)), change


def brief(edit: Edit, width: int) -> str:
    """An edit that fits a width: the place goes first, then the middle of both sides."""
    if not (edit.before and edit.after):
        return cut(str(edit), width)
    change = f"{edit.before} → {edit.after}"
    if len(change) <= width - 8:
        return cut(str(edit), width)
    half = (width - 3) // 2
    before = cut(edit.before, max(half, width - 3 - len(edit.after)))
    return f"{before} → {cut(edit.after, width - 3 - len(before))}"


def _head(generation: int, merged: tuple[int, int] | None, small: bool) -> tuple[str, str]:
    """(title, note) of a column; the note tells how many proposals equalled an earlier candidate."""
    if small:
        return f"g{generation}", f"{merged[1]} merged" if merged and merged[1] else ""
    return f"generation {generation}", f"{merged[0]} proposed, {merged[1]} merged" if merged else ""


def _marks(member: Member, focus: int | None, copied: int) -> str:
    return ("★" if member.id == focus else "") + ("≈" if member.copy_of is not None else f"≈{copied}" if copied else "")


def _colours(members: Mapping[int, Member], shown: Iterable[int]) -> dict[int, tuple[str | None, bool]]:
    """id → (colour of its fitness, whether it is dark). The scale begins at the lowest tenth, as a few failures would use it all up."""
    known = {i: members[i].fitness for i in shown if members[i].fitness is not None}
    values = sorted(known.values())
    low = quantiles(values, n=10, method="inclusive")[0] if len(values) > 1 else min(values, default=0.0)
    span = max(values, default=0.0) - low or 1.0
    shares = {i: min(max((value - low) / span, 0.0), 1.0) for i, value in known.items()}
    return {i: (blend(shares[i]), shares[i] > 0.45) if i in shares else (None, False) for i in shown}


def blend(share: float) -> str:
    """The colour of a share of the scale, as #rrggbb."""
    at = min(int(share * 2), 1)
    part = share * 2 - at
    return "#" + "".join(f"{round(a + part * (b - a)):02x}" for a, b in zip(SCALE[at], SCALE[at + 1], strict=True))


def _link(
    parent: int, child: int, first: bool, column: Mapping, left: Sequence[float], middle: Mapping, width: float
) -> Link:  # fmt: skip
    """A curve through every gap between columns, straight along the lanes."""
    start = at = (left[column[parent]] + width, HEAD + middle[parent])
    pieces: list[tuple[tuple[float, float], ...]] = []
    for node in via(parent, child, column)[1:]:
        x, y = left[node[2] if isinstance(node, tuple) else column[node]], HEAD + middle[node]
        half = (at[0] + x) / 2
        pieces.append(((half, at[1]), (half, y), (x, y)))
        at = (x, y)
        if isinstance(node, tuple):
            at = (x + width, y)
            pieces.append((at,))
    return Link(parent, child, first, start, tuple(pieces))


def wrapped(text: str, width: int, most: int) -> list[str]:
    """At most so many lines of a text, broken behind brackets, commas and operators where that is possible, and … for the rest."""
    lines, line = [], ""
    for piece in re.findall(r"[^\s(*+,|]*[(*+,|]?\s*", text):
        for part in [piece[at : at + width] for at in range(0, len(piece), width)]:
            if len((line + part).rstrip()) > width:
                lines, line = [*lines, line.rstrip()], part
            else:
                line += part
        if len(lines) > most:
            break
    lines = [*lines, line.rstrip()] if line.strip() else lines
    return lines if len(lines) <= most else [*lines[: most - 1], lines[most - 1][: width - 1].rstrip() + "…"]


def cut(text: str, width: int) -> str:
    """A text no longer than a width, with … where something is missing."""
    return text if len(text) <= width else text[: max(width - 1, 0)].rstrip(" …") + "…"
