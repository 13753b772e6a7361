"""Where a search stands: trainings, best individual and mean size, taken on as outcomes arrive."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from evokd.funnel import stopped
from evokd.genome.individual import Individual, Status, rank


class Standing:
    """Of individuals that are settled in their order: each is looked at once, however often one asks.

    Attributes:
        trained: full trainings, whatever came of them.
        sound: individuals with a fitness.
        best: the best of these by `rank`; None without any.

    Args:
        individuals: all that a search proposed, in order of their ids; the list may grow.
    """

    def __init__(self, individuals: Sequence[Individual]) -> None:
        self.individuals, self._seen, self._nodes = individuals, 0, 0
        self.trained, self.sound, self.best = 0, 0, None

    @property
    def size(self) -> float | None:
        """Mean number of nodes of the sound ones."""
        return self._nodes / self.sound if self.sound else None

    def caught_up(self) -> Standing:
        """The same, with what has been settled since: up to the first that is not."""
        while self._seen < len(self.individuals) and self.individuals[self._seen].outcome is not None:
            self._take(self.individuals[self._seen])
            self._seen += 1
        return self

    def _take(self, individual: Individual) -> None:
        self.trained += individual.outcome.status is not Status.REJECTED and not stopped(individual.outcome)
        if individual.ok:
            self.sound, self._nodes = self.sound + 1, self._nodes + len(individual)
            self.best = individual if self.best is None else min(self.best, individual, key=rank)

    def born(self, generation: int) -> Sequence[Individual]:
        """The individuals of one generation, which lie together."""
        first, end = (bisect_left(self.individuals, g, key=lambda i: i.generation) for g in (generation, generation + 1))
        return self.individuals[first:end]
