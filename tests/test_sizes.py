from math import log
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evokd.genome.individual import Individual, Outcome, Status
from evokd.losses.growth import loss_grammar
from evokd.report.sizes import Size, best_per_size, pick, told
from evokd.run import Budget, Search
from evokd.search.front import FrontEvolution
from evokd.search.islands import Islands
from evokd.space import read_space
from evokd.streams import derive
from tests.toy import toy_grammar

GRAMMAR = toy_grammar()


def made(number: int, size: int, fitness: float | None) -> Individual:
    """A chain of sums with so many nodes, an odd number."""
    individual = Individual([*[GRAMMAR.nodes["add"]] * (size // 2), *[GRAMMAR.nodes["1"]] * (size // 2 + 1)])
    individual.id = number
    individual.settle(Outcome(Status.CRASHED) if fitness is None else Outcome(Status.OK, fitness))
    return individual


def several(*rows: tuple[int, float | None]) -> list[Individual]:
    return [made(number, *row) for number, row in enumerate(rows)]


def name(individual) -> str:
    return f"loss {individual.id}"


def test_a_table_by_hand():
    """Errors 40, 20, 5 and 4 %; a failure, an equal and a worse one of more nodes are left out."""
    individuals = several((7, 96.0), (1, 60.0), (5, 95.0), (1, 50.0), (3, 80.0), (3, None), (9, 96.0), (11, 70.0), (5, 95.0))
    rows = best_per_size(individuals, name)
    assert [(r.size, r.fitness, r.text, r.picked) for r in rows] == [
        (1, 60, "loss 1", False),
        (3, 80, "loss 4", False),
        (5, 95, "loss 2", False),
        (7, 96, "loss 0", True),
    ]
    assert [r.gain for r in rows] == pytest.approx([0, log(2) / 2, log(4) / 2, log(1.25) / 2])


@pytest.mark.parametrize(("error", "size"), [(0.0, 7), (0.99, 7), (1.0, 5), (15.9, 5), (16.0, 5), (36.0, 5)])
def test_the_pick_is_the_greatest_gain_within_one_standard_error(error, size):
    rows = best_per_size(several((1, 60.0), (3, 80.0), (5, 95.0), (7, 96.0)), name, error=error)
    assert [row.size for row in rows if row.picked] == [size]


def test_the_smallest_wins_where_gains_are_alike_and_never_gains_itself():
    rows = [Size(1, 90.0, "a"), Size(3, 91.0, "b", 0.5), Size(5, 92.0, "c", 0.5)]
    assert pick(rows, 1.0).text == pick(rows, 5.0).text == "b"
    assert pick(rows, 0.0).text == "c"
    assert pick(rows[:1], 5.0).text == "a"
    assert pick([], 1.0) is None


def test_a_perfect_loss_gains_by_the_floor_and_no_more():
    rows = best_per_size(several((1, 90.0), (3, 99.95), (5, 100.0)), name)
    assert [r.gain for r in rows] == pytest.approx([0, log(10 / 0.1) / 2, 0])


def test_what_is_no_accuracy_gains_in_its_own_unit():
    rows = best_per_size(several((1, -2.0), (5, -0.5), (7, 103.0)), name, accuracy=False)
    assert [r.gain for r in rows] == pytest.approx([0, 1.5 / 4, 103.5 / 2])


def test_nothing_is_told_of_nothing():
    assert best_per_size(several((3, None)), name) == []
    assert told([]) == []


def test_lines_for_a_terminal():
    rows = best_per_size(several((1, 60.0), (13, 95.0)), name, error=0.5)
    assert told(rows) == [
        "   size   fitness     gain  the best of its size that no smaller one beats",
        "      1     60.00        –  loss 0",
        " →   13     95.00    0.173  loss 1",
    ]


searches = st.lists(st.tuples(st.integers(0, 7).map(lambda n: 2 * n + 1), st.none() | st.integers(0, 20).map(lambda n: n * 5.0)))


@given(searches, st.sampled_from([0.0, 2.5, 5.0, 50.0]))
def test_the_front_by_its_definition(found, error):
    """Sizes by a plain loop, gains by PySR's recursion on its losses, the pick by listing all that may be picked."""
    rows = best_per_size(several(*found), name, error=error)
    best = {size: max(f for s, f in found if s == size and f is not None) for size, f in found if f is not None}
    front = [(size, f) for size, f in sorted(best.items()) if all(f > best[s] for s in best if s < size)]
    assert [(r.size, r.fitness) for r in rows] == front
    assert all(r.text == f"loss {found.index((r.size, r.fitness))}" for r in rows)
    last = None
    for row in rows:
        loss = max(100 - row.fitness, 0.1)
        assert row.gain == pytest.approx(0.0 if last is None else -(log(loss) - log(last[1])) / (row.size - last[0]))
        last = row.size, loss
    allowed = [r for r in rows if r.fitness + error >= front[-1][1]]
    assert [r.picked for r in rows].count(True) == bool(rows)
    for row in (r for r in rows if r.picked):
        assert row in allowed
        assert all((row.gain, -row.size) >= (other.gain, -other.size) for other in allowed)


# --- size as NSGA-II's second objective, in the language of losses -----------------------------------------------------------------


def quality(text: str, size: int) -> float:
    """Any function of the tree: chance by its text, and more for more nodes up to twelve."""
    return derive(7, text) % 1000 / 50 + 5 * min(size, 12)


def searched(space: str, controller, seed: int, generations: int = 12) -> tuple[Search, FrontEvolution | Islands]:
    grammar = loss_grammar(read_space(space).space, ["logits", "embedding", "features[-1]"])

    def evaluate(batch):
        for tree in batch:
            yield Outcome(Status.OK, quality(grammar.write(tree), len(tree)), {"size": float(len(tree))})

    made = controller(grammar)
    quiet = SimpleNamespace(write=lambda *a, **f: None, individual=lambda *a: None, sync=lambda: None)
    search = Search("x", grammar, made, lambda tree: "", evaluate, Budget(generations, 20), seed, journal=quiet)
    search.run()
    return search, made


def front_of(controller: FrontEvolution) -> list[tuple[int, float]]:
    return sorted({(len(i), i.fitness.values[0]) for i in controller.front()})


@pytest.mark.parametrize("space", ["tiny", "compact"])
@pytest.mark.parametrize("seed", range(2))
def test_nsga2_holds_the_best_of_each_size_among_losses(space, seed):
    """Its front is the table's: no loss of the run is better at its size than what the population kept."""
    search, controller = searched(space, lambda grammar: FrontEvolution(grammar, 20, ["size"]), seed)
    rows = best_per_size(search.individuals, search.grammar.write)
    assert len(rows) > 2
    assert front_of(controller) == [(r.size, r.fitness) for r in rows]


@pytest.mark.parametrize("space", ["tiny", "compact"])
def test_children_of_losses_exceed_nothing(space):
    """Crossover and every mutation stay within height and operators; numbers alone leave the grid, as they may."""
    search, _ = searched(space, lambda grammar: FrontEvolution(grammar, 20, ["size"]), 0)
    grammar = search.grammar
    found = search.individuals
    assert {i.op for i in found} >= {"random", "crossover", "subtree", "node", "insert", "constant"}
    assert max(i.height for i in found) <= grammar.height
    assert {node.name for i in found for node in i if node.ret.__name__ not in ("value", "tau")} <= set(grammar.nodes)


def test_size_pulls_against_fitness():
    """Without the cost the population is large trees alone; with it, the smallest of the run is kept beside the best."""
    search, controller = searched("compact", lambda grammar: FrontEvolution(grammar, 20, ["size"]), 0)
    _, single = searched("compact", lambda grammar: FrontEvolution(grammar, 20, []), 0)
    sizes, alone = ({len(i) for i in c.population} for c in (controller, single))
    assert min(sizes) == min(len(i) for i in search.individuals) < min(alone)
    assert max(i.fitness.values[0] for i in controller.population) == max(i.fitness.values[0] for i in search.individuals)


def test_islands_of_fronts_hold_the_front_together():
    search, islands = searched("compact", lambda grammar: Islands([FrontEvolution(grammar, 10, ["size"]) for _ in range(2)]), 0)
    rows = best_per_size(search.individuals, search.grammar.write)
    held = best_per_size([i for c in islands.controllers for i in c.population], search.grammar.write)
    assert held == rows
