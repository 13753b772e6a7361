"""The loop without generations, for candidates whose trainings take unequal times: proposal k sees the results up to k − L, none later.

What a proposal sees depends on L alone, so that the search is the same with any number of workers, whichever finishes first, and after a
resume. No worker waits for others while L is large enough: as many as there are workers for equal times, more for unequal ones. A
controller is told one candidate after the other, as in generations of one. Every μ of them are journalled as a generation.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from evokd.funnel import merged
from evokd.genome.individual import Individual, Outcome, Status
from evokd.streams import stream

if TYPE_CHECKING:
    from evokd.run import Search


@dataclass
class Round:
    """Proposals up to one that is sound, which is the last; what they were counted as, and what the gates saw of them."""

    batch: list[Individual]
    counts: Counter = field(default_factory=Counter)
    ledger: dict = field(default_factory=dict)

    def join(self, other: Round) -> None:
        self.batch += other.batch
        self.counts += other.counts
        self.ledger = merged(self.ledger, other.ledger)


class Steady:
    """A search at work; what it had settled before is where it begins.

    Args:
        search: with its lag L.
    """

    def __init__(self, search: Search) -> None:
        self.search, self.size = search, search.budget.size
        self.rounds = rounds_of(search.individuals)
        self.first, self.generation = len(self.rounds), search.generation
        self.flying: deque[Round] = deque()  # proposed, not in the journal
        self.open, self.start = Round([]), time.perf_counter()  # the generation
        for told in self.rounds[: max(self.first - search.lag, 0)]:
            search.controller.tell(told)

    def run(self) -> list[Individual]:
        """All individuals, once the budget is spent or the space is."""
        search, outcomes = self.search, self.search.outcomes(self.proposals())
        while not self.late and (outcome := next(outcomes, None)):
            self.land(outcome)
        if self.late:
            self.drop()
        for rest in self.flying:  # what was refused until the space was exhausted
            self.take(rest)
        if self.open.batch:
            self.close()
        return search.individuals

    @property
    def late(self) -> bool:
        """Looked at between generations, where the clock moves."""
        return self.search.budget.spent(self.search)

    def drop(self) -> None:
        """What is in flight, for which there is no time."""
        if self.flying:
            del self.search.individuals[self.flying[0].batch[0].id :]
        self.flying.clear()

    def proposals(self) -> Iterator[Individual]:
        """Sound candidates, each proposed when it is asked for, after the controller was told what it may know."""
        search, patience = self.search, self.size
        for place in range(self.first, search.budget.total):
            if place >= search.lag:
                search.controller.tell(self.rounds[place - search.lag])
            draw = stream(search.seed, search.name, "proposal", place)
            batch, counts = search.ask(1, self.generation + (place - self.first) // self.size, draw, patience)
            self.flying.append(Round(batch, Counter(counts), search.ledger()))
            if not counts["sound"]:
                return
            self.rounds.append(batch)
            yield batch[-1]

    def land(self, outcome: Outcome) -> None:
        """The next in order is settled, and may end a generation."""
        landed = self.flying.popleft()
        landed.batch[-1].settle(outcome)
        self.search.notice(None)
        self.take(landed)
        if self.open.counts["sound"] == self.size:
            self.close()

    def take(self, landed: Round) -> None:
        for individual in landed.batch:
            self.search.record(individual)
        self.open.join(landed)

    def close(self) -> None:
        trained = [individual for individual in self.open.batch if individual.outcome.status is not Status.REJECTED]
        counts = {"proposed": 0, "new": 0, "sound": 0} | self.open.counts | {"finished": sum(i.ok for i in trained)}
        now = time.perf_counter()
        self.search.spend(trained)
        self.search.close(counts, len(trained), now - self.start, self.open.ledger)
        self.open, self.start = Round([]), now


def rounds_of(individuals: Sequence[Individual]) -> list[list[Individual]]:
    """Settled individuals as they were told: each that was trained, after what was refused before it."""
    rounds: list[list[Individual]] = [[]]
    for individual in individuals:
        rounds[-1].append(individual)
        if individual.outcome.status is not Status.REJECTED:
            rounds.append([])
    return rounds[:-1]
