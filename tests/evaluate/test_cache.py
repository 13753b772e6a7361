"""The cache against a plain reading of its files: an outcome comes back as it was, or not at all."""

import hashlib
import json
import math
import multiprocessing
from dataclasses import asdict, fields, make_dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from evokd.errors import EvokdError
from evokd.evaluate import cache
from evokd.evaluate.cache import Cached
from evokd.evaluate.distill import Job
from evokd.evaluate.students import StudentJob
from evokd.executor import Serial
from evokd.genome.codec import to_names
from evokd.genome.individual import Outcome, Status
from evokd.journal import without_clock
from evokd.losses import parse_loss
from evokd.run import Budget, arm
from evokd.search.random import RandomSearch
from tests.toy import Toy, judge

CONTEXT = {"pair": "digits-ab12", "protocol": '{"steps": 8}', "tier": "distill", "fitness": "accuracy", "torch": "2.9"}
GOOD = Outcome(Status.OK, 91.25, {"ce": 0.1 + 0.2, "fitness_by_seed": [91.25], "curve": [[0, 2.3, -0.0]]}, "", 0.75)


class Inner:
    """Answers from a function of the job, and remembers what it was asked."""

    def __init__(self, answer=lambda job: Outcome(Status.OK, float(job.seeds[0]))):
        self.answer, self.asked, self.closed = answer, [], False

    def map(self, jobs, ahead=None):
        jobs = list(jobs)
        self.asked.append(jobs)
        return map(self.answer, jobs)

    def close(self):
        self.closed = True


def job(*seeds: int, **more) -> Job:
    return Job(**{"loss": ("add", "kl", "tau=4"), "seeds": seeds or (1,), "key": "k"} | more)


def opened(folder: Path, answer=None, context=CONTEXT):
    """(cache, its inner executor, what it warned of)."""
    inner, said = Inner(answer) if answer else Inner(), []
    return Cached(inner, folder, context, said.append), inner, said


def stored(folder: Path, outcome: Outcome = GOOD, of: Job | None = None, context=CONTEXT) -> Path:
    """The file of an entry, written by a cache of its own."""
    made = opened(folder, lambda _: outcome, context)[0]
    assert list(made.map([of or job()])) == [outcome]
    return made.path(of or job())


def read(folder: Path, of: Job | None = None, context=CONTEXT) -> tuple[Outcome | None, list[str]]:
    """(what a fresh cache knows of a job or None, its warnings)."""
    fresh = Outcome(Status.CRASHED, reason="evaluated afresh")
    made, _, said = opened(folder, lambda _: fresh, context)
    (found,) = made.map([of or job()])
    assert (made.hits, made.misses) == ((0, 1) if found is fresh else (1, 0))
    return None if found is fresh else found, said


def seal(key: str, outcome: dict) -> str:
    """An entry whose checksum is right, whatever it holds; a second writing of the format."""
    body = json.dumps([key, outcome])
    return json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest(), "key": key, "outcome": outcome})


def test_hits_and_misses_keep_the_order_of_the_jobs(tmp_path):
    list(opened(tmp_path)[0].map([job(n) for n in (2, 5, 6)]))
    made, inner, said = opened(tmp_path)
    found = list(made.map([job(n) for n in range(9)]))
    assert [o.fitness for o in found] == list(range(9))
    assert inner.asked == [[job(n) for n in (0, 1, 3, 4, 7, 8)]], "all unknown jobs at once, so that workers stay busy"
    assert (made.hits, made.misses, said) == (3, 6, [])
    made.close()
    assert inner.closed


def test_outcomes_come_as_they_are_ready_and_are_kept_at_once(tmp_path):
    def answer(of):
        if of.seeds == (2,):
            raise RuntimeError("the machine is switched off")
        return Outcome(Status.OK, 1.0)

    list(opened(tmp_path)[0].map([job(0)]))
    outcomes = opened(tmp_path, answer)[0].map([job(0), job(1), job(2)])
    assert [next(outcomes).fitness, next(outcomes).fitness] == [0.0, 1.0]
    with pytest.raises(RuntimeError, match="switched off"):
        next(outcomes)
    assert read(tmp_path, job(1))[0] == Outcome(Status.OK, 1.0)


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=60, deadline=None)
@given(fitness=NUMBERS, figures=st.dictionaries(st.text(max_size=5), NUMBERS | st.lists(NUMBERS), max_size=4), seconds=NUMBERS)
@example(fitness=5e-324, figures={"b": -0.0, "a": [1.7976931348623157e308, 0.1]}, seconds=0.0)
def test_an_outcome_comes_back_to_the_bit_and_in_its_order(fitness, figures, seconds):
    with TemporaryDirectory() as folder:
        whole = Outcome(Status.OK, fitness, figures, "ü\n", seconds)
        stored(Path(folder), whole)
        found, said = read(Path(folder))
    assert repr(found) == repr(whole), "repr tells -0.0 from 0.0, 1 from 1.0 and one order of figures from another"
    assert not said


def test_tuples_come_back_as_the_journal_would_write_them(tmp_path):
    whole = replace(GOOD, metrics={"curve": [(0, 2.3, 0.5), (7, 1.1, 0.25)]})
    stored(tmp_path, whole)
    assert json.dumps(read(tmp_path)[0].metrics) == json.dumps(whole.metrics)


@pytest.mark.parametrize("status", Status)
def test_only_what_is_the_candidates_own_is_kept(tmp_path, status):
    outcome = replace(GOOD, status=status, fitness=91.25 if status is Status.OK else None, reason="told")
    path = stored(tmp_path, outcome)
    kept = status.value in ("OK", "DIVERGED", "REJECTED")
    assert path.exists() == kept
    assert read(tmp_path)[0] == (outcome if kept else None)


@pytest.mark.parametrize(
    "change", [{"fitness": math.nan}, {"fitness": None}, {"metrics": {"a": [math.inf]}}, {"metrics": {"a": {1}}}]
)
def test_an_outcome_that_is_not_plain_and_finite_passes_by(tmp_path, change):
    outcome, said = replace(GOOD, **change), []
    assert list(Cached(Inner(lambda _: outcome), tmp_path, CONTEXT, said.append).map([job()])) == [outcome]
    assert not list(tmp_path.glob("??/*"))
    assert not said


@pytest.mark.parametrize("split", ["test", "train"])
def test_figures_of_other_splits_are_neither_kept_nor_found(tmp_path, split):
    """Even an entry written for such a job by hand is not looked at."""
    made, inner, _ = opened(tmp_path)
    asked = job(split=split)
    assert [o.fitness for _ in range(2) for o in made.map([asked])] == [1.0, 1.0]
    assert inner.asked == [[asked], [asked]]
    assert not list(tmp_path.glob("??/*"))
    assert (made.hits, made.misses) == (0, 0)
    path = made.path(asked)
    path.parent.mkdir()
    path.write_text(seal(made.key(asked), {**asdict(GOOD), "status": "OK"}))
    assert [o.fitness for o in made.map([asked])] == [1.0]


CHANGED = {
    "loss": ("add", "kl", "tau=2"),
    "seeds": (1, 2),
    "gamma": 0.5,
    "key": "other",
}


@pytest.mark.parametrize("field", CHANGED)
def test_every_field_of_a_job_is_in_its_key(tmp_path, field):
    stored(tmp_path)
    assert read(tmp_path)[0] == GOOD
    assert read(tmp_path, replace(job(), **{field: CHANGED[field]})) == (None, [])
    assert read(tmp_path, replace(job(), loss=None)) == (None, [])


def test_students_are_told_apart_by_every_field_and_from_losses(tmp_path):
    student = StudentJob(("cell", "skip"), "score", (1,), key="k")
    stored(tmp_path, of=student)
    assert read(tmp_path, student)[0] == GOOD
    others = [{"student": "cell"}, {"student": ("cell",)}, {"tier": "distill"}, {"seeds": (2,)}, {"key": ""}]
    assert [read(tmp_path, replace(student, **other)) for other in others] == [(None, [])] * 5


def test_jobs_of_two_kinds_with_the_same_fields_are_two(tmp_path):
    stored(tmp_path)
    twin = make_dataclass("Twin", [field.name for field in fields(Job)], frozen=True)(**vars(job()))
    assert read(tmp_path, twin) == (None, [])


@pytest.mark.parametrize("name", CONTEXT)
def test_another_context_is_no_hit_and_said_once(tmp_path, name):
    stored(tmp_path)
    other = CONTEXT | {name: "another"}
    made, inner, said = opened(tmp_path, context=other)
    assert [o.fitness for o in made.map([job(), job(2)])] == [1.0, 2.0]
    assert len(inner.asked[0]) == 2
    assert said == [f"cache {tmp_path} holds 1 entries of other protocols or pairs; none of them is used"]
    assert opened(tmp_path, context=other)[2] == [], "now it holds entries of this context too"
    assert opened(tmp_path, context=dict(reversed(CONTEXT.items())))[2] == [], "contexts have no order"
    assert read(tmp_path, context=dict(reversed(CONTEXT.items())))[0] == GOOD


def test_an_empty_folder_is_no_reason_to_warn(tmp_path):
    assert opened(tmp_path)[2] == opened(tmp_path, context={})[2] == []


def test_a_hash_alone_makes_no_hit(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "content_key", lambda text: "00c0111de0000000")
    path = stored(tmp_path)
    made, _, said = opened(tmp_path)
    assert made.path(job(7)) == path
    assert [o.fitness for o in made.map([job(7), job(8)])] == [7.0, 8.0]
    assert [str(path) in line for line in said] == [True], "told once"
    assert read(tmp_path, job(8))[0].fitness == 8.0, "the later one took the place"
    assert read(tmp_path)[0] is None


def test_an_entry_copied_to_another_place_is_no_hit(tmp_path):
    path, made = stored(tmp_path), opened(tmp_path)[0]
    place = made.path(job(2))
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(path.read_bytes())
    found, said = read(tmp_path, job(2))
    assert found is None
    assert [str(place) in line for line in said] == [True]


BYTES = st.binary(max_size=3)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_entry_is_the_same_outcome_or_a_miss_with_a_warning(entry, data):
    """Bytes replaced, inserted, deleted, the tail torn off, digits exchanged."""
    folder, path, whole = entry
    text = whole
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(start + 3, len(text))) | st.just(len(text)))
        new = data.draw(
            BYTES | st.sampled_from([b"0", b"9", b"-", b"1e999", b"NaN", b"null", b'"', b"[", b" ", b"e", b".", b"true"])
        )
        text = text[:start] + new + text[end:]
    path.write_bytes(text)
    found, said = read(folder)
    if found is None:
        assert len(said) == 1
        assert str(path) in said[0]
        assert "\n" not in said[0]
    else:
        assert repr(found) == repr(GOOD)
        assert not said


@pytest.fixture(scope="module")
def entry(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    path = stored(folder)
    return folder, path, path.read_bytes()


def test_every_single_changed_character_is_seen(entry):
    """Without luck: each byte of the file in turn becomes another letter or another digit."""
    folder, path, whole = entry
    seen = 0
    for at, byte in enumerate(whole):
        path.write_bytes(whole[:at] + (b"7" if byte != ord("7") else b"8") + whole[at + 1 :])
        found, said = read(folder)
        assert (found is None) == (len(said) == 1)
        assert found is None or repr(found) == repr(GOOD)
        seen += found is None
    assert seen > 0.8 * len(whole.replace(b" ", b""))


PLAIN = asdict(GOOD) | {"status": "OK"}
FORGED = {
    "not a number": PLAIN | {"fitness": math.nan},
    "infinite": PLAIN | {"fitness": math.inf},
    "infinite figure": PLAIN | {"metrics": {"curve": [[0, -math.inf]]}},
    "no fitness": PLAIN | {"fitness": None},
    "text for fitness": PLAIN | {"fitness": "91.25"},
    "truth for fitness": PLAIN | {"fitness": True},
    "unknown status": PLAIN | {"status": "FINE"},
    "no status": PLAIN | {"status": None},
    "a status that is not kept": PLAIN | {"status": "CRASHED", "fitness": None},
    "diverged with fitness": PLAIN | {"status": "DIVERGED"},
    "list of metrics": PLAIN | {"metrics": []},
    "number for reason": PLAIN | {"reason": 3},
    "no seconds": PLAIN | {"seconds": None},
    "field missing": {k: v for k, v in PLAIN.items() if k != "metrics"},
    "field too many": PLAIN | {"note": ""},
    "no object": [1, 2],
}


@pytest.mark.parametrize("name", FORGED)
def test_a_wrong_outcome_is_a_miss_even_under_a_right_checksum(tmp_path, name):
    path = stored(tmp_path)
    path.write_text(seal(opened(tmp_path)[0].key(job()), PLAIN))
    assert read(tmp_path) == (GOOD, []), "the test's own writing is the format's"
    path.write_text(seal(opened(tmp_path)[0].key(job()), FORGED[name]))
    found, said = read(tmp_path)
    assert found is None
    assert [str(path) in line for line in said] == [True]


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"3", b"{}", b"\xff\xfe", b"null", b"[" * 100_000, b'{"sha256": "", "key": "", "outcome": {}}']
)
def test_what_is_no_entry_is_evaluated_afresh_and_overwritten(tmp_path, text):
    path = stored(tmp_path)
    path.write_bytes(text)
    made, _, said = opened(tmp_path)
    assert [o.fitness for o in made.map([job()])] == [1.0]
    assert [str(path) in line for line in said] == [True]
    assert read(tmp_path) == (Outcome(Status.OK, 1.0), [])


def test_a_folder_in_the_place_of_an_entry_ends_nothing(tmp_path):
    made, _, said = opened(tmp_path)
    made.path(job()).mkdir(parents=True)
    made.path(job(2)).mkdir(parents=True)
    assert [o.fitness for o in made.map([job(), job(2), job(3)])] == [1.0, 2.0, 3.0]
    assert len(said) == 3, "two entries that cannot be read, and once that one cannot be written"
    assert read(tmp_path, job(3))[0].fitness == 3.0
    assert not list(tmp_path.glob("*/*.part"))


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, where):
    (tmp_path / "file").touch()
    with pytest.raises(EvokdError, match=r"^--cache: expected a folder that can be written, got .*file[^\n]*$"):
        opened(tmp_path / where)


@pytest.mark.parametrize("marker", ['{"format": 2}', "{}", "", "1", '{"format": "1"}', "[" * 100_000])
def test_another_format_is_refused_and_left_alone(tmp_path, marker):
    path = stored(tmp_path)
    assert json.loads((tmp_path / "evokd-cache.json").read_text()) == {"format": 1}
    (tmp_path / "evokd-cache.json").write_text(marker)
    with pytest.raises(EvokdError, match=r"^--cache: expected a folder of cache format 1, got [^\n]*$"):
        opened(tmp_path)
    assert (tmp_path / "evokd-cache.json").read_text() == marker
    assert path.exists()


ROUNDS, WIDTH = 40, 4


def fitness_of(of: Job) -> Outcome:
    return Outcome(Status.OK, of.seeds[0] / 7, {"curve": [of.seeds[0] / 3] * 300})


def write_together(folder: str, barrier, told) -> None:
    """One of two processes that write the same entries at the same time."""
    said, missed = [], 0
    for turn in range(ROUNDS):
        barrier.wait(60)
        made = Cached(Inner(fitness_of), Path(folder), CONTEXT, said.append)
        jobs = [job(WIDTH * turn + n) for n in range(WIDTH)]
        if list(made.map(jobs)) != [fitness_of(each) for each in jobs]:
            said.append("another outcome")
        missed += made.misses
    told.put((said[:3], missed))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # later Pythons warn of threads, which the children do not use
def test_two_processes_share_a_folder(tmp_path):
    fork = multiprocessing.get_context("fork")  # starts at once; the children only read and write files
    barrier, told = fork.Barrier(2), fork.SimpleQueue()
    pair = [fork.Process(target=write_together, args=(str(tmp_path / "new"), barrier, told)) for _ in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(60)
    assert [process.exitcode for process in pair] == [0, 0]
    ends = [told.get() for _ in pair]
    assert [said for said, _ in ends] == [[], []]
    assert sum(missed for _, missed in ends) >= ROUNDS * WIDTH
    made, inner, said = opened(tmp_path / "new")
    jobs = [job(n) for n in range(ROUNDS * WIDTH)]
    assert list(made.map(jobs)) == [fitness_of(each) for each in jobs]
    assert (inner.asked, said) == ([[]], [])
    assert not list((tmp_path / "new").rglob("*.part"))


class CachedToy(Toy):
    """The toy search with an executor between loop and evaluator; `evaluated` lists what was not in the folder."""

    def __init__(self, folder, cache_folder, **more):
        super().__init__(folder, **more)
        self.executor, self.said = Serial(self.train), []
        if cache_folder:
            self.executor = Cached(self.executor, cache_folder, {"toy": "1"}, self.said.append)

    def train(self, of):
        self.evaluated.append(of.key)
        return replace(judge(self.tree(of.loss)), seconds=len(self.evaluated) / 4)

    def evaluate(self, batch):
        return iter(self.executor.map([Job(tuple(to_names(i)), (0,), key=self.grammar.write(i)) for i in batch]))


@pytest.mark.parametrize("controller", ["evolution", "random"])
def test_a_search_writes_the_same_journal_with_and_without(tmp_path, controller):
    plain, cold, warm = (
        CachedToy(tmp_path / name, tmp_path / "kept" if name != "plain" else None, controller=controller, seed=3)
        for name in ("plain", "cold", "warm")
    )
    events = [without_clock(toy.run()) for toy in (plain, cold, warm)]
    lines = [[json.dumps(event) for event in run] for run in events]
    assert lines[0] == lines[1] == lines[2]
    assert cold.evaluated == plain.evaluated
    crashed = [e["text"] for e in events[0] if e["event"] == "individual" and e["status"] == "CRASHED"]
    assert warm.evaluated == crashed
    assert (warm.executor.hits, warm.executor.misses) == (len(cold.evaluated) - len(crashed), len(crashed))
    assert len(cold.evaluated) > 10
    assert cold.said == warm.said == []


def test_another_seed_of_a_search_profits_where_it_meets_the_same_candidates(tmp_path):
    toys = [CachedToy(tmp_path / str(seed), tmp_path / "kept", seed=seed, generations=8, size=12) for seed in (1, 2)]
    for toy in toys:
        toy.run()
    known = {text for text in toys[0].evaluated if judge(toys[0].tree(text.split())).status is not Status.CRASHED}
    assert not known & set(toys[1].evaluated)
    assert toys[1].executor.hits > 0


def test_real_trainings_come_back_as_they_were(tmp_path, problem):
    """A real distiller on real digits: what the loop would write of a hit is what it would have written of the training."""
    jobs = [Job(tuple(to_names(parse_loss("1*kl(logits, tau=4)"))), (1, 2), key="kd"), Job(None, (1,), gamma=1.0)]
    fresh = list(problem.executor.map(jobs))
    said = []
    for hits in (0, 2):
        made = Cached(problem.executor, tmp_path, CONTEXT, said.append)
        found = list(made.map(jobs))
        assert made.hits == hits
        same = [json.dumps(asdict(replace(o, seconds=0.0))) for o in found]
        assert same == [json.dumps(asdict(replace(o, seconds=0.0))) for o in fresh]
    assert [o.status for o in found] == [Status.OK] * 2
    assert not said


def test_a_search_on_a_real_problem_trains_nothing_twice(tmp_path, problem):
    """Two arms of one seed: the second is told the same by a cache whose inner executor refuses to train."""

    def refuse(of):
        raise AssertionError(of)

    told, said = [], []
    for inner in (problem.executor, Inner(refuse)):
        some = replace(problem, executor=Cached(inner, tmp_path, {"problem": problem.key}, said.append))
        search = arm(some, "random", RandomSearch(problem.grammar), Budget(1, 3), 5)
        batch = [i for i in search.propose(3)[0] if i.outcome is None]
        told.append([(search.key(i), o.status, o.fitness) for i, o in zip(batch, search.outcomes(batch), strict=True)])
    assert told[0] == told[1]
    assert len(told[0]) == 3
    assert not said
