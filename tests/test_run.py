import json
from dataclasses import replace

import pytest

from evokd.config import change_config
from evokd.genome.individual import Outcome, Status
from evokd.journal import Journal, individuals, read_events, without_clock
from evokd.losses import parse_loss, write_loss
from evokd.run import Budget, arm, evaluation_seeds
from evokd.search.random import RandomSearch
from tests.toy import TARGET, Toy, value_of

CONTROLLERS = ["evolution", "random"]


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_no_candidate_is_evaluated_twice_and_no_refused_one_at_all(tmp_path, controller):
    toy = Toy(tmp_path / "run", controller, generations=6, size=8)
    events = list(individuals(toy.run()))
    refused = [e["text"] for e in events if e["status"] == "REJECTED"]
    assert len(toy.evaluated) == len(set(toy.evaluated)) == 6 * 8
    assert refused
    assert not set(refused) & set(toy.evaluated)
    assert sorted(toy.evaluated + refused) == sorted(e["text"] for e in events)


def test_failures_are_recorded_with_their_reason_and_the_search_goes_on(tmp_path):
    toy = Toy(tmp_path / "run", generations=6, size=8)
    found = {e["status"]: e for e in individuals(toy.run())}
    assert set(found) == {"OK", "REJECTED", "DIVERGED", "CRASHED"}
    assert found["REJECTED"]["reason"] == "toy: a multiple of 13"
    assert found["DIVERGED"]["reason"] == "toy: NaN"
    assert all(e["fitness"] is None for status, e in found.items() if status != "OK")
    assert all(individual.ok for individual in toy.controller.population)


def test_a_generation_is_told_in_figures_of_its_own_candidates(tmp_path):
    events = Toy(tmp_path / "run", generations=3, size=6).run()
    last = [e for e in events if e["event"] == "generation"][-1]
    mine = [e for e in individuals(events) if e["generation"] == 2]
    values = sorted(e["fitness"] for e in mine if e["status"] == "OK")
    everything = [e["fitness"] for e in individuals(events) if e["status"] == "OK"]
    assert last["best"] == max(everything)
    assert last["generation_best"] == values[-1]
    assert last["mean"] == pytest.approx(sum(values) / len(values))
    assert values[0] <= last["median"] <= values[-1]
    assert last["rejected"] == sum(e["status"] == "REJECTED" for e in mine)
    assert last["failed"] == sum(e["status"] in ("DIVERGED", "CRASHED") for e in mine)
    assert last["evaluations"] == 18
    assert last["proposed"] >= last["new"] == len(mine)
    assert last["sound"] == last["trained"] == 6


@pytest.mark.parametrize(("evaluations", "trained", "generations"), [(None, 24, 4), (7, 7, 2), (6, 6, 1), (100, 24, 4)])
def test_the_budget_is_met_to_the_candidate(tmp_path, evaluations, trained, generations):
    toy = Toy(tmp_path / "run", generations=4, size=6, evaluations=evaluations)
    events = toy.run()
    assert len(toy.evaluated) == trained
    assert sum(e["event"] == "generation" for e in events) == generations


def test_seconds_end_a_search_between_generations(tmp_path):
    toy = Toy(tmp_path / "run", generations=50, size=4)
    toy.search.budget = type(toy.search.budget)(50, 4, None, seconds=1e-9)
    toy.run()
    assert len(toy.evaluated) == 4


def test_an_exhausted_space_ends_the_search(tmp_path):
    toy = Toy(tmp_path / "run", "random", generations=50, size=20)
    toy.grammar.height = 1
    toy.grammar._options.clear()
    toy.run()
    assert 0 < len(toy.evaluated) <= 5 + 2 * 25  # five leaves, and two operators on pairs of them


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_one_seed_gives_one_journal(tmp_path, controller):
    first, second = (Toy(tmp_path / name, controller, seed=3).run() for name in "ab")
    other = Toy(tmp_path / "c", controller, seed=4).run()
    assert without_clock(first) == without_clock(second)
    assert without_clock(first) != without_clock(other)
    assert {"seconds", "time"} <= set(first[-1])


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_a_journal_cut_after_any_event_goes_on_to_the_same_end(tmp_path, controller):
    undisturbed = without_clock(Toy(tmp_path / "whole", controller).run())
    lines = (tmp_path / "whole" / "events.jsonl").read_bytes().splitlines(keepends=True)
    for cut in range(len(lines) + 1):
        torn = b'{"event": "indivi' if cut % 2 else b""
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        (folder / "events.jsonl").write_bytes(b"".join(lines[:cut]) + torn)
        again = Toy(folder, controller)
        assert without_clock(again.run()) == undisturbed, f"cut after {cut} events"
        done = [e["text"] for e in undisturbed[:cut] if e["event"] == "individual"]
        assert not set(again.evaluated) & set(done), f"cut after {cut} events: trained again"


def test_three_generations_and_three_more_are_six(tmp_path):
    whole = Toy(tmp_path / "six", generations=6).run()
    Toy(tmp_path / "three", generations=3).run()
    extended = Toy(tmp_path / "three", generations=6).run()
    assert without_clock(extended) == without_clock(whole)
    assert extended == read_events(tmp_path / "three")


def test_lineage_names_parents_that_were_there_before(tmp_path):
    events = list(individuals(Toy(tmp_path / "run", generations=8).run()))
    by_id = {e["id"]: e for e in events}
    assert [e["id"] for e in events] == list(range(len(events)))
    varied = [e for e in events if e["parents"]]
    assert varied
    assert all(by_id[p]["generation"] < e["generation"] and by_id[p]["status"] == "OK" for e in varied for p in e["parents"])
    assert all(e["op"] == "random" for e in events if not e["parents"])


def test_evaluation_seeds_are_paired_by_tier_and_repeat_alone():
    assert evaluation_seeds(1, "search", 3)[:2] == evaluation_seeds(1, "search", 2)
    tiers = [evaluation_seeds(s, tier, 4) for s in (1, 2) for tier in ("search", "confirm", "final")]
    assert len({seed for seeds in tiers for seed in seeds}) == 24


def test_the_toy_is_what_it_says(tmp_path):
    toy = Toy(tmp_path)
    tree = toy.tree(["add", "mul", "2", "3", "5"])
    assert value_of(tree) == 11
    assert toy.search.gate(toy.tree(["add", "mul", "2", "5", "3"])) != ""
    assert next(toy.evaluate([tree])).status is Status.DIVERGED
    assert TARGET - value_of(toy.tree(["mul", "5", "7"])) == 965


def trimming(folder) -> Toy:
    """A search in which a sum with 1 is trimmed to its other part."""
    toy = Toy(folder, generations=3, size=8)
    one = toy.grammar.nodes["1"]
    toy.search.trim = lambda tree: list(tree)[1:-1] if tree[0].name == "add" and tree[-1] is one and ends(tree) else list(tree)
    return toy


def ends(tree) -> bool:
    """Whether the last node is the whole second argument of the first."""
    open_ = 1
    for at, node in enumerate(tree[1:], 1):
        open_ += node.arity - 1
        if not open_:
            return at == len(tree) - 2
    return False


def test_what_is_trimmed_is_journalled_trained_and_known_as_what_is_left(tmp_path):
    toy = trimming(tmp_path / "whole")
    events = toy.run()
    trees = [event["tree"] for event in events if event["event"] == "individual"]
    plain = Toy(tmp_path / "plain", generations=1, size=40)
    assert any(event["tree"][0] == "add" and event["tree"][-1] == "1" for event in plain.run() if event["event"] == "individual")
    assert not any(tree[0] == "add" and tree[-1] == "1" and ends(toy.tree(tree)) for tree in trees)
    assert len({tuple(tree) for tree in trees}) == len(trees)
    kept = events[: len(events) // 2]
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in kept))
    again = [event for event in trimming(tmp_path / "cut").run() if event["event"] == "individual"]
    assert [e["tree"] for e in again] == trees


def test_an_arm_trims_as_its_problem_does_and_not_without_the_gate(problem):
    tree = parse_loss("l2(logits) + 0*l1(logits)")
    funnel = problem.config.funnel.model_copy(update={"gates": ("probe",)})
    without = replace(problem, config=problem.config.model_copy(update={"funnel": funnel}))
    for searched, left in ((problem, "l2(logits)"), (without, write_loss(tree))):
        search = arm(searched, "random", RandomSearch(searched.grammar), Budget(1, 2), 0)
        assert write_loss(search.trim(tree)) == left


def epochs_of(problem, tmp_path, **config):
    """Epochs after each generation of a search whose trainings are replaced by nothing."""

    class Fast:
        def map(self, jobs, ahead=None):
            return (Outcome(Status.OK, 1.0, {"fitness_by_seed": [1.0] * len(job.seeds), "curve": []}) for job in jobs)

    settings = change_config(problem.config, config)
    searched = replace(problem, config=settings, executor=Fast())
    search = arm(searched, "random", RandomSearch(searched.grammar), Budget.of(settings, settings.share), 3)
    search.journal = Journal(tmp_path)
    search.run()
    return [summary["epochs"] for summary in search.history]


def test_epochs_are_steps_times_batch_by_images_rungs_included(problem, tmp_path):
    """A rung of 4 steps for 4 candidates, then 8 steps with 2 seeds for the 2 that are left; 16 images a step."""
    more = {"population": 4, "protocol": {"repeats": 2}, "funnel": {"rungs": ((0.5, 1, 0.5),)}, "generations": 2}
    each = (4 * 4 * 16 + 2 * 2 * 8 * 16) / problem.card["images"]
    assert epochs_of(problem, tmp_path, **more) == [pytest.approx(each, abs=1e-5), pytest.approx(2 * each, abs=1e-5)]


def test_a_budget_in_epochs_ends_with_the_generation_in_which_it_is_spent(problem, tmp_path):
    each = 3 * 8 * 16 / problem.card["images"]
    told = epochs_of(problem, tmp_path, generations=9, budget_epochs=1.5 * each)
    assert told == [pytest.approx(each, abs=1e-5), pytest.approx(2 * each, abs=1e-5)]


def test_hours_of_the_device_are_seconds_of_the_clock_whichever_is_less(problem):
    limits = [{"budget_gpu_hours": 0.5}, {"budget_gpu_hours": 0.5, "budget_seconds": 7.0}, {}]
    found = [Budget.of(change_config(problem.config, limit), 1.0).seconds for limit in limits]
    assert found == [1800, 7, None]
