"""Numbers that move with training: a weight or temperature as a function of progress t ∈ [0,1].

    ramp(0, 3)   cosine(1, 0)   anneal(8, 1)   step(1, 0)

Each goes from its first number at t = 0 to its second at t = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from evokd.errors import EvokdError
from evokd.genome.codec import read_number, write_number


def ramp(start: float, end: float, t: float) -> float:
    """start + (end − start) t, as CIFAR recipes warm up a distillation loss."""
    return start + (end - start) * t


def cosine(start: float, end: float, t: float) -> float:
    """start + (end − start) (1 − cos πt) / 2."""
    return start + (end - start) * (1 - math.cos(math.pi * t)) / 2


def anneal(start: float, end: float, t: float) -> float:
    """start^(1−t) · end^t, for numbers above 0: a temperature that cools by equal factors."""
    return start ** (1 - t) * end**t


def step(start: float, end: float, t: float) -> float:
    """start in the first half of training, end in the second: stage-wise distillation."""
    return start if t < 0.5 else end


SCHEDULES: dict[str, Callable[[float, float, float], float]] = {fn.__name__: fn for fn in (ramp, cosine, anneal, step)}

# the same in index notation: (SymPy, start, end, t) → expression
FORMULAS: dict[str, Callable] = {
    "ramp": lambda sp, a, b, t: a + (b - a) * t,
    "cosine": lambda sp, a, b, t: a + (b - a) * (1 - sp.cos(sp.pi * t)) / 2,
    "anneal": lambda sp, a, b, t: a ** (1 - t) * b**t,
    "step": lambda sp, a, b, t: sp.Piecewise((a, t < sp.Rational(1, 2)), (b, True)),
}


@dataclass(frozen=True)
class Schedule:
    """A number that goes from `start` to `end` while training goes from 0 to 1."""

    name: str
    start: float
    end: float

    def __str__(self) -> str:
        return f"{self.name}({write_number(self.start)}, {write_number(self.end)})"

    def at(self, t: float) -> float:
        return SCHEDULES[self.name](self.start, self.end, t)


Number = float | Schedule


def at(number: Number, t: float) -> float:
    """The number at progress t."""
    return number.at(t) if isinstance(number, Schedule) else number


def write(number: Number) -> str:
    """`3`, or `ramp(0, 3)`."""
    return str(number) if isinstance(number, Schedule) else write_number(number)


def read(text: str, where: str = "number") -> Number:
    """The inverse of `write`.

    Raises:
        EvokdError: anything else.
    """
    name, bracket, rest = text.partition("(")
    if name not in SCHEDULES or not bracket or not rest.endswith(")") or rest.count(", ") != 1:
        return read_number(text, where)
    return checked(Schedule(name, *(read_number(part, where) for part in rest[:-1].split(", "))), where)


def checked(schedule: Schedule, where: str) -> Schedule:
    """The schedule, if it is defined everywhere.

    Raises:
        EvokdError: an `anneal` that touches 0.
    """
    if schedule.name == "anneal" and min(schedule.start, schedule.end) <= 0:
        raise EvokdError(where, "anneal between numbers above 0", str(schedule))
    return schedule


def positive(number: Number) -> bool:
    """Whether it is above 0 throughout, as temperatures must be."""
    return min(number.start, number.end) > 0 if isinstance(number, Schedule) else number > 0
