"""The loop: ask, gate, evaluate, tell, journal. One screen, the same for every controller and evaluator; by generations, or steady."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import tee
from random import Random
from typing import TYPE_CHECKING

from evokd.funnel import part_of
from evokd.genome.grammar import Grammar
from evokd.genome.individual import Individual, Outcome, Status, content_key
from evokd.journal import Journal
from evokd.rungs import Halving, Rung, Training
from evokd.search.controller import Controller
from evokd.search.leaves import tune
from evokd.standing import Standing
from evokd.steady import Steady
from evokd.streams import derive, stream

if TYPE_CHECKING:
    from evokd.config import Config, Protocol
    from evokd.problem import Problem

PATIENCE = 40  # proposals a wanted candidate before a generation is closed short: the space is exhausted


@dataclass(frozen=True)
class Budget:
    """Whichever comes first. `seconds` and `epochs` are looked at between generations, so that none is torn.

    `share` is the part of a generation that its screen lets through. An epoch is as many images as the transfer set has.
    """

    generations: int
    size: int
    evaluations: int | None = None
    seconds: float | None = None
    share: float = 1.0
    epochs: float | None = None

    @classmethod
    def of(cls, config: Config, share: float) -> Budget:
        """What a configuration sets. A search has one device, on which an hour of the clock is an hour of the device."""
        clocks = [config.budget_seconds, 3600 * config.budget_gpu_hours if config.budget_gpu_hours else None]
        seconds = min((clock for clock in clocks if clock), default=None)
        return cls(config.generations, config.population, config.budget_evals, seconds, share, config.budget_epochs)

    def spent(self, search: Search) -> bool:
        """Whether a search has used up its seconds or its epochs."""
        used = (search.clock, self.seconds), (search.epochs, self.epochs)
        return any(limit is not None and value >= limit for value, limit in used)

    @property
    def total(self) -> int:
        return min(self.generations * self.through(self.size), self.evaluations or 1 << 30)

    def through(self, count: int) -> int:
        """How many of so many candidates the screen lets through."""
        return part_of(count, self.share)

    def wanted(self, trained: int) -> int:
        """Candidates of the next generation."""
        return min(self.size, int(round((self.total - trained) / self.share, 9)))


@dataclass
class Search:
    """One controller at work; `individuals` holds all it ever proposed that was new.

    Args:
        name: of the arm, which names its random streams.
        grammar: the language.
        controller: proposes and is told.
        gate: tree → reason to refuse, or "".
        evaluate: individuals → outcomes in their order.
        budget: when to stop.
        seed: root of the streams.
        journal: where events go; set before the search runs.
        recorded: key → outcome, from the torn generation of a run that is resumed.
        trim: tree → the same without what teaches nothing; asked of every proposal that is new.
        text: individual → the loss or student that is trained, for tables; the written form if None.
        identity: text that is the same for candidates of one meaning; the written form if None.
        screen: looks at a generation's sound candidates together and settles those that shall not be evaluated.
        ledger: what gates and screen did since it was last called, as plain data.
        price: epochs that the screen has cost since it was last called, and that the full training of a batch costs.
        notice: called with a summary after each generation, and with None after each candidate.
        history: the summaries of all generations.
        lag: L of the steady state; 0 is generation by generation.
    """

    name: str
    grammar: Grammar
    controller: Controller
    gate: Callable[[list], str]
    evaluate: Callable[[Iterable[Individual]], Iterator[Outcome]]
    budget: Budget
    seed: int
    journal: Journal | None = None
    recorded: dict[str, Outcome] = field(default_factory=dict)
    screen: Callable[[Sequence[Individual]], None] = lambda batch: None
    ledger: Callable[[], dict] = dict
    price: Callable[[Sequence[Individual]], float] = lambda batch: 0.0
    trim: Callable[[Sequence], list] = list
    text: Callable[[Individual], str] | None = None
    identity: Callable[[Individual], str] | None = None
    notice: Callable[[dict | None], None] = lambda summary: None
    individuals: list[Individual] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    history: list[dict] = field(default_factory=list)
    generation: int = 0
    clock: float = 0.0
    lag: int = 0
    epochs: float = 0.0

    def __post_init__(self) -> None:
        self.text = self.text or self.grammar.write

    @property
    def trained(self) -> int:
        """Full trainings, whatever came of them."""
        return self.standing.caught_up().trained

    @cached_property
    def standing(self) -> Standing:
        """What has come of the individuals so far."""
        return Standing(self.individuals)

    def run(self) -> list[Individual]:
        """All individuals, once the budget is spent or the space is."""
        if self.lag:
            return Steady(self).run()
        while self.generation < self.budget.generations and not self.budget.spent(self):
            wanted = self.budget.wanted(self.trained)
            if wanted <= 0 or not self.step(wanted):
                break
        return self.individuals

    def step(self, wanted: int) -> int:
        """One generation; the number of candidates that were new and sound."""
        start = time.perf_counter()
        batch, counts = self.propose(wanted)
        self.screen([individual for individual in batch if individual.outcome is None])
        trained = [individual for individual in batch if individual.outcome is None]
        self.spend(trained)
        outcomes = self.outcomes(trained)
        for individual in batch:
            if individual.outcome is None:
                individual.settle(next(outcomes))
                self.notice(None)
            self.record(individual)
        self.controller.tell(batch)
        counts["finished"] = sum(i.ok for i in trained)
        self.close(counts, len(trained), time.perf_counter() - start, self.ledger())
        return counts["sound"]

    def propose(self, wanted: int) -> tuple[list[Individual], dict[str, int]]:
        """A generation's new candidates, as many of them sound as are wanted, unless the space is exhausted."""
        return self.ask(wanted, self.generation, stream(self.seed, self.name, "generation", self.generation), wanted)

    def ask(self, wanted: int, generation: int, draw: Random, patience: int) -> tuple[list[Individual], dict[str, int]]:
        """Ask until enough new candidates have passed the gate; duplicates are decided here, in the driver."""
        counts = {"proposed": 0, "new": 0, "sound": 0}
        batch: list[Individual] = []
        while counts["sound"] < wanted and counts["proposed"] < PATIENCE * patience:
            counts["proposed"] += 1
            individual = self.admit(self.controller.ask(generation, draw), generation)
            if individual is None:
                continue
            counts["new"] += 1
            reason = self.gate(individual)
            counts["sound"] += not reason
            if reason:
                individual.settle(Outcome(Status.REJECTED, reason=reason))
            batch.append(individual)
        return batch, counts

    def admit(self, proposal: Individual, generation: int) -> Individual | None:
        """The proposal in canonical form with an id, or None if its key was seen before."""
        individual = self.canonical(proposal)
        if self.key(individual) in self.seen:
            return None
        individual = self.canonical(individual, self.trim(individual))
        if self.key(individual) in self.seen:
            return None
        self.seen.add(self.key(individual))
        individual.id, individual.generation = len(self.individuals), generation
        self.individuals.append(individual)
        return individual

    def canonical(self, proposal: Individual, tree: Sequence | None = None) -> Individual:
        """A proposal with its tree, or with another, in canonical form."""
        return Individual(list(self.grammar.canonical(tree or proposal)), op=proposal.op, parents=proposal.parents)

    def outcomes(self, batch: Iterable[Individual]) -> Iterator[Outcome]:
        """Recorded outcomes where a resumed run has them, fresh ones otherwise, in order."""
        batch, again = tee(batch)
        fresh = self.evaluate(individual for individual in again if self.key(individual) not in self.recorded)
        for individual in batch:
            known = self.recorded.get(self.key(individual))
            yield known if known is not None else next(fresh)

    def spend(self, trained: Sequence[Individual]) -> None:
        """Count the epochs of the screen and of full trainings."""
        self.epochs = round(self.epochs + self.price(trained), 6)

    def key(self, individual: Individual) -> str:
        return content_key((self.identity or self.grammar.write)(individual))

    def record(self, individual: Individual) -> None:
        self.journal.individual(individual, self.key(individual), self.grammar.write(individual))

    def close(self, counts: dict[str, int], trained: int, seconds: float, ledger: dict) -> None:
        """Write the generation's summary and move on."""
        seconds = max(round(seconds, 3), 0.001)  # as the journal has it, so that a resumed run's clock says the same
        self.clock += seconds
        summary = summarise(self.standing.caught_up(), self.generation) | counts
        summary["cache_hits"] = counts["proposed"] - counts["new"]
        summary |= {"trained": trained, "evaluations": self.trained, "epochs": self.epochs, "funnel": ledger, "seconds": seconds}
        best = summary["best_id"]
        summary["best_text"] = "" if best is None else self.text(self.individuals[best])
        self.history.append(summary)
        self.journal.write("generation", arm=self.name, **summary)
        self.journal.sync()
        self.generation += 1
        self.notice(summary)


def summarise(standing: Standing, generation: int) -> dict:
    """Figures of one generation: best so far, and best, median and mean of what was new."""
    born, best = standing.born(generation), standing.best
    values = [i.fitness.values[0] for i in born if i.ok]
    failed = [i for i in born if not i.ok]
    return {
        "generation": generation,
        "best": best.fitness.values[0] if best else None,
        "best_id": best.id if best else None,
        "generation_best": max(values, default=None),
        "median": statistics.median(values) if values else None,
        "mean": statistics.fmean(values) if values else None,
        "spread": statistics.pstdev(values) if values else None,
        "size": standing.size,
        "rejected": sum(i.outcome.status is Status.REJECTED for i in failed),
        "failed": sum(i.outcome.status is not Status.REJECTED for i in failed),
    }


def replay(
    search: Search,
    events: Sequence[dict],
    tree_of: Callable[[Sequence[str]], list],
    outcome_of: Callable[[dict], Outcome],
) -> list[dict]:
    """Bring a fresh search to the end of the last whole generation of a journal.

    Returns:
        the events that were kept; outcomes of the torn generation are remembered in `search.recorded`.

    Raises:
        ValueError, KeyError or TypeError: what is no journal of this search.
    """
    last = max((i for i, e in enumerate(events) if e["event"] == "generation"), default=-1)
    for event in events[: last + 1]:
        if event["event"] == "individual":
            individual = Individual(list(tree_of(event["tree"])), op=event["op"], parents=tuple(event["parents"]))
            individual.id, individual.generation = event["id"], event["generation"]
            individual.settle(outcome_of(event))
            if individual.id != len(search.individuals) or not all(parent in range(individual.id) for parent in event["parents"]):
                raise ValueError(f"individual {individual.id} out of turn")
            search.individuals.append(individual)
            search.seen.add(event["key"])
            search.seen.update(content_key(text) for text in [event["metrics"].get("tuned_from")] if text)
        elif event["event"] == "generation":
            if not search.lag:  # a steady search tells what it has settled when it goes on
                search.controller.tell(list(search.standing.born(event["generation"])))
            search.generation, search.clock = event["generation"] + 1, search.clock + event["seconds"]
            search.epochs = event.get("epochs", 0.0)
            search.history.append(event)
    for event in events[last + 1 :]:
        if event["event"] == "individual" and event["status"] != Status.REJECTED:
            search.recorded[event["key"]] = outcome_of(event)
    return list(events[: last + 1])


def arm(problem: Problem, name: str, controller: Controller, budget: Budget, seed: int) -> Search:
    """A search on a problem: whatever the controller, the same grammar, funnel, evaluator and paired seeds."""
    config, funnel = problem.config, problem.funnel()
    seeds = evaluation_seeds(seed, "search", config.protocol.repeats)

    def train(jobs: Iterable[Training]) -> Iterator[Outcome]:
        wanted = (problem.job(i, seeds[first:last], steps) for i, (first, last), steps in jobs)
        return iter(problem.executor.map(wanted, config.lag or None))

    halving = Halving(config.rungs, len(seeds), train, funnel, brackets=config.brackets)

    def evaluate(batch: Iterable[Individual]) -> Iterator[Outcome]:
        batch, again = tee(batch)
        for individual, outcome in zip(batch, halving.evaluate(again), strict=True):
            yield replace(outcome, metrics=outcome.metrics | {"size": float(len(individual))})

    search = Search(name, problem.grammar, controller, funnel, evaluate, budget, seed, lag=config.lag)
    search.screen, search.ledger, search.trim, search.text = halving.screen, funnel.close, problem.trim, problem.text
    search.price = priced(halving, config.protocol, problem.card["images"])
    if config.funnel.tune:
        halving.tune = tuner(search, halving.counted, config.funnel.tune)
    return search


def priced(halving: Halving, protocol: Protocol, images: int) -> Callable[[Sequence[Individual]], float]:
    """What tells the epochs of rungs and full trainings: steps × batch / images each. Counted, not timed, whatever came of a training."""
    each = protocol.steps * min(protocol.batch, images) / images
    return lambda batch: each * (halving.settle_up() + sum(map(halving.due, batch)))


def tuner(search: Search, train: Callable, trials: int) -> Callable[[Individual, float, Rung], dict]:
    """What tunes a candidate's numbers at a rung, in place, and tells what it was before; numbers seen before are left alone."""

    def tune_numbers(individual: Individual, fitness: float, rung: Rung) -> dict:
        def evaluate(trees: Sequence[list]) -> list[float | None]:
            return [o.fitness for o in train([(Individual(tree), (0, rung.seeds), rung.steps) for tree in trees])]

        draw = stream(search.seed, search.name, "tune", individual.id)
        tree, best, _ = tune(individual, evaluate, trials, draw, start=fitness)
        before, tuned = search.grammar.write(individual), Individual(list(search.grammar.canonical(tree)))
        if search.key(tuned) in search.seen:
            return {}
        search.seen.add(search.key(tuned))
        individual[0 : len(individual)] = tuned
        search.gate.recall([individual])
        return {"tuned": best, "tuned_from": before}

    return tune_numbers


def evaluation_seeds(seed: int, tier: str, repeats: int) -> tuple[int, ...]:
    """Paired seeds of one tier: the same for every candidate."""
    return tuple(derive(seed, "evaluation", tier, repeat) for repeat in range(repeats))
