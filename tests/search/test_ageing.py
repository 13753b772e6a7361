import json
import random
from collections import Counter
from statistics import fmean

import pytest

from evokd.evaluate.tabular import read_table
from evokd.genome.grammar import Grammar, Rule
from evokd.genome.individual import Individual, Outcome, Status
from evokd.journal import individuals, without_clock
from evokd.search.ageing import AgeingEvolution, mutate_once, usual_mutations
from evokd.search.evolution import MUTATION_WEIGHTS
from evokd.search.random import RandomSearch
from evokd.streams import stream
from evokd.students import read_student_space
from tests.bench.tabular import play
from tests.toy import Toy, judge, toy_grammar


@pytest.fixture(scope="module")
def cells(shared_data):
    return read_table("nas_bench_201", shared_data), read_student_space("nas_bench_201")


def settled(grammar, leaf: str, number: int, fitness: float | None, **metrics) -> Individual:
    made = Individual([grammar.nodes[leaf]])
    made.id, made.generation = number, 0
    made.settle(Outcome(Status.OK, fitness, metrics) if fitness is not None else Outcome(Status.CRASHED, reason="x"))
    return made


def fitnesses(population) -> list[float]:
    return [individual.fitness.values[0] for individual in population]


def searched(folder, make, **options) -> list[dict]:
    """The journal of a controller's search on the toy language, gone on from what the folder holds."""
    toy = Toy(folder, **options)
    toy.search.controller = make(toy.grammar)
    return toy.run()


def assert_resumes_from_any_line(tmp_path, make):
    """A search that was cut goes on to the same journal, whatever the controller knew being rebuilt from it."""
    whole = searched(tmp_path / "whole", make, generations=8, size=5)
    lines = (tmp_path / "whole" / "events.jsonl").read_text().splitlines(keepends=True)
    assert len({json.dumps(e["tree"]) for e in individuals(whole)}) > 20
    for cut in range(0, len(lines), 5):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "events.jsonl").write_text("".join(lines[:cut]))
        assert without_clock(searched(folder, make, generations=8, size=5)) == without_clock(whole)


def assert_only_history_counts(make):
    """Controllers told the same propose the same from the same stream, whatever they were asked between."""
    grammar = toy_grammar()
    first, second, untold = (make(grammar) for _ in range(3))
    for generation in range(12):
        batch = [first.ask(generation, stream(0, "x", generation, n)) for n in range(4)]
        copies = [Individual([rule_node(grammar, node) for node in each], op=each.op, parents=each.parents) for each in batch]
        for number, individual in enumerate([*batch, *copies]):
            individual.id = 4 * generation + number % 4
            individual.settle(judge(individual))
        first.tell(batch)
        second.tell(copies)
    state = random.getstate()
    asked = [[describe(c.ask(12, stream(1, n))) for n in range(50)] for c in (first, second, untold)]
    assert random.getstate() == state
    assert asked[0] == asked[1] != asked[2]


def rule_node(grammar, node):
    """An equal node that is another object, as a journal gives it back."""
    return next(rule for rule in grammar.rules if rule.name == node.name).node()


def describe(individual) -> tuple:
    return [node.name for node in individual], individual.op, individual.parents


def test_the_oldest_leaves_however_good():
    grammar = toy_grammar()
    ageing = AgeingEvolution(grammar, 3)
    ageing.tell([settled(grammar, "1", n, f) for n, f in enumerate([9.0, None, 1.0, 5.0])])
    assert fitnesses(ageing.population) == [9, 1, 5]
    ageing.tell([settled(grammar, "2", 4, None)])
    assert fitnesses(ageing.population) == [9, 1, 5]
    ageing.tell([settled(grammar, "2", n, f) for n, f in enumerate([0.0, 2.0], 5)])
    assert fitnesses(ageing.population) == [5, 0, 2]


def test_the_start_is_random_until_the_population_is_full():
    grammar = toy_grammar()
    ageing = AgeingEvolution(grammar, 3, 2)
    for number in range(3):
        assert describe(ageing.ask(number, stream(number)))[1:] == ("random", ())
        ageing.tell([settled(grammar, "3", number, 1.0)])
    assert ageing.ask(3, stream(3)).parents


@pytest.mark.parametrize(("tournament", "shares"), [(1, (1 / 3, 1 / 3, 1 / 3)), (2, (5 / 9, 3 / 9, 1 / 9)), (50, (1, 0, 0))])
def test_parents_are_the_best_of_a_sample_drawn_with_replacement(tournament, shares):
    """The best of P = 3 is in a sample of S with probability 1 − (2/3)^S, the worst alone in it with (1/3)^S."""
    grammar = toy_grammar()
    ageing = AgeingEvolution(grammar, 3, tournament)
    ageing.tell([settled(grammar, "1", n, f) for n, f in enumerate([4.0, 8.0, 6.0])])
    found = Counter(ageing.ask(1, stream(n)).parents for n in range(2000))
    assert [found[(number,)] / 2000 for number in (1, 2, 0)] == pytest.approx(shares, abs=0.04)


@pytest.mark.parametrize("name", ["nas_bench_201", "mnasnet"])
def test_a_student_changes_in_exactly_one_slot_and_may_in_any(name):
    space, draw = read_student_space(name), stream(0)
    parent = RandomSearch(space.grammar).ask(0, draw)
    genome, changes = space.genome(parent), Counter()
    for _ in range(1500):
        child = space.genome(mutate_once(parent, space.grammar, usual_mutations(space.grammar), draw))
        (change,) = child.items() - genome.items()
        changes[change] += 1
    assert set(changes) == {(s, c) for s, choices in space.slots.items() for c in choices if c != genome[s]}


def test_the_usual_mutations_follow_the_language():
    assert dict(usual_mutations(read_student_space("resnet_s0").grammar)) == {"node": 1}
    assert usual_mutations(toy_grammar()) == MUTATION_WEIGHTS


def test_every_mutation_changes_something():
    grammar, draw = toy_grammar(), stream(0)
    parent = Individual([grammar.nodes["3"]])
    children = [mutate_once(parent, grammar, MUTATION_WEIGHTS, draw) for _ in range(300)]
    assert parent not in children
    assert {child.op for child in children} == set(MUTATION_WEIGHTS)


def test_a_language_of_one_tree_does_not_hang():
    grammar = Grammar("one", [Rule("a", "leaf")], "leaf", 1, write=str)
    child = mutate_once(Individual([grammar.nodes["a"]]), grammar, {"node": 1}, stream(0))
    assert describe(child) == (["a"], "random", ())


def test_a_generation_is_taken_in_order_of_submission():
    grammar, told = toy_grammar(), [3.0, 8.0, None, 1.0, 5.0, 7.0]
    batch = [settled(grammar, "1", n, f) for n, f in enumerate(told)]
    at_once, singly = AgeingEvolution(grammar, 3), AgeingEvolution(grammar, 3)
    at_once.tell(batch)
    for individual in batch:
        singly.tell([individual])
    assert list(at_once.population) == list(singly.population)
    assert fitnesses(at_once.population) == [1, 5, 7]


def ageing(grammar):
    return AgeingEvolution(grammar, 8, 3)


def test_a_cut_search_resumes(tmp_path):
    assert_resumes_from_any_line(tmp_path, ageing)


def test_its_state_is_what_it_was_told():
    assert_only_history_counts(ageing)


def test_nas_bench_201_as_published(cells):
    """Dong & Yang (ICLR 2020), P = 10, S = 3, 12,000 s: REA 93.92 ± 0.30 and 71.84 ± 0.99, random search 93.70 and 71.04."""
    table, space = cells
    evolved = [play(table, space, lambda g: AgeingEvolution(g, 10, 3), 1, seed).best for seed in range(100)]
    drawn = [play(table, space, RandomSearch, 1, seed).best for seed in range(100)]
    for column, figures, slack in (("cifar10", (93.92, 93.70), 0.15), ("cifar100", (71.84, 71.04), 0.45)):
        found = [fmean(table.accuracy(best, column) for best in runs) for runs in (evolved, drawn)]
        assert found == pytest.approx(figures, abs=slack)
        assert found[0] > found[1] + slack / 2
