"""Real processes: order, death, and what death costs bystanders. The functions below are light, so that workers start at once."""

import os
import time

import pytest

from evokd.executor import Serial, Workers
from evokd.genome.individual import Outcome, Status


def open_evaluator(recipe):
    def evaluate(job):
        kind, number = job
        if kind == "dies":
            os._exit(3)
        if kind == "dies once":
            flag = os.path.join(recipe, str(number))
            if not os.path.exists(flag):
                open(flag, "w").close()
                os._exit(3)
        if kind == "slow":
            time.sleep(0.3)
        return Outcome(Status.OK, float(number), {"pid": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS")})

    return evaluate


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    made = Workers(2, open_evaluator, str(tmp_path_factory.mktemp("flags")))
    yield made
    made.close()


def test_outcomes_come_in_the_order_of_the_jobs(workers):
    jobs = [("slow", 0), ("fast", 1), ("slow", 2), *(("fast", n) for n in range(3, 12))]
    found = list(workers.map(jobs))
    assert [o.fitness for o in found] == list(range(12))
    assert os.getpid() not in {o.metrics["pid"] for o in found}
    assert {o.metrics["threads"] for o in found} == {"1"}


def test_serial_gives_the_same_in_this_process(tmp_path):
    found = list(Serial(open_evaluator(str(tmp_path))).map([("fast", 2), ("fast", 1)]))
    assert [o.fitness for o in found] == [2, 1]
    assert {o.metrics["pid"] for o in found} == {os.getpid()}


@pytest.mark.parametrize("place", [0, 2, 5])
def test_a_job_that_kills_its_worker_is_crashed_and_bystanders_are_not(workers, place):
    jobs = [("slow" if n % 2 else "fast", n) for n in range(6)]
    jobs[place] = ("dies", place)
    found = list(workers.map(jobs))
    assert [o.fitness for o in found] == [None if n == place else n for n in range(6)]
    assert found[place].status is Status.CRASHED
    assert "died" in found[place].reason


def test_a_job_whose_worker_dies_once_is_retried(workers):
    assert [o.fitness for o in workers.map([("fast", 20), ("dies once", 21), ("fast", 22)])] == [20, 21, 22]


def test_two_killers_cost_only_themselves(workers):
    jobs = [("dies", 0), ("fast", 1), ("dies", 2), ("slow", 3)]
    assert [o.status.value for o in workers.map(jobs)] == ["CRASHED", "OK", "CRASHED", "OK"]


def test_a_pool_that_died_works_on(workers):
    assert [o.fitness for o in workers.map([("fast", 1)])] == [1]


def test_many_jobs_behind_a_killer_survive_it(workers):
    """The worker may die while jobs are still being handed in."""
    found = list(workers.map([("dies", 0), *(("fast", n) for n in range(1, 400))]))
    assert [o.fitness for o in found[1:]] == list(range(1, 400))
