"""Rewards: what a policy is to raise. The fitness itself, or MnasNet's trade of accuracy against a cost (Tan et al., CVPR 2019)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from evokd.errors import EvokdError, unknown
from evokd.genome.individual import Outcome, Status

SOFT, HARD, ABSOLUTE = -0.07, -1.0, -0.1  # exponents of the ratio; weight of the distance, for accuracies in [0, 1]


def soft(accuracy: float, ratio: float) -> float:
    """ACC · (LAT/T)^−0.07: twice the latency must bring 5 % more accuracy, above the target and below it.

    Args:
        accuracy: not negative.
        ratio: LAT/T, positive.
    """
    return accuracy * ratio**SOFT


def hard(accuracy: float, ratio: float) -> float:
    """ACC · min((LAT/T)^−1, 1): nothing to gain below the target."""
    return accuracy * min(ratio**HARD, 1.0)


def absolute(accuracy: float, ratio: float) -> float:
    """ACC − 0.1 · |LAT/T − 1|, which holds to the target from both sides (TuNAS, Bender et al., CVPR 2020).

    Args:
        accuracy: in [0, 1], which the weight is meant for.
        ratio: LAT/T.
    """
    return accuracy + ABSOLUTE * abs(ratio - 1.0)


REWARDS: dict[str, Callable[[float, float], float]] = {"soft": soft, "hard": hard, "abs": absolute}


@dataclass(frozen=True)
class Reward:
    """Outcome → reward, greater is better; None where there is none: a failure, or a student without a finite cost, as a dead cell.

    Attributes:
        name: `fitness`, `soft`, `hard` or `abs`.
        cost: the metric of the outcome that LAT is, such as "latency_ms" or "macs".
        target: T, in the metric's unit.
        one: what an accuracy of 1 is: 100 where fitness is in percent.

    Raises:
        EvokdError: an unknown name, or a trade without a positive target.
    """

    name: str = "fitness"
    cost: str = "latency_ms"
    target: float | None = None
    one: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in ("fitness", *REWARDS):
            raise unknown("reward", "a reward", self.name, ("fitness", *REWARDS))
        if self.trades and not (self.target and 0 < self.target < math.inf):
            raise EvokdError(f"reward {self.name}", f"a positive target for {self.cost}", str(self.target))

    @property
    def trades(self) -> bool:
        return self.name != "fitness"

    def __call__(self, outcome: Outcome) -> float | None:
        if outcome.status is not Status.OK:
            return None
        if not self.trades:
            return outcome.fitness
        cost = outcome.metrics.get(self.cost, math.inf)
        if not 0 < cost < math.inf:
            return None
        return self.one * REWARDS[self.name](outcome.fitness / self.one, cost / self.target)
