"""(μ+λ) evolution with elitism on a DEAP toolbox: tournament parents, typed crossover, five mutations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import final

from deap import base, tools

from evokd.genome.grammar import Grammar
from evokd.genome.individual import Individual, rank
from evokd.genome.variation import MUTATIONS, mate
from evokd.search.fresh import Prior, grow_afresh
from evokd.streams import lend

CROSSOVER = 0.4  # share of children by crossover, the rest by one mutation
FRESH = 0.1  # share of children grown afresh, so that no operator is ever lost
TOURNAMENT = 3
STARTS = 20  # trees by the prior before the first child; 10 to 30 did as well on NAS-Bench-201
MUTATION_WEIGHTS = {"subtree": 1, "node": 2, "insert": 1, "shrink": 1, "constant": 3}


def default_toolbox(grammar: Grammar, stream: Random) -> base.Toolbox:
    """DEAP's idiom: `mate`, `mutate` and `select` may be registered anew by users; they then draw from the global `random`, which is
    lent the search's stream while they run.
    """
    toolbox = base.Toolbox()

    def mutate(tree: Individual) -> tuple[Individual]:
        name = stream.choices(list(MUTATION_WEIGHTS), list(MUTATION_WEIGHTS.values()))[0]
        (child,) = MUTATIONS[name](tree, grammar, stream)
        child.op = name
        return (child,)

    toolbox.register("mate", mate, grammar=grammar, stream=stream)
    toolbox.register("mutate", mutate)
    toolbox.register("select", tools.selTournament, tournsize=TOURNAMENT)
    return toolbox


def fittest(individuals: Sequence[Individual], size: int) -> list[Individual]:
    return sorted(individuals, key=rank)[:size]


@final
class Evolution:
    """Keeps the best μ of parents and children.

    Args:
        grammar: the language.
        size: μ.
        seeds: trees of the first generation, before random ones.
        toolbox: (grammar, stream) → DEAP toolbox with `mate`, `mutate`, `select`.
        survivors: (parents and children that are sound, μ) → at most μ of them; the best, or `niches.crowded`.
        prior: tree → a figure that is free, such as its parameters. The first sound trees, and those grown afresh later, are then
            the greatest of several random ones.
        starts: how many of the first are; without a prior they are random until there are two parents.
    """

    def __init__(
        self,
        grammar: Grammar,
        size: int,
        seeds: Sequence[list] = (),
        toolbox=default_toolbox,
        survivors: Callable[[Sequence[Individual], int], list[Individual]] = fittest,
        prior: Prior | None = None,
        starts: int = STARTS,
    ) -> None:
        self.grammar, self.size, self.seeds, self.toolbox = grammar, size, list(seeds), toolbox
        self.survivors, self.prior, self.starts = survivors, prior, starts if prior else 0
        self.population: list[Individual] = []
        self.sound = 0  # trees that it was told
        self._asked = 0

    def ask(self, generation: int, stream: Random) -> Individual:
        if generation == 0 and self._asked < len(self.seeds):
            self._asked += 1
            return Individual(self.seeds[self._asked - 1], op="seed")
        if len(self.population) < 2 or self.sound < self.starts or stream.random() < FRESH:
            return grow_afresh(self.grammar, stream, self.prior)
        return self.vary(self.toolbox(self.grammar, stream), stream)

    def vary(self, toolbox: base.Toolbox, stream: Random) -> Individual:
        """One child of tournament winners."""
        if stream.random() < CROSSOVER:
            with lend(stream):
                parents = toolbox.select(self.population, 2)
                child = toolbox.mate(*(toolbox.clone(p) for p in parents))[0]
            return Individual(list(child), op="crossover", parents=tuple(dict.fromkeys(p.id for p in parents)))
        with lend(stream):
            (parent,) = toolbox.select(self.population, 1)
            (child,) = toolbox.mutate(toolbox.clone(parent))
        op = getattr(child, "op", "")
        return Individual(list(child), op=op if op in MUTATIONS else "mutation", parents=(parent.id,))

    def tell(self, individuals: Sequence[Individual]) -> None:
        """Failures are set aside before any selection sees them."""
        sound = [individual for individual in individuals if individual.ok]
        self.sound += len(sound)
        self.population = self.survivors([*self.population, *sound], self.size)
