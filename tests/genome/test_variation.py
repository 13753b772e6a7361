import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evokd.genome.grammar import Rule
from evokd.genome.grow import grow_tree, random_chooser
from evokd.genome.individual import Individual
from evokd.genome.variation import MUTATIONS, mate, mutate_constant, mutate_insert, mutate_node, mutate_shrink, splice
from tests.genome.common import height_of, nested, shipped, toy, well_typed

MANY = settings(derandomize=True, deadline=None, max_examples=150)
GRAMMAR = shipped()
SEEDS = st.integers(0, 10**6)


def tree_of(seed, grammar=GRAMMAR):
    return grow_tree(grammar, random_chooser(random.Random(seed)))


def names(tree):
    return [node.name for node in tree]


def assert_legal(tree, grammar=GRAMMAR):
    assert well_typed(tree, grammar.root)
    assert height_of(tree) <= grammar.height


@MANY
@given(SEEDS, SEEDS, SEEDS)
def test_children_of_crossover_are_legal_and_made_of_their_parents(a, b, seed):
    first, second = tree_of(a), tree_of(b)
    children = mate(first, second, GRAMMAR, random.Random(seed))
    for child in children:
        assert_legal(child)
    assert sorted(names(children[0]) + names(children[1])) == sorted(names(first) + names(second))
    assert (names(first), names(second)) == (names(tree_of(a)), names(tree_of(b)))  # parents are left alone


@pytest.mark.parametrize("name", sorted(MUTATIONS))
@MANY
@given(SEEDS, SEEDS)
def test_mutants_are_legal(name, a, seed):
    parent = tree_of(a)
    (mutant,) = MUTATIONS[name](parent, GRAMMAR, random.Random(seed))
    assert_legal(mutant)
    assert names(parent) == names(tree_of(a))


@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_chains_of_one_mutation_stay_legal(name):
    for space in ("compact", "logits"):
        grammar, draw = shipped(space), random.Random(7)
        tree = tree_of(1, grammar)
        for _ in range(60):
            (tree,) = MUTATIONS[name](tree, grammar, draw)
            assert_legal(tree, grammar)


@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_mutation_changes_most_trees_and_repeats_from_its_seed(name):
    changed = 0
    for seed in range(200):
        parent = tree_of(seed)
        (mutant,), (again,) = (MUTATIONS[name](parent, GRAMMAR, random.Random(seed)) for _ in range(2))
        assert names(mutant) == names(again)
        changed += names(mutant) != names(parent)
    assert changed > (120 if name == "subtree" else 198)


def test_crossover_changes_most_pairs_and_repeats_from_its_seed():
    changed = 0
    for seed in range(200):
        parents = tree_of(seed), tree_of(seed + 1000)
        children, again = (mate(*parents, GRAMMAR, random.Random(seed)) for _ in range(2))
        assert [*map(names, children)] == [*map(names, again)]
        changed += [*map(names, children)] != [*map(names, parents)]
    assert changed > 190


def test_another_seed_gives_another_choice():
    parents = tree_of(3), tree_of(5)
    assert len({tuple(map(tuple, map(names, mate(*parents, GRAMMAR, random.Random(s))))) for s in range(20)}) > 5


REPEAT = """
from random import Random
from evokd.genome.grow import grow_tree, random_chooser
from evokd.genome.variation import MUTATIONS, mate
from tests.genome.common import toy

grammar = toy(6)
for s in range(40):
    one, two = (grow_tree(grammar, random_chooser(Random(k), 0.2)) for k in (s, s + 99))
    trees = [*mate(one, two, grammar, Random(s)), *(m(one, grammar, Random(s))[0] for m in MUTATIONS.values())]
    print([grammar.write(tree) for tree in trees])
"""


def test_variation_repeats_in_another_process_whatever_its_hash_seed():
    root = Path(__file__).parents[2]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", REPEAT], env={**os.environ, "PYTHONHASHSEED": h}, cwd=root, stdout=subprocess.PIPE, text=True
        )
        for h in ("1", "2", "3")
    ]
    printed = [process.communicate()[0] for process in started]
    assert printed[0] == printed[1] == printed[2]
    assert len(set(printed[0].splitlines())) > 30


@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_fresh_arguments_keep_to_the_room_left(name):
    grammar = toy(4, (Rule("both", "S", ("S", "S")), Rule("turn", "S", ("S",)), Rule("x", "S"), Rule("y", "S")))
    for seed in range(150):
        (mutant,) = MUTATIONS[name](tree_of(seed, grammar), grammar, random.Random(seed))
        assert_legal(mutant, grammar)


def test_equal_parents_without_a_useful_swap_come_back_as_copies():
    grammar = toy(3, (Rule("one", "S", ("A",)), Rule("a", "A")))
    tree = tree_of(0, grammar)
    children = mate(tree, tree, grammar, random.Random(0))
    assert [*map(names, children)] == [names(tree)] * 2
    assert all(child is not tree for child in children)


def test_crossover_reaches_every_kind_of_subtree():
    # Weights, modes and positions are exchanged too, not only whole terms.
    kinds = set()
    for seed in range(150):
        first, second = tree_of(seed), tree_of(seed + 5000)
        child, _ = mate(first, second, GRAMMAR, random.Random(seed))
        at = next((i for i, (x, y) in enumerate(zip(child, first, strict=False)) if x != y), None)
        if at is not None:
            kinds.add(first[at].ret.__name__)
    assert kinds >= {"value", "mode", "distance", "term", "rows", "maps"}


def test_node_mutation_keeps_the_shape_and_changes_one_name():
    for seed in range(100):
        parent = tree_of(seed)
        (mutant,) = mutate_node(parent, GRAMMAR, random.Random(seed))
        assert [n.arity for n in mutant] == [n.arity for n in parent]
        assert sum(a != b for a, b in zip(names(mutant), names(parent), strict=True)) == 1


def within(small, big):
    """Whether all names of `small` occur in `big`, in order."""
    rest = iter(big)
    return all(name in rest for name in small)


def test_insertion_adds_and_keeps_all_that_was_there_but_one_name():
    grown = 0
    for seed in range(100):
        parent = tree_of(seed)
        (mutant,) = mutate_insert(parent, GRAMMAR, random.Random(seed))
        if len(mutant) > len(parent):
            grown += 1
            old, new = names(parent), names(mutant)
            assert any(within(old[:i] + old[i + 1 :], new) for i in range(len(old)))
    assert grown > 80


def test_shrinking_removes():
    smaller = 0
    for seed in range(100):
        parent = tree_of(seed)
        (mutant,) = mutate_shrink(parent, GRAMMAR, random.Random(seed))
        smaller += len(mutant) < len(parent)
        assert len(mutant) <= len(parent)
    assert smaller > 60


def test_shrinking_can_drop_a_term_and_insertion_can_add_one():
    def terms(tree):
        return len(nested(tree)) - 1

    added, dropped = set(), set()
    for seed in range(300):
        parent = tree_of(seed)
        added.add(terms(mutate_insert(parent, GRAMMAR, random.Random(seed))[0]) - terms(parent))
        dropped.add(terms(mutate_shrink(parent, GRAMMAR, random.Random(seed))[0]) - terms(parent))
    assert added == {0, 1}
    assert dropped == {0, -1}


def test_constants_move_off_the_grid_to_near_values():
    factors = []
    for seed in range(200):
        parent = tree_of(seed)
        (mutant,) = mutate_constant(parent, GRAMMAR, random.Random(seed))
        (old, new), *more = [(a, b) for a, b in zip(parent, mutant, strict=True) if a != b]
        assert not more
        assert old.ret is new.ret
        if old.ret.__name__ in ("value", "tau"):  # else every step was rounded away, and another node changed
            before, after = (float(n.name.removeprefix("tau=")) for n in (old, new))
            assert after > 0
            factors.append(after / before)
    assert len(factors) > 190
    assert sum(f > 1 for f in factors) > 60
    assert sum(f < 1 for f in factors) > 60
    assert sum(0.1 < f < 10 for f in factors) > 185


def test_a_language_without_numbers_falls_back_to_node_mutation():
    grammar = toy(4)
    tree = Individual([grammar.nodes[n] for n in ("pair", "up", "a", "b")])
    (mutant,) = mutate_constant(tree, grammar, random.Random(0))
    assert_legal(mutant, grammar)
    assert sum(a != b for a, b in zip(names(tree), names(mutant), strict=True)) == 1


def test_trees_at_the_limit_can_still_be_varied():
    grammar = toy(1)  # nothing fits above or below
    tree = tree_of(0, grammar)
    for mutation in MUTATIONS.values():
        for seed in range(20):
            assert_legal(mutation(tree, grammar, random.Random(seed))[0], grammar)


def test_splicing_keeps_the_type_and_replaces_the_whole_subtree():
    grammar = toy(4)
    tree = Individual([grammar.nodes[n] for n in ("pair", "up", "up", "a", "b")])
    spliced = splice(tree, 1, [grammar.nodes["a"]])
    assert isinstance(spliced, Individual)
    assert names(spliced) == ["pair", "a", "b"]
    assert names(tree) == ["pair", "up", "up", "a", "b"]
