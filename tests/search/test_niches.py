import math
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evokd.genome.individual import Individual, Outcome, Status
from evokd.run import Budget, Search
from evokd.search.evolution import Evolution
from evokd.search.niches import crowded
from tests.search.test_ageing import assert_resumes_from_any_line, fitnesses, settled
from tests.toy import toy_grammar, value_of

GRAMMAR = toy_grammar()


def at(*places: tuple[float, float | None]) -> list[Individual]:
    """(fitness, direction in degrees) of each; None is a loss that draws noise."""
    found = [settled(GRAMMAR, "1", n, float(fitness)) for n, (fitness, _) in enumerate(places)]
    for individual, (_, angle) in zip(found, places, strict=True):
        individual.angle = angle
    return found


def cosine(first, second) -> float | None:
    if first.angle is None or second.angle is None:
        return None
    return math.cos(math.radians(first.angle - second.angle))


def test_a_niche_has_places_for_its_best_alone():
    told = at((9, 0), (8, 1), (7, 2), (3, 90), (6, 3), (2, 91), (1, 180))
    assert fitnesses(crowded(told, 4, cosine)) == [9, 8, 3, 2]
    assert fitnesses(crowded(told, 4, cosine, each=1)) == [9, 8, 3, 1]  # three niches, and the best of the rest
    assert fitnesses(crowded(told, 3, cosine, each=1)) == [9, 3, 1]
    assert fitnesses(crowded(told, 4, cosine, each=3)) == [9, 8, 7, 3]
    assert fitnesses(crowded(told, 4, cosine, alike=1.01)) == [9, 8, 7, 6]


def test_the_threshold_itself_is_alike():
    told = at((9, 0), (8, 60), (1, 180))
    assert fitnesses(crowded(told, 2, lambda a, b: 0.98, each=1)) == [9, 8]
    assert [i.id for i in crowded(told, 2, lambda a, b: 0.98 * ({a.id, b.id} == {0, 1}), each=1)] == [0, 2]


def test_opposite_losses_and_those_that_draw_noise_are_never_alike():
    assert fitnesses(crowded(at((9, 0), (8, 180), (7, 0), (6, 90)), 3, cosine, each=1)) == [9, 8, 6]
    assert fitnesses(crowded(at((9, None), (8, None), (7, 0), (6, None)), 3, cosine, each=1)) == [9, 8, 7]


def test_what_has_no_similarity_for_want_of_a_number_is_never_alike():
    assert fitnesses(crowded(at((9, 0), (8, 0), (7, 90)), 2, lambda a, b: math.nan, each=1)) == [9, 8]


populations = st.lists(st.tuples(st.integers(0, 9), st.none() | st.integers(0, 11).map(lambda n: 30 * n)), max_size=14)


@given(populations, st.integers(0, 9), st.integers(1, 4), st.randoms(use_true_random=False))
def test_survivors_by_their_definition(places, size, each, draw):
    """One after another from the best on; directions are 30° apart, so that only equal ones are alike."""
    told = at(*places)
    order = sorted(told, key=lambda i: (-i.fitness.values[0], i.id))
    better = [[other.angle for other in order[:place]] for place in range(len(order))]
    entered = [i for i, seen in zip(order, better, strict=True) if i.angle is None or seen.count(i.angle) < each][:size]
    waiting = [i for i in order if i.id not in {j.id for j in entered}]
    expected = {i.id for i in [*entered, *waiting[: size - len(entered)]]}
    draw.shuffle(told)
    found = crowded(told, size, cosine, each)
    assert [i.id for i in found] == [i.id for i in order if i.id in expected]
    assert len(found) == min(size, len(places))
    assert not found or found[0] is order[0]


@given(populations, st.integers(1, 9))
def test_no_niche_holds_more_than_its_places_while_another_waits(places, size):
    found = crowded(at(*places), size, cosine, 2)
    ids = {i.id for i in found}
    crowd = {angle: sum(i.angle == angle for i in found) for angle in range(0, 360, 30)}
    waiting = [i for i in at(*places) if i.id not in ids]
    if max(crowd.values()) > 2:
        assert all(i.angle is not None and crowd[i.angle] >= 2 for i in waiting)


@given(populations, st.integers(0, 9))
def test_enough_places_leave_the_best_as_without_niches(places, size):
    order = sorted(at(*places), key=lambda i: (-i.fitness.values[0], i.id))
    assert [i.id for i in crowded(at(*places), size, cosine, each=99)] == [i.id for i in order[:size]]


# --- a landscape with two hills -----------------------------------------------------------------------------------------------

Hills = dict[int, tuple[float, float]]  # number → its height and what each step away costs
FAIR: Hills = {1000: (100.0, 0.15), 60: (92.0, 3.0)}
DECEPTIVE: Hills = {
    1000: (100.0, 0.15),
    60: (95.0, 1.0),
}  # the lower hill is the broader one, near the numbers that small trees make


def nearness(first, second) -> float:
    """1 for equal numbers; 0.8 where one is a fifth less."""
    return min(value_of(first), value_of(second)) / max(value_of(first), value_of(second))


NICHES = partial(crowded, similarity=nearness, alike=0.8)


class NoJournal:
    def write(self, *args, **fields): ...
    def individual(self, *args): ...
    def sync(self): ...


def kept(hills: Hills, seed: int, **options) -> set[int]:
    """Hills on which the population stands after 25 generations, within 5 % of their tops."""

    def evaluate(batch):
        for tree in batch:
            yield Outcome(Status.OK, max(top - slope * abs(value_of(tree) - n) for n, (top, slope) in hills.items()))

    grammar = toy_grammar(6)
    evolution = Evolution(grammar, 12, **options)
    Search("x", grammar, evolution, lambda tree: "", evaluate, Budget(25, 12), seed, journal=NoJournal()).run()
    assert len(evolution.population) == 12
    return {n for n in hills if any(abs(value_of(tree) - n) <= 0.05 * n for tree in evolution.population)}


def test_niches_keep_both_hills_where_the_best_alone_keep_one():
    assert [kept(FAIR, seed) for seed in range(3)] == [{1000}] * 3
    assert [kept(FAIR, seed, survivors=NICHES) for seed in range(3)] == [{60, 1000}] * 3


def test_niches_are_not_trapped_where_the_best_alone_are():
    """Of eight runs, three without niches end on the lower hill, and two still stand on both."""
    plain, niched = ([kept(DECEPTIVE, seed, **options) for seed in range(8)] for options in ({}, {"survivors": NICHES}))
    assert plain.count({60}) >= 2
    assert plain.count({60, 1000}) <= 3
    assert niched == [{60, 1000}] * 8


# --- as evolution's survivors ---------------------------------------------------------------------------------------------------


def test_evolution_takes_its_survivors_from_parents_and_children_that_are_sound():
    asked = []

    def worst(individuals, size):
        asked.append(([i.id for i in individuals], size))
        return sorted(individuals, key=lambda i: i.fitness.values[0])[:size]

    evolution = Evolution(GRAMMAR, 2, survivors=worst)
    evolution.tell([settled(GRAMMAR, "1", n, f) for n, f in enumerate([3.0, None, 9.0, 1.0])])
    evolution.tell([settled(GRAMMAR, "2", n, f) for n, f in enumerate([None, 2.0], 4)])
    assert asked == [([0, 2, 3], 2), ([3, 0, 5], 2)]
    assert fitnesses(evolution.population) == [1, 2]


def test_a_cut_search_resumes(tmp_path):
    assert_resumes_from_any_line(tmp_path, lambda grammar: Evolution(grammar, 6, survivors=NICHES))


@pytest.mark.parametrize("each", [1, 2, 3])
def test_similarities_are_asked_of_pairs_that_matter_alone(each):
    """A full population asks nothing more."""
    asked = []
    crowded(at(*[(n, 30 * n) for n in range(12)]), 3, lambda a, b: asked.append((a.id, b.id)) or 0.0, each)
    assert asked == [(10, 11), (9, 11), (9, 10)]
