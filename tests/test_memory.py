"""Outcomes that runs lend each other: what hits, what never does, and what is refused."""

import json
import re
from pathlib import Path

import pytest

import evokd.memory
from evokd import evolve_distiller
from evokd.config import make_config
from evokd.errors import EvokdError
from evokd.evaluate.cache import Cached
from evokd.executor import Serial
from evokd.journal import read_events, without_clock
from evokd.losses import parse_loss
from evokd.memory import code, context, kept_for_others
from evokd.models.resnet import ResNet
from evokd.problem import open_problem

JOB = parse_loss("0.9*kl(logits, tau=4)"), (5,)


@pytest.fixture(scope="module")
def lent(tiny, tmp_path_factory):
    """Settings of a short search with a cache of its own, and one rung."""
    protocol = tiny["protocol"] | {"steps": 4, "repeats": 2, "transfer": 200}
    short = {"protocol": protocol, "funnel": {"rungs": ((1, 1, 0.7),)}, "baselines": False, "seed": 4}
    return tiny | short | {"cache": str(tmp_path_factory.mktemp("cache"))}


def watched_run(settings):
    """(result, the executor with its cache, jobs that were evaluated)."""
    made, jobs = [], []

    class Watched(Cached):
        def __init__(self, inner, *args):
            super().__init__(inner, *args)
            made.append(self)
            evaluate = inner.evaluate
            inner.evaluate = lambda job: jobs.append(job) or evaluate(job)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evokd.memory, "Cached", Watched)
        result = evolve_distiller(**settings)
    (executor,) = made
    return result, executor, jobs


@pytest.fixture(scope="module")
def first(lent):
    return watched_run(lent)


def test_a_first_run_trains_all_and_keeps_it(first, lent):
    _, executor, jobs = first
    kept = [job for job in jobs if job.split == "validation"]
    assert (executor.hits, executor.misses) == (0, len(kept))
    assert len(list(Path(lent["cache"]).glob("??/*.json"))) == len(kept) > 6


def test_a_second_run_in_another_folder_trains_nothing_on_validation(first, lent, tmp_path):
    one, before, jobs = first
    other, executor, again = watched_run(lent | {"out": str(tmp_path)})
    assert other.run.parent == tmp_path
    assert (executor.hits, executor.misses) == (before.misses, 0)
    assert {job.split for job in again} == {"test"}
    assert len(again) == sum(job.split == "test" for job in jobs)
    assert without_clock(read_events(other.run)) == without_clock(read_events(one.run))


def test_a_cache_does_not_change_what_a_run_finds(first, lent):
    alone = evolve_distiller(**lent | {"cache": None})
    assert without_clock(read_events(alone.run)) == without_clock(read_events(first[0].run))


@pytest.fixture(scope="module")
def ask(lent):
    """(settings) → how often one training was found in the cache, once it is there for the plain settings."""

    def asked(**more):
        problem = open_problem(make_config(lent | more), lambda line: None)
        executor = kept_for_others(problem, lambda line: None)
        (outcome,) = executor.map([problem.job(*JOB)])
        assert outcome.fitness is not None, outcome
        return executor.hits

    asked()
    return asked


@pytest.mark.parametrize(
    "more",
    [{}, {"seed": 9}, {"controller": "random"}, {"population": 5, "generations": 7}, {"confirm": 1}, {"islands": 2}],
    ids=str,
)
def test_what_a_training_does_not_depend_on_hits(ask, more):
    assert ask(**more) == 1


def test_another_protocol_fitness_or_student_hits_nothing(ask, lent):
    for more in (
        {"protocol": lent["protocol"] | {"steps": 3}},
        {"protocol": lent["protocol"] | {"gamma": 0.5}},
        {"fitness": "ce"},
        {"student": "conv3w8"},
        {"teacher_epochs": 1},
    ):
        assert ask(**more) == 0, more


def test_edited_code_another_version_or_machine_hits_nothing(ask, monkeypatch):
    for name, other in (("code", lambda: "edited"), ("machine", lambda device: "elsewhere"), ("version", lambda name: "0.0.0")):
        with monkeypatch.context() as patch:
            patch.setattr(evokd.memory, name, other)
            assert ask() == 0, name


def test_the_context_is_plain_text_that_names_no_folder(problem):
    told = context(problem)
    assert all(isinstance(value, str) and isinstance(name, str) for name, value in told.items())
    assert problem.config.out not in json.dumps(told)
    assert json.loads(told["protocol"])["steps"] == 8
    assert told["pair"] == problem.key
    assert re.fullmatch(r"evokd \S+ torch \S+ numpy \S+", told["versions"])


def test_code_is_hashed_whatever_file_is_edited(monkeypatch, tmp_path):
    (tmp_path / "losses").mkdir()
    for name in ("memory.py", "losses/operators.py"):
        (tmp_path / name).write_text("x = 1\n")
    monkeypatch.setattr(evokd.memory, "__file__", str(tmp_path / "memory.py"))
    hashes = {code.__wrapped__()}
    (tmp_path / "losses" / "operators.py").write_text("x = 2\n")
    hashes.add(code.__wrapped__())
    (tmp_path / "notes.txt").write_text("no code")
    hashes.add(code.__wrapped__())
    assert len(hashes) == 2
    assert all(re.fullmatch("[0-9a-f]{16}", told) for told in hashes)


def test_without_a_cache_the_executor_is_the_problems_own(problem):
    assert kept_for_others(problem, print) is problem.executor
    assert type(problem.executor) is Serial


def own_student(classes):
    return ResNet(8, 4, classes, channels=1)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"evaluate": lambda loss: 1.0, "funnel": {}}, "training of one's own"),
        ({"student": own_student}, "a student of one's own code"),
    ],
    ids=["evaluate", "student"],
)
def test_what_no_hash_covers_is_refused_before_there_is_a_folder(lent, more, why):
    before = set(Path(lent["out"]).iterdir())
    with pytest.raises(EvokdError) as caught:
        evolve_distiller(**lent | more)
    assert str(caught.value) == f"--cache: expected a search whose outcomes depend on named and hashed things alone, got {why}"
    assert set(Path(lent["out"]).iterdir()) - before <= {Path(lent["out"]) / "cache"}
