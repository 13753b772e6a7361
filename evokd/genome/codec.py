"""Trees as plain data and back, exactly. Names are looked up, never evaluated; there is no `eval` and no pickle here."""

import math
import re
from collections.abc import Callable, Sequence

from deap import gp

from evokd.errors import EvokdError
from evokd.genome.grammar import Node

LIMITS = {"value": (1e-3, 1e4), "tau": (0.1, 64.0)}  # sizes of weights and temperatures that variation and tuning keep to
MAX_NODES = 400  # far above any tree that grows here; a bound for hostile input
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)


def to_names(tree: Sequence[Node]) -> list[str]:
    """The tree as its node names in prefix order."""
    return [node.name for node in tree]


def from_names(names: Sequence[str], lookup: Callable[[str], Node | None], root: type, where: str = "tree") -> gp.PrimitiveTree:
    """The exact inverse of `to_names`, by a stack walk that checks every kind.

    Raises:
        EvokdError: unknown name, wrong kind, too many or too few nodes.
    """
    if len(names) > MAX_NODES:
        raise EvokdError(where, f"at most {MAX_NODES} nodes", f"{len(names)}")
    awaited, nodes = [root], []
    for name in names:
        node = lookup(name) if isinstance(name, str) else None
        if node is None:
            raise EvokdError(where, "the name of a known operator", repr(name)[:60])
        if not awaited or awaited[-1] is not node.ret:
            wanted = awaited[-1].__name__ if awaited else "the end of the tree"
            raise EvokdError(where, wanted, f"{node.name} ({node.ret.__name__})")
        awaited.pop()
        nodes.append(node)
        awaited.extend(reversed(node.args) if node.arity else ())
    if awaited:
        raise EvokdError(where, f"{awaited[-1].__name__} to complete the tree", "its end")
    return gp.PrimitiveTree(nodes)


def read_number(text: str, where: str = "number") -> float:
    """A finite float from decimal text.

    Raises:
        EvokdError: anything else, NaN and infinity included.
    """
    if len(text) > 40 or not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise EvokdError(where, "a finite number", repr(text)[:60])
    return float(text)


def write_number(value: float) -> str:
    """The shortest text that reads back as the same float: 3, 0.25, 1e-08."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))
