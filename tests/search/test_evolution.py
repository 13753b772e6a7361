import random
from statistics import fmean

import pytest
from deap import base, gp, tools

from evokd.genome.individual import Individual, Outcome, Status
from evokd.journal import individuals, without_clock
from evokd.search.evolution import Evolution, default_toolbox
from evokd.streams import stream
from tests.toy import Toy, toy_grammar


def settled(grammar, leaf: str, number: int, fitness: float | None) -> Individual:
    made = Individual([grammar.nodes[leaf]])
    made.id, made.generation = number, 0
    made.settle(Outcome(Status.OK, fitness) if fitness is not None else Outcome(Status.CRASHED, reason="x"))
    return made


def test_the_best_are_kept_and_failures_never_enter():
    grammar = toy_grammar()
    evolution = Evolution(grammar, 3)
    evolution.tell([settled(grammar, "1", n, f) for n, f in enumerate([3.0, None, 9.0, 1.0, 5.0])])
    assert [i.fitness.values[0] for i in evolution.population] == [9, 5, 3]
    evolution.tell([settled(grammar, "2", n, f) for n, f in enumerate([4.0, None, 2.0], 5)])
    assert [i.fitness.values[0] for i in evolution.population] == [9, 5, 4]


def test_the_best_so_far_never_falls(tmp_path):
    for seed in range(5):
        events = Toy(tmp_path / str(seed), generations=8, seed=seed).run()
        best = [e["best"] for e in events if e["event"] == "generation"]
        assert best == sorted(best)


def test_seeds_come_first_and_once(tmp_path):
    grammar = toy_grammar()
    seeds = [[grammar.nodes["7"]], [grammar.nodes["5"]]]
    evolution = Evolution(grammar, 4, seeds)
    asked = [evolution.ask(0, stream(0, "x")) for _ in range(4)]
    assert [(i.op, [n.name for n in i]) for i in asked[:2]] == [("seed", ["7"]), ("seed", ["5"])]
    assert {i.op for i in asked[2:]} == {"random"}


def test_every_way_to_vary_is_used_and_told(tmp_path):
    events = Toy(tmp_path / "run", generations=20, size=10).run()
    ops = {e["op"] for e in individuals(events)}
    assert ops == {"random", "crossover", "subtree", "node", "insert", "shrink", "constant"}
    parents = {e["op"]: len(e["parents"]) for e in individuals(events)}
    assert parents["node"] == 1
    assert max(len(e["parents"]) for e in individuals(events) if e["op"] == "crossover") == 2


def test_evolution_beats_random_search_on_a_toy_optimum(tmp_path):
    def best(controller: str, seed: int) -> float:
        events = Toy(tmp_path / f"{controller}{seed}", controller, generations=8, size=10, seed=seed).run()
        return max(e["fitness"] for e in individuals(events) if e["status"] == "OK")

    evolved, drawn = ([best(controller, seed) for seed in range(8)] for controller in ("evolution", "random"))
    assert fmean(evolved) > fmean(drawn) + 10


def test_asking_moves_the_given_stream_alone():
    grammar = toy_grammar()
    evolution = Evolution(grammar, 4)
    evolution.tell([settled(grammar, leaf, n, float(n)) for n, leaf in enumerate("1235")])
    random.seed(1)
    state = random.getstate()
    first = [[n.name for n in evolution.ask(1, stream(0, "x", k))] for k in range(60)]
    random.random()
    again = [[n.name for n in evolution.ask(1, stream(0, "x", k))] for k in range(60)]
    random.seed(1)
    assert first == again
    assert random.getstate() == state
    assert len({tuple(names) for names in first}) > 5


# --- a DEAP user's own operators ---------------------------------------------------------------------------------------------


def user_toolbox(grammar, given):
    """DEAP's own crossover, node replacement and selection, which draw from the global `random`."""
    toolbox = base.Toolbox()
    toolbox.register("mate", one_point, grammar=grammar)
    toolbox.register("mutate", replace_leaf, grammar=grammar)
    toolbox.register("select", tools.selRoulette if grammar.name == "positive" else tools.selRandom)
    return toolbox


def one_point(first, second, grammar):
    a, b = random.randrange(len(first)), random.randrange(len(second))
    first[first.searchSubtree(a)], second[second.searchSubtree(b)] = (
        second[second.searchSubtree(b)],
        first[first.searchSubtree(a)],
    )
    if max(first.height, second.height) > grammar.height:
        return type(first)([grammar.nodes["1"]]), second
    return first, second


def replace_leaf(tree, grammar):
    """In place, as DEAP's own operators are."""
    leaves = [i for i, node in enumerate(tree) if not node.arity]
    tree[random.choice(leaves)] = grammar.nodes[random.choice("12357")]
    return (tree,)


def test_a_users_deap_operators_run_reproducibly_and_leave_the_global_generator_alone(tmp_path):
    random.seed(11)
    state = random.getstate()
    first = Toy(tmp_path / "a", toolbox=user_toolbox, generations=5).run()
    assert random.getstate() == state
    random.seed(12)
    second = Toy(tmp_path / "b", toolbox=user_toolbox, generations=5).run()
    other = Toy(tmp_path / "c", toolbox=user_toolbox, generations=5, seed=1).run()
    assert without_clock(first) == without_clock(second)
    assert without_clock(first) != without_clock(other)


def test_a_users_mutation_is_told_as_such(tmp_path):
    """DEAP mutates in place: the child must not pass for what its parent was."""
    events = Toy(tmp_path / "run", toolbox=user_toolbox, generations=6).run()
    varied = {e["op"] for e in individuals(events) if len(e["parents"]) == 1 and e["op"] != "crossover"}
    assert varied == {"mutation"}


def test_clones_share_nodes_and_not_outcomes():
    grammar = toy_grammar()
    toolbox = default_toolbox(grammar, stream(0))
    parent = settled(grammar, "3", 4, 1.5)
    clone = toolbox.clone(parent)
    assert (list(clone), clone.id, clone.outcome, clone.fitness.valid) == (list(parent), 4, None, False)
    clone[0] = grammar.nodes["5"]
    assert parent[0].name == "3"


def test_grammars_serve_deaps_own_primitive_sets():
    pset = toy_grammar().pset
    assert isinstance(pset, gp.PrimitiveSetTyped)
    assert pset.terminalRatio == pytest.approx(5 / 7)
