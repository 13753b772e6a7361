"""Signals as a shell sends them, to a search in a process of its own."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from evokd.executor import Serial, Terms, Workers
from evokd.genome.individual import Outcome, Status
from evokd.signals import STOP, Ending, Interrupted
from tests.disturbed import disturbed, open_sleeper
from tests.test_resume import begun, evaluated, story


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    disturbed(folder, "evolution", 6)
    return story(folder)


def waited(folder: Path, count: int) -> None:
    """Until so many evaluations have begun."""
    while not (folder / "evaluated.txt").exists() or len(evaluated(folder)) < count:
        time.sleep(0.005)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_drops_the_candidate_in_flight_and_says_how_to_go_on(whole, tmp_path, number, code):
    process = begun(tmp_path, "evolution", "6", "30" if number == signal.SIGINT else "0.05")
    waited(tmp_path, 1 if number == signal.SIGINT else 14)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"to go on: go on with {tmp_path}" in said
    assert "Traceback" not in said
    begun_before = len(evaluated(tmp_path))
    disturbed(tmp_path, "evolution", 6)
    assert story(tmp_path) == whole
    assert len(evaluated(tmp_path)) <= 6 * 12 + 1
    assert len(evaluated(tmp_path)) > begun_before


def test_a_second_signal_stops_at_once_and_the_run_goes_on_all_the_same(whole, tmp_path):
    """The first one is swallowed here, as by a training that catches everything."""
    code = """
import sys, time, pathlib, tests.disturbed as d
slept = time.sleep
def stubborn(seconds):
    try: print("asleep", flush=True); slept(30)
    except BaseException: slept(30)
d.time.sleep = stubborn
d.disturbed(pathlib.Path(sys.argv[1]), "evolution", 6)
"""
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while process.stdout.readline() != "asleep\n":
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    while "a second signal" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    disturbed(tmp_path, "evolution", 6)
    assert story(tmp_path) == whole


@pytest.mark.parametrize("how", ["signal", "file"])
def test_a_soft_stop_waits_for_the_generation_and_is_spent(whole, tmp_path, how):
    process = begun(tmp_path, "evolution", "6", "0.02")
    waited(tmp_path, 3)
    process.send_signal(signal.SIGUSR1) if how == "signal" else (tmp_path / STOP).touch()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "stopped after the generation" in said
    events = story(tmp_path)
    assert events[-1]["event"] == "generation"
    assert events == whole[: len(events)] != whole
    assert not (tmp_path / STOP).exists()
    disturbed(tmp_path, "evolution", 6)
    assert story(tmp_path) == whole


def test_handlers_are_those_of_before_once_a_run_is_over(tmp_path):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM)
    before = [signal.getsignal(n) for n in numbers]
    with Ending(tmp_path):
        assert signal.getsignal(signal.SIGTERM) != before[1]
        executor = Serial(lambda job: Outcome(Status.OK, 1.0))
        executor.terms = Terms(timeout=5)
        assert next(executor.map([1])).fitness == 1.0
    assert [signal.getsignal(n) for n in numbers] == before


def test_a_signal_between_candidates_waits_for_the_next(tmp_path):
    with Ending(tmp_path, "x") as ending:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted, match="stopped by SIGTERM; to go on: x") as stop, ending.dropping():
            pytest.fail("evaluated")
    assert stop.value.code == 143


def test_another_thread_than_the_main_one_sets_no_handlers(tmp_path):
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with Ending(tmp_path):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_ctrl_c_in_a_terminal_reaches_workers_too_and_they_leave_it_to_the_driver(tmp_path):
    """A terminal signals the whole group. The worker goes when the driver closes it."""
    workers = Workers(1, open_sleeper, str(tmp_path))
    with Ending(None, "x") as ending:
        workers.terms = Terms(ending=ending)

        def press():
            while not (tmp_path / "1").exists() or not (tmp_path / "1").read_text():
                time.sleep(0.01)
            worker = int((tmp_path / "1").read_text())
            os.kill(worker, signal.SIGINT)
            time.sleep(0.3)
            os.kill(worker, 0)  # alive
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=press)
        thread.start()
        with pytest.raises(Interrupted):
            list(workers.map([1, 2]))
        thread.join()
    workers.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "1").read_text()), 0)


def test_workers_do_not_outlive_a_driver_that_was_killed(tmp_path):
    code = """
import sys
from evokd.executor import Workers
from tests.disturbed import open_sleeper
if __name__ == "__main__":
    list(Workers(1, open_sleeper, sys.argv[1]).map([1]))
"""
    script = tmp_path / "driver.py"
    script.write_text(code)
    root = Path(__file__).parents[1]
    driver = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=os.environ | {"PYTHONPATH": str(root)}, cwd=root)
    while not (tmp_path / "1").exists() or not (tmp_path / "1").read_text():
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    worker, end = int((tmp_path / "1").read_text()), time.monotonic() + 30
    while Path(f"/proc/{worker}/status").exists() and "Z (zombie)" not in Path(f"/proc/{worker}/status").read_text():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_a_signal_while_the_pair_is_opened_ends_in_one_line_and_a_soft_one_is_remembered(tiny, tmp_path):
    """Before there is a folder: a teacher that never comes to its end."""
    code = """
import os, signal, sys, time
import evokd.distiller as d
from evokd.evolve import main
d.open_problem = lambda *a, **k: (print("opening", flush=True), time.sleep(60))
sys.exit(main(["distiller", "--out", sys.argv[1]]))
"""
    root = Path(__file__).parents[1]
    for number, expected in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        while process.stdout.readline() != "opening\n":
            assert process.poll() is None
        process.send_signal(signal.SIGUSR1)
        while "stopping after this generation" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == expected
        assert "to go on: the same command" in said
        assert "Traceback" not in said
