"""Leaf tuning: the structure of a tree comes from genetic programming, its numbers from a few steps of CMA-ES.

Numbers are tuned as logarithms, all at once: a factor of two is as far up as it is down, for a weight of 0.01 as for one of 100.

The strategy is DEAP's (1+λ)-CMA-ES (Igel, Hansen, Roth, Evolutionary Computation 15(1), 2007). On quadratics of 1–6 numbers with 6–20
evaluations, with noise and without, it left 0.11 of the distance in fitness (λ = 2; 0.10 with λ = 1, 0.12 with λ = 4), its active sister
as much, (μ/μ, λ)-CMA-ES 0.14–0.15, one-number hill climbing 0.13 and draws around the start 0.25: a mean over so few points forgets the
best one, the parent does not. DEAP's `generate` draws from numpy's global generator; here the draws come from the caller's stream.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import final

from deap import cma

from evokd.genome.codec import LIMITS, to_names, write_number
from evokd.genome.grammar import Node, Rule, Tree
from evokd.genome.individual import Fitness

SPREAD = 0.7  # σ of the first steps, in logarithms, as mutation takes them
SIZE = 2  # λ
TRIES = 20  # draws of a point before there is nothing new near the parent
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?"
_LEAF = re.compile(rf"(?:tau=)?(?:{_NUMBER}|[a-z]+\({_NUMBER}, {_NUMBER}\))")

Evaluate = Callable[[list[Tree]], Sequence[float | None]]


def numbers_of(tree: Sequence[Node]) -> list[int]:
    """Positions of weights and temperatures: `3`, `tau=4`, `ramp(0, 3)`, `tau=anneal(8, 1)`."""
    return [i for i, node in enumerate(tree) if node.ret.__name__ in LIMITS and _LEAF.fullmatch(node.name)]


def logs_of(tree: Sequence[Node]) -> list[float]:
    """ln |v| of every number of a tree in prefix order, of both ends of a schedule; a zero has none."""
    found = [float(text) for i in numbers_of(tree) for text in re.findall(_NUMBER, tree[i].name)]
    return [math.log(abs(value)) for value in found if value]


def with_numbers(tree: Sequence[Node], logs: Sequence[float]) -> Tree:
    """The tree with other numbers, within `LIMITS` and rounded to two digits; signs stay, and zeros.

    Args:
        tree: any tree.
        logs: as many as `logs_of` gives, in its order.

    Raises:
        ValueError: if there are more or fewer.
    """
    nodes, left = list(tree), [*map(float, logs)]
    if len(left) != len(logs_of(tree)):
        raise ValueError(f"{len(logs_of(tree))} numbers in the tree, {len(left)} given")
    awaited = iter(left)
    for i in numbers_of(tree):
        nodes[i] = _with_ends(nodes[i], awaited)
    return Tree(nodes)


def _with_ends(node: Node, logs: Iterator[float]) -> Node:
    ret = node.ret.__name__
    low, high = LIMITS[ret]

    def other(old: re.Match) -> str:
        value = float(old[0])
        if not value:
            return old[0]
        size = math.exp(min(max(next(logs), math.log(low)), math.log(high)))
        return write_number(float(f"{math.copysign(size, value):.2g}"))

    return Rule(re.sub(_NUMBER, other, node.name), ret).node()


@final
class Point(list):
    """A tree's logarithms as DEAP's strategy sees them, with the fitness that it was told; a failure is worse than any number."""

    def __init__(self, tree: Sequence[Node], fitness: float | None = None) -> None:
        super().__init__(logs_of(tree))
        self.tree, self.fitness = tree, Fitness()
        self.told(fitness)

    def told(self, fitness: float | None) -> None:
        sound = fitness is not None and math.isfinite(fitness)
        self.fitness.values = (fitness if sound else -math.inf,)

    @property
    def value(self) -> float | None:
        (value,) = self.fitness.values
        return value if math.isfinite(value) else None


def tune(
    tree: Tree, evaluate: Evaluate, trials: int, stream: Random, spread: float = SPREAD, *,
    start: float | None = None, size: int = SIZE,
) -> tuple[Tree, float | None, int]:  # fmt: skip
    """(the best tree seen, its fitness or None, trials spent). A tree without numbers comes back at once.

    No point is evaluated twice, and nothing worse than the start comes back. Where rounding leaves nothing new near the best, trials
    remain unspent.

    Args:
        tree: where the numbers start.
        evaluate: trees → fitness of each, greater is better, None for a failure. It is given up to λ trees at once.
        trials: the most trees that are evaluated.
        stream: all draws come from it.
        spread: σ of the first steps in logarithms: 0.7 doubles or halves a number.
        start: the tree's own fitness by the same evaluation; if None it is evaluated first, which is one trial.
        size: λ, trees of a generation. Few trials go further with a small one.
    """
    if trials < 1 or not logs_of(tree):
        return tree, start, 0
    best, used = Point(tree, start), 0
    if start is None:
        used += _tell([best], evaluate)
    strategy, seen = cma.StrategyOnePlusLambda(best, spread, lambda_=size), {_key(tree)}
    while used < trials and (points := _draw(strategy, min(size, trials - used), seen, stream)):
        used += _tell(points, evaluate)
        best = max([best, *points], key=lambda point: point.fitness)  # of equals the first
        strategy.update(points)
    return best.tree, best.value, used


def _tell(points: Sequence[Point], evaluate: Evaluate) -> int:
    """Evaluate points together; how many they were."""
    for point, fitness in zip(points, evaluate([point.tree for point in points]), strict=True):
        point.told(fitness)
    return len(points)


def _draw(strategy: cma.StrategyOnePlusLambda, count: int, seen: set[tuple[str, ...]], stream: Random) -> list[Point]:
    """Up to `count` points that are new once rounded; the strategy learns of them as they are evaluated."""
    points: list[Point] = []
    for _ in range(count * TRIES):
        step = strategy.sigma * strategy.A @ [stream.gauss(0, 1) for _ in range(strategy.dim)]
        point = Point(with_numbers(strategy.parent.tree, step + strategy.parent))
        if _key(point.tree) not in seen:
            seen.add(_key(point.tree))
            points.append(point)
        if len(points) == count:
            break
    return points


def _key(tree: Sequence[Node]) -> tuple[str, ...]:
    return tuple(to_names(tree))
