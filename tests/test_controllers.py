"""The controllers that a search is configured with: how they are put together, run, resume and shrink their space."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from statistics import fmean

import pytest

import evokd.controllers
from evokd import evolve_distiller
from evokd.config import make_config
from evokd.controllers import (
    CONTROLLERS,
    OPTUNA,
    Rewarded,
    Shrinking,
    Wanted,
    check_controller,
    make_controller,
    make_student_controller,
    shared,
)
from evokd.distiller import resume
from evokd.errors import EvokdError
from evokd.evolve import main
from evokd.genome.grow import grow_tree, random_chooser
from evokd.genome.individual import Individual, Outcome, Status, rank
from evokd.journal import Journal, read_events, without_clock
from evokd.losses import parse_loss, write_loss
from evokd.report.terminal import Terminal
from evokd.search.evolution import Evolution, default_toolbox
from evokd.search.front import FrontEvolution
from evokd.search.islands import Islands
from evokd.search.random import RandomSearch
from evokd.search.reinforce import Reinforce
from evokd.search.rewards import Reward
from evokd.shrink import Evidence, weigh
from evokd.streams import stream
from evokd.tabular_search import open_table_problem


@pytest.fixture
def opened(problem, tiny):
    """(settings) → the tiny problem with other settings."""
    return lambda **more: replace(problem, config=make_config(tiny | {"funnel": {"rungs": ()}} | more))


@pytest.fixture(scope="module")
def small(tiny):
    """Settings of a search of a second or two."""
    protocol = tiny["protocol"] | {"steps": 2, "transfer": 100}
    return tiny | {
        "protocol": protocol,
        "funnel": {"rungs": ()},
        "generations": 3,
        "population": 4,
        "baselines": False,
        "seed": 2,
    }


def settled(tree, number, fitness=None, generation=0, parents=(), reason=""):
    individual = Individual(list(tree), parents=parents)
    individual.id, individual.generation = number, generation
    status = Status.OK if fitness is not None else Status.REJECTED if reason else Status.DIVERGED
    individual.settle(Outcome(status, fitness, {"size": float(len(tree))}, reason))
    return individual


def resumed(run, events, place, tmp_path):
    """The events of a copy that was cut before one of them and went on."""
    copy = tmp_path / run.name
    shutil.copytree(run, copy)
    (tmp_path / "cache").symlink_to(run.parent / "cache")
    torn = json.dumps(events[place])[:30]
    (copy / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events[:place]) + torn)
    resume(copy, Terminal(quiet=True))
    return read_events(copy)


# --- put together ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [("evolution", Evolution), ("random", RandomSearch), ("nsga2", FrontEvolution)])
def test_a_controller_is_made_by_name(opened, name, kind):
    problem = opened(controller=name, population=7)
    controller = make_controller(problem, [], default_toolbox)
    assert type(controller) is kind
    assert controller.grammar is problem.grammar
    assert getattr(controller, "size", 7) == 7


def test_a_name_that_is_no_controller_is_refused_in_one_line(opened):
    with pytest.raises(EvokdError, match=r"--controller: expected a controller, got 'nsga3'; did you mean 'nsga2'\?") as caught:
        check_controller(opened(controller="nsga3").config)
    assert "\n" not in str(caught.value)


def test_nsga2_keeps_small_losses_beside_good_ones(opened):
    controller = make_controller(opened(controller="nsga2", population=2), [], default_toolbox)
    texts = {"l1(logits)": 1.0, "l2(logits) + l1(logits) + kl(logits, tau=2)": 2.0, "l2(logits) + l1(logits)": 0.5}
    told = [settled(parse_loss(text), i, fitness) for i, (text, fitness) in enumerate(texts.items())]
    controller.tell(told)
    assert {i.id for i in controller.population} == {0, 1}  # the third is larger than the first and worse


@pytest.mark.parametrize(("population", "count", "size"), [(12, 3, 4), (4, 2, 2), (4, 4, 2), (7, 2, 3)])
def test_islands_share_population_and_seeds(opened, population, count, size):
    seeds = [parse_loss(f"{i + 1}*l1(logits)") for i in range(5)]
    controller = make_controller(opened(population=population, islands=count), seeds, default_toolbox)
    assert type(controller) is Islands
    assert [island.size for island in controller.controllers] == [size] * count
    assert [tree for island in controller.controllers for tree in island.seeds] == [
        s for i in range(count) for s in seeds[i::count]
    ]
    asked = [controller.ask(0, stream(0, "x")) for _ in range(5)]
    assert [write_loss(tree) for tree in asked if tree.op.startswith("seed")] == [write_loss(s) for s in seeds][: len(asked)]


@pytest.mark.parametrize(
    ("rungs", "size"), [((), 10), (((0.5, 1, 0.7),), 10), (((0.5, 1, 0.5), (0.7, 1, 0.4)), 4), (((0.5, 1, 0.3),), 6)]
)
def test_parents_are_twice_what_the_rungs_leave_and_no_more_than_the_population(opened, rungs, size):
    assert make_controller(opened(population=10, funnel={"rungs": rungs}), [], default_toolbox).size == size


def test_niches_make_room_for_another_idea(opened):
    """Three multiples of one loss and a worse one of another kind, for three places."""
    texts = ["l2(logits)", "2*l2(logits)", "3*l2(logits)", "cosine(features[-1])"]
    told = [settled(parse_loss(text), i, 9.0 - i) for i, text in enumerate(texts)]
    populations = []
    for alike in (None, 0.9):
        controller = make_controller(opened(population=3, alike=alike), [], default_toolbox)
        controller.tell(told)
        populations.append([i.id for i in sorted(controller.population, key=rank)])
    assert populations == [[0, 1, 2], [0, 1, 3]]


# --- names, rewards and priors -------------------------------------------------------------------------------------------------

HERE = [name for name in CONTROLLERS if find_spec("optuna") or name not in OPTUNA]


@pytest.fixture
def table(shared_data, tmp_path):
    """(settings) → a problem of students on the table of NAS-Bench-201."""
    base = {"task": "student", "space": "nas_bench_201", "evaluator": "tabular", "tables": str(shared_data), "out": str(tmp_path)}
    return lambda **more: open_table_problem(make_config(base | more))


@pytest.mark.parametrize("name", HERE)
def test_one_name_stands_for_one_controller_of_losses_and_of_students(opened, table, name):
    losses = make_controller(opened(controller=name), [], default_toolbox)
    students = make_student_controller(table(controller=name))
    assert type(losses) is type(students) is type(CONTROLLERS[name](Wanted(losses.grammar)))
    assert losses.grammar.name != students.grammar.name


@pytest.mark.parametrize(
    ("name", "policy", "epochs"),
    [("reinforce", "factorised", 1), ("reinforce", "lstm", 1), ("ppo", "factorised", 4), ("ppo", "lstm", 5)],
)
def test_a_policy_learns_as_often_as_it_was_measured(opened, name, policy, epochs):
    made = make_controller(opened(controller=name, policy=policy), [], default_toolbox)
    assert (type(made), made.epochs, hasattr(made.policy, "lstm")) == (Reinforce, epochs, policy == "lstm")


def test_lstms_of_islands_begin_with_other_weights_and_one_alone_with_those_of_the_seed(opened):
    def weights(**settings):
        made = make_controller(opened(controller="ppo", policy="lstm", **settings), [], default_toolbox)
        return [tuple(one.policy.head.weight.flatten().tolist()) for one in getattr(made, "controllers", [made])]

    assert len(set(weights(islands=3))) == 3
    assert weights(islands=3) == weights(islands=3)
    assert weights(seed=1) != weights(seed=2)


def test_islands_share_what_there_is_and_keep_two_parents_each():
    found = shared(Wanted(None, 5, seeds=[1, 2, 3]), make_config({"islands": 3, "seed": 4}))
    assert [(want.size, want.seeds) for want in found] == [(2, [1]), (2, [2]), (2, [3])]
    assert len({want.seed for want in found}) == 3


def test_a_controller_is_told_the_reward_and_no_one_else(opened):
    made = make_controller(opened(reward="soft", reward_target=10.0, population=2), [], default_toolbox)
    assert type(made) is Rewarded
    told = [
        settled(parse_loss(text), n, f) for n, (text, f) in enumerate([("l1(logits)", 50.0), ("l2(logits) + l1(logits)", 52.0)])
    ]
    told.append(settled(parse_loss("kl(logits, tau=2)"), 2))
    made.tell(told)
    seen = {i.id: i.fitness.values[0] for i in made.controller.population}
    assert seen == {i.id: pytest.approx(i.outcome.fitness * (len(i) / 10) ** -0.07) for i in told[:2]}
    assert [i.outcome.fitness for i in told] == [50.0, 52.0, None]


def test_a_trade_in_percent_and_what_has_no_cost():
    told = Rewarded(RandomSearch(None), Reward("abs", "latency_ms", 2.0, 100.0))
    tree = parse_loss("l1(logits)")
    individual = Individual(list(tree), op="node@1", parents=(3,))
    individual.id, individual.generation = 7, 2
    individual.settle(Outcome(Status.OK, 90.0, {"latency_ms": 3.0}))
    seen = told.seen(individual)
    assert seen.fitness.values == (pytest.approx(85.0),)  # 100 · (0.9 − 0.1 · |3/2 − 1|)
    assert (list(seen), seen.op, seen.parents, seen.id, seen.generation) == (list(tree), "node@1", (3,), 7, 2)
    individual.settle(Outcome(Status.OK, 90.0))
    assert told.seen(individual).outcome.reason == "reward: no latency_ms"
    assert individual.ok


def test_starts_by_the_prior_are_large_and_within_the_limits(table):
    def sizes(controller="evolution", **more):
        problem = table(controller=controller, **more)
        made = make_student_controller(problem)
        return [problem.cost(made.ask(0, stream(0, n))).parameters for n in range(8)]

    assert min(sizes()) > max(sizes(prior="none")) * 0.7
    assert fmean(sizes()) > 1.5 * fmean(sizes(prior="none"))
    limited = sizes("local", max_params=300_000)
    assert max(limited) <= 300_000 < max(sizes("local"))
    assert min(limited) > 150_000


REFUSED = {
    "--controller reinforcee": "did you mean 'reinforce'",
    "--policy gru": "--policy: expected 'factorised' or 'lstm', got 'gru'",
    "--reward gentle": "--reward: expected 'fitness', 'soft', 'hard' or 'abs', got 'gentle'",
    "--reward soft": "--reward soft: expected --reward-target, in the unit of latency_ms, got none",
    "--reward soft --reward-target 3": "--reward soft: expected --latency-device, whose table has latencies, got none",
    "--reward soft --reward-target 3 --latency-device pixl3": "--latency-device: .*did you mean 'pixel3'",
    "--reward hard --reward-cost size --reward-target 3": "--reward-cost: expected 'latency_ms', 'macs' or 'parameters'",
    "--reward abs --reward-target 0": "--reward-target: expected greater than 0",
    "--reward abs --reward-target 3 --evaluator score": "an accuracy to trade, got a score",
    "--reward abs --reward-target 3 -s fitness=ce": "an accuracy to trade, got ce",
    "--prior depth": "--prior: expected 'none', 'parameters' or 'macs'",
    "-s shrink_every=2": "--shrink-every: expected a search for a distiller",
    "-s alike=0.9": "-s alike: expected a search for a distiller",
    "--controller tpe_hyperband": "trainings of several lengths, got a table of nas_bench_201, which has one; take tpe",
    "--controller tpe_hyperband --evaluator score": "trainings of several lengths, got a score",
}


@pytest.mark.parametrize("options", REFUSED)
def test_what_cannot_work_is_said_in_one_line(options, shared_data, tmp_path, capsys):
    if "hyperband" in options:
        pytest.importorskip("optuna", reason="Optuna is not installed: pip install 'evokd[optuna]'")
    settings = [
        "--space",
        "nas_bench_201",
        "--evaluator",
        "tabular",
        "--tables",
        str(shared_data),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(["student", *settings, "--quiet", *options.split(" ")]) == 2
    said = capsys.readouterr()
    assert re.search(REFUSED[options], said.err), said.err
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert not list(tmp_path.glob("out/*student*"))


def test_without_optuna_its_controllers_say_what_to_install(opened, monkeypatch):
    monkeypatch.setattr("evokd.search.tpe.find_spec", lambda name: None)
    with pytest.raises(EvokdError, match=r"pip install 'evokd\[optuna\]'"):
        check_controller(opened(controller="tpe").config)


def test_optuna_is_not_imported_before_it_is_needed():
    code = "import sys, evokd.controllers, evokd.student; print('optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# --- shrinkage ---------------------------------------------------------------------------------------------------------------

BAD = "pearson"


def generation(problem, number, count=120):
    """Grown candidates whose fitness is worst where BAD occurs; some fail at random."""
    draw = stream(0, "shrinking", number)
    found = []
    for i in range(count):
        tree = problem.grammar.canonical(grow_tree(problem.grammar, random_chooser(draw)))
        bad, value = BAD in write_loss(tree), draw.random()
        fitness = None if value < 0.1 else value - 10 * bad
        reason = "rung 1: place 9 of 9 with 1" if value < 0.05 else ""
        found.append(settled(tree, number * count + i, fitness, number, (0,) if i % 2 else (), reason))
        found[-1].op = f"random@{i % 2}"
    return found


@pytest.mark.parametrize("settings", [{}, {"islands": 2}, {"controller": "nsga2"}, {"controller": "random"}], ids=str)
def test_planted_operators_go_from_the_grammar_of_every_controller(opened, settings):
    problem = opened(shrink_every=2, population=6, **settings)
    controller = make_controller(problem, [], default_toolbox)
    assert type(controller) is Shrinking
    inner = controller.controller.controllers if settings.get("islands") else [controller.controller]

    def grown():
        draw = stream(1, "after")
        trees = [grow_tree(one.grammar, random_chooser(draw)) for one in inner for _ in range(300)]
        return " ".join(write_loss(one.grammar.canonical(tree)) for one in inner for tree in trees)

    assert BAD in grown()
    controller.tell(generation(problem, 0))
    assert controller.dropped == []
    assert all(one.grammar is problem.grammar for one in inner)
    controller.tell(generation(problem, 1))
    ((number, evidence),) = controller.dropped
    assert number == 1
    assert ("distances", BAD) in {(e.kind, e.name) for e in evidence}
    assert all(e.dropped for e in evidence)
    assert len(inner) == settings.get("islands", 1)
    assert all(one.grammar is not problem.grammar for one in inner)
    assert BAD not in grown()
    assert BAD in problem.space.space.distances  # the run's own space file stays
    assert BAD not in controller.space.distances


def test_evidence_is_what_the_journal_gives(opened, tmp_path):
    problem = opened(shrink_every=1, population=6)
    controller = make_controller(problem, [], default_toolbox)
    journal, told = Journal(tmp_path), generation(problem, 0)
    for individual in told:
        journal.individual(individual, "", "")
    journal.close()
    controller.tell(told)
    expected = [e for e in weigh(read_events(tmp_path), problem.space.space) if e.dropped]
    assert expected
    assert controller.dropped == [(0, expected)]


def test_what_is_gone_is_not_weighed_again_and_equal_losses_drop_nothing(opened):
    problem = opened(shrink_every=1, population=6)
    controller = make_controller(problem, [], default_toolbox)
    controller.tell([settled(i, i.id, 1.0) for i in generation(problem, 0)])
    assert controller.dropped == []
    for number in (1, 2):
        controller.tell(generation(problem, number))
    names = [(e.kind, e.name) for _, evidence in controller.dropped for e in evidence]
    assert ("distances", BAD) in names
    assert len(names) == len(set(names))


# --- from end to end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"controller": "nsga2"}, {"islands": 2, "alike": 0.9}], ids=str)
def test_a_search_of_another_kind_runs_and_goes_on_after_a_cut(small, tmp_path, settings):
    result = evolve_distiller(**small, **settings)
    events = read_events(result.run)
    assert sum(e["event"] == "generation" for e in events) == 3
    assert all("@" in e["op"] for e in events if e["event"] == "individual") == ("islands" in settings)
    ends = [i for i, e in enumerate(events) if e["event"] == "generation"]
    again = resumed(result.run, events, ends[1] - 1, tmp_path)
    assert without_clock(again) == without_clock(events)


def first_left(events, space):
    """Evidence against the first transform that is left, whatever the candidates say."""
    return [Evidence("transforms", space.transforms[0], 9, 0, 0.1, 0.001, True, 9)]


@pytest.fixture(scope="module")
def shrunk(small):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evokd.controllers, "weigh", first_left)
        result = evolve_distiller(**small, shrink_every=1)
    return result.run, read_events(result.run)


def test_the_journal_tells_every_shrinkage_after_its_generation(shrunk, problem):
    _, events = shrunk
    told = [i for i, e in enumerate(events) if e["event"] == "shrink"]
    assert [(events[i - 1]["event"], events[i - 1]["generation"], events[i]["generation"]) for i in told] == [
        ("generation", 0, 0), ("generation", 1, 1), ("generation", 2, 2)]  # fmt: skip
    dropped = [e["name"] for i in told for e in events[i]["dropped"]]
    assert dropped == list(problem.space.space.transforms[:3])


@pytest.mark.parametrize("cut", ["before the shrink event", "after it", "within the next generation"])
def test_a_shrinkage_is_told_once_at_its_place_after_a_cut(shrunk, tmp_path, monkeypatch, cut):
    run, events = shrunk
    monkeypatch.setattr(evokd.controllers, "weigh", first_left)
    second = [i for i, e in enumerate(events) if e["event"] == "shrink"][1]
    place = {"b": second, "a": second + 1, "w": second + 2}[cut[0]]
    assert without_clock(resumed(run, events, place, tmp_path)) == without_clock(events)
