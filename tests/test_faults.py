"""Faults on purpose: each ends with its status or in one line, and costs nothing else."""

import errno
import gc
import json
import os
import socket
import time
from pathlib import Path

import pytest

import evokd.checkpoint
from evokd import evolve_distiller
from evokd.checkpoint import Lines, write_whole
from evokd.config import make_config
from evokd.distiller import resume, run
from evokd.errors import EvokdError
from evokd.executor import Serial, Terms, Workers, check_limits
from evokd.journal import read_events, without_clock
from evokd.report.terminal import Terminal
from evokd.trainings import NAME
from evokd.worker import resident
from tests.disturbed import Faulty, disturbed
from tests.test_resume import story

QUIET = Terminal(quiet=True)


LIMITS = {"timeout": 1.5, "memory": 200 << 20}
JOBS = [
    ("fine", 0),
    ("hangs", 1),
    ("exits", 2),
    ("raises", 3),
    ("grows", 4),
    ("gpu", 5),
    ("gpu once", 6),
    ("cpu", 7),
    ("fine", 8),
]
EXPECTED = ["OK", "TIMED_OUT", "CRASHED", "CRASHED", "OUT_OF_MEMORY", "OUT_OF_MEMORY", "OK", "OUT_OF_MEMORY", "OK"]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_each_fault_has_its_status_with_any_number_of_workers(count):
    workers = Workers(count, Faulty, None)
    workers.terms = Terms(**LIMITS)
    found = list(workers.map(JOBS))
    assert [o.status.value for o in found] == EXPECTED
    assert [o.fitness for o in found] == [
        float(n) if status == "OK" else None for (_, n), status in zip(JOBS, EXPECTED, strict=True)
    ]
    assert found[1].reason == "time limit: 1.5 seconds"
    assert "died (9), also on a second try" in found[2].reason
    assert found[3].reason == "ZeroDivisionError: a fault"
    assert "memory limit" in found[4].reason
    assert found[6].metrics == {"smaller": 1.0}
    assert found[6].reason.startswith("out of memory, then smaller")
    assert [o.fitness for o in workers.map([("fine", 9)])] == [9.0]
    workers.close()


def test_one_process_ends_a_hanging_candidate_by_an_alarm():
    executor = Serial(Faulty(None))
    executor.terms = Terms(timeout=0.1)
    found = list(executor.map([("fine", 0), ("hangs", 1), ("gpu once", 2), ("fine", 3)]))
    assert [o.status.value for o in found] == ["OK", "TIMED_OUT", "OK", "OK"]


def test_one_process_cannot_keep_a_memory_limit():
    with pytest.raises(EvokdError, match="--memory-gib: expected two workers or more"):
        check_limits(1.0, Serial(Faulty(None)))


def test_listeners_that_leave_take_their_jobs_along():
    workers = Workers(1, Faulty, None)
    found = workers.map([("fine", 0), ("hangs", 1)])
    assert next(found).fitness == 0
    found.close()
    assert [o.fitness for o in workers.map([("fine", 5)])] == [5.0]
    workers.close()


# Disks


class Full:
    """`os.pwrite` on a disk that is full for some calls, of which the first writes half."""

    def __init__(self, calls):
        self.calls, self.write, self.count = calls, os.pwrite, 0

    def __call__(self, file, raw, at):
        self.count += 1
        if self.count in self.calls:
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.count + 1 in self.calls:
            return self.write(file, raw[: len(raw) // 2], at)
        return self.write(file, raw, at)


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(evokd.checkpoint, "PAUSES", (0.001, 0.001, 0.001))


def test_a_disk_that_is_full_for_a_while_pauses_the_search(hasty, tmp_path, monkeypatch, capsys):
    disturbed(tmp_path / "whole", "evolution", 3)
    monkeypatch.setattr(os, "pwrite", Full({20, 21}))
    disturbed(tmp_path / "run", "evolution", 3)
    assert story(tmp_path / "run") == story(tmp_path / "whole")
    assert capsys.readouterr().err.count("the disk is full; paused, trying again") == 1


def test_a_disk_that_stays_full_ends_the_search_in_one_line_and_it_goes_on_later(hasty, tmp_path, monkeypatch):
    disturbed(tmp_path / "whole", "evolution", 3)
    monkeypatch.setattr(os, "pwrite", Full(range(60, 10_000)))
    with pytest.raises(EvokdError, match="No space left on device; make room, then go on with --resume"):
        disturbed(tmp_path / "run", "evolution", 3)
    monkeypatch.undo()
    assert (tmp_path / "run" / "events.jsonl").read_bytes().endswith(b"\n"), "half a line was taken back"
    disturbed(tmp_path / "run", "evolution", 3)
    assert story(tmp_path / "run") == story(tmp_path / "whole")
    evaluated = (tmp_path / "run" / "evaluated.txt").read_text().splitlines()
    assert len(evaluated) <= 36 + 1


def test_a_real_small_disk(hasty, tmp_path):
    """A tmpfs of 64 KiB, where this process may mount one."""
    import subprocess

    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs")
    try:
        with pytest.raises(EvokdError, match="No space left on device"):
            disturbed(disk / "run", "evolution", 60)
        kept = read_events(disk / "run")
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        disturbed(disk / "run", "evolution", 12)
        disturbed(tmp_path / "whole", "evolution", 12)
        assert len(kept) > 50
        whole, found = story(tmp_path / "whole"), story(disk / "run")
        assert found[: len(kept) // 2] == whole[: len(kept) // 2]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EIO])
def test_a_disk_that_cannot_be_written_is_refused_at_once(hasty, tmp_path, monkeypatch, code):
    lines = Lines(tmp_path / "x")
    lines.write("first")

    def refuse(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(EvokdError, match=os.strerror(code)):
        lines.write("second")
    monkeypatch.undo()
    lines.write("third")
    lines.close()
    assert (tmp_path / "x").read_text() == "first\nthird\n"


def test_small_files_wait_for_room_too_and_leave_no_part(hasty, tmp_path, monkeypatch):
    sync, calls = os.fsync, []

    def full(file):
        calls.append(file)
        if len(calls) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(file)

    monkeypatch.setattr(os, "fsync", full)
    write_whole(tmp_path / "x", "text")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x", "text")]
    monkeypatch.setattr(os, "fsync", lambda file: full(calls.clear()))
    with pytest.raises(EvokdError, match="x: expected a file that can be written"):
        write_whole(tmp_path / "x", "other")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x", "text")]


def test_a_lone_surrogate_survives_as_json_spells_it(tmp_path):
    lines = Lines(tmp_path / "x")
    lines.write(json.dumps({"τ": "\ud800"}, ensure_ascii=False))
    lines.close()
    assert json.loads((tmp_path / "x").read_bytes()) == {"τ": "\ud800"}


# Tracking that is away in the midst of a run


def test_a_mirror_is_filled_in_after_an_outage_and_only_once(tiny, tmp_path, monkeypatch, capsys):
    import mlflow

    from evokd.commands.track import main
    from evokd.store import Store

    def refuse(self, summary):
        raise ConnectionError("connection refused")

    monkeypatch.setattr(Store, "generation", refuse)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    result = evolve_distiller(**tiny | {"tracking_uri": uri, "baselines": False, "seed": 41}, quiet=False)
    said = capsys.readouterr().err
    assert said.count("tracking stopped, the search goes on: ConnectionError") == 1
    assert f"evokd track sync {result.run.name}" in said
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)

    def mirrored():
        client = mlflow.MlflowClient(uri)
        (experiment,) = client.search_experiments(filter_string="name LIKE 'distiller/%'")
        runs = client.search_runs([experiment.experiment_id])
        (parent,) = [r for r in runs if r.data.tags["evokd.kind"] == "search"]
        steps = [m.step for m in client.get_metric_history(parent.info.run_id, "best")]
        return parent, steps, sorted(r.info.run_name for r in runs), [f.path for f in client.list_artifacts(parent.info.run_id)]

    assert mirrored()[1] == []
    assert main(["sync", str(result.run)]) == 0
    parent, steps, names, files = mirrored()
    assert (parent.info.status, steps) == ("FINISHED", [0, 1])
    assert {"final: evolved", "final: plain, equal steps"} <= set(names)
    assert {"events.jsonl", "report.html", "best"} <= set(files)
    best = {e["best_id"] for e in read_events(result.run) if e["event"] == "generation"}
    assert {int(name.split("-i")[1]) for name in names if name.startswith("g0")} == best
    assert main(["sync", str(result.run)]) == 0
    assert "0 generations, 0 children" in capsys.readouterr().out
    again = mirrored()
    assert again[1:3] == (steps, names)
    assert {f for f in again[3]} == set(files)


def test_a_server_that_never_answers_does_not_keep_a_run_from_its_end(tmp_path, monkeypatch):
    from evokd import tracker as module

    silent = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(module, "PATIENCE", 0.5)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    said = []
    made = module.Tracker(f"http://127.0.0.1:{silent.getsockname()[1]}", "x", None, said.append)
    made.start("run", {}, {}, [])
    made.finish("FINISHED", {}, {})
    silent.close()
    assert said == ["tracking stopped, the search goes on: the server is 0.5 seconds late; later: evokd track sync run"]


def test_sync_refuses_what_it_cannot_fill_in(tmp_path, tiny):
    from evokd.commands.track import main

    with pytest.raises(EvokdError, match="a run folder"):
        main(["sync", "nowhere", "--out", str(tmp_path)])
    result = evolve_distiller(**tiny, evaluate=lambda loss: float(len(loss.terms)), seed=42)
    with pytest.raises(EvokdError, match="a run that is tracked, got tracking_uri none"):
        main(["sync", str(result.run)])


# A whole search with faults in it


def test_a_search_with_a_candidate_that_hangs_times_it_out_and_replays_that(tiny, monkeypatch):
    """What a clock decided is in the trainings and the journal: a resumed run does not ask the clock again."""
    from evokd.evaluate.distill import Distiller

    calls, train = [], Distiller.__call__

    def slow(self, job):
        calls.append(job)
        if len(calls) == 2:
            time.sleep(60)
        if len(calls) == 3:
            raise SystemExit
        return train(self, job)

    monkeypatch.setattr(Distiller, "__call__", slow)
    settings = tiny | {"timeout_seconds": 5.0, "seed": 43, "baselines": False}
    before = set(Path(settings["out"]).glob("*/events.jsonl"))
    with pytest.raises(SystemExit):
        run(make_config(settings), QUIET)
    folder = (set(Path(settings["out"]).glob("*/events.jsonl")) - before).pop().parent
    assert len((folder / NAME).read_text().splitlines()) == 2
    monkeypatch.undo()
    resume(folder, QUIET)
    found = [e for e in without_clock(read_events(folder)) if e["event"] == "individual" and e["status"] != "REJECTED"]
    assert [e["status"] for e in found].count("TIMED_OUT") == 1
    assert found[1]["reason"] == "time limit: 5 seconds"
    assert not (folder / NAME).exists()


def files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.slow
def test_a_soak_leaves_memory_and_files_as_they_were(tmp_path):
    """EVOKD_SOAK candidates (default 2,000) by two workers; figures after a warm-up of a tenth."""
    count = int(os.environ.get("EVOKD_SOAK", "2000"))
    workers, sizes, opened = Workers(2, Faulty, None), [], []
    for part in range(10):
        outcomes = list(workers.map([("fine", n) for n in range(count // 10)]))
        disturbed(tmp_path / "run", "evolution", 2 * (part + 1))
        gc.collect()
        assert len(outcomes) == count // 10
        sizes.append([resident(pid) for pid in (os.getpid(), *(w.process.pid for w in workers._workers))])
        opened.append(files())
    workers.close()
    growth = [late / early - 1 for early, late in zip(sizes[0], sizes[-1], strict=True)]
    print(f"{count} candidates: growth {['%.1f %%' % (100 * g) for g in growth]}, files {opened}")
    assert max(growth) <= 0.05
    assert len(set(opened)) == 1


LOSSES = ("kl(logits, tau=4)", "30*pearson(transpose(logits))", "l2(features[-1])", "0.3*cosine(embedding) + kl(logits, tau=2)")


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_soak_of_real_trainings_leaves_memory_and_files_as_they_were(tiny):
    """EVOKD_SOAK trainings of a few steps on digits (default 2,000) by two workers, every one with another seed."""
    from evokd.evaluate.distill import Job
    from evokd.genome.codec import to_names
    from evokd.losses import parse_loss
    from evokd.problem import open_problem

    count = int(os.environ.get("EVOKD_SOAK", "2000"))
    problem = open_problem(make_config(tiny | {"workers": 2}), lambda line: None)
    trees, sizes, opened = [tuple(to_names(parse_loss(text))) for text in LOSSES], [], []
    for part in range(10):
        seeds = range(part * count // 10, (part + 1) * count // 10)
        outcomes = list(problem.executor.map([Job(trees[n % len(trees)], (n,)) for n in seeds]))
        gc.collect()
        assert {o.status.value for o in outcomes} <= {"OK", "DIVERGED"}
        pids = (os.getpid(), *(w.process.pid for w in problem.executor._workers))
        sizes.append([resident(pid) for pid in pids])
        opened.append([len(os.listdir(f"/proc/{pid}/fd")) for pid in pids])
    problem.executor.close()
    growth = [late / early - 1 for early, late in zip(sizes[0], sizes[-1], strict=True)]
    print(f"{count} trainings: growth {['%.1f %%' % (100 * g) for g in growth]}, files {opened[0]} to {opened[-1]}")
    assert max(growth) <= 0.05
    assert all(each == opened[0] for each in opened)


def served(folder: Path, port: int):
    """An MLflow server of this machine, once it answers."""
    import subprocess
    import sys
    import urllib.request

    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}", "--artifacts-destination", str(folder / "artifacts")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return process
        except OSError:
            assert process.poll() is None
            time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_server_that_is_killed_in_the_midst_of_a_run_is_filled_in_when_it_is_back(tiny, tmp_path, capsys, monkeypatch):
    import signal

    import mlflow

    from evokd.commands.track import main
    from evokd.report.terminal import Terminal as Told

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    uri, server, generation = f"http://127.0.0.1:{port}", served(tmp_path, port), Told.generation

    def kill(self, search, summary):
        if summary["generation"] == 1:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        generation(self, search, summary)

    monkeypatch.setattr(Told, "generation", kill)
    result = evolve_distiller(**tiny | {"tracking_uri": uri, "baselines": False, "seed": 44, "generations": 3}, quiet=False)
    said = capsys.readouterr().err
    assert said.count("tracking stopped, the search goes on") == 1
    assert [e["generation"] for e in read_events(result.run) if e["event"] == "generation"] == [0, 1, 2]

    def mirrored():
        client = mlflow.MlflowClient(uri)
        (experiment,) = client.search_experiments(filter_string="name LIKE 'distiller/%'")
        runs = client.search_runs([experiment.experiment_id])
        (parent,) = [r for r in runs if r.data.tags["evokd.kind"] == "search"]
        history = client.get_metric_history(parent.info.run_id, "best")
        artifacts = sorted(f.path for f in client.list_artifacts(parent.info.run_id))
        return parent.info.status, sorted(m.step for m in history), sorted(r.info.run_name for r in runs), artifacts

    server = served(tmp_path, port)
    try:
        assert main(["sync", str(result.run)]) == 0
        first = mirrored()
        assert first[:2] == ("FINISHED", [0, 1, 2])
        assert {"events.jsonl", "report.html", "best"} <= set(first[3])
        assert main(["sync", str(result.run)]) == 0
        assert mirrored() == first
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
