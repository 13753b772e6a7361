import random

import pytest
from deap import gp, tools

from evokd.errors import EvokdError
from evokd.genome.grammar import Rule, depths, kind, subtree_heights
from evokd.genome.grow import grow_tree, random_chooser
from evokd.genome.individual import Individual, Outcome, Status
from evokd.losses.growth import loss_grammar
from evokd.space import read_space
from tests.genome.common import TOY, enumerate_trees, height_of, nested, shipped, toy, well_typed


def test_least_heights_are_those_of_the_shallowest_trees():
    assert toy().least_height == {"A": 0, "B": 0, "S": 1}


def test_a_kind_without_completion_has_no_least_height():
    assert "Never" not in toy().least_height


def test_least_height_waits_for_the_deepest_argument():
    rules = (Rule("r", "R", ("X", "Z")), Rule("x", "X", ("Y",)), Rule("y", "Y", ("Z",)), Rule("z", "Z"))
    assert toy(9, rules, "R").least_height == {"Z": 0, "Y": 1, "X": 2, "R": 3}


@pytest.mark.parametrize("height", range(5))
def test_options_are_exactly_the_nodes_that_some_tree_within_the_height_starts_with(height):
    grammar = toy(4)
    for name in ("S", "A", "B"):
        wanted = {names[0] for names in enumerate_trees(TOY, name, height)}
        assert {node.name for node in grammar.options(kind(name), height)} == wanted


def test_no_options_below_height_zero():
    assert toy().options(kind("A"), -1) == ()


def test_options_keep_one_order_whatever_the_order_of_the_rules():
    turned = toy(3, TOY[::-1])
    assert [n.name for n in turned.options(kind("A"), 2)] == [n.name for n in toy().options(kind("A"), 2)]


@pytest.mark.parametrize("height", range(1, 5))
def test_count_equals_brute_force_enumeration(height):
    trees = list(enumerate_trees(TOY, "S", height))
    assert len(set(trees)) == len(trees)
    assert toy(4).count(height) == len(trees)


def test_count_of_the_whole_grammar_uses_its_own_height():
    assert toy(3).count() == toy(4).count(3) != toy(4).count()


def test_count_of_a_shipped_space_agrees_with_a_hand_count():
    # logits only, no transforms: (value × mode × per-sample distances + value × correlation), one term and two; a temperature on
    # kl, ce and the mode power_sum
    space = read_space("logits").space
    bare = type(space)(**{**vars(space), "transforms": (), "max_terms": 2, "max_transforms": 0})
    per_sample = 6 + 2 * 4  # l1 l2 smooth_l1 hard cosine pearson, and kl and ce at four temperatures
    terms = 5 * (5 + 4) * per_sample + 5
    assert loss_grammar(bare, ("logits",)).count() == terms + terms**2


@pytest.mark.parametrize(("height", "rules"), [(0, TOY), (9, TOY[:4]), (9, ())])
def test_a_root_that_cannot_be_completed_is_refused(height, rules):
    with pytest.raises(EvokdError, match="toy"):
        toy(height, rules)


def test_kinds_are_one_class_per_name():
    assert kind("A") is kind("A")
    assert kind("A") is not kind("B")


def test_subtree_heights_and_depths_agree_with_a_recursive_walk():
    grammar, stream = shipped(), random.Random(3)
    for _ in range(50):
        tree = grow_tree(grammar, random_chooser(stream))
        heights, deep = [], []

        def walk(part, depth, heights=heights, deep=deep):
            at = len(heights)
            heights.append(0)
            deep.append(depth)
            heights[at] = max((1 + walk(below, depth + 1) for below in part[1:]), default=0)
            return heights[at]

        walk(nested(tree), 0)
        assert subtree_heights(tree) == heights
        assert depths(tree) == deep


def test_deap_generates_from_the_same_rules():
    rules = (Rule("both", "T", ("T", "T")), Rule("turn", "T", ("T",)), Rule("x", "T"), Rule("y", "T"))
    grammar = toy(4, rules, "T")
    for _ in range(50):
        tree = gp.PrimitiveTree(gp.genHalfAndHalf(grammar.pset, 1, 4))
        assert well_typed(tree, kind("T"))
        assert 1 <= height_of(tree) <= 4
        assert {node.name for node in tree} <= {rule.name for rule in rules}


def test_the_primitive_set_of_a_shipped_space_holds_every_rule():
    grammar = shipped()
    primitives = {p.name for found in grammar.pset.primitives.values() for p in found}
    terminals = {t.name for found in grammar.pset.terminals.values() for t in found}
    assert primitives == {rule.name for rule in grammar.rules if rule.args}
    assert terminals == {rule.name for rule in grammar.rules if not rule.args}


def test_deap_selects_among_individuals():
    grammar, stream = shipped(), random.Random(0)
    people = [Individual(list(grow_tree(grammar, random_chooser(stream)))) for _ in range(8)]
    for value, one in enumerate(people):
        one.settle(Outcome(Status.OK, value / 10))
    assert tools.selBest(people, 1) == [people[-1]]
    winners = tools.selTournament(people, 20, tournsize=8)
    assert sum(w.fitness.values[0] for w in winners) / 20 > sum(p.fitness.values[0] for p in people) / 8
