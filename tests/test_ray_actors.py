"""Ray on this machine alone, with two workers: outcomes, faults and journals as elsewhere. Light, as its actors import this file."""

import os
import signal
import sys
import time
from importlib import import_module

import pytest

from evokd.config import make_config
from evokd.errors import EvokdError
from evokd.executor import Terms, Workers, in_this_process
from evokd.genome.individual import Outcome, Status
from evokd.journal import read_events, without_clock
from evokd.ray_actors import RayEngine, connected
from evokd.report.terminal import Terminal
from evokd.signals import Ending, Interrupted
from evokd.trainings import Trainings

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def engine():
    """Ray of two CPUs, ended with the module."""
    ray = pytest.importorskip("ray", reason="the extra [ray] is not installed")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    yield RayEngine(None)
    ray.shutdown()


def open_evaluator(recipe):
    def evaluate(job):
        kind, number = job
        if kind == "hangs":
            time.sleep(60)
        if kind == "grows":
            held = bytearray(400 << 20)
            held[::4096] = b"x" * len(held[::4096])
            time.sleep(60)
        if kind == "raises":
            raise ZeroDivisionError("a fault")
        flag = os.path.join(recipe, str(number))
        if kind == "killed" or (kind == "killed once" and not os.path.exists(flag)):
            open(flag, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return Outcome(
            Status.OK,
            float(number),
            {"pid": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS")},
        )

    return evaluate


def test_order_and_a_killed_actor(engine, tmp_path):
    """A job whose actor is killed is tried once more; others are not concerned, and an actor has one thread."""
    workers = Workers(2, open_evaluator, str(tmp_path), engine)
    found = list(workers.map([("killed once", 0), *(("fine", n) for n in range(1, 9))]))
    workers.close()
    assert [o.fitness for o in found] == list(range(9))
    assert {o.metrics["threads"] for o in found} == {"1"}
    assert os.getpid() not in {o.metrics["pid"] for o in found}


JOBS = [("fine", 0), ("raises", 1), ("fine", 2), ("killed", 3), ("hangs", 4), ("grows", 5), *(("fine", n) for n in range(6, 12))]


@SLOW
def test_faults_have_their_status_and_trainings_are_kept(engine, tmp_path):
    workers = Workers(2, open_evaluator, str(tmp_path), engine)
    workers.terms = Terms(timeout=15.0, memory=400 << 20, trainings=Trainings(tmp_path))
    found = list(workers.map(JOBS))
    workers.close()
    expected = {1: "CRASHED", 3: "CRASHED", 4: "TIMED_OUT", 5: "OUT_OF_MEMORY"}
    assert [o.status.value for o in found] == [expected.get(n, "OK") for n in range(12)]
    assert [o.fitness for o in found] == [None if n in expected else n for n in range(12)]
    assert found[1].reason == "ZeroDivisionError: a fault"
    assert "died" in found[3].reason
    assert found[3].reason.endswith("also on a second try")
    workers.terms.trainings.close()
    kept = Trainings(tmp_path, go_on=True)
    assert [kept.find(job) for job in JOBS] == found
    kept.close()


@SLOW
def test_a_signal_drops_what_is_in_flight(engine, tmp_path):
    workers = Workers(2, open_evaluator, str(tmp_path), engine)
    with Ending(None, "x") as ending:
        workers.terms = Terms(ending=ending)
        found = workers.map([("fine", 0), ("hangs", 1), ("hangs", 2)])
        assert next(found).fitness == 0
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted, match="stopped by SIGTERM"):
            next(found)
    workers.terms = Terms()
    assert [o.fitness for o in workers.map([("fine", 3)])] == [3]
    workers.close()


@SLOW
def test_a_worker_without_a_place_gives_its_job_to_one_that_has(engine, tmp_path, monkeypatch):
    """As when a node is lost: the cluster has room for two, and a third is wanted."""
    monkeypatch.setattr("evokd.executor.START", 1.0)
    workers = Workers(3, open_evaluator, str(tmp_path), engine)
    assert [o.fitness for o in workers.map([("fine", n) for n in range(6)])] == list(range(6))
    workers.close()


def story(folder):
    return without_clock(read_events(folder))


@SLOW
@pytest.mark.parametrize("task", ["distiller", "student"])
def test_a_search_tells_the_same_as_in_one_process(engine, tiny, task):
    settings = tiny | {"task": task, "baselines": False, "seed": 61}
    if task == "student":
        settings = {k: v for k, v in settings.items() if k not in ("space", "student")} | {"evaluator": "distill"}
    search = import_module(f"evokd.{task}").run
    alone = search(make_config(settings), Terminal(quiet=True))
    spread = search(make_config(settings | {"engine": "ray", "workers": 0}), Terminal(quiet=True))
    assert story(spread.run) == story(alone.run)


def test_what_is_in_no_file_is_refused(tiny):
    spread = make_config(tiny | {"engine": "ray"})
    with pytest.raises(EvokdError, match=r"--engine ray: expected teacher, student and training that every node .* got a whim"):
        in_this_process(spread, "a whim")
    assert in_this_process(make_config(tiny), "")
    assert not in_this_process(spread, "")


@SLOW
def test_training_of_ones_own_stays_in_its_process(tiny):
    from evokd import evolve_distiller

    with pytest.raises(EvokdError, match="got training of one's own"):
        evolve_distiller(**tiny, engine="ray", evaluate=lambda loss: 1.0)


def test_without_the_extra_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EvokdError, match=r"--engine ray: expected Ray, got none installed; pip install 'evokd\[ray\]'"):
        connected(None)
