"""Optuna's tree-structured Parzen estimator over a grammar (Bergstra et al., NeurIPS 2011): every choice of the walk is a categorical.

An optional extra, `evokd[optuna]`; Optuna is imported when a controller is made. Its trials are the trees that were told, nothing
else, and its sampler is seeded anew from the stream at every proposal, so that a resumed search goes on as the first did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from random import Random
from typing import Any, final

from evokd.errors import EvokdError
from evokd.genome.codec import to_names
from evokd.genome.grammar import Grammar, Node
from evokd.genome.grow import grow_tree
from evokd.genome.individual import Individual, Outcome, Status
from evokd.search.ageing import TRIES
from evokd.search.fresh import grow_afresh

RUNG = "rung_"  # before the number of a rung, in the metrics of what was trained there


def check_optuna() -> None:
    """Raises EvokdError where Optuna is not installed."""
    if find_spec("optuna") is None:
        raise EvokdError("--controller tpe", "Optuna", "none installed", "pip install 'evokd[optuna]'")


class Path:
    """A chooser that names every choice by its place: the slots from the root, the kind, and how many options there are.

    Place and kind fix the options for as long as the grammar stays; one that shrinks gives fewer, and so other names.
    """

    def __init__(self, root: type, choose: Callable[[str, Sequence[Node]], Node]) -> None:
        self.choose, self.awaited = choose, [("", root)]

    def __call__(self, options: Sequence[Node]) -> Node:
        place, ret = self.awaited.pop()
        node = self.choose(f"{place or 'root'} {ret.__name__} of {len(options)}", options)
        below = list(enumerate(node.args)) if node.arity else []
        self.awaited += [(f"{place}.{slot}".lstrip("."), arg) for slot, arg in reversed(below)]
        return node


@final
class Tpe:
    """Proposals by TPE with Optuna's defaults, the first ten told trees after random proposals.

    A tree that was told or asked already is drawn anew, at last at random. Failures and refusals teach nothing; what a rung has
    stopped is a pruned trial with its values at the rungs, which TPE ranks behind all that went further.

    Args:
        grammar: the language.

    Raises:
        EvokdError: Optuna is not installed.
    """

    def __init__(self, grammar: Grammar) -> None:
        check_optuna()
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.grammar, self.optuna = grammar, optuna
        self.study = optuna.create_study(direction="maximize", sampler=self.sampler(0))
        self.known: set[tuple[str, ...]] = set()  # all it was told
        self._asked: set[tuple[str, ...]] = set()  # of this generation, which a resumed run begins anew

    def sampler(self, seed: int) -> Any:
        return self.optuna.samplers.TPESampler(seed=seed)

    def ask(self, generation: int, stream: Random) -> Individual:
        for _ in range(TRIES):
            proposal = Individual(self.draw(stream), op="tpe")
            if (key := tuple(to_names(proposal))) not in self.known | self._asked:
                break
        else:
            proposal = grow_afresh(self.grammar, stream)
        self._asked.add(key)
        return proposal

    def draw(self, stream: Random) -> list[Node]:
        """One tree; the trial that it came by is told as failed, since what was proposed is not yet seen."""
        self.study.sampler = self.sampler(stream.getrandbits(32))
        trial = self.study.ask()

        def choose(name: str, options: Sequence[Node]) -> Node:
            known = {node.name: node for node in options}
            return known[trial.suggest_categorical(name, list(known))] if len(known) > 1 else options[0]

        tree = grow_tree(self.grammar, Path(self.grammar.root, choose))
        self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)
        return tree

    def tell(self, individuals: Sequence[Individual]) -> None:
        self._asked = set()
        for individual in individuals:
            self.known.add(tuple(to_names(individual)))
            self.study.add_trial(self.trial(individual))

    def trial(self, individual: Individual) -> Any:
        """A tree with its outcome as Optuna has it."""
        states, spaces, steps = self.optuna.trial.TrialState, self.choices(individual), rungs(individual.outcome)
        state = states.COMPLETE if individual.ok else states.PRUNED if steps else states.FAIL
        return self.optuna.create_trial(
            state=state,
            value=individual.outcome.fitness if individual.ok else None,
            params={name: chosen for name, (chosen, _) in spaces.items()},
            distributions={name: self.optuna.distributions.CategoricalDistribution(names) for name, (_, names) in spaces.items()},
            intermediate_values=steps,
        )

    def choices(self, tree: Sequence[Node]) -> dict[str, tuple[str, list[str]]]:
        """Name of each choice → (what was chosen, what there was). What the grammar does not offer, as a number tuned since, is none."""
        nodes, found = iter(tree), {}

        def follow(name: str, options: Sequence[Node]) -> Node:
            node, names = next(nodes), to_names(options)
            if len(names) > 1 and node.name in names:
                found[name] = (node.name, names)
            return node

        grow_tree(self.grammar, Path(self.grammar.root, follow))
        return found


def rungs(outcome: Outcome) -> dict[int, float]:
    """Rung → fitness there, of a tree that a rung has refused."""
    if outcome.status is not Status.REJECTED:
        return {}
    return {int(name.removeprefix(RUNG)): value for name, value in outcome.metrics.items() if name.startswith(RUNG)}
