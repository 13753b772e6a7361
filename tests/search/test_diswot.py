from collections import Counter
from random import Random
from statistics import fmean

import pytest

from evokd.evaluate.tabular import read_table
from evokd.search.diswot import RATIO, SIZE, TOPK, DiswotEvolution
from evokd.search.random import RandomSearch
from evokd.streams import stream
from evokd.students import nas_bench_201, read_student_space
from tests.bench.tabular import play
from tests.search.test_ageing import (
    assert_only_history_counts,
    assert_resumes_from_any_line,
    describe,
    fitnesses,
    searched,
    settled,
)
from tests.toy import toy_grammar


@pytest.fixture(scope="module")
def cells(shared_data):
    return read_table("nas_bench_201", shared_data), read_student_space("nas_bench_201")


def test_the_smallest_leaves_however_young():
    grammar = toy_grammar()
    search = DiswotEvolution(grammar, 3)
    search.tell([settled(grammar, "1", n, f) for n, f in enumerate([9.0, None, 1.0, 5.0])])
    assert fitnesses(search.population) == [9, 5, 1]
    search.tell([settled(grammar, "2", 4, 0.5)])
    assert [i.id for i in search.population] == [0, 3, 2]
    search.tell([settled(grammar, "2", 5, 7.0)])
    assert [i.id for i in search.population] == [0, 5, 3]


def test_an_infeasible_child_removes_nobody():
    grammar = toy_grammar()
    search = DiswotEvolution(grammar, 2)
    search.tell([settled(grammar, "1", n, f) for n, f in enumerate([9.0, 4.0])])
    search.tell([settled(grammar, "2", 2, None)])
    assert fitnesses(search.population) == [9, 4]


def test_the_start_is_random_until_the_population_is_full():
    grammar = toy_grammar()
    search = DiswotEvolution(grammar, 3)
    for number in range(3):
        assert describe(search.ask(number, stream(number)))[1:] == ("random", ())
        search.tell([settled(grammar, "3", number, 1.0)])
    assert search.ask(3, stream(3)).parents


@pytest.mark.parametrize(
    ("ratio", "topk", "shares"),
    [
        (1.0, 1, (1, 0, 0, 0)),
        (1.0, 3, (1 / 3, 1 / 3, 1 / 3, 0)),
        (0.01, 5, (1 / 4, 1 / 4, 1 / 4, 1 / 4)),  # one is sampled at least, and k may exceed the sample
        (0.5, 1, (3 / 6, 2 / 6, 1 / 6, 0)),  # without replacement, so that the worst never stands alone
    ],
)
def test_parents_are_drawn_among_the_best_k_of_a_sample(ratio, topk, shares):
    grammar = toy_grammar()
    search = DiswotEvolution(grammar, 4, ratio, topk)
    search.tell([settled(grammar, "1", n, f) for n, f in enumerate([2.0, 8.0, 4.0, 6.0])])
    found = Counter(search.ask(1, stream(n)).parents for n in range(2000))
    assert [found[(number,)] / 2000 for number in (1, 3, 2, 0)] == pytest.approx(shares, abs=0.04)


def test_a_generation_is_taken_in_order_of_submission():
    grammar, told = toy_grammar(), [3.0, 8.0, None, 3.0, 1.0, 8.0, 5.0, 3.0]
    batch = [settled(grammar, "1", n, f) for n, f in enumerate(told)]
    at_once, singly = DiswotEvolution(grammar, 4), DiswotEvolution(grammar, 4)
    at_once.tell(batch)
    for individual in batch:
        singly.tell([individual])
    assert [i.id for i in at_once.population] == [i.id for i in singly.population] == [1, 5, 6, 0]


def small(grammar):
    return DiswotEvolution(grammar, 6, 0.5, 2)


def test_a_cut_search_resumes(tmp_path):
    assert_resumes_from_any_line(tmp_path, small)


def test_its_state_is_what_it_was_told():
    assert_only_history_counts(small)


def test_a_search_one_by_one_runs_in_the_loop(tmp_path):
    events = searched(tmp_path / "run", small, generations=60, size=1)
    found = [e for e in events if e["event"] == "individual"]
    assert {e["op"] for e in found} >= {"random", "node", "subtree"}
    assert max(e["fitness"] for e in found[30:] if e["status"] == "OK") > max(
        e["fitness"] for e in found[:6] if e["status"] == "OK"
    )


def printed(table, draw: Random) -> str:
    """Algorithm 1 line by line, with plain lists of operators in place of trees, on the simulated clock."""
    ops, spent, history = list(nas_bench_201.OPS), 0.0, []

    def score(cell) -> float:
        nonlocal spent
        text = nas_bench_201.write(dict(zip(nas_bench_201.EDGES, cell, strict=True)))
        spent += table.seconds(text, "cifar10_12epochs")
        z = table.accuracy(text, "cifar10_12epochs")
        if spent <= 12_000:
            history.append((z, text))
        return z

    population = []
    for _ in range(SIZE):
        cell = [draw.choice(ops) for _ in range(6)]
        population.append((score(cell), cell))
    while spent <= 12_000:
        pool = draw.sample(population, round(RATIO * SIZE))
        candidates = sorted(pool, key=lambda pair: pair[0], reverse=True)[:TOPK]
        child = list(draw.choice(candidates)[1])
        edge = draw.randrange(6)
        child[edge] = draw.choice([op for op in ops if op != child[edge]])
        population.append((score(child), child))
        population.remove(min(population, key=lambda pair: pair[0]))
    return max(history, key=lambda pair: pair[0])[1]


@pytest.fixture(scope="module")
def found(cells):
    """The incumbents of 150 runs."""
    return [play(*cells, DiswotEvolution, 1, seed).best for seed in range(150)]


def mean_test(table, texts, column="cifar10") -> float:
    return fmean(table.accuracy(text, column) for text in texts)


def test_it_is_the_printed_algorithm_in_distribution(cells, found):
    """150 runs each: the standard error of the difference is 0.04."""
    table, _ = cells
    others = [printed(table, stream(seed, "printed")) for seed in range(150)]
    assert mean_test(table, found) == pytest.approx(mean_test(table, others), abs=0.13)


def test_it_finds_better_cells_than_random_search(cells, found):
    table, space = cells
    drawn = [play(table, space, RandomSearch, 1, seed).best for seed in range(150)]
    for column, gap in (("cifar10", 0.15), ("cifar100", 0.5)):
        assert mean_test(table, found, column) > mean_test(table, drawn, column) + gap


def test_runs_repeat_and_repeats_can_be_asked_for_anew(cells):
    table, space = cells
    runs = [play(table, space, DiswotEvolution, 1, seed, anew) for seed in (7, 7, 8) for anew in (False, True)]
    assert runs[:2] == runs[2:4] != runs[4:]
    assert runs[0] != runs[1]
