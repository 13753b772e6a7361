import random
from itertools import product

import pytest

from evokd.genome.grammar import kind
from evokd.genome.grow import grow, grow_tree, random_chooser
from tests.genome.common import TOY, enumerate_trees, height_of, shipped, toy, well_typed


@pytest.mark.parametrize("space", ["compact", "logits"])
def test_random_trees_are_well_typed_and_never_too_high(space):
    grammar, stream = shipped(space), random.Random(1)
    heights = set()
    for _ in range(300):
        tree = grow_tree(grammar, random_chooser(stream))
        assert well_typed(tree, grammar.root)
        heights.add(height_of(tree))
    assert max(heights) == grammar.height
    assert len(heights) > 2


def test_subtrees_respect_the_room_they_are_given():
    grammar, stream = toy(6), random.Random(2)
    for room, name in product(range(5), "AB"):
        for _ in range(20):
            assert height_of(grow(grammar, kind(name), room, random_chooser(stream, stop=0.1))) <= room


def test_a_chooser_that_counts_reaches_every_tree():
    grammar, found = toy(3), set()
    path = []  # [choice, number of options] at each question of the last walk
    while True:
        asked = 0

        def choose(options):
            nonlocal asked
            if asked == len(path):
                path.append([0, len(options)])
            asked += 1
            return options[path[asked - 1][0]]

        found.add(tuple(node.name for node in grow_tree(grammar, choose)))
        while path and path[-1][0] + 1 == path[-1][1]:
            path.pop()
        if not path:
            break
        path[-1][0] += 1
    assert found == set(enumerate_trees(TOY, "S", 3))


def test_the_chance_to_stop_sets_how_deep_trees_grow():
    grammar = shipped()

    def mean_size(stop):
        stream = random.Random(5)
        return sum(len(grow_tree(grammar, random_chooser(stream, stop))) for _ in range(200)) / 200

    assert mean_size(0.95) < mean_size(0.5) < mean_size(0.05)


def test_equal_streams_grow_equal_trees():
    grammar = shipped()
    first, again = ([grow_tree(grammar, random_chooser(random.Random(s))) for s in range(20)] for _ in range(2))
    assert first == again
    assert len({str([n.name for n in tree]) for tree in first}) > 10
