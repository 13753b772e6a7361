"""What each node more buys: the best loss of every size that no smaller one beats, and the one worth its size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import log

from evokd.genome.individual import Individual, rank

FLOOR = 0.1  # points of error; one image of a thousand, below which a logarithm would tell of chance alone


@dataclass(frozen=True)
class Size:
    """One row of the table.

    Attributes:
        size: nodes of the tree.
        fitness: of the best of this size, greater is better.
        text: as written.
        gain: what each node bought over the row before; 0 in the first.
        picked: whether this is the one worth its size.
    """

    size: int
    fitness: float
    text: str
    gain: float = 0.0
    picked: bool = False


def best_per_size(
    individuals: Iterable[Individual], write: Callable[[Individual], str], accuracy: bool = True, error: float = 0.0
) -> list[Size]:
    """The strictly improving front from small to large, with the `score` of PySR (Cranmer 2023) and its automatic pick.

    The gain is −Δ log(error) / Δ size for an accuracy in %, whose error is 100 − fitness and at least `FLOOR`. Another fitness has no
    zero to take a logarithm from: its gain is Δ fitness / Δ size, in its own unit.

    Args:
        individuals: all of a search; failures are passed over.
        write: individual → text.
        accuracy: whether the fitness is an accuracy in %.
        error: standard error of the best fitness, in the fitness' unit.
    """
    rows: list[Size] = []
    for i in sorted((i for i in individuals if i.ok), key=lambda i: (len(i), rank(i))):
        if not rows or i.outcome.fitness > rows[-1].fitness:
            gain = _gain(rows[-1], len(i), i.outcome.fitness, accuracy) if rows else 0.0
            rows.append(Size(len(i), i.outcome.fitness, write(i), gain))
    chosen = pick(rows, error)
    return [replace(row, picked=row is chosen) for row in rows]


def _gain(before: Size, size: int, fitness: float, accuracy: bool) -> float:
    if accuracy:
        return log(max(100 - before.fitness, FLOOR) / max(100 - fitness, FLOOR)) / (size - before.size)
    return (fitness - before.fitness) / (size - before.size)


def pick(rows: Sequence[Size], error: float = 0.0) -> Size | None:
    """The row of greatest gain, the smaller of two alike, among those within one standard error of the best; None of none.

    PySR's `best` asks the same of what has at most 1.5 times the least loss; a standard error needs no such number. With an error
    of 0 this is the best.
    """
    top = max((row.fitness for row in rows), default=0.0)
    return max((row for row in rows if row.fitness >= top - error), key=lambda row: row.gain, default=None)


def told(rows: Sequence[Size]) -> list[str]:
    """Lines for a terminal, the picked row marked."""
    lines = [f"   {'size':>4}  {'fitness':>8}  {'gain':>7}  the best of its size that no smaller one beats"] if rows else []
    for place, row in enumerate(rows):
        gain = f"{row.gain:7.3f}" if place else f"{'–':>7}"
        lines.append(f" {'→' if row.picked else ' '} {row.size:>4}  {row.fitness:8.2f}  {gain}  {row.text}")
    return lines
