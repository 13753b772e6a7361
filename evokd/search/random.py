"""Random search: the control group of every comparison."""

from collections.abc import Sequence
from random import Random
from typing import final

from evokd.genome.grammar import Grammar
from evokd.genome.grow import grow_tree, random_chooser
from evokd.genome.individual import Individual


@final
class RandomSearch:
    """Every proposal is grown afresh."""

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar

    def ask(self, generation: int, stream: Random) -> Individual:
        return Individual(grow_tree(self.grammar, random_chooser(stream)), op="random")

    def tell(self, individuals: Sequence[Individual]) -> None:
        """Nothing to learn."""
