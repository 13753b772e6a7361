import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random
from statistics import fmean, stdev
from unittest.mock import Mock

import pytest

from evokd.evaluate.tabular import read_table
from evokd.genome.grammar import Grammar, Rule, subtree_heights
from evokd.genome.individual import Individual, Outcome, Status
from evokd.run import Budget, Search
from evokd.search.local import PATIENCE, LocalSearch, neighbours
from evokd.search.random import RandomSearch
from evokd.streams import stream
from evokd.students import read_student_space
from tests.bench.tabular import largest_first, play
from tests.search.test_ageing import assert_only_history_counts, assert_resumes_from_any_line, describe, settled
from tests.toy import judge, toy_grammar

ROOT = Path(__file__).parents[2]
BEST = "01230123"  # the optimum of `slots`


def slots_grammar(count: int = 8, choices: int = 4) -> Grammar:
    """One tree for every word of so many digits."""
    rules = [Rule("net", "net", tuple(f"s{i}" for i in range(count)))]
    rules += [Rule(f"s{i}={c}", f"s{i}") for i in range(count) for c in range(choices)]
    return Grammar("slots", rules, "net", 1, write=word)


def word(tree) -> str:
    return "".join(node.name[-1] for node in tree[1:])


def tree_of(grammar, digits: str) -> list:
    return [grammar.nodes["net"], *(grammar.nodes[f"s{i}={c}"] for i, c in enumerate(digits))]


def matches(tree) -> Outcome:
    """Digits that are right; a seventh of the words fail in one way or another."""
    number = int(word(tree), 4)
    if number % 7 == 3 and word(tree) != BEST:
        return Outcome((Status.DIVERGED, Status.CRASHED, Status.TIMED_OUT, Status.OUT_OF_MEMORY)[number % 4], reason="toy")
    return Outcome(Status.OK, float(sum(a == b for a, b in zip(word(tree), BEST, strict=True))))


def told(grammar, digits: str, number: int, fitness: float | None, op: str = "node", parents=()) -> Individual:
    made = Individual(tree_of(grammar, digits), op=op, parents=parents)
    made.id, made.generation = number, 0
    made.settle(Outcome(Status.OK, fitness) if fitness is not None else Outcome(Status.CRASHED, reason="x"))
    return made


def searched(controller, evaluations=100, size=1, seed=0, judge=matches, identity=None, grammar=None) -> list[Individual]:
    """All that a controller's search came to, in the real loop but for the journal."""
    grammar, budget = grammar or controller.grammar, Budget(evaluations, size, evaluations)
    search = Search("x", grammar, controller, lambda tree: "", lambda batch: map(judge, batch), budget, seed, identity=identity)
    search.journal = Mock()
    return search.run()


def assert_beats_random(make, size=1, seeds=12, by=0.0):
    """Paired by seed: the mean lead in best fitness is more than three standard errors, and more than `by`."""
    grammar, leads = slots_grammar(), []
    for seed in range(seeds):
        found = [searched(each, 100, size, seed) for each in (make(grammar), RandomSearch(grammar))]
        assert all(len(individuals) == 100 for individuals in found)
        best = [max(i.fitness.values[0] for i in individuals if i.ok) for individuals in found]
        leads.append(best[0] - best[1])
    assert fmean(leads) > max(by, 3 * stdev(leads) / len(leads) ** 0.5), leads


def proposals(controller) -> list[str]:
    """Of a short search on the toy language."""
    found = []
    for generation in range(6):
        batch = [controller.ask(generation, stream(5, generation, n)) for n in range(4)]
        for n, each in enumerate(batch):
            each.id = 4 * generation + n
            each.settle(judge(each))
        found += [f"{each.op} {each.parents} {' '.join(node.name for node in each)}" for each in batch]
        controller.tell(batch)
    return found


def assert_same_in_another_process(module: str, makes: list[str]):
    """`makes` are sources of controllers on `toy_grammar()`; what they propose does not depend on the hash seed."""
    code = (
        f"from evokd.search import {module}; from tests.toy import toy_grammar; from tests.search.test_local import proposals; "
        f"found = [proposals(make) for make in ({', '.join(makes)},)]"
    )
    here: dict = {}
    exec(code, here)
    command, env = [sys.executable, "-c", f"{code}; print(found)"], os.environ | {"PYTHONHASHSEED": "1"}
    there = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=env)
    assert there.stdout.strip() == str(here["found"])
    assert all(len(set(found)) > 10 for found in here["found"])


# --- neighbours --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nas_bench_201", "mnasnet"])
def test_neighbours_of_a_student_differ_in_one_slot_and_are_all(name):
    space = read_student_space(name)
    tree = RandomSearch(space.grammar).ask(0, stream(0))
    genome = space.genome(tree)
    found = [space.genome(nodes) for nodes in neighbours(tree, space.grammar)]
    expected = [genome | {slot: c} for slot, choices in space.slots.items() for c in choices if c != genome[slot]]
    assert sorted(map(str, found)) == sorted(map(str, expected))


def test_neighbours_keep_arity_and_kind():
    grammar = toy_grammar(2)
    tree = [grammar.nodes[name] for name in ("add", "mul", "1", "2", "3")]
    found = {" ".join(node.name for node in nodes) for nodes in neighbours(tree, grammar)}
    swapped = {"mul mul 1 2 3", "add add 1 2 3"}
    leaves = {f"add mul {a} 2 3" for a in "2357"} | {f"add mul 1 {b} 3" for b in "1357"} | {f"add mul 1 2 {c}" for c in "1257"}
    assert found == swapped | leaves


def test_neighbours_take_the_same_arguments():
    rules = [Rule("f", "root", ("a",)), Rule("g", "root", ("b",)), Rule("h", "root", ("a",)), Rule("x", "a"), Rule("y", "b")]
    grammar = Grammar("two", rules, "root", 1, write=str)
    assert [[n.name for n in nodes] for nodes in neighbours([grammar.nodes["f"], grammar.nodes["x"]], grammar)] == [["h", "x"]]


def test_all_neighbours_come_once_in_a_random_order_then_a_start():
    grammar = slots_grammar(3, 3)
    orders = set()
    for seed in range(5):
        local, asked = LocalSearch(grammar), []
        for number in range(8):
            proposal = local.ask(number, stream(seed, number))
            asked.append((word(proposal), proposal.op, proposal.parents))
            local.tell([told(grammar, word(proposal), number, 1.0, proposal.op, proposal.parents)])
        first = asked[0][0]
        around = {first[:i] + c + first[i + 1 :] for i in range(3) for c in "012"} - {first}
        assert {text for text, *_ in asked[1:7]} == around
        assert [origin for _, *origin in asked] == [["random", ()], *[["node", (0,)]] * 6, ["restart(0)", ()]]
        orders.add(tuple(text.count(first[0]) for text, *_ in asked[1:7]))
    assert len(orders) > 1


def test_every_neighbour_may_be_the_first():
    grammar = slots_grammar(3, 3)
    local = LocalSearch(grammar)
    local.tell([told(grammar, "000", 0, 1.0)])
    firsts = []
    for number in range(600):
        local._asked = set()
        firsts.append(word(local.ask(1, stream(number))))
    shares = Counter(firsts)
    assert set(shares) == {"100", "200", "010", "020", "001", "002"}
    assert all(share == pytest.approx(100, abs=35) for share in shares.values())


def test_within_a_generation_nothing_is_proposed_twice():
    grammar = slots_grammar(3, 3)
    local = LocalSearch(grammar)
    local.tell([told(grammar, "000", 0, 1.0)])
    asked = [local.ask(1, stream(0, n)) for n in range(8)]
    assert len({word(each) for each in asked[:6]}) == 6
    assert [each.op for each in asked] == ["node"] * 6 + ["restart(0)"] * 2
    local.tell([])
    assert local.ask(1, stream(0, 0)).op == "node"  # none was told


# --- moves -------------------------------------------------------------------------------------------------------------------


def test_it_moves_at_the_first_that_is_strictly_better():
    grammar = slots_grammar(3, 3)
    local, places = LocalSearch(grammar), []
    for number, (digits, fitness) in enumerate(
        [("000", None), ("111", 2.0), ("112", 2.0), ("110", None), ("101", 1.0), ("121", 2.5)]
    ):
        local.tell([told(grammar, digits, number, fitness, parents=(1,))])
        places.append(local.current and word(local.current))
    assert places == [None, "111", "111", "111", "111", "121"]


def test_a_start_takes_the_place_of_what_was_given_up_for_it_and_of_nothing_else():
    grammar = slots_grammar(3, 3)
    local = LocalSearch(grammar)
    local.tell([told(grammar, "000", 17, 5.0)])
    local.tell([told(grammar, "111", 18, None, "restart(17)"), told(grammar, "222", 19, 1.0, "restart(1)")])
    assert word(local.current) == "000"
    local.tell([told(grammar, "112", 20, 2.0, "restart(17)"), told(grammar, "122", 21, 1.0, "restart(17)")])
    assert word(local.current) == "112"
    local.tell([told(grammar, "220", 22, 3.0, "restart(17)"), told(grammar, "221", 23, 1.0, "restart(20)@1")])
    assert word(local.current) == "220"
    local.tell([told(grammar, "200", 24, 1.0, "restart(22)@1")])  # as islands mark it
    assert word(local.current) == "200"


def test_a_generation_is_taken_in_order_of_submission():
    grammar = slots_grammar(3, 3)
    batch = [told(grammar, f"{n // 9}{n // 3 % 3}{n % 3}", n, f) for n, f in enumerate([3.0, None, 2.0, 8.0, 8.0, 5.0])]
    at_once, singly = LocalSearch(grammar), LocalSearch(grammar)
    at_once.tell(batch)
    for individual in batch:
        singly.tell([individual])
    assert at_once.current is singly.current is batch[3]
    assert describe(at_once.ask(1, stream(1))) == describe(singly.ask(1, stream(1)))


@pytest.mark.parametrize(("patience", "tried"), [(1, 1), (4, 4), (None, 24)])
def test_patience_ends_a_climb(patience, tried):
    local, grammar = LocalSearch(slots_grammar(), patience=patience), slots_grammar()
    ops = []
    for number in range(tried + 2):
        proposal = local.ask(number, stream(number))
        ops.append(proposal.op)
        local.tell([told(grammar, word(proposal), number, 1.0, proposal.op, proposal.parents)])
    assert ops == ["random", *["node"] * tried, "restart(0)"]


def test_patience_counts_the_neighbours_of_this_tree_and_of_this_generation():
    grammar = slots_grammar(3, 3)
    local = LocalSearch(grammar, patience=3)
    local.tell([told(grammar, "000", 0, 1.0)])
    local.tell([told(grammar, "001", 1, 1.0, parents=(0,)), told(grammar, "002", 2, 1.0, parents=(9,))])
    assert [local.ask(1, stream(n)).op for n in range(3)] == ["node", "node", "restart(0)"]
    local.tell([told(grammar, "010", 3, 2.0, parents=(0,))])
    assert [local.ask(2, stream(n)).op for n in range(4)] == ["node", "node", "node", "restart(3)"]


def test_where_neighbours_cannot_be_listed_they_are_drawn_until_patience_ends():
    grammar = toy_grammar()
    local, asked = LocalSearch(grammar), [Individual([grammar.nodes[n] for n in ["add", "mul", "2", "3", "mul", "5", "7"]])]
    for number in range(PATIENCE + 1):
        asked[-1].id = number
        asked[-1].settle(Outcome(Status.OK, 1.0))
        local.tell(asked[-1:])
        asked.append(local.ask(number, stream(number)))
    assert len({grammar.write(each) for each in asked[:-1]}) == PATIENCE + 1
    assert [each.parents for each in asked[1:]] == [(0,)] * PATIENCE + [()]
    assert asked[-1].op == "restart(0)"
    assert {"subtree", "node", "insert", "shrink"} <= {each.op for each in asked}
    assert all(max(subtree_heights(each)) <= grammar.height for each in asked)


def test_starts_are_the_greatest_by_the_prior():
    grammar = slots_grammar()

    def prior(tree) -> float:
        return -abs(int(word(tree), 4) - 12345)

    local, draw = LocalSearch(grammar, prior, starts=30), stream(3)
    pool = [RandomSearch(grammar).ask(0, draw) for _ in range(30)]
    assert word(local.ask(0, stream(3))) == word(max(pool, key=prior))
    local.tell([told(grammar, "00000000", 0, 1.0)])
    local.patience = 0
    again = local.ask(0, stream(3))
    assert (word(again), again.op) == (word(max(pool, key=prior)), "restart(0)")


# --- in the loop -------------------------------------------------------------------------------------------------------------


def test_isomorphic_trees_are_trained_once_and_do_not_stop_the_search():
    """Words are the same whatever the order of their digits: most neighbours are refused, and all 165 kinds are found."""
    grammar = slots_grammar()
    local = LocalSearch(grammar)
    found = searched(local, 165, 3, judge=lambda t: Outcome(Status.OK, 1.0), identity=lambda t: str(sorted(word(t))))
    kinds = [str(sorted(word(each))) for each in found]
    assert len(kinds) == len(set(kinds)) > 120


def test_a_cut_search_resumes(tmp_path):
    assert_resumes_from_any_line(tmp_path, LocalSearch)


def test_its_state_is_what_it_was_told():
    assert_only_history_counts(LocalSearch)


def test_another_process_proposes_the_same():
    assert_same_in_another_process("local", ["local.LocalSearch(toy_grammar())"])


@pytest.mark.parametrize("size", [1, 10])
def test_it_beats_random_search(size):
    assert_beats_random(LocalSearch, size, by=1.5)


def test_a_language_of_one_tree_does_not_hang():
    grammar = Grammar("one", [Rule("a", "leaf")], "leaf", 1, write=str)
    local = LocalSearch(grammar)
    local.tell([settled(grammar, "a", 0, 1.0)])
    assert describe(local.ask(1, Random(0))) == (["a"], "restart(0)", ())


def test_nas_bench_201_as_measured(shared_data):
    """12,000 s, isomorphic cells once: 94.19–94.20 on CIFAR-10, from the largest of 200 random cells more."""
    table, space = read_table("nas_bench_201", shared_data), read_student_space("nas_bench_201")
    for make in (LocalSearch, largest_first):
        runs = [play(table, space, make, 1, seed, anew=True).best for seed in range(100)]
        assert fmean(table.accuracy(best, "cifar10") for best in runs) == pytest.approx(94.2, abs=0.08)
