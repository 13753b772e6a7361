"""Islands: several controllers that search side by side and send their best on, each to the next in a ring.

The loop tells a controller of individuals, not of its own proposals, and a resumed run tells without ever having asked. So the
island travels with the proposal, as the end of its `op` (`crossover@2`): it comes home with the individual, is journalled with it,
and nothing has to be remembered between `ask` and `tell`.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nsmallest
from random import Random
from typing import final

from evokd.errors import EvokdError
from evokd.genome.individual import Individual, rank
from evokd.search.controller import Controller

MARK = "@"  # between what made a proposal and the island that did
EVERY, MIGRANTS = 2, 1


@final
class Islands:
    """A controller made of controllers, with migration in a ring (Tanese 1989).

    The proposals of a generation come from the islands in turn, whatever the loop refuses of them: an island that has run dry
    leaves its share to the others. An island is told of its own individuals and of those that arrive, of none twice.

    Args:
        controllers: one an island; they may be of different kinds, and must not share state.
        every: generations between two migrations.
        migrants: how many of the best that an island knows are told to the next one; 0 keeps the islands apart.

    Raises:
        EvokdError: no controller, or a number that is too small.
    """

    def __init__(self, controllers: Sequence[Controller], every: int = EVERY, migrants: int = MIGRANTS) -> None:
        for what, number, least in (("islands", len(controllers), 1), ("every", every, 1), ("migrants", migrants, 0)):
            if number < least:
                raise EvokdError(f"islands, {what}", f"at least {least}", str(number))
        self.controllers, self.every, self.migrants = list(controllers), every, migrants
        self.known: list[list[Individual]] = [[] for _ in controllers]  # of each island, in the order it was told
        self.told = 0  # generations
        self._turn = 0  # of this generation, which a resumed run begins anew

    def ask(self, generation: int, stream: Random) -> Individual:
        island = self._turn % len(self.controllers)
        self._turn += 1
        proposal = self.controllers[island].ask(generation, stream)
        return Individual(list(proposal), op=f"{proposal.op}{MARK}{island}", parents=proposal.parents)

    def home(self, individual: Individual) -> int:
        """The island that proposed it; one from elsewhere, such as a start that a user tells, is dealt out by its id."""
        _, mark, island = individual.op.rpartition(MARK)
        return int(island) if mark else individual.id % len(self.controllers)

    def tell(self, individuals: Sequence[Individual]) -> None:
        """Each island is told once a generation: its own in the order of proposal, then those that arrive."""
        self._turn, self.told = 0, self.told + 1
        news: list[list[Individual]] = [[] for _ in self.controllers]
        for individual in individuals:
            news[self.home(individual)].append(individual)
            self.known[self.home(individual)].append(individual)
        arrivals = self.arrivals() if self.told % self.every == 0 else [[] for _ in news]
        for controller, known, own, guests in zip(self.controllers, self.known, news, arrivals, strict=True):
            controller.tell([*own, *guests])
            known.extend(guests)

    def arrivals(self) -> list[list[Individual]]:
        """For each island, the best that the one before it knows, but for those it knows itself; all leave at one time."""
        best = [nsmallest(self.migrants, (i for i in known if i.ok), key=rank) for known in self.known]
        ids = [{i.id for i in known} for known in self.known]
        return [[i for i in best[island - 1] if i.id not in ids[island]] for island in range(len(best))]
