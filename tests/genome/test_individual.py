import copy
import math
import pickle
import random
from itertools import permutations

import pytest

from evokd.genome.grow import grow_tree, random_chooser
from evokd.genome.individual import Individual, Outcome, Status, content_key, rank
from tests.genome.common import shipped

GRAMMAR = shipped()


def individual(outcome, number=0, seed=0):
    one = Individual(list(grow_tree(GRAMMAR, random_chooser(random.Random(seed)))), op="mate", parents=(1, 2))
    one.id = number
    if outcome:
        one.settle(outcome)
    return one


FAILED = [Outcome(status, reason="because") for status in Status if status is not Status.OK]


def test_greater_fitness_comes_first_and_failures_last():
    good, poor = individual(Outcome(Status.OK, 0.9), 1), individual(Outcome(Status.OK, -1e9), 2)
    others = [individual(outcome, 3 + i) for i, outcome in enumerate([*FAILED, None])]
    assert sorted([*others, poor, good], key=rank)[:2] == [good, poor]


def test_a_failure_with_a_number_is_still_a_failure():
    told = individual(Outcome(Status.DIVERGED, fitness=99.0), 1)
    good = individual(Outcome(Status.OK, 0.1), 2)
    assert sorted([told, good], key=rank)[0] is good
    assert not told.fitness.valid


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_nan_never_comes_first(order):
    try:
        people = [individual(Outcome(Status.OK, value), i) for i, value in enumerate((0.5, math.nan, 0.2))]
    except ValueError:
        return  # a NaN may be refused outright
    ranked = sorted((people[i] for i in order), key=rank)
    assert [one.id for one in ranked[:2]] == [0, 2]


def test_ties_go_to_the_smaller_tree_then_to_the_earlier():
    seeds = sorted(range(12), key=lambda s: len(individual(None, seed=s)))
    small, large = seeds[0], seeds[-1]
    assert len(individual(None, seed=small)) < len(individual(None, seed=large))
    people = [individual(Outcome(Status.OK, 1.0), n, s) for n, s in ((0, large), (5, small), (4, small))]
    assert [one.id for one in sorted(people, key=rank)] == [4, 5, 0]


def test_a_deep_copy_drops_the_outcome_and_shares_no_list():
    one = individual(Outcome(Status.OK, 0.7), 9)
    clone = copy.deepcopy(one)
    assert list(clone) == list(one)
    assert isinstance(clone, Individual)
    assert (clone.op, clone.parents, clone.id) == ("mate", (1, 2), 9)
    assert not clone.fitness.valid
    assert clone.outcome is None
    assert not clone.ok
    assert one.fitness.values == (0.7,)
    clone.pop()
    assert len(clone) == len(one) - 1


def test_only_a_success_has_a_valid_fitness():
    assert individual(Outcome(Status.OK, 0.0)).fitness.valid
    assert not any(individual(outcome).fitness.valid for outcome in [*FAILED, None])


def test_greater_is_better_for_deap_too():
    assert individual(Outcome(Status.OK, 2.0)).fitness > individual(Outcome(Status.OK, 1.0)).fitness


def test_outcomes_travel_between_processes():
    outcome = Outcome(Status.TIMED_OUT, None, {"epochs": 3}, "60 s", 1.5)
    assert pickle.loads(pickle.dumps(outcome)) == outcome


def test_content_keys_tell_texts_apart():
    keys = {content_key(f"{i}*l2(logits)") for i in range(200)}
    assert len(keys) == 200
    assert all(len(key) == 16 and int(key, 16) >= 0 for key in keys)
    assert content_key("l2(logits)") == content_key("l2(logits)")
