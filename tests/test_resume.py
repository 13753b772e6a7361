"""Whatever ends a process, the next one comes to the end that an undisturbed run has, and evaluates nothing twice."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evokd import evolve_distiller
from evokd.config import make_config, read_config
from evokd.distiller import resume, run
from evokd.errors import EvokdError
from evokd.folder import locked
from evokd.genome.individual import Outcome, Status
from evokd.journal import good_events, read_events, without_clock
from evokd.report.terminal import Terminal
from evokd.trainings import NAME, Trainings
from tests.disturbed import CONTROLLERS, disturbed

QUIET = Terminal(quiet=True)
SLOW = pytest.mark.slow
ROOT = Path(__file__).parents[1]


def begun(folder: Path, controller: str, *more: str, **environment: str) -> subprocess.Popen:
    """A disturbed search in its own process, up to its first evaluation."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.disturbed", str(folder), controller, *more],
        cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


def story(folder: Path) -> list[dict]:
    return without_clock(read_events(folder))


def evaluated(folder: Path) -> list[str]:
    return (folder / "evaluated.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Controller → (journal, evaluations) of an undisturbed run of six generations."""
    made = {}
    for controller in CONTROLLERS:
        folder = tmp_path_factory.mktemp(controller)
        disturbed(folder, controller, 6)
        made[controller] = story(folder), evaluated(folder)
    return made


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_three_generations_and_three_more_are_six(whole, tmp_path, controller):
    disturbed(tmp_path, controller, 3)
    disturbed(tmp_path, controller, 6)
    assert [e for e in story(tmp_path) if e["event"] != "end"] == [e for e in whole[controller][0] if e["event"] != "end"]
    assert evaluated(tmp_path) == whole[controller][1]


def test_another_process_with_another_hash_seed_tells_the_same(whole, tmp_path):
    for seed in ("1", "77"):
        process = begun(tmp_path / seed, "evolution", "6", PYTHONHASHSEED=seed)
        process.communicate()
        assert story(tmp_path / seed) == whole["evolution"][0]


class DeathError(BaseException):
    pass


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_a_death_in_any_evaluation_costs_that_one_alone(whole, tmp_path, controller, monkeypatch):
    """Every eleventh evaluation is the last of its process, from the first generation to the last, rungs included."""
    folder, deaths = tmp_path / "run", 0

    def dies(tree):
        nonlocal count
        count += 1
        if count % 11 == 0:
            raise DeathError
        return judged(tree)

    import tests.disturbed

    judged, count = tests.disturbed.judge, 0
    monkeypatch.setattr("tests.disturbed.judge", dies)
    while True:
        try:
            disturbed(folder, controller, 6)
            break
        except DeathError:
            deaths += 1
    assert deaths >= 4
    assert story(folder) == whole[controller][0]
    assert len(evaluated(folder)) == len(whole[controller][1]) + deaths
    assert sorted(set(evaluated(folder))) == sorted(whole[controller][1])


def killed_often(folder: Path, controller: str, draw: random.Random) -> int:
    """Kills before the search came to its end: each some evaluations on, at any moment of the next milliseconds."""
    kills = 0
    while True:
        process = begun(folder, controller, "6", "0.002")
        log, wanted = folder / "evaluated.txt", draw.randrange(1, 25)
        wanted += len(evaluated(folder)) if log.exists() else 0
        while process.poll() is None and not (log.exists() and len(evaluated(folder)) >= wanted):
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.006))
        process.kill()
        process.wait()
        process.stdout.close()
        if process.returncode == 0:
            return kills
        kills += 1


def check_killed(folder: Path, whole: tuple, kills: int) -> None:
    assert story(folder) == whole[0]
    assert set(evaluated(folder)) == set(whole[1])
    assert len(evaluated(folder)) <= len(whole[1]) + kills
    assert not (folder / NAME).exists()


def test_sigkill_at_any_moment(whole, tmp_path):
    kills = killed_often(tmp_path / "run", "evolution", random.Random(1))
    check_killed(tmp_path / "run", whole["evolution"], kills)


@pytest.mark.slow
def test_sigkill_campaign(whole, tmp_path):
    """EVOKD_KILLS kills and more (default 60) over all controllers."""
    wanted, kills, draw, campaign = int(os.environ.get("EVOKD_KILLS", "60")), 0, random.Random(2026), 0
    while kills < wanted or campaign < len(CONTROLLERS):
        controller = list(CONTROLLERS)[campaign % len(CONTROLLERS)]
        folder = tmp_path / str(campaign)
        killed = killed_often(folder, controller, draw)
        check_killed(folder, whole[controller], killed)
        kills, campaign = kills + killed, campaign + 1
    print(f"{kills} kills in {campaign} runs of {len(CONTROLLERS)} controllers")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A toy run with two whole generations, whose third was cut."""
    folder = tmp_path_factory.mktemp("stopped")
    disturbed(folder, "evolution", 2)
    lines = (folder / "events.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "events.jsonl").write_bytes(b"".join(lines[:-1]))
    return folder


@pytest.mark.parametrize("tail", [b'{"event": "indi', b'{"event": "indi\n', b"\0" * 40, b"\0" * 40 + b"\n", b"\xff\n3\n"])
def test_a_torn_end_of_the_journal_costs_the_newest_generation_alone(whole, stopped, tmp_path, tail):
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    with (folder / "events.jsonl").open("ab") as file:
        file.write(tail)
    disturbed(folder, "evolution", 6)
    assert story(folder) == whole["evolution"][0]


def test_a_torn_newest_generation_falls_back_to_the_one_before(whole, stopped, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    raw = (folder / "events.jsonl").read_bytes()
    (folder / "events.jsonl").write_bytes(raw[:-200])
    disturbed(folder, "evolution", 6)
    assert story(folder) == whole["evolution"][0]
    disturbed(folder, "evolution", 6)  # and once more, as the state was made anew
    assert story(folder) == whole["evolution"][0]


@pytest.mark.parametrize("state", [b"", b"{", b"[]", b'{"state": {"version": 1}, "sha256": "0"}', None])
def test_a_torn_state_is_said_and_the_journal_is_enough(whole, stopped, tmp_path, state, capsys):
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    (folder / "state.json").unlink() if state is None else (folder / "state.json").write_bytes(state)
    disturbed(folder, "evolution", 6)
    assert story(folder) == whole["evolution"][0]
    assert ("a whole state file" in capsys.readouterr().out) == (state is not None)


def test_an_altered_journal_is_refused(stopped, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    raw = (folder / "events.jsonl").read_bytes()
    (folder / "events.jsonl").write_bytes(raw.replace(b'"op": "random"', b'"op": "rondom"', 1))
    with pytest.raises(EvokdError, match=r"expected the journal that state\.json has the checksum of"):
        good_events(folder, print)
    (folder / "state.json").unlink()
    assert good_events(folder, print)


def test_a_line_that_broke_before_a_whole_generation_is_refused(stopped, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    (folder / "state.json").unlink()
    lines = (folder / "events.jsonl").read_bytes().split(b"\n")
    (folder / "events.jsonl").write_bytes(b"\n".join([lines[0], lines[1][:-5], *lines[2:]]))
    with pytest.raises(EvokdError, match="line 2: expected a JSON event"):
        good_events(folder, print)


def test_trainings_give_back_each_outcome_once_and_no_altered_one(tmp_path):
    kept = Trainings(tmp_path)
    assert kept.find(["a"]) is None
    sound, late = Outcome(Status.OK, 0.1 + 0.2, {"curve": [[0, 1.5]]}, "", 0.25), Outcome(Status.TIMED_OUT, reason="τ")
    for job, outcome in ((["a"], sound), (["b"], late), (["a"], late)):
        assert kept.keep(job, outcome) is outcome
        assert kept.find(job) is None, "what this process did it was asked to do again"
    kept.close()
    again = Trainings(tmp_path, go_on=True)
    assert [again.find(job) for job in (["a"], ["a"], ["a"], ["b"], ["c"])] == [sound, late, None, late, None]
    again.close()
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes().replace(b"0.30000000000000004", b"0.90000000000000004", 1) + b'{"job": 3}\n[[[')
    third = Trainings(tmp_path, go_on=True)
    assert [third.find(["a"]), third.find(["a"])] == [late, None]
    third.clear()
    assert path.read_bytes() == b""
    third.remove()
    assert not path.exists()


# A real search


@pytest.fixture(scope="module")
def settings(tiny):
    return tiny | {"baselines": False, "seed": 31, "funnel": {"rungs": ((0.5, 1, 0.67),)}}


@pytest.fixture(scope="module")
def result(settings):
    return evolve_distiller(**settings)


TRAININGS = 6 + 6 + 2 + 4 * 2  # rungs, full trainings, confirmations, finals of four rows


def stopped_in(settings: dict, place: int, monkeypatch) -> Path:
    """The folder of a real run that died in its n-th training."""
    from evokd.evaluate.distill import Distiller

    calls, train = [], Distiller.__call__

    def dies(self, job):
        calls.append(job)
        if len(calls) == place:
            raise DeathError
        return train(self, job)

    monkeypatch.setattr(Distiller, "__call__", dies)
    before = set(Path(settings["out"]).glob("*/events.jsonl"))
    with pytest.raises(DeathError):
        run(make_config(settings), QUIET)
    folder = (set(Path(settings["out"]).glob("*/events.jsonl")) - before).pop().parent
    return folder


@pytest.mark.parametrize("place", [2, pytest.param(5, marks=SLOW), pytest.param(9, marks=SLOW), pytest.param(13, marks=SLOW), 18])
def test_a_real_run_dies_in_a_rung_a_training_a_confirmation_or_a_final(result, settings, place, monkeypatch):
    """Every training is done once but the one in flight."""
    from evokd.evaluate.distill import Distiller

    folder = stopped_in(settings, place, monkeypatch)
    monkeypatch.undo()
    calls, train = [], Distiller.__call__
    monkeypatch.setattr(Distiller, "__call__", lambda self, job: calls.append(job) or train(self, job))
    resume(folder, QUIET, {"tracking_uri": "none"})
    assert story(folder) == story(result.run)
    assert len({(e["text"], e["gamma"]) for e in story(folder) if e["event"] == "final"}) == 4
    assert len(calls) == TRAININGS - (place - 1)


@pytest.mark.slow
def test_another_number_of_workers_goes_on_to_the_same_end(result, settings, monkeypatch):
    folder = stopped_in(settings, 8, monkeypatch)
    monkeypatch.undo()
    resume(folder, QUIET, {"workers": 2})
    assert story(folder) == story(result.run)
    assert read_config(folder / "config.toml").workers == 2


@pytest.mark.slow
def test_an_extension_that_was_cut_is_still_an_extension(result, settings, tmp_path):
    """A bare --resume goes on to what was last asked for."""
    copy = tmp_path / result.run.name
    shutil.copytree(result.run, copy)
    (tmp_path / "cache").symlink_to(result.run.parent / "cache")
    resume(copy, QUIET, {"generations": 3})
    events = read_events(copy)
    third = next(i for i, e in enumerate(events) if e.get("generation") == 2)
    lines = (copy / "events.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "events.jsonl").write_bytes(b"".join(lines[: third + 1]))
    resume(copy, QUIET)
    assert story(copy) == without_clock(events)


@pytest.fixture
def copy(result, tmp_path):
    made = tmp_path / result.run.name
    shutil.copytree(result.run, made)
    (tmp_path / "cache").symlink_to(result.run.parent / "cache")
    return made


def test_drift_of_the_settings_is_told_as_what_was_and_what_is(copy):
    with pytest.raises(EvokdError) as refused:
        resume(copy, QUIET, {"seed": 2, "population": 9})
    assert "expected seed = 31, population = 3 as in" in str(refused.value).replace(
        "population = 3, seed = 31", "seed = 31, population = 3"
    )
    assert "--accept-drift" in str(refused.value)


def test_drift_of_the_space_is_told_line_by_line_and_an_accepted_one_recorded(copy):
    path = copy / "space.toml"
    now = path.read_text()
    path.write_text(now.replace("max_terms = ", "max_terms = 1 # was "))
    before = (copy / "events.jsonl").read_bytes()
    with pytest.raises(EvokdError, match=r"space - max_terms = 1 .*space \+ max_terms = "):
        resume(copy, QUIET)
    assert (copy / "events.jsonl").read_bytes() == before
    resume(copy, QUIET, {"finals": 3}, (), True)
    (drift,) = [e for e in read_events(copy) if e["event"] == "drift"]
    assert drift["lines"][0].startswith("space - max_terms = 1")
    assert path.read_text() == now
    assert "drift space - max_terms" in (copy / "environment.txt").read_text()
    resume(copy, QUIET)  # accepted for good


def test_data_that_changed_are_refused(copy, monkeypatch):
    lines = (copy / "events.jsonl").read_text().splitlines(keepends=True)
    start = json.loads(lines[0])
    (copy / "events.jsonl").write_text(json.dumps(start | {"problem": "0" * 16}) + "\n" + "".join(lines[1:]))
    (copy / "state.json").unlink()
    with pytest.raises(EvokdError, match=r"data, teacher or student: content .* \(was 0000000000000000"):
        resume(copy, QUIET)


def test_a_second_writer_is_refused_before_it_reads(copy):
    code = """
import sys, time, pathlib, evokd.folder
with evokd.folder.locked(pathlib.Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(60)
"""
    other = subprocess.Popen([sys.executable, "-c", code, str(copy)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(EvokdError, match="a run that no other process writes"):
            resume(copy, QUIET)
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    with locked(copy):
        pass


def test_training_of_ones_own_goes_on_with_itself_alone(settings):
    scores = {}

    def evaluate(loss):
        scores[loss] = float(len(scores))
        if len(scores) == 5:
            raise DeathError
        return float(len(loss.terms))

    own = settings | {"funnel": {"rungs": ()}, "seed": 32}
    before = set(Path(own["out"]).glob("*/events.jsonl"))
    with pytest.raises(DeathError):
        evolve_distiller(**own, evaluate=evaluate)
    folder = (set(Path(own["out"]).glob("*/events.jsonl")) - before).pop().parent
    with pytest.raises(EvokdError, match="the training of one's own"):
        resume(folder, QUIET)
    fresh = []
    resume(folder, QUIET, evaluate=lambda loss: fresh.append(loss) or float(len(loss.terms)))
    assert len(fresh) == 2
    whole = evolve_distiller(**own, evaluate=lambda loss: float(len(loss.terms)))
    assert story(folder) == story(whole.run)


LOGGING_STUDENT = """
import multiprocessing, os, pathlib
from evokd.models.zoo import build

def net(classes):
    if multiprocessing.parent_process() is not None:  # a worker, at the start of a training
        with (pathlib.Path(__file__).parent / "begun.txt").open("a") as file:
            file.write(f"{os.getpid()}\\n")
    return build("resnet8w4", classes, 1, 0)
"""
SET = {"teacher_epochs": 3, "confirm": 2, "confirm_repeats": 1, "finals": 2, "baselines": "false", "funnel.rungs": "[]"}
SET |= {"protocol.steps": 40, "protocol.batch": 16, "protocol.views": 2, "protocol.repeats": 1, "protocol.rare_classes": "[]"}
REAL = ["--teacher=resnet8w8", "--workers=2", "--generations=3", "--population=4", "--transfer=300", "--tracking-uri=none"]
REAL += ["--device=cpu", "--quiet", *(f"-s{key}={value}" for key, value in SET.items())]


class Real:
    """A real search on digits by two workers, with a student that notes where each training began."""

    def __init__(self, home: Path, out: Path, more: list[str]) -> None:
        self.home, self.out, self.more = home, out, more
        self.student, self.log = ["--student", str(home / "net.py") + ":net"], home / "begun.txt"
        (home / "net.py").write_text(LOGGING_STUDENT)
        self.log.write_text("")

    def process(self, folder: Path | None) -> subprocess.Popen:
        rest = ["--resume", str(folder)] if folder else [*REAL, *self.more, "--out", str(self.out)]
        command = [sys.executable, "-m", "evokd.evolve", "distiller", *self.student, *rest]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, cwd=self.home, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def folder(self) -> Path | None:
        return next((path.parent for path in self.out.glob("*/config.toml")), None)

    def begun(self) -> int:
        return len(self.log.read_text().splitlines())


def killed_real(real: Real, draw: random.Random) -> int:
    """Kills before a real search came to its end, each after a few more trainings and a moment."""
    kills = 0
    while True:
        process, wanted = real.process(real.folder()), real.begun() + draw.randrange(1, 5)
        while process.poll() is None and real.begun() < wanted:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.4))
        process.kill()
        _, said = process.communicate()
        assert process.returncode in (0, -9), said.decode()
        if process.returncode == 0:
            return kills
        kills += 1


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_sigkill_campaign_on_real_trainings(tmp_path):
    """EVOKD_REAL_KILLS kills and more (default 10), of a search by generations and of a steady one, by two workers."""
    wanted, kills, draw, campaign = int(os.environ.get("EVOKD_REAL_KILLS", "10")), 0, random.Random(11), 0
    wholes = {}
    for more in ((), ("--lag", "4")):
        real = Real(tmp_path, tmp_path / f"whole{len(more)}", list(more))
        assert real.process(None).wait() == 0
        wholes[more] = story(real.folder()), real.begun()
    while kills < wanted or campaign < 2:
        more = list(wholes)[campaign % 2]
        real = Real(tmp_path, tmp_path / f"killed{campaign}", list(more))
        killed = killed_real(real, draw)
        assert story(real.folder()) == wholes[more][0]
        assert wholes[more][1] <= real.begun() <= wholes[more][1] + 2 * killed, "at most what was in flight is trained again"
        print(f"{killed} kills, {real.begun()} trainings begun, {wholes[more][1]} in the undisturbed run")
        kills, campaign = kills + killed, campaign + 1
