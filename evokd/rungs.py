"""Rungs: short, annealed trainings between the gates and the full one, after each of which the better part of a generation goes on.

Synchronous successive halving (Jamieson & Talwalkar, AISTATS 2016). A rung's schedule is annealed within its own steps: a long one that
is cut off ranks good losses at chance. What a rung trained in full length is a repeat of the full training, and is not trained again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import tee

from evokd.config import Rung
from evokd.funnel import Funnel, part_of
from evokd.genome.individual import Individual, Outcome, Status

Training = tuple[Individual, tuple[int, int], float]  # candidate, seeds from…to, share of the steps


@dataclass
class Halving:
    """The rungs of a search and its full training; `screen` and `evaluate` are what `Search` takes.

    Args:
        rungs: in their order; none is plain full training.
        repeats: seeds of the full training.
        train: trainings → outcomes in their order.
        funnel: whose ledger tells what the rungs did.
        tune: (individual, its fitness, rung) → figures, after its numbers were tuned in place at the first rung.
        say: told of the progress.
        brackets: the rungs of one generation after the other, in place of `rungs`; the last rung has the same number in all.
    """

    rungs: Sequence[Rung]
    repeats: int
    train: Callable[[Iterable[Training]], Iterator[Outcome]]
    funnel: Funnel
    tune: Callable[[Individual, float, Rung], dict] | None = None
    say: Callable[[str], None] = lambda line: None
    brackets: Sequence[Sequence[Rung]] = ()
    _done: dict[int, Outcome] = field(default_factory=dict)
    _figures: dict[int, dict] = field(default_factory=dict)
    _spent: float = 0.0

    @property
    def share(self) -> float:
        """Of the candidates, that is trained in full."""
        return math.prod(rung.keep for rung in self.rungs)

    def counted(self, jobs: Sequence[Training]) -> Iterator[Outcome]:
        """Trainings before the full one, whose price is kept."""
        self._spent += sum((last - first) * steps for _, (first, last), steps in jobs)
        return self.train(jobs)

    def settle_up(self) -> float:
        """Full trainings with one seed that rungs and tuning have cost since the last call."""
        spent, self._spent = self._spent, 0.0
        return spent

    def due(self, individual: Individual) -> int:
        """Seeds with which a candidate is still to be trained in full."""
        _, (first, last), _ = self.full(individual)
        return last - first

    def screen(self, batch: Sequence[Individual]) -> None:
        """Rung by rung; those that do not go on are settled with their place, failures with their own outcome."""
        self._done.clear()
        self._figures = {individual.id: {} for individual in batch}
        rungs = self.brackets[batch[0].generation % len(self.brackets)] if batch and self.brackets else self.rungs
        for number, rung in enumerate(rungs, 1 + max(len(self.rungs) - len(rungs), 0)):
            with self.funnel.passing(f"rung {number}", len(batch)) as passage:
                batch = self.climb(batch, number, rung)
                passage.left += len(batch)

    def climb(self, batch: Sequence[Individual], number: int, rung: Rung) -> list[Individual]:
        """The better part of a batch after one rung, in the order of proposal."""
        sound: list[tuple[float, Individual]] = []
        jobs = [(individual, (0, rung.seeds), rung.steps) for individual in batch]
        for done, (individual, outcome) in enumerate(zip(batch, self.counted(jobs), strict=True), 1):
            self.say(f"rung {number}: {done}/{len(batch)}")
            if outcome.fitness is None:
                figures = outcome.metrics | self._figures[individual.id]
                individual.settle(replace(outcome, metrics=figures, reason=f"rung {number}: {outcome.reason}"))
            else:
                sound.append((outcome.fitness, individual))
                self.note(individual, number, rung, outcome)
        order = sorted(sound, key=lambda pair: (-pair[0], pair[1].id))
        kept = order[: part_of(len(batch), rung.keep)]
        for place, (fitness, individual) in list(enumerate(order, 1))[len(kept) :]:
            reason = f"rung {number}: place {place} of {len(batch)} with {fitness:.4g}"
            individual.settle(Outcome(Status.REJECTED, metrics=self._figures[individual.id], reason=reason))
        if self.tune and number == 1:
            for fitness, individual in sorted(kept, key=lambda pair: pair[1].id):
                self.retune(individual, fitness, rung)
        return sorted((individual for _, individual in kept), key=lambda individual: individual.id)

    def retune(self, individual: Individual, fitness: float, rung: Rung) -> None:
        figures = self.tune(individual, fitness, rung)
        self._figures[individual.id] |= figures
        if figures:
            self._done.pop(individual.id, None)  # what it was trained with are no longer its numbers

    def note(self, individual: Individual, number: int, rung: Rung, outcome: Outcome) -> None:
        self._figures[individual.id][f"rung_{number}"] = outcome.fitness
        if rung.steps == 1:
            self._done[individual.id] = outcome

    def evaluate(self, batch: Iterable[Individual]) -> Iterator[Outcome]:
        """The full training, with the seeds that no rung has trained in full length."""
        batch, again = tee(batch)
        for individual, outcome in zip(batch, self.train(map(self.full, again)), strict=True):
            done = self._done.get(individual.id)
            whole = together(done, outcome) if done else outcome
            figures = self._figures.get(individual.id, {})
            yield replace(whole, metrics=whole.metrics | figures)

    def full(self, individual: Individual) -> Training:
        """What is left of the full training of a candidate."""
        done = self._done.get(individual.id)
        return individual, (len(done.metrics["fitness_by_seed"]) if done else 0, self.repeats), 1.0


def together(first: Outcome, second: Outcome) -> Outcome:
    """One outcome of two trainings of a candidate with different seeds; a failure of the second is the whole's."""
    if second.fitness is None:
        return second
    values = [*first.metrics["fitness_by_seed"], *second.metrics["fitness_by_seed"]]
    part = len(first.metrics["fitness_by_seed"]) / len(values)
    means = {
        name: part * value + (1 - part) * second.metrics[name]
        for name, value in first.metrics.items()
        if isinstance(value, float) and name in second.metrics
    }
    metrics = means | {"fitness_by_seed": values, "curve": first.metrics["curve"]}
    fitness = part * first.fitness + (1 - part) * second.fitness
    return Outcome(Status.OK, fitness, metrics, seconds=first.seconds + second.seconds)


def price(rungs: Sequence[Rung], repeats: int, trials: int = 0) -> float:
    """Full trainings that one candidate of a funnel costs on average, `trials` tunings at the first rung included."""
    cost, going, spared = 0.0, 1.0, 0
    for number, rung in enumerate(rungs):
        cost += going * rung.steps * rung.seeds / repeats
        going *= rung.keep
        if number == 0:
            cost += going * trials * rung.steps * rung.seeds / repeats
        if rung.steps == 1:
            spared = rung.seeds
    return cost + going * (repeats - spared) / repeats
