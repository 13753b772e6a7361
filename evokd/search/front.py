"""NSGA-II (Deb et al. 2002): not one best tree but the front of those that no other beats in fitness and costs at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from random import Random
from typing import final

from deap import base, tools

from evokd.errors import unknown
from evokd.genome.grammar import Grammar
from evokd.genome.individual import Individual, rank
from evokd.genome.variation import mate
from evokd.search.ageing import mutate_once, usual_mutations
from evokd.search.evolution import CROSSOVER, FRESH
from evokd.search.fresh import grow_afresh


@final
class Objectives(base.Fitness):
    """The fitness, greater is better, then costs, less is better."""

    def __init__(self, fitness: float, costs: Sequence[float]) -> None:
        self.weights = (1.0, *[-1.0] * len(costs))
        super().__init__((fitness, *costs))


@final
class Point:
    """An individual as DEAP's selection sees it, with several objectives in place of its one."""

    def __init__(self, individual: Individual, costs: Sequence[str]) -> None:
        metrics = individual.outcome.metrics
        self.individual = individual
        self.fitness = Objectives(individual.fitness.values[0], [metrics.get(name, math.inf) for name in costs])

    @property
    def finite(self) -> bool:
        return all(math.isfinite(value) for value in self.fitness.wvalues)


@final
class FrontEvolution:
    """Keeps μ of parents and children by non-domination, then by crowding distance; parents win binary tournaments by that order.

    Children are made as `evolution` makes them: a share grown afresh, a share by crossover, the rest by one mutation. A
    generation of size μ is the published form. Failures never enter, nor does what has no finite cost: a dead cell has no latency.

    Args:
        grammar: the language.
        size: μ.
        costs: metrics of the outcomes that are to be small, such as "parameters" and "macs".
        mutations: name → weight of the mutations drawn from; `usual_mutations` if None.
    """

    def __init__(self, grammar: Grammar, size: int, costs: Sequence[str], mutations: Mapping[str, float] | None = None) -> None:
        self.grammar, self.size, self.costs = grammar, size, tuple(costs)
        self.mutations = mutations or usual_mutations(grammar)
        self.population: list[Individual] = []  # first front first, within a front the loneliest first

    def ask(self, generation: int, stream: Random) -> Individual:
        if len(self.population) < 2 or stream.random() < FRESH:
            return grow_afresh(self.grammar, stream)
        if stream.random() >= CROSSOVER:
            return mutate_once(self.winner(stream), self.grammar, self.mutations, stream)
        parents = [self.winner(stream), self.winner(stream)]
        child, _ = mate(*parents, self.grammar, stream)
        return Individual(list(child), op="crossover", parents=tuple(dict.fromkeys(p.id for p in parents)))

    def winner(self, stream: Random) -> Individual:
        """Of two, the one that the population's order puts first (Deb's crowded comparison)."""
        return self.population[min(stream.randrange(len(self.population)) for _ in range(2))]

    def tell(self, individuals: Sequence[Individual]) -> None:
        """Raises EvokdError for a cost that none of the outcomes has."""
        sound = [i for i in (*self.population, *individuals) if i.ok]
        known = {name for i in sound for name in i.outcome.metrics}
        for name in self.costs if sound else ():
            if name not in known:
                raise unknown("costs", "a metric of the outcomes", name, known)
        told = [Point(i, self.costs) for i in sound]
        kept = tools.selNSGA2([point for point in told if point.finite], self.size)
        self.population = [point.individual for front in fronts(kept) for point in front]

    def front(self) -> list[Individual]:
        """The trees of the population that no other one dominates, the fittest first."""
        first = fronts([Point(individual, self.costs) for individual in self.population])[:1]
        return sorted((point.individual for front in first for point in front), key=rank)


def fronts(points: Sequence[Point]) -> list[list[Point]]:
    """Non-dominated fronts, each by falling crowding distance where selection has given one, then by age."""
    found = tools.sortNondominated(points, len(points)) if points else []
    return [sorted(front, key=lambda p: (-getattr(p.fitness, "crowding_dist", 0.0), p.individual.id)) for front in found]


def undominated(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of (value, cost) pairs that none beats in value, greater is better, and in cost, less is better; the dearest first."""
    kept: list[tuple[float, float]] = []
    for value, cost in sorted(set(points), key=lambda point: (point[1], -point[0])):
        if not kept or value > kept[-1][0]:
            kept.append((value, cost))
    return kept[::-1]


def hypervolume(points: Sequence[tuple[float, float]], corner: Sequence[float]) -> float:
    """Area that (value, cost) pairs dominate up to a corner of a least value and a greatest cost (Zitzler & Thiele 1998)."""
    import moocore

    return float(moocore.hypervolume(points, ref=corner, maximise=[True, False])) if points else 0.0
