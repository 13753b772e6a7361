"""The controller that a search for a distiller is configured with: by name, on islands, with niches, in a space that may shrink."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import TYPE_CHECKING, final

from evokd.errors import unknown
from evokd.funnel import part_of
from evokd.genome.codec import to_names
from evokd.genome.individual import Individual
from evokd.losses.growth import loss_grammar
from evokd.search.controller import Controller
from evokd.search.evolution import Evolution, fittest
from evokd.search.front import FrontEvolution
from evokd.search.islands import Islands
from evokd.search.niches import crowded
from evokd.search.random import RandomSearch
from evokd.shrink import Evidence, shrink, weigh

if TYPE_CHECKING:
    from evokd.config import Config
    from evokd.problem import Problem

Make = Callable[["Problem", int, Sequence[list], Callable], Controller]  # problem, μ, seeds, toolbox

CONTROLLERS: dict[str, Make] = {
    "evolution": lambda problem, size, seeds, toolbox: Evolution(problem.grammar, size, seeds, toolbox, survivors(problem)),
    "random": lambda problem, size, seeds, toolbox: RandomSearch(problem.grammar),
    "nsga2": lambda problem, size, seeds, toolbox: FrontEvolution(problem.grammar, size, ["size"]),
}


def check_controller(config: Config) -> None:
    """Raises EvokdError for a name that is no controller."""
    if config.controller not in CONTROLLERS:
        raise unknown("--controller", "a controller", config.controller, CONTROLLERS)


def make_controller(problem: Problem, seeds: Sequence[list], toolbox: Callable) -> Controller:
    """As configured; islands share the population, and the seeds of the first generation in turn."""
    config = problem.config
    make, count = CONTROLLERS[config.controller], config.islands
    islands = [make(problem, max(parents(config) // count, 2), seeds[i::count], toolbox) for i in range(count)]
    controller = Islands(islands) if count > 1 else islands[0]
    return Shrinking(controller, islands, problem) if config.shrink_every else controller


def parents(config: Config) -> int:
    """μ: the population, or twice what its rungs leave of a generation, so that there is a choice among parents."""
    return min(config.population, part_of(config.population, 2 * config.share))


def survivors(problem: Problem) -> Callable[[Sequence[Individual], int], list[Individual]]:
    """Who survives: the fittest, or the fittest of every niche."""
    alike = problem.config.alike
    return partial(crowded, similarity=problem.similarity, alike=alike) if alike else fittest


@final
class Shrinking:
    """A controller that goes on, every so many generations, without the operators that its candidates speak against.

    Attributes:
        space: what is still searched.
        dropped: the evidence, generation by generation in which something went.
    """

    def __init__(self, controller: Controller, grown: Sequence[Controller], problem: Problem) -> None:
        self.controller, self.grown, self.problem = controller, grown, problem
        self.space, self.events = problem.space.space, []
        self.dropped: list[tuple[int, list[Evidence]]] = []
        self._told = 0

    def ask(self, generation: int, stream: Random) -> Individual:
        return self.controller.ask(generation, stream)

    def tell(self, individuals: Sequence[Individual]) -> None:
        self.controller.tell(individuals)
        self.events += [_event(individual) for individual in individuals]
        self._told += 1
        if self._told % self.problem.config.shrink_every == 0:
            self.shrink()

    def shrink(self) -> None:
        """Give every controller that grows trees the smaller grammar."""
        evidence = [e for e in weigh(self.events, self.space) if e.dropped]
        if evidence:
            self.space = shrink(self.space, evidence)
            self.dropped.append((self._told - 1, evidence))
            grammar = loss_grammar(self.space, self.problem.grammar_positions)
            for controller in self.grown:
                controller.grammar = grammar


def _event(individual: Individual) -> dict:
    """An individual as its journal line has it, as far as evidence goes."""
    outcome = individual.outcome
    told = {"status": outcome.status, "fitness": outcome.fitness, "reason": outcome.reason}
    origin = {"generation": individual.generation, "parents": individual.parents}
    return {"event": "individual", "tree": to_names(individual), **origin, **told}
