"""Steady state against its definition, replayed by hand, and against itself with other workers, clocks and deaths."""

import itertools
import random

import pytest

from evokd.config import make_config
from evokd.controllers import check_controller
from evokd.errors import EvokdError
from evokd.evolve import parser
from evokd.executor import Serial, Terms, Workers
from evokd.genome.codec import to_names
from evokd.genome.individual import Outcome, Status
from evokd.journal import Journal, individuals, read_events, read_outcome, without_clock
from evokd.resume import Place
from evokd.run import Budget, Search, replay
from evokd.search.ageing import AgeingEvolution
from evokd.search.evolution import Evolution
from evokd.search.front import FrontEvolution
from evokd.search.local import LocalSearch
from evokd.search.random import RandomSearch
from evokd.search.reinforce import Reinforce
from evokd.trainings import Trainings
from tests.toy import gate, open_judge, toy_grammar

GRAMMAR = toy_grammar()
MADE = {
    "evolution": lambda: Evolution(GRAMMAR, 6),
    "random": lambda: RandomSearch(GRAMMAR),
    "ageing": lambda: AgeingEvolution(GRAMMAR, 10, 3),
    "local": lambda: LocalSearch(GRAMMAR),
    "nsga2": lambda: FrontEvolution(GRAMMAR, 6, ["value"]),
    "reinforce": lambda: Reinforce(GRAMMAR),
    "ppo": lambda: Reinforce(GRAMMAR, epochs=4),
}


class Watched:
    """A controller that notes how many candidates it knew at each proposal."""

    def __init__(self, inner):
        self.inner, self.told, self.asked = inner, [], []

    def ask(self, generation, stream):
        self.asked.append((generation, len(self.told)))
        return self.inner.ask(generation, stream)

    def tell(self, individuals):
        assert all(i.outcome is not None for i in individuals)
        self.told += [i.id for i in individuals]
        self.inner.tell(individuals)


def searched(folder, name, lag, generations=4, size=6, executor=None, evaluations=None):
    """(search, journal) of a search that has gone on from what the folder holds."""
    folder.mkdir(exist_ok=True)
    executor = executor or Serial(open_judge(0))

    def evaluate(batch):
        return executor.map((to_names(individual) for individual in batch), lag or None)

    controller = Watched(MADE[name]())
    search = Search(name, GRAMMAR, controller, gate, evaluate, Budget(generations, size, evaluations), 5, lag=lag)
    if (folder / "events.jsonl").exists():
        kept = replay(search, read_events(folder), lambda names: [GRAMMAR.nodes[n] for n in names], read_outcome)
        lines = (folder / "events.jsonl").read_bytes().splitlines(keepends=True)
        (folder / "events.jsonl").write_bytes(b"".join(lines[: len(kept)]))
    search.journal = Journal(folder)
    search.run()
    search.journal.close()
    return search, without_clock(read_events(folder))


@pytest.mark.parametrize("lag", [1, 3, 8])
def test_proposal_k_sees_the_results_up_to_k_minus_lag(tmp_path, lag):
    search, events = searched(tmp_path, "evolution", lag)
    found = list(individuals(events))
    sound = [e["id"] for e in found if e["status"] != "REJECTED"]
    assert len(sound) == 24
    known = dict.fromkeys(range(24), 0) | {k: sound[k - lag] + 1 for k in range(lag, 24)}  # all ids up to that of k − lag
    assert search.controller.told == list(range(sound[23 - lag] + 1))
    seen = [count for _, count in search.controller.asked]
    assert [count for count, _ in itertools.groupby(seen)] == [count for count, _ in itertools.groupby(known.values())]
    for e in found:
        proposal = sum(s < e["id"] for s in sound)
        assert all(parent < known[proposal] for parent in e["parents"]), "a parent whose result was not there yet"
    assert any(e["parents"] for e in found)


@pytest.mark.parametrize("count", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 4))])
def test_any_number_of_workers_and_any_order_of_their_ends_tells_the_same(tmp_path, count):
    workers = Workers(count, open_judge, 0.01)
    for name in MADE:
        _, alone = searched(tmp_path / name, name, 4)
        assert [e["evaluations"] for e in alone if e["event"] == "generation"] == [6, 12, 18, 24]
        _, spread = searched(tmp_path / f"{name} spread", name, 4, executor=workers)
        assert spread == alone, f"{name}, {count} workers"
    workers.close()


@pytest.mark.parametrize("name", MADE)
def test_a_journal_cut_anywhere_goes_on_to_the_same_end(tmp_path, name):
    _, whole = searched(tmp_path / "whole", name, 5)
    lines = (tmp_path / "whole" / "events.jsonl").read_bytes().splitlines(keepends=True)
    draw = random.Random(name)
    for cut in sorted(draw.sample(range(len(lines)), 6)):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        (folder / "events.jsonl").write_bytes(b"".join(lines[:cut]))
        search, again = searched(folder, name, 5)
        assert again == whole, f"cut after {cut} events"
        assert len(search.individuals) == len(list(individuals(whole)))


def test_three_generations_and_three_more_are_six(tmp_path):
    _, whole = searched(tmp_path / "six", "evolution", 4, generations=6)
    searched(tmp_path / "three", "evolution", 4, generations=3)
    assert searched(tmp_path / "three", "evolution", 4, generations=6)[1] == whole


def test_budgets_are_met_to_the_candidate_and_seconds_end_it_between_generations(tmp_path):
    for evaluations, generations in ((7, 2), (6, 1), (3, 1)):
        search, events = searched(tmp_path / str(evaluations), "evolution", 4, evaluations=evaluations)
        assert search.trained == evaluations
        assert sum(e["event"] == "generation" for e in events) == generations
    evaluate = lambda batch: Serial(open_judge(0)).map((to_names(i) for i in batch), 4)  # noqa: E731
    search = Search("x", GRAMMAR, MADE["evolution"](), gate, evaluate, Budget(9, 6, seconds=1e-9), 5, lag=4)
    search.journal = Journal(tmp_path)
    assert len(search.run()) == len(list(individuals(read_events(tmp_path))))
    assert search.trained == 6
    assert all(individual.outcome is not None for individual in search.individuals)


def test_an_exhausted_space_ends_the_search_with_all_it_had(tmp_path):
    evaluate = lambda batch: Serial(open_judge(0)).map((to_names(i) for i in batch), 4)  # noqa: E731
    grammar = toy_grammar(1)
    search = Search("x", grammar, RandomSearch(grammar), gate, evaluate, Budget(50, 8), 5, lag=4)
    search.journal = Journal(tmp_path)
    search.run()
    events = list(individuals(read_events(tmp_path)))
    assert [e["id"] for e in events] == list(range(len(search.individuals)))
    assert {e["text"] for e in events} >= {"1", "2", "3", "5", "7"}
    assert read_events(tmp_path)[-1]["event"] == "generation"


def test_workers_take_jobs_as_they_need_them_and_no_further(tmp_path):
    taken, workers = [], Workers(1, open_judge, 0.0)
    found = workers.map((taken.append(n) or ["1"] for n in range(20)), 5)
    for count in range(1, 21):
        next(found)
        assert len(taken) <= min(count + 4, 20)
    assert next(found, None) is None
    workers.close()


@pytest.mark.parametrize(
    ("more", "got"),
    [
        ({}, "rungs, which compare a generation"),
        ({"funnel": {"rungs": ()}, "islands": 2}, "islands"),
        ({"funnel": {"rungs": ()}, "shrink_every": 2}, "--shrink-every"),
        ({"funnel": {"rungs": ()}, "cache": "x"}, "--cache"),
        ({"funnel": {"rungs": ()}, "workers": 9}, "9 workers, of which some would wait"),
        ({"task": "student"}, "the evaluator cascade"),
        ({"task": "student", "evaluator": "distill", "controller": "tpe_hyperband"}, "rungs"),
    ],
)
def test_what_looks_at_whole_generations_is_refused(more, got):
    with pytest.raises(EvokdError, match=f"--lag 4: expected a search that goes candidate by candidate, got {got}"):
        check_controller(make_config({"lag": 4} | more))
    check_controller(make_config({"lag": 4, "funnel": {"rungs": ()}}))


@pytest.mark.parametrize("task", ["distiller", "student"])
def test_the_command_line_takes_a_lag_and_an_engine(task):
    given = vars(parser().parse_args([task, "--lag", "4", "--engine", "ray"]))
    assert (given["lag"], given["engine"]) == (4, "ray")


@pytest.mark.parametrize("steady", [True, False])
def test_trainings_of_the_next_generation_outlive_the_end_of_one(tmp_path, steady):
    """They are going on, and some of them done, while the journal has none of them."""
    terms = Terms(trainings=Trainings(tmp_path))
    terms.trainings.keep(["ahead"], Outcome(Status.OK, 1.0))
    Place(tmp_path, None, [], terms, steady=steady).generation_over()
    terms.trainings.close()
    again = Trainings(tmp_path, go_on=True)
    assert (again.find(["ahead"]) is not None) == steady
    again.close()
