"""DisWOT's evolution search (Dong, Li & Wei, CVPR 2023, Algorithm 1), for any fitness.

The line numbers are those of the algorithm. Its constraints C (line 9) are met before it is told: by `Within`, which mends a
child, or by the loop's gate, which refuses it.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping, Sequence
from random import Random
from typing import final

from evokd.genome.grammar import Grammar
from evokd.genome.individual import Individual, rank
from evokd.search.ageing import mutate_once, usual_mutations
from evokd.search.fresh import grow_afresh

# Our choice, as the algorithm comes without numbers; made on NAS-Bench-201 with a hundred evaluations.
SIZE, RATIO, TOPK = 20, 0.5, 2


@final
class DiswotEvolution:
    """The first P sound trees are random; every later one is a child of one of the best k of a sample, and the worst leaves.

    As printed, line 15 removes the smallest score after an infeasible child too, which would in time empty the population; here a
    tree leaves only when another has come. A generation of size 1 is the published form. In a larger one all proposals know the
    same population, and `tell` lets them in, and the worst out, in order of submission; the random start is then rounded up to
    whole generations. Failures never enter. In a loop that admits no tree twice, the search ends when all mutants of the best are
    known.

    Args:
        grammar: the language.
        size: of the population P.
        ratio: r in (0, 1], the share of the population that is sampled, without replacement; at least one tree.
        topk: k, the best of the sample among which the parent is drawn.
        mutations: name → weight of the mutations drawn from; `usual_mutations` if None.
    """

    def __init__(
        self,
        grammar: Grammar,
        size: int = SIZE,
        ratio: float = RATIO,
        topk: int = TOPK,
        mutations: Mapping[str, float] | None = None,
    ) -> None:
        self.grammar, self.size, self.topk = grammar, size, topk
        self.sampled = max(1, round(ratio * size))
        self.mutations = mutations or usual_mutations(grammar)
        self.population: list[Individual] = []  # best first

    def ask(self, generation: int, stream: Random) -> Individual:
        if len(self.population) < self.size:
            return grow_afresh(self.grammar, stream)  # line 1
        pool = stream.sample(self.population, self.sampled)  # line 5
        candidates = sorted(pool, key=rank)[: self.topk]  # line 6
        parent = stream.choice(candidates)  # line 7
        return mutate_once(parent, self.grammar, self.mutations, stream)  # line 8

    def tell(self, individuals: Sequence[Individual]) -> None:
        for individual in individuals:
            if individual.ok:
                insort(self.population, individual, key=rank)  # line 13
                del self.population[self.size :]  # line 15
