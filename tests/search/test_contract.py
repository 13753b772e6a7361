"""What every controller promises, whichever it is: the one suite for all of the command line."""

import os
import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
import torch

from evokd.controllers import CONTROLLERS, OPTUNA, Rewarded, Wanted, together
from evokd.genome.codec import from_names, to_names
from evokd.genome.grammar import subtree_heights
from evokd.genome.individual import Individual, Outcome, Status
from evokd.losses.growth import loss_grammar
from evokd.search.rewards import Reward
from evokd.space import read_space
from evokd.streams import stream
from evokd.students import read_student_space
from tests.search.test_local import BEST, searched, slots_grammar, word
from tests.toy import toy_grammar

ROOT = Path(__file__).parents[2]
FAILURES = [status for status in Status if status is not Status.OK]


def alone(name, **options):
    return lambda grammar: CONTROLLERS[name](Wanted(grammar, 6, **options))


def on_islands(name, **options):
    return lambda grammar: together([CONTROLLERS[name](Wanted(grammar, 4, seed=n, **options)) for n in range(2)])


MAKES = {name: alone(name) for name in CONTROLLERS} | {
    "evolution, prior": alone("evolution", prior=len),
    "local, prior": alone("local", prior=len),
    "reinforce, lstm": alone("reinforce", policy="lstm"),
    "ppo, lstm": alone("ppo", policy="lstm"),
    "evolution, islands": on_islands("evolution"),
    "ppo, lstm, islands": on_islands("ppo", policy="lstm"),
    "evolution, reward": lambda grammar: Rewarded(alone("evolution")(grammar), Reward("soft", "size", 8.0)),
}
LANGUAGES = {
    "toy": toy_grammar,
    "slots": slots_grammar,
    "students": lambda: read_student_space("nas_bench_201").grammar,
    "losses": lambda: loss_grammar(read_space("compact").space, ["logits", "features[-1]"]),
}


def params(names):
    absent = pytest.mark.skipif(find_spec("optuna") is None, reason="Optuna is not installed: pip install 'evokd[optuna]'")
    return [pytest.param(name, marks=absent if name.split(",")[0] in OPTUNA else ()) for name in names]


every = pytest.mark.parametrize("name", params(MAKES))


def judge(tree) -> Outcome:
    """Of any language: mixed outcomes, with a size and one NaN in a while."""
    words = sum(map(ord, "".join(to_names(tree)))) % 97
    metrics = {"size": float(len(tree))}
    if words % 7 == 3:
        return Outcome(FAILURES[words % len(FAILURES)], metrics=metrics, reason="toy")
    return Outcome(Status.OK, float("nan") if words % 11 == 5 else words / 97, metrics)


def pruned(tree, number: int) -> Outcome:
    """As a rung settles what does not go on."""
    return Outcome(Status.REJECTED, metrics={"rung_1": float(len(tree) + number), "size": 1.0}, reason="rung 1: place 3 of 4")


def settle(asked, generation, size=6, judged=judge) -> list[Individual]:
    """A generation as the loop makes it: canonical, with ids, judged; every fifth is stopped at a rung."""
    batch = []
    for number, (grammar, proposal) in enumerate(asked, generation * size):
        made = Individual(list(grammar.canonical(proposal)), op=proposal.op, parents=proposal.parents)
        made.id, made.generation = number, generation
        made.settle(pruned(made, number) if number % 5 == 4 and judged is judge else judged(made))
        batch.append(made)
    return batch


def run(controller, grammar, generations=range(5), size=6, judged=judge) -> list[list[Individual]]:
    told = []
    for generation in generations:
        draw = stream(7, generation)
        told.append(settle([(grammar, controller.ask(generation, draw)) for _ in range(size)], generation, size, judged))
        controller.tell(told[-1])
    return told


def described(told) -> list[str]:
    return [f"{each.op} {each.parents} {' '.join(to_names(each))}" for batch in told for each in batch]


def as_journalled(individual, grammar) -> Individual:
    """Equal, but of other objects, as a resumed run has it; losses may hold nodes that are not grown."""
    made = Individual(list(individual), op=str(individual.op), parents=tuple(individual.parents))
    made.id, made.generation = individual.id, individual.generation
    made.settle(individual.outcome)
    return made


def global_state() -> tuple:
    """Of the generators that nobody may draw from."""
    return random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()  # noqa: NPY002


def assert_legal(proposal, grammar):
    assert list(from_names(to_names(proposal), grammar.nodes.get, grammar.root)) == list(proposal)
    assert max(subtree_heights(proposal)) <= grammar.height
    canonical = grammar.canonical(proposal)
    assert list(grammar.canonical(canonical)) == list(canonical)
    assert grammar.write(canonical)
    assert proposal.op
    assert all(isinstance(parent, int) and parent >= 0 for parent in proposal.parents)


@every
@pytest.mark.parametrize("language", ["toy", "slots", "students"])
def test_proposals_are_trees_of_the_grammar(name, language):
    grammar = LANGUAGES[language]()
    controller = MAKES[name](grammar)
    for generation in range(8):
        asked = [controller.ask(generation, stream(generation, n)) for n in range(5)]
        for each in asked:
            assert_legal(each, grammar)
        controller.tell(settle([(grammar, each) for each in asked], generation, 5))


@every
def test_losses_are_proposed_that_can_be_made_canonical(name):
    """Canonical losses need not be derivable by the grammar, so what follows from them is held to less: kinds and meaning."""
    grammar = LANGUAGES["losses"]()
    for batch in run(MAKES[name](grammar), grammar, range(6)):
        for each in batch:
            assert grammar.write(each)
            assert list(grammar.canonical(each)) == list(each)


SOURCE = """
from tests.search.test_contract import LANGUAGES, MAKES, described, run
for name, make in MAKES.items():
    if name in {names!r}:
        for language, grammar in LANGUAGES.items():
            made = grammar()
            print(name, language, described(run(make(made), made, range(4), 4)))
"""


def test_another_process_proposes_the_same():
    names = [name for name in MAKES if find_spec("optuna") or name not in OPTUNA]
    env = os.environ | {"PYTHONHASHSEED": "1"}
    command = [sys.executable, "-c", SOURCE.format(names=names)]
    there = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=env).stdout.splitlines()
    here = []
    for name in names:
        for language, grammar in LANGUAGES.items():
            made = grammar()
            here.append(f"{name} {language} {described(run(MAKES[name](made), made, range(4), 4))}")
    assert there == here


@every
@pytest.mark.parametrize("language", ["toy", "slots", "losses"])
def test_what_it_was_told_is_all_its_state(name, language):
    """One that searched, and one that was told of it without ever asking, as a resumed run: they go on alike."""
    grammar = LANGUAGES[language]()
    first, second = MAKES[name](grammar), MAKES[name](grammar)
    for batch in run(first, grammar):
        second.tell([as_journalled(each, grammar) for each in batch])
    state = global_state()
    assert described(run(first, grammar, range(5, 9))) == described(run(second, grammar, range(5, 9)))
    assert global_state() == state


@every
def test_a_generation_that_was_torn_begins_anew(name):
    grammar = slots_grammar()
    controller = MAKES[name](grammar)
    told = run(controller, grammar, range(4))
    asked = [to_names(controller.ask(4, draw)) for draw in [stream(7, 4)] for _ in range(6)]
    again = MAKES[name](grammar)
    for batch in told:
        again.tell([as_journalled(each, grammar) for each in batch])
    assert [to_names(again.ask(4, draw)) for draw in [stream(7, 4)] for _ in range(6)] == asked


@every
@pytest.mark.parametrize("status", [*FAILURES, "NaN"])
def test_it_survives_generations_of_failures_and_empty_ones(name, status):
    grammar = slots_grammar()
    controller = MAKES[name](grammar)
    fails = Outcome(Status.OK, float("nan")) if status == "NaN" else Outcome(status, reason="toy")
    controller.tell([])
    run(controller, grammar, range(2), judged=lambda tree: fails)
    controller.tell([])
    run(controller, grammar, range(2, 6))
    run(controller, grammar, range(6, 8), judged=lambda tree: fails)
    controller.tell([])
    for number in range(10):
        assert_legal(controller.ask(8, stream(8, number)), grammar)


@every
def test_failures_are_never_parents(name):
    """Where most trees fail, a population would have to be filled with them."""
    grammar = toy_grammar()
    told = run(MAKES[name](grammar), grammar, range(10), judged=rarely_sound)
    sound = {each.id for batch in told for each in batch if each.ok}
    assert 2 <= len(sound) < 30
    assert {parent for batch in told for each in batch for parent in each.parents} <= sound


def rarely_sound(tree) -> Outcome:
    if sum(map(ord, "".join(to_names(tree)))) % 4:
        return Outcome(Status.DIVERGED, metrics={"size": 1.0}, reason="toy")
    return Outcome(Status.OK, -float(len(tree)), {"size": float(len(tree))})


def test_evolution_breeds_after_twenty_starts_by_the_prior():
    grammar = slots_grammar()
    told = run(MAKES["evolution, prior"](grammar), grammar, range(8), judged=right_digits)
    sound = 0
    for batch in told:
        assert ({each.op for each in batch} == {"prior"}) == (sound < 20)
        sound += sum(each.ok for each in batch)


def right_digits(tree) -> Outcome:
    """Digits that are right; some words fail."""
    number, metrics = int(word(tree), 4), {"size": float(len(tree))}
    if number % 7 == 3 and word(tree) != BEST:
        return Outcome(FAILURES[number % len(FAILURES)], metrics=metrics, reason="toy")
    return Outcome(Status.OK, float(sum(a == b for a, b in zip(word(tree), BEST, strict=True))), metrics)


# Those that are better than random search after a hundred evaluations. An LSTM learns as much as the categoricals, more slowly; Hyperband's
# difference is in the loop.
BETTER = ["evolution", "nsga2", "local", "ageing", "diswot", "reinforce", "ppo", "tpe", "evolution, islands"]


@pytest.mark.parametrize("name", params(BETTER))
def test_it_comes_nearer_to_the_optimum_than_random_search(name):
    """Paired by seed: at least half a digit, and two standard errors."""
    grammar, leads = slots_grammar(), []
    size, seeds = (10 if name in ("reinforce", "ppo") else 5), (2 if name == "tpe" else 6)
    for seed in range(seeds):
        found = [searched(MAKES[each](grammar), 100, size, seed, right_digits, grammar=grammar) for each in (name, "random")]
        best = [max(each.fitness.values[0] for each in arm if each.ok) for arm in found]
        leads.append(best[0] - best[1])
    assert fmean(leads) >= max(0.5, 2 * stdev(leads) / len(leads) ** 0.5), leads
