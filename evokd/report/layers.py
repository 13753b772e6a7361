"""A layered drawing (Sugiyama, Tagawa, Toda 1981): columns are given; places in a column follow from neighbours, with few crossings.

A node whose children are several columns away gets one lane, which all its long edges share until they leave it.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import networkx as nx

SWEEPS = 8  # there and back; crossings rarely fall afterwards
Node = Hashable


def routed(graph: nx.DiGraph, column: Mapping[Node, int]) -> tuple[nx.DiGraph, dict[Node, int]]:
    """The graph with every edge cut to one column's step, and the columns of its nodes; a lane is `("lane", node, column)`."""
    cut, columns = nx.DiGraph(), dict(column)
    cut.add_nodes_from(graph)
    for parent, child in graph.edges:
        path = via(parent, child, column)
        columns |= {lane: lane[2] for lane in path[1:-1]}
        nx.add_path(cut, path)
    return cut, columns


def via(parent: Node, child: Node, column: Mapping[Node, int]) -> list[Node]:
    """The nodes that an edge passes, both ends included."""
    return [parent, *(("lane", parent, at) for at in range(column[parent] + 1, column[child])), child]


def places(graph: nx.DiGraph, column: Mapping[Node, int], height: Callable[[Node], float], gap: float) -> dict[Node, float]:
    """Middle of every node down its column, the first edge of all at 0.

    Args:
        graph: each edge from one column to the next, as `routed` gives it.
        column: of every node.
        height: of a node, in the unit of the result.
        gap: least distance of two nodes in a column.
    """
    order = ordered(graph, column)
    middle = {node: y for nodes in order for node, y in zip(nodes, packed([0.0] * len(nodes), nodes, height, gap), strict=True)}
    for sweep in range(SWEEPS):
        for nodes in order if sweep % 2 == 0 else reversed(order):
            wanted = [_mean([middle[n] for n in _beside(graph, node, sweep)], middle[node]) for node in nodes]
            middle |= dict(zip(nodes, packed(wanted, nodes, height, gap), strict=True))
    top = min((y - height(node) / 2 for node, y in middle.items()), default=0.0)
    return {node: y - top for node, y in middle.items()}


def _beside(graph: nx.DiGraph, node: Node, sweep: int) -> list[Node]:
    """Parents on the way there, children on the way back, and both in the end."""
    before, after = list(graph.predecessors(node)), list(graph.successors(node))
    return before + after if sweep >= SWEEPS - 2 else before if sweep % 2 == 0 else after


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def ordered(graph: nx.DiGraph, column: Mapping[Node, int]) -> list[list[Node]]:
    """Nodes by column in the order of least crossings that sweeps by barycentre came to."""
    order: list[list[Node]] = [[] for _ in range(max(column.values(), default=-1) + 1)]
    for node in graph:
        order[column[node]].append(node)
    best, fewest = [list(nodes) for nodes in order], crossings(graph, order)
    for sweep in range(SWEEPS):
        _sweep(graph, order, there=sweep % 2 == 0)
        if (count := crossings(graph, order)) < fewest:
            best, fewest = [list(nodes) for nodes in order], count
    return best


def _sweep(graph: nx.DiGraph, order: list[list[Node]], there: bool) -> None:
    """Sort each column by the mean place of its neighbours in the column before it, as one goes; those without any stay put."""
    spot = {node: place / len(nodes) for nodes in order for place, node in enumerate(nodes)}
    for nodes in order if there else reversed(order):
        beside = graph.predecessors if there else graph.successors
        nodes.sort(key=lambda node: _mean([spot[n] for n in beside(node)], spot[node]))
        spot |= {node: place / len(nodes) for place, node in enumerate(nodes)}


def crossings(graph: nx.DiGraph, order: Iterable[Sequence[Node]]) -> int:
    """Pairs of edges between neighbouring columns that cross."""
    place = {node: at for nodes in order for at, node in enumerate(nodes)}
    ends = defaultdict(list)
    for at, nodes in enumerate(order):
        ends[at] = sorted((place[node], place[child]) for node in nodes for child in graph.successors(node))
    count = 0
    for edges in ends.values():
        passed: list[int] = []
        for _, end in edges:
            count += len(passed) - bisect_right(passed, end)
            insort(passed, end)
    return count


def packed(wanted: Sequence[float], nodes: Sequence[Node], height: Callable[[Node], float], gap: float) -> list[float]:
    """Middles in the given order that keep the gap and are nearest to what is wanted, by least squares (pool adjacent violators)."""
    offsets, at = [], 0.0
    for i, node in enumerate(nodes):
        at += (height(nodes[i - 1]) + height(node)) / 2 + gap if i else 0.0
        offsets.append(at)
    pools: list[list[float]] = []  # (sum, count) of what must lie together
    for wish, offset in zip(wanted, offsets, strict=True):
        pools.append([wish - offset, 1])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
            total, count = pools.pop()
            pools[-1][0] += total
            pools[-1][1] += count
    levels = [total / count for total, count in pools for _ in range(int(count))]
    return [level + offset for level, offset in zip(levels, offsets, strict=True)]
