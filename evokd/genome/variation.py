"""Typed crossover and mutations that never fail and never exceed the height limit.

DEAP's `cxOnePoint` iterates a set of types, so it does not repeat under a seed, and `mutInsert` and `mutNodeReplacement` index
lists that may be empty; `staticLimit` hands the parent back and has it evaluated again. These operators choose only among moves
that exist, in a fixed order. All follow DEAP's convention: trees in, a tuple of trees out.
"""

import random
from collections.abc import Callable, Sequence

from evokd.genome.grammar import Grammar, Node, Tree, depths, subtree_heights
from evokd.genome.grow import grow, random_chooser


def splice(tree: Tree, at: int, nodes: Sequence[Node]) -> Tree:
    """A copy of the tree with the subtree at a position replaced."""
    cut = tree.searchSubtree(at)
    return type(tree)([*tree[: cut.start], *nodes, *tree[cut.stop :]])


def mate(first: Tree, second: Tree, grammar: Grammar, stream: random.Random) -> tuple[Tree, Tree]:
    """Swap two subtrees of one kind (Koza's crossover, typed); both children stay within the height limit."""
    swaps = list(_swaps(first, second, grammar.height))
    if not swaps:
        return splice(first, 0, first), splice(second, 0, second)
    by_kind: dict[str, list[tuple[int, int]]] = {}
    for i, j in swaps:
        by_kind.setdefault(first[i].ret.__name__, []).append((i, j))
    i, j = stream.choice(by_kind[stream.choice(sorted(by_kind))])
    mine, theirs = first[first.searchSubtree(i)], second[second.searchSubtree(j)]
    return splice(first, i, theirs), splice(second, j, mine)


def _swaps(first: Tree, second: Tree, limit: int):
    """All pairs of positions whose subtrees may be swapped and differ."""
    depth1, depth2 = depths(first), depths(second)
    height1, height2 = subtree_heights(first), subtree_heights(second)
    for i in range(1, len(first)):
        for j in range(1, len(second)):
            fits = depth1[i] + height2[j] <= limit and depth2[j] + height1[i] <= limit
            if first[i].ret is second[j].ret and fits and first[first.searchSubtree(i)] != second[second.searchSubtree(j)]:
                yield i, j


def mutate_subtree(tree: Tree, grammar: Grammar, stream: random.Random) -> tuple[Tree]:
    """Grow a fresh subtree at a random position."""
    at = stream.randrange(len(tree))
    room = grammar.height - depths(tree)[at]
    return (splice(tree, at, grow(grammar, tree[at].ret, room, random_chooser(stream))),)


def mutate_node(tree: Tree, grammar: Grammar, stream: random.Random) -> tuple[Tree]:
    """Replace one node by another of the same signature: another distance, position, weight mode or transform."""

    def others(node: Node) -> list[Node]:
        same = [n for n in grammar.options(node.ret, grammar.height) if n.arity == node.arity and n.name != node.name]
        return [n for n in same if not node.arity or n.args == node.args]

    places = [(i, found) for i, node in enumerate(tree) if (found := others(node))]
    if not places:
        return mutate_subtree(tree, grammar, stream)
    at, found = stream.choice(places)
    nodes = list(tree)
    nodes[at] = stream.choice(found)
    return (type(tree)(nodes),)


def mutate_insert(tree: Tree, grammar: Grammar, stream: random.Random) -> tuple[Tree]:
    """Put a new node above a subtree, or widen a node by one more argument; what is missing is grown."""
    places = [*_above(tree, grammar), *_wider(tree, grammar)]
    if not places:
        return mutate_node(tree, grammar, stream)
    at, node, kept = stream.choice(places)
    room = grammar.height - depths(tree)[at]
    nodes = [node]
    for slot, arg in enumerate(node.args):
        nodes += kept.get(slot) or grow(grammar, arg, room - 1, random_chooser(stream))
    return (splice(tree, at, nodes),)


def _above(tree: Tree, grammar: Grammar):
    """(position, new node, {slot: subtree that it keeps}) for every node that fits above an existing subtree."""
    depth, height = depths(tree), subtree_heights(tree)
    for at, below in enumerate(tree):
        room = grammar.height - depth[at]
        for node in grammar.options(below.ret, room) if height[at] < room else ():
            slot = next((i for i, arg in enumerate(node.args) if arg is below.ret), None) if node.arity else None
            if slot is not None:
                yield at, node, {slot: tree[tree.searchSubtree(at)]}


def _wider(tree: Tree, grammar: Grammar):
    """The same for nodes whose arguments are those of an existing node and one more."""
    for at, (old, depth) in enumerate(zip(tree, depths(tree), strict=True)):
        for node in grammar.options(old.ret, grammar.height - depth) if old.arity else ():
            if node.arity == old.arity + 1 and node.args[:-1] == old.args:
                yield at, node, dict(enumerate(children(tree, at)))


def mutate_shrink(tree: Tree, grammar: Grammar, stream: random.Random) -> tuple[Tree]:
    """Replace a subtree by a descendant of its kind, or narrow a node by one argument."""
    places = [*_descendants(tree), *_narrower(tree, grammar)]
    if not places:
        return mutate_node(tree, grammar, stream)
    at, nodes = stream.choice(places)
    return (splice(tree, at, nodes),)


def _descendants(tree: Tree):
    for at, node in enumerate(tree):
        span = tree.searchSubtree(at)
        for inner in range(span.start + 1, span.stop):
            if tree[inner].ret is node.ret:
                yield at, tree[tree.searchSubtree(inner)]


def _narrower(tree: Tree, grammar: Grammar):
    for at, old in enumerate(tree):
        below = children(tree, at)
        for node in grammar.options(old.ret, grammar.height) if old.arity > 1 else ():
            for drop in range(old.arity) if node.arity == old.arity - 1 else ():
                kept = [i for i in range(old.arity) if i != drop]
                if [old.args[i] for i in kept] == list(node.args):
                    yield at, [node, *(n for i in kept for n in below[i])]


def children(tree: Tree, at: int) -> list[list[Node]]:
    """The argument subtrees of a node."""
    found, start = [], at + 1
    for _ in range(tree[at].arity):
        span = tree.searchSubtree(start)
        found.append(tree[span])
        start = span.stop
    return found


def mutate_constant(tree: Tree, grammar: Grammar, stream: random.Random) -> tuple[Tree]:
    """Move one number to a near value; the language says what near means."""
    places = [(i, new) for i, node in enumerate(tree) if grammar.vary_number and (new := grammar.vary_number(node, stream))]
    if not places:
        return mutate_node(tree, grammar, stream)
    at, new = stream.choice(places)
    return (splice(tree, at, [new]),)


MUTATIONS: dict[str, Callable[[Tree, Grammar, random.Random], tuple[Tree]]] = {
    "subtree": mutate_subtree,
    "node": mutate_node,
    "insert": mutate_insert,
    "shrink": mutate_shrink,
    "constant": mutate_constant,
}
