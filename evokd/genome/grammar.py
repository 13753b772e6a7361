"""A grammar: production rules as a DEAP primitive set, with the least height at which each kind can be completed.

DEAP's own generators meet dead ends on typed sets (a kind whose every completion is deeper than the space left) and raise.
Here every choice is made among `options(kind, height)`, the nodes that can still be completed, so that growth cannot fail.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from deap import gp

from evokd.errors import EvokdError

Node = gp.Primitive | gp.Terminal
Tree = gp.PrimitiveTree


class Kind:
    """Marker for what a node stands for; DEAP compares kinds as classes, so each kind is one."""


_KINDS: dict[str, type] = {}


def kind(name: str) -> type:
    """The class that stands for a kind: one per name, so that nodes of different grammars compare equal."""
    return _KINDS.setdefault(name, type(name, (Kind,), {}))


@dataclass(frozen=True)
class Rule:
    """`ret ::= name(args…)`; without arguments a terminal."""

    name: str
    ret: str
    args: tuple[str, ...] = ()

    def node(self) -> Node:
        ret = kind(self.ret)
        if self.args:
            return gp.Primitive(self.name, [kind(a) for a in self.args], ret)
        return gp.Terminal(self.name, True, ret)


class Grammar:
    """The rules of one language, restricted to one space.

    Args:
        name: shown to users.
        rules: productions; names are unique.
        root: the kind of a whole tree.
        height: the greatest height of a tree (a single node has height 0).
        write: tree → text, for journals and reports.
        canonical: tree → tree; equal meaning (by known identities) gives equal trees.
        vary_number: (node, stream) → node, a constant near another one.

    Raises:
        EvokdError: if the root cannot be completed within `height`.
    """

    def __init__(
        self,
        name: str,
        rules: Iterable[Rule],
        root: str,
        height: int,
        *,
        write: Callable[[Tree], str],
        canonical: Callable[[Tree], Tree] = lambda tree: tree,
        vary_number: Callable | None = None,
    ) -> None:
        self.name, self.root, self.height = name, kind(root), height
        self.rules = tuple(sorted(rules, key=lambda rule: (rule.ret, rule.name)))
        self.write, self.canonical, self.vary_number = write, canonical, vary_number
        self._options: dict[tuple[type, int], tuple[Node, ...]] = {}
        if not self.options(self.root, height):
            raise EvokdError(
                name, f"a space in which a tree of height ≤ {height} exists", "none", "raise the limit or add operators"
            )

    @cached_property
    def pset(self) -> gp.PrimitiveSetTyped:
        """The same rules as DEAP knows them, for users' own DEAP operators."""
        pset = gp.PrimitiveSetTyped(self.name, [], self.root)
        for rule in self.rules:
            if rule.args:
                pset.addPrimitive(None, [kind(a) for a in rule.args], kind(rule.ret), name=rule.name)
            else:
                pset.addTerminal(rule.name, kind(rule.ret), name=rule.name)
        return pset

    @cached_property
    def nodes(self) -> dict[str, Node]:
        return {rule.name: rule.node() for rule in self.rules}

    @cached_property
    def least_height(self) -> dict[str, int]:
        """Kind → height of its shallowest completion, as a fixed point over the rules."""
        least: dict[str, int] = {}
        changed = True
        while changed:
            changed = False
            for rule in self.rules:
                if all(a in least for a in rule.args):
                    height = max((least[a] + 1 for a in rule.args), default=0)
                    if height < least.get(rule.ret, 1 << 30):
                        least[rule.ret], changed = height, True
        return least

    def options(self, ret: type, height: int) -> tuple[Node, ...]:
        """Nodes of a kind that can be completed within `height`, in a fixed order."""
        if (ret, height) not in self._options:
            self._options[ret, height] = tuple(
                self.nodes[rule.name]
                for rule in self.rules
                if rule.ret == ret.__name__
                and all(self.least_height.get(a, 1 << 30) <= height - 1 for a in rule.args)
                and height >= 0
            )
        return self._options[ret, height]

    def count(self, height: int | None = None) -> int:
        """Exact number of trees of the root kind up to a height, constants of the growth grid included."""
        table: dict[tuple[str, int], int] = {}

        def trees(ret: str, room: int) -> int:
            if room < 0:
                return 0
            if (ret, room) not in table:
                table[ret, room] = sum(_product(trees(a, room - 1) for a in r.args) for r in self.rules if r.ret == ret)
            return table[ret, room]

        return trees(self.root.__name__, self.height if height is None else height)


def _product(numbers: Iterable[int]) -> int:
    total = 1
    for number in numbers:
        total *= number
    return total


def subtree_heights(tree: Sequence[Node]) -> list[int]:
    """Height of the subtree that starts at each position of a prefix list."""
    heights: list[int] = [0] * len(tree)
    stack: list[int] = []
    for i in range(len(tree) - 1, -1, -1):
        below = [stack.pop() for _ in range(tree[i].arity)]
        heights[i] = max(below, default=-1) + 1
        stack.append(heights[i])
    return heights


def depths(tree: Sequence[Node]) -> list[int]:
    """Depth of each position of a prefix list; the root has depth 0."""
    found, stack = [], [0]
    for node in tree:
        depth = stack.pop()
        found.append(depth)
        stack.extend([depth + 1] * node.arity)
    return found
