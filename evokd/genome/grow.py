"""One walk, many choosers: `grow` asks `choose(options)` at every node and never meets a dead end.

Random start, subtree mutation, a learned policy and enumeration in tests are all choosers.
"""

import random
from collections.abc import Callable, Sequence

from deap import gp

from evokd.genome.grammar import Grammar, Node

Chooser = Callable[[Sequence[Node]], Node]


def grow(grammar: Grammar, ret: type, height: int, choose: Chooser) -> list[Node]:
    """A complete subtree of a kind, as a prefix list, no higher than `height`."""
    node = choose(grammar.options(ret, height))
    nodes = [node]
    for arg in node.args if node.arity else ():
        nodes += grow(grammar, arg, height - 1, choose)
    return nodes


def grow_tree(grammar: Grammar, choose: Chooser) -> gp.PrimitiveTree:
    return gp.PrimitiveTree(grow(grammar, grammar.root, grammar.height, choose))


def random_chooser(stream: random.Random, stop: float = 0.5) -> Chooser:
    """Uniform within terminals and within primitives; where both exist, a terminal with probability `stop`.

    Without that coin almost every chain of transforms would run to the height limit, as operators outnumber positions.
    """

    def choose(options: Sequence[Node]) -> Node:
        leaves = [n for n in options if n.arity == 0]
        inner = [n for n in options if n.arity > 0]
        if leaves and inner:
            return stream.choice(leaves if stream.random() < stop else inner)
        return stream.choice(leaves or inner)

    return choose
