"""The controllers that a search is configured with: by name, for losses and students alike, told of rewards, on islands, with niches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import TYPE_CHECKING, final

from evokd.errors import EvokdError, unknown
from evokd.funnel import part_of
from evokd.genome.codec import to_names
from evokd.genome.grammar import Grammar
from evokd.genome.individual import Individual, Outcome, Status
from evokd.losses.growth import loss_grammar
from evokd.search.ageing import AgeingEvolution
from evokd.search.controller import Controller
from evokd.search.diswot import DiswotEvolution
from evokd.search.evolution import Evolution, default_toolbox, fittest
from evokd.search.fresh import Prior
from evokd.search.front import FrontEvolution
from evokd.search.islands import Islands
from evokd.search.local import LocalSearch
from evokd.search.niches import crowded
from evokd.search.random import RandomSearch
from evokd.search.reinforce import Reinforce
from evokd.search.rewards import Reward
from evokd.search.tpe import Tpe, check_optuna
from evokd.shrink import Evidence, shrink, weigh
from evokd.streams import derive

if TYPE_CHECKING:
    from evokd.config import Config
    from evokd.problem import Problem
    from evokd.student_problem import StudentProblem

EPOCHS = {"factorised": 4, "lstm": 5}  # of PPO, with generations of about ten
PERCENT = 100.0  # what an accuracy of 1 is here


@dataclass(frozen=True)
class Wanted:
    """What a controller is made of, the same for losses and students; each takes its part.

    Attributes:
        grammar: the language.
        size: μ, what a population keeps.
        policy: of reinforcement learning, `factorised` or `lstm`.
        costs: metrics of the outcomes that are to be small.
        seed: of what is drawn once, such as the first weights of a policy.
        seeds: trees of the first generation.
        toolbox: (grammar, stream) → DEAP toolbox.
        survivors: who stays in a population.
        prior: tree → a figure that is free, for starts.
    """

    grammar: Grammar
    size: int = 10
    policy: str = "factorised"
    costs: Sequence[str] = ("size",)
    seed: int = 0
    seeds: Sequence[list] = ()
    toolbox: Callable = default_toolbox
    survivors: Callable[[Sequence[Individual], int], list[Individual]] = fittest
    prior: Prior | None = None


CONTROLLERS: dict[str, Callable[[Wanted], Controller]] = {
    "random": lambda want: RandomSearch(want.grammar),
    "evolution": lambda want: Evolution(want.grammar, want.size, want.seeds, want.toolbox, want.survivors, want.prior),
    "nsga2": lambda want: FrontEvolution(want.grammar, want.size, want.costs),
    "local": lambda want: LocalSearch(want.grammar, want.prior),
    "ageing": lambda want: AgeingEvolution(want.grammar, 10, 3),
    "diswot": lambda want: DiswotEvolution(want.grammar),
    "reinforce": lambda want: Reinforce(want.grammar, want.policy, seed=want.seed),
    "ppo": lambda want: Reinforce(want.grammar, want.policy, seed=want.seed, epochs=EPOCHS[want.policy]),
    "tpe": lambda want: Tpe(want.grammar),
    "tpe_hyperband": lambda want: Tpe(want.grammar),  # in a loop whose rungs are Hyperband's brackets
}
OPTUNA = ("tpe", "tpe_hyperband")


def check_controller(config: Config) -> None:
    """Raises EvokdError for a name that is no controller, or what it, its reward or the task cannot work with."""
    if config.controller not in CONTROLLERS:
        raise unknown("--controller", "a controller", config.controller, CONTROLLERS)
    if config.controller in OPTUNA:
        check_optuna()
    for setting, value in {"-s alike": config.alike, "--shrink-every": config.shrink_every}.items():
        if value and config.task == "student":
            raise EvokdError(setting, "a search for a distiller", "one for a student")
    _check_fidelity(config)
    _check_reward(config)
    _check_lag(config)


def _check_lag(config: Config) -> None:
    """Nothing that looks at a generation as a whole goes with the steady state."""
    whole = {
        "islands, which are told by generations": config.islands > 1,
        "--shrink-every, which counts generations": config.shrink_every,
        "rungs, which compare a generation": config.rungs,
        f"the evaluator {getattr(config, 'evaluator', '')}": getattr(config, "evaluator", "") in ("cascade", "tabular"),
        "--cache, which is asked for many at once": config.cache,
        f"{config.workers} workers, of which some would wait": config.workers > config.lag,
    }
    found = next((name for name, there in whole.items() if there), None)
    if config.lag and found:
        hint = "-s 'funnel.rungs=[]'" if config.rungs else "--evaluator distill" if "evaluator" in found else ""
        raise EvokdError(f"--lag {config.lag}", "a search that goes candidate by candidate", found, hint)


def _check_fidelity(config: Config) -> None:
    """Hyperband needs trainings of several lengths."""
    if config.controller == "tpe_hyperband" and getattr(config, "evaluator", "distill") in ("score", "tabular"):
        kind = f"a table of {config.space}, which has one" if config.evaluator == "tabular" else "a score, which has none"
        raise EvokdError("--controller tpe_hyperband", "trainings of several lengths", kind, "take tpe")


def _check_reward(config: Config) -> None:
    """A trade needs an accuracy, a target, and for a latency its source."""
    if config.reward == "fitness":
        return
    where = f"--reward {config.reward}"
    if config.fitness != "accuracy" or getattr(config, "evaluator", "") == "score":
        raise EvokdError(where, "an accuracy to trade", "a score" if config.fitness == "accuracy" else config.fitness)
    if not config.reward_target:
        raise EvokdError(where, f"--reward-target, in the unit of {config.reward_cost}", "none")
    if config.reward_cost == "latency_ms" and not config.latency_device:
        raise EvokdError(where, "--latency-device, whose table has latencies", "none", "or --reward-cost macs or parameters")


def make_controller(problem: Problem, seeds: Sequence[list], toolbox: Callable) -> Controller:
    """For losses, as configured."""
    config = problem.config
    want = Wanted(problem.grammar, parents(config), config.policy, seeds=seeds, toolbox=toolbox, survivors=survivors(problem))
    islands = [CONTROLLERS[config.controller](each) for each in shared(want, config)]
    controller = rewarded(together(islands), config)
    return Shrinking(controller, islands, problem) if config.shrink_every else controller


def make_student_controller(problem: StudentProblem) -> Controller:
    """For students, as configured; what keeps them within limits comes around it."""
    config = problem.config
    prior = None if config.prior == "none" else prior_of(problem)
    want = Wanted(problem.grammar, config.population, config.policy, problem.costs, prior=prior)
    return rewarded(together([CONTROLLERS[config.controller](each) for each in shared(want, config)]), config)


def prior_of(problem: StudentProblem) -> Prior:
    """The configured figure of a student; those beyond the limits come last."""

    def figure(tree: Individual) -> float:
        within = problem.within.fits(problem.space.genome(tree))
        return float(getattr(problem.cost(tree), problem.config.prior)) if within else -1.0

    return figure


def shared(want: Wanted, config: Config) -> list[Wanted]:
    """For each island its share of the population, of the seeds in turn, and a seed of its own."""
    count = config.islands
    each = replace(want, size=max(want.size // count, 2), seed=config.seed)
    if count == 1:
        return [each]
    return [replace(each, seed=derive(config.seed, "island", i), seeds=want.seeds[i::count]) for i in range(count)]


def together(islands: Sequence[Controller]) -> Controller:
    return Islands(islands) if len(islands) > 1 else islands[0]


def rewarded(controller: Controller, config: Config) -> Controller:
    """A controller that is told the configured reward in place of the fitness."""
    reward = reward_of(config)
    return Rewarded(controller, reward) if reward.trades else controller


def reward_of(config: Config) -> Reward:
    """What is to be raised, of percent."""
    return Reward(config.reward, config.reward_cost, config.reward_target, PERCENT)


@final
@dataclass(frozen=True)
class Rewarded:
    """A controller that is told rewards; what has none, as a dead cell without a latency, has failed for it."""

    controller: Controller
    reward: Reward

    def ask(self, generation: int, stream: Random) -> Individual:
        return self.controller.ask(generation, stream)

    def tell(self, individuals: Sequence[Individual]) -> None:
        self.controller.tell([self.seen(individual) for individual in individuals])

    def seen(self, individual: Individual) -> Individual:
        """A copy with the reward as its fitness."""
        copy, outcome = Individual(list(individual), op=individual.op, parents=individual.parents), individual.outcome
        copy.id, copy.generation, value = individual.id, individual.generation, self.reward(outcome)
        if value is not None:
            outcome = replace(outcome, fitness=value)
        elif outcome.status is Status.OK:
            outcome = Outcome(Status.REJECTED, metrics=outcome.metrics, reason=f"reward: no {self.reward.cost}")
        copy.settle(outcome)
        return copy


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
