"""First-improvement local search with restarts: move at the first better neighbour, begin anew where none is better.

The control that every cleverer controller must beat: with a hundred evaluations of NAS-Bench-201 it comes before regularised evolution
(White et al., "Local Search is State of the Art for Neural Architecture Search Benchmarks", 2020).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import final

from evokd.genome.codec import to_names
from evokd.genome.grammar import Grammar
from evokd.genome.individual import Individual
from evokd.search.ageing import TRIES, mutate_once, usual_mutations
from evokd.search.fresh import DRAWN, Prior, grow_afresh

PATIENCE = 30  # neighbours tried where they cannot be listed; below the loop's own patience


def neighbours(tree: Sequence, grammar: Grammar) -> Iterator[list]:
    """Every tree that differs in one node, of the same kind and with the same arguments: all that the mutation `node` makes."""
    for at, old in enumerate(tree):
        for node in grammar.options(old.ret, grammar.height):
            if node.name != old.name and node.arity == old.arity and (not node.arity or node.args == old.args):
                yield [*tree[:at], node, *tree[at + 1 :]]


@final
class LocalSearch:
    """Neighbours of the current tree come in a random order, none twice; the first that is strictly better is the next current one.

    A generation of size 1 is the usual form. In a larger one all proposals know the same tree, and `tell` moves in order of
    submission. What the loop refuses, such as an isomorphic cell, costs nothing. A start says in its `op` which tree was given up for
    it (`restart(17)`), so that a resumed run knows. Failures are neighbours that are not better.

    Args:
        grammar: the language.
        prior: tree → a figure that is free, such as its parameters; a start is then the greatest of several random trees.
        starts: how many those are.
        patience: neighbours of a tree that are tried before it is given up. If None all, where the only mutation is `node`, and 30
            elsewhere.
        mutations: name → weight of the mutations that make a neighbour; `usual_mutations` if None.
    """

    def __init__(
        self,
        grammar: Grammar,
        prior: Prior | None = None,
        starts: int = DRAWN,
        patience: int | None = None,
        mutations: Mapping[str, float] | None = None,
    ) -> None:
        self.grammar, self.prior, self.starts = grammar, prior, starts
        self.mutations = mutations or usual_mutations(grammar)
        self.listed = set(self.mutations) == {"node"}
        self.patience = patience if patience is not None else math.inf if self.listed else PATIENCE
        self.current: Individual | None = None
        self.known: set[tuple[str, ...]] = set()  # all it was told
        self.tried = 0  # neighbours of the current tree
        self._asked: set[tuple[str, ...]] = set()  # of this generation, which a resumed run begins anew

    def ask(self, generation: int, stream: Random) -> Individual:
        proposal = self.neighbour(stream) or self.start(stream)
        self._asked.add(_key(proposal))
        return proposal

    def start(self, stream: Random) -> Individual:
        best = grow_afresh(self.grammar, stream, self.prior, self.starts)
        best.op = best.op if self.current is None else _restart(self.current)
        return best

    def neighbour(self, stream: Random) -> Individual | None:
        """A new one, None where there is none or patience is at its end."""
        if self.current is None or self.tried + len(self._asked) >= self.patience:
            return None
        if self.listed:
            new = [nodes for nodes in neighbours(self.current, self.grammar) if self.is_new(nodes)]
            return Individual(stream.choice(new), op="node", parents=(self.current.id,)) if new else None
        drawn = (mutate_once(self.current, self.grammar, self.mutations, stream) for _ in range(TRIES))
        return next((child for child in drawn if child.parents and self.is_new(child)), None)

    def is_new(self, tree: Sequence) -> bool:
        key = _key(tree)
        return key not in self.known and key not in self._asked

    def tell(self, individuals: Sequence[Individual]) -> None:
        self._asked = set()
        for individual in individuals:
            self.known.add(_key(individual))
            self.tried += self.current is not None and individual.parents == (self.current.id,)
            if individual.ok and self.moves_to(individual):
                self.current, self.tried = individual, 0

    def moves_to(self, individual: Individual) -> bool:
        """To whatever is better, and to a start for which the current tree was given up."""
        if self.current is None or individual.op.startswith(_restart(self.current)):
            return True
        return individual.fitness.values[0] > self.current.fitness.values[0]


def _restart(tree: Individual) -> str:
    return f"restart({tree.id})"


def _key(tree: Sequence) -> tuple[str, ...]:
    return tuple(to_names(tree))
