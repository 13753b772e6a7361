"""What may be evolved: a space's choice of operators as a grammar for the pair at hand, and how its numbers move."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from math import exp

from evokd.errors import EvokdError
from evokd.genome.codec import LIMITS
from evokd.genome.grammar import Grammar, Node, Rule
from evokd.losses import schedules
from evokd.losses.canonical import canonical
from evokd.losses.language import SIDES, node_named, rules, tau_name, write_loss
from evokd.losses.schedules import Number, Schedule


@dataclass(frozen=True)
class LossSpace:
    """What may be evolved: names of operators, grids of growth and limits, as a space file states them."""

    name: str
    transforms: tuple[str, ...]
    distances: tuple[str, ...]
    modes: tuple[str, ...]
    values: tuple[float, ...]
    taus: tuple[float, ...]
    positions: tuple[str, ...]
    max_terms: int
    max_transforms: int
    one_sided: tuple[str, ...] = ()
    schedules: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()

    @property
    def operators(self) -> set[str]:
        """Names of transforms and distances, with a side before those that may act on one."""
        return {*self.transforms, *self.distances} | {f"{side}.{name}" for side in SIDES for name in self.one_sided}


def loss_grammar(space: LossSpace, positions: Iterable[str]) -> Grammar:
    """The grammar of a space for a pair that shows the given positions.

    Raises:
        EvokdError: if no position of the space is shown.
    """
    shown = [p for p in positions if p in space.positions or p.partition("[")[0] in space.positions]
    if not shown:
        raise EvokdError(space.name, "a position that both networks show", "none", "they show " + ", ".join(positions))
    chosen = [r for name, r in rules().items() if ":" in name and name.partition(":")[0] in space.operators]
    chosen += [rules()[name] for name in (*shown, *space.modes, *space.modules, "term", "plain")]
    chosen += [rules()[f"loss{n}"] for n in range(1, space.max_terms + 1)]
    chosen += [Rule(schedules.write(v), "value") for v in _values(space)] + [Rule(tau_name(v), "tau") for v in _taus(space)]
    return Grammar(
        space.name,
        _reachable(chosen),
        "loss",
        space.max_transforms + 3,
        write=write_loss,
        canonical=canonical,
        vary_number=vary_number,
    )


def _values(space: LossSpace) -> list[Number]:
    """The grid, and two schedules of each sort at its middle; mutation moves them from there."""
    middle = space.values[len(space.values) // 2]
    rising = [Schedule(name, middle / 100 if name == "anneal" else 0.0, middle) for name in space.schedules]
    return [*space.values, *rising, *(Schedule(s.name, s.end, s.start) for s in rising)]


def _taus(space: LossSpace) -> list[Number]:
    low, high = min(space.taus), max(space.taus)
    moving = [Schedule(name, *pair) for name in space.schedules for pair in ((high, low), (low, high)) if low < high]
    return [*space.taus, *moving]


def _reachable(rules: list[Rule]) -> list[Rule]:
    """Rules whose arguments can all be completed with the positions at hand."""
    made: set[str] = set()
    while True:
        kept = [rule for rule in rules if made.issuperset(rule.args)]
        if made == {rule.ret for rule in kept}:
            return kept
        made = {rule.ret for rule in kept}


def vary_number(node: Node, stream: random.Random) -> Node | None:
    """A weight or temperature near another: a log-normal step (σ = 0.7), rounded to two digits; None for other nodes."""
    ret = node.ret.__name__
    if ret not in LIMITS:
        return None
    low, high = LIMITS[ret]

    def near(old: float) -> float:
        size = min(max(abs(old) * exp(stream.gauss(0, 0.7)), low), high) if old else 0.0
        return float(f"{size if old >= 0 else -size:.2g}")

    old = schedules.read(node.name.removeprefix("tau="))
    new = Schedule(old.name, near(old.start), near(old.end)) if isinstance(old, Schedule) else near(old)
    return node_named(("tau=" if ret == "tau" else "") + schedules.write(new)) if new != old else None
