"""Regularised evolution (Real et al., AAAI 2019, Algorithm 1): tournaments choose parents, and age alone decides who leaves."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from random import Random
from typing import final

from evokd.genome.grammar import Grammar
from evokd.genome.individual import Individual, rank
from evokd.genome.variation import MUTATIONS
from evokd.search.evolution import MUTATION_WEIGHTS
from evokd.search.fresh import grow_afresh

SIZE, TOURNAMENT = 100, 25  # P and S of the paper's large runs; with the hundred evaluations of NAS-Bench-201, 10 and 3
TRIES = 20  # draws of a mutation before a tree counts as one that cannot change


def usual_mutations(grammar: Grammar) -> Mapping[str, float]:
    """Another choice in one slot where all trees have one shape, as students do; elsewhere the weights of `evolution`."""
    shapes = {(rule.ret, rule.args) for rule in grammar.rules}
    return {"node": 1} if len(shapes) == len({ret for ret, _ in shapes}) else MUTATION_WEIGHTS


def mutate_once(parent: Individual, grammar: Grammar, mutations: Mapping[str, float], stream: Random) -> Individual:
    """A child by one mutation that changes something; grown afresh should none do so."""
    for _ in range(TRIES):
        name = stream.choices(list(mutations), list(mutations.values()))[0]
        (child,) = MUTATIONS[name](parent, grammar, stream)
        if child != parent:
            return Individual(list(child), op=name, parents=(parent.id,))
    return grow_afresh(grammar, stream)


@final
class AgeingEvolution:
    """The first P sound trees are random; every later one is a child of the best of S, and takes the place of the oldest.

    A generation of size 1 is the published form. In a larger one all proposals know the same population, and `tell` lets them in,
    and the oldest out, in order of submission; the random start is then rounded up to whole generations. Failures never enter.

    Args:
        grammar: the language.
        size: P.
        tournament: S, drawn with replacement.
        mutations: name → weight of the mutations drawn from; `usual_mutations` if None.
    """

    def __init__(
        self, grammar: Grammar, size: int = SIZE, tournament: int = TOURNAMENT, mutations: Mapping[str, float] | None = None
    ) -> None:
        self.grammar, self.tournament = grammar, tournament
        self.mutations = mutations or usual_mutations(grammar)
        self.population: deque[Individual] = deque(maxlen=size)  # oldest first

    def ask(self, generation: int, stream: Random) -> Individual:
        if len(self.population) < self.population.maxlen:
            return grow_afresh(self.grammar, stream)
        parent = min(stream.choices(self.population, k=self.tournament), key=rank)
        return mutate_once(parent, self.grammar, self.mutations, stream)

    def tell(self, individuals: Sequence[Individual]) -> None:
        """A full deque drops its oldest as it takes a new one."""
        self.population.extend(individual for individual in individuals if individual.ok)
