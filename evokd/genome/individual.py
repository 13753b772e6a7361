"""An individual: a tree with its origin and its outcome. Failure is an outcome too, and one function orders them all."""

import hashlib
import math
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from deap import base, gp


class Status(StrEnum):
    """What became of a candidate. Only OK carries a fitness; no NaN is ever stored."""

    OK = "OK"
    REJECTED = "REJECTED"  # a gate said no before training; the reason names the gate
    DIVERGED = "DIVERGED"
    TIMED_OUT = "TIMED_OUT"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    CRASHED = "CRASHED"


class Fitness(base.Fitness):
    """One number, greater is better."""

    weights = (1.0,)


@dataclass(frozen=True)
class Outcome:
    """What an evaluation returns: plain data, safe to send between processes and to write as JSON."""

    status: Status
    fitness: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0


class Individual(gp.PrimitiveTree):
    """A DEAP tree that remembers where it came from."""

    def __init__(self, nodes: list, *, op: str = "random", parents: tuple[int, ...] = ()) -> None:
        super().__init__(nodes)
        self.fitness = Fitness()
        self.op, self.parents = op, parents
        self.id, self.generation = -1, -1
        self.outcome: Outcome | None = None

    def __deepcopy__(self, memo: dict) -> "Individual":
        """DEAP's operators clone before they vary: nodes are shared, the outcome does not travel."""
        clone = Individual(list(self), op=self.op, parents=self.parents)
        clone.id, clone.generation = self.id, self.generation
        return clone

    def settle(self, outcome: Outcome) -> None:
        """Take the outcome home; a fitness that is not a number is a failure, whoever reported it."""
        if outcome.status is Status.OK and not math.isfinite(outcome.fitness):
            outcome = replace(outcome, status=Status.DIVERGED, fitness=None, reason=f"fitness {outcome.fitness}")
        self.outcome = outcome
        if outcome.status is Status.OK:
            self.fitness.values = (outcome.fitness,)

    @property
    def ok(self) -> bool:
        return self.outcome is not None and self.outcome.status is Status.OK


def rank(individual: Individual) -> tuple[float, int, int]:
    """Sort key, best first: greater fitness, then the smaller tree, then the earlier one; failures come last.

    This is the one place that orders outcomes: DEAP's comparisons let NaN win tournaments, so failures never reach them.
    """
    value = individual.fitness.values[0] if individual.ok else float("-inf")
    return (-value, len(individual), individual.id)


def content_key(text: str) -> str:
    """Sixteen hexadecimal digits that stand for a canonical text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
