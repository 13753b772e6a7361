"""Trees grown afresh: at random, or of several the greatest by a prior, a figure that is free, such as a student's parameters."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from evokd.genome.grammar import Grammar
from evokd.genome.grow import grow_tree, random_chooser
from evokd.genome.individual import Individual

DRAWN = 200  # random trees that a prior chooses one from

Prior = Callable[[Individual], float]


def grow_afresh(grammar: Grammar, stream: Random, prior: Prior | None = None, drawn: int = DRAWN) -> Individual:
    """A random tree; with a prior the greatest of so many."""
    if prior is None:
        return Individual(grow_tree(grammar, random_chooser(stream)), op="random")
    best = max((grow_afresh(grammar, stream) for _ in range(drawn)), key=prior)
    best.op = "prior"
    return best
