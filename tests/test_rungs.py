"""Rungs against a simulation of successive halving on sorted lists, against hand counts, and from end to end on real digits."""

import json
import math
import shutil
from fractions import Fraction
from functools import partial
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import evokd.problem
import evokd.run
from evokd import evolve_distiller
from evokd.distiller import admitted, resume
from evokd.errors import EvokdError
from evokd.evaluate.fingerprint import Copies
from evokd.funnel import Funnel, funnel_rows
from evokd.genome.individual import Individual, Outcome, Status, content_key
from evokd.journal import individuals, read_events, read_outcome, without_clock
from evokd.losses import parse_loss, write_loss
from evokd.report.terminal import Terminal
from evokd.run import Budget, Search, replay, tuner
from evokd.rungs import Halving, Rung, price, together
from tests.toy import Toy


def batch_of(count):
    """Candidates with the ids of a later generation."""
    batch = [Individual([]) for _ in range(count)]
    for number, individual in enumerate(batch):
        individual.id = 10 + number
    return batch


class Trainer:
    """Answers trainings by a rule and remembers what was asked: (id, seeds, steps) of every batch."""

    def __init__(self, rule):
        self.rule, self.asked = rule, []

    def __call__(self, jobs):
        jobs = list(jobs)
        self.asked.append([(individual.id, seeds, steps) for individual, seeds, steps in jobs])
        number = len(self.asked)
        for individual, (first, last), _ in jobs:
            fitness = self.rule(individual.id, number)
            if fitness is None:
                yield Outcome(Status.DIVERGED, reason="loss is nan", seconds=1.0)
            else:
                values = [float(fitness)] * (last - first)
                yield Outcome(Status.OK, float(fitness), {"fitness_by_seed": values, "curve": [number]}, seconds=1.0)

    @property
    def cost(self):
        """Full-length seeds that were asked for."""
        return sum(steps * (last - first) for batch in self.asked for _, (first, last), steps in batch)


# --- halving -----------------------------------------------------------------------------------------------------------------

TENTHS = st.integers(1, 10)
SCORES = st.lists(st.lists(st.one_of(st.none(), st.integers(0, 4)), min_size=3, max_size=3), max_size=12)


@given(SCORES, st.lists(st.tuples(TENTHS, st.integers(1, 3), TENTHS), max_size=3))
@settings(max_examples=200, deadline=None)
def test_halving_is_sorting_and_cutting(scores, rungs):
    """Who is stopped where and why, who is trained at each rung, and in which order, by a few plain lines."""
    batch = batch_of(len(scores))
    train, funnel = Trainer(lambda i, number: scores[i - 10][number - 1]), Funnel()
    Halving([Rung(steps / 10, seeds, keep / 10) for steps, seeds, keep in rungs], 4, train, funnel).screen(batch)

    alive, fates, asked = [i.id for i in batch], {}, []
    for number, (steps, seeds, keep) in enumerate(rungs, 1):
        asked.append([(i, (0, seeds), steps / 10) for i in alive])
        points = {i: scores[i - 10][number - 1] for i in alive}
        fates |= {i: ("DIVERGED", f"rung {number}: loss is nan") for i in alive if points[i] is None}
        ranked = sorted((i for i in alive if points[i] is not None), key=lambda i: (-points[i], i))
        going = math.ceil(Fraction(keep, 10) * len(alive))
        for place in range(going, len(ranked)):
            reason = f"rung {number}: place {place + 1} of {len(alive)} with {points[ranked[place]]:.4g}"
            fates[ranked[place]] = ("REJECTED", reason)
        entered, alive = len(alive), sorted(ranked[:going])
        told = funnel.ledger[f"rung {number}"]
        assert (told.entered, told.left) == (entered, len(alive))

    assert train.asked == asked
    assert {i.id: (i.outcome.status.value, i.outcome.reason) for i in batch if i.outcome} == fates
    assert [i.id for i in batch if i.outcome is None] == alive


def test_those_stopped_keep_their_figures_and_failures_their_seconds():
    batch, table = batch_of(4), {10: [4, 9], 11: [3, 8], 12: [None], 13: [1, 1]}
    Halving([Rung(0.5, 1, 0.75), Rung(0.7, 1, 0.3)], 2, Trainer(lambda i, number: table[i][number - 1]), Funnel()).screen(batch)
    second, failed, last = batch[1].outcome, batch[2].outcome, batch[3]
    assert batch[0].outcome is None
    assert (second.status, second.fitness, second.metrics) == (Status.REJECTED, None, {"rung_1": 3.0, "rung_2": 8.0})
    assert second.reason == "rung 2: place 2 of 3 with 8"
    assert (failed.status, failed.seconds, failed.metrics) == (Status.DIVERGED, 1.0, {})
    assert last.outcome.metrics == {"rung_1": 1.0, "rung_2": 1.0}


RUNGS = [Rung(0.33, 1, 0.5), Rung(1, 1, 0.5)]


def test_price_and_share_are_those_of_a_hand_count():
    assert price(RUNGS, 3) == pytest.approx(0.33 / 3 + 0.5 * 1 / 3 + 0.25 * 2 / 3)
    assert price(RUNGS, 3, trials=4) == pytest.approx(0.33 / 3 + 0.5 * 4 * 0.33 / 3 + 0.5 * 1 / 3 + 0.25 * 2 / 3)
    assert price([], 3) == 1
    assert price([Rung(1, 1, 0.5)], 2) == pytest.approx(0.5 + 0.5 * 0.5)
    halving = partial(Halving, repeats=3, train=None, funnel=None)
    assert halving(RUNGS).share == pytest.approx(0.25)
    assert halving([]).share == 1


HALVINGS = [
    RUNGS,
    [Rung(0.5, 2, 0.5)],
    [Rung(0.25, 1, 0.5), Rung(0.5, 2, 0.25), Rung(1, 3, 0.5)],
    [],
    [Rung(1, 2, 0.25), Rung(0.5, 1, 0.5)],
]


@pytest.mark.parametrize("rungs", HALVINGS, ids=str)
@pytest.mark.parametrize("trials", [0, 3])
def test_price_is_what_is_trained(rungs, trials):
    """Counted over the trainings that 64 candidates ask for, tuning included."""
    batch, train = batch_of(64), Trainer(lambda i, number: i)

    def tune(individual, fitness, rung):
        for _ in range(trials):
            list(train([(individual, (0, rung.seeds), rung.steps)]))
        return {}

    halving = Halving(rungs, 4, train, Funnel(), tune=tune if trials else None)
    halving.screen(batch)
    going = [i for i in batch if i.outcome is None]
    assert len(going) == 64 * halving.share
    assert len(list(halving.evaluate(going))) == len(going)
    assert train.cost == pytest.approx(price(rungs, 4, trials) * 64 * 4)


@pytest.mark.parametrize(
    ("rungs", "figures", "first"),
    [
        ([], None, 0),
        ([Rung(0.5, 2, 1)], None, 0),
        ([Rung(0.5, 1, 1), Rung(1, 2, 1)], None, 2),
        ([Rung(1, 1, 1), Rung(0.5, 2, 1)], None, 1),
        ([Rung(1, 1, 1)], {}, 1),  # tuning left the numbers as they were
        ([Rung(1, 1, 1)], {"tuned": 5.0, "tuned_from": "old"}, 0),  # and here it did not
        ([Rung(0.5, 1, 1), Rung(1, 2, 1)], {"tuned": 5.0, "tuned_from": "old"}, 2),
    ],
)
def test_what_was_trained_in_full_length_is_not_trained_again(rungs, figures, first):
    batch, train = batch_of(3), Trainer(lambda i, number: 10 * i + number)
    halving = Halving(rungs, 3, train, Funnel(), tune=None if figures is None else lambda *_: figures)
    halving.screen(batch)
    outcomes = list(halving.evaluate(batch))
    assert train.asked[-1] == [(i.id, (first, 3), 1.0) for i in batch]
    last = len(rungs) + 1
    source = max((n for n, rung in enumerate(rungs, 1) if rung.steps == 1), default=0) if first else 0
    for individual, outcome in zip(batch, outcomes, strict=True):
        values = [10.0 * individual.id + source] * first + [10.0 * individual.id + last] * (3 - first)
        assert outcome.metrics["fitness_by_seed"] == values
        assert outcome.fitness == pytest.approx(sum(values) / 3)
        assert outcome.seconds == (2.0 if first else 1.0)
        told = {f"rung_{n}": 10.0 * individual.id + n for n in range(1, last)} | (figures or {})
        assert {k: v for k, v in outcome.metrics.items() if k not in ("fitness_by_seed", "curve")} == told


def test_nothing_of_one_generation_is_known_in_the_next():
    train = Trainer(lambda i, number: i)
    halving = Halving([Rung(1, 1, 1)], 2, train, Funnel())
    halving.screen(batch_of(2))
    list(halving.evaluate(batch_of(2)))
    later = batch_of(2)
    halving.screen([])
    outcomes = list(halving.evaluate(later))
    assert train.asked[-1] == [(10, (0, 2), 1.0), (11, (0, 2), 1.0)]
    assert not any("rung_1" in outcome.metrics for outcome in outcomes)


# --- two trainings as one ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fitness", ["accuracy", "gap"])
def test_two_trainings_are_as_one_with_all_seeds(distiller, problem, fitness, monkeypatch):
    monkeypatch.setattr(distiller, "fitness", fitness)
    tree, seeds = parse_loss("0.9*kl(logits, tau=4)"), (11, 12, 13)
    whole = distiller(problem.job(tree, seeds))
    for cut in (1, 2):
        merged = together(distiller(problem.job(tree, seeds[:cut])), distiller(problem.job(tree, seeds[cut:])))
        assert merged.status is whole.status is Status.OK
        assert merged.fitness == pytest.approx(whole.fitness, rel=1e-9)
        assert set(merged.metrics) == set(whole.metrics)
        assert merged.metrics["fitness_by_seed"] == whole.metrics["fitness_by_seed"]
        assert merged.metrics["curve"] == whole.metrics["curve"]
        numbers = {k: v for k, v in whole.metrics.items() if isinstance(v, float)}
        assert {k: merged.metrics[k] for k in numbers} == pytest.approx(numbers, rel=1e-9)
    assert len(set(whole.metrics["fitness_by_seed"])) > 1


def test_a_failure_of_the_second_training_is_the_wholes():
    first = Outcome(Status.OK, 1.0, {"fitness_by_seed": [1.0], "curve": []})
    second = Outcome(Status.CRASHED, reason="bang")
    assert together(first, second) is second


# --- tuning ------------------------------------------------------------------------------------------------------------------


def test_those_that_leave_the_first_rung_are_tuned_in_the_order_of_proposal():
    asked = []
    halving = Halving(RUNGS, 3, Trainer(lambda i, number: -i if number == 1 else i), Funnel())
    halving.tune = lambda individual, fitness, rung: asked.append((individual.id, fitness, rung)) or {}
    halving.screen(batch_of(5)[::-1])
    assert asked == [(i, -float(i), RUNGS[0]) for i in (10, 11, 12)]


def test_what_a_later_rung_stops_or_breaks_still_tells_what_it_was_tuned_from():
    batch = batch_of(3)
    train = Trainer(lambda i, number: None if (i, number) == (11, 2) else -i)
    halving = Halving([Rung(0.5, 1, 1), Rung(0.7, 1, 0.3)], 2, train, Funnel())
    halving.tune = lambda individual, fitness, rung: {"tuned_from": f"old {individual.id}"}
    halving.screen(batch)
    assert [i.outcome and i.outcome.status for i in batch] == [None, Status.DIVERGED, Status.REJECTED]
    assert [i.outcome.metrics["tuned_from"] for i in batch[1:]] == ["old 11", "old 12"]


class Tuning:
    """A tuner on a fitness that a weight of 100 maximises; `trees` are the texts it tried, `admitted` what the funnel remembers."""

    def __init__(self, problem, trials=6):
        self.trees, self.admitted = [], []
        funnel = Funnel(admitted=lambda tree: self.admitted.append(write_loss(tree)))
        self.search = Search("arm", problem.grammar, None, funnel, None, Budget(1, 2), 0)
        self.tune = tuner(self.search, self.train, trials)

    def train(self, jobs):
        for individual, seeds, steps in jobs:
            assert (seeds, steps) == ((0, 2), 0.25)
            self.trees.append(write_loss(individual))
            yield Outcome(Status.OK, self.fitness(individual))

    @staticmethod
    def fitness(tree):
        return -abs(math.log(float(write_loss(tree).partition("*")[0]) / 100))

    def run(self, number=3):
        individual = Individual(list(parse_loss("3*l1(logits)")))
        individual.id = number
        self.search.seen.add(self.search.key(individual))
        return individual, self.tune(individual, self.fitness(individual), Rung(0.25, 2, 0.5))


def test_a_candidate_is_tuned_in_place_and_tells_what_it_was(problem):
    tuning = Tuning(problem)
    individual, figures = tuning.run()
    text = write_loss(individual)
    assert figures["tuned_from"] == "3*l1(logits)"
    assert figures["tuned"] == tuning.fitness(individual) == max(tuning.fitness(parse_loss(t)) for t in tuning.trees)
    assert figures["tuned"] > tuning.fitness(parse_loss("3*l1(logits)"))
    assert text in tuning.trees
    assert 2 <= len(tuning.trees) == len(set(tuning.trees)) <= 6
    assert tuning.search.seen == {content_key("3*l1(logits)"), content_key(text)}
    assert tuning.admitted == [text]


def test_tuned_numbers_that_were_seen_before_are_left_alone(problem):
    found = write_loss(Tuning(problem).run()[0])
    tuning = Tuning(problem)
    tuning.search.seen.add(content_key(found))
    individual, figures = tuning.run()
    assert (write_loss(individual), figures, tuning.admitted) == ("3*l1(logits)", {}, [])


def test_tuning_draws_from_a_stream_of_its_candidate(problem):
    tried = {}
    for number in (3, 3, 4):
        tuning = Tuning(problem)
        tuning.run(number)
        assert tried.setdefault(number, tuning.trees) == tuning.trees
    assert tried[3] != tried[4]


def test_what_was_admitted_before_a_cut_is_recalled_in_its_order():
    def made(generation, text, status=Status.OK, reason="", before=None):
        individual = Individual(list(parse_loss(text)))
        individual.generation = generation
        metrics = {"tuned_from": before} if before else {}
        individual.settle(Outcome(status, 1.0 if status is Status.OK else None, metrics, reason))
        return individual

    told = [
        made(0, "2*l1(logits)", before="1*l1(logits)"),
        made(0, "3*l2(logits)", Status.REJECTED, "copy: same gradient as l1(logits)"),
        made(0, "4*l2(logits)", Status.REJECTED, "rung 1: place 3 of 4 with 1"),
        made(1, "5*l2(logits)", Status.DIVERGED, "rung 2: nan", before="6*l2(logits)"),
        made(1, "7*l2(logits)"),
    ]
    expected = ["1*l1(logits)", "4*l2(logits)", "2*l1(logits)", "6*l2(logits)", "7*l2(logits)", "5*l2(logits)"]
    assert [write_loss(tree) for tree in admitted(told)] == [write_loss(parse_loss(text)) for text in expected]


# --- in the loop -------------------------------------------------------------------------------------------------------------


def halved(folder, rule, generations=4):
    """A search on the toy language with one rung; its events, and what was trained in full."""
    toy = Toy(folder, generations=generations, size=6)
    funnel = Funnel()
    halving = Halving([Rung(0.5, 1, 0.5)], 2, Trainer(rule), funnel)
    toy.search.screen, toy.search.ledger = halving.screen, funnel.close
    toy.search.budget = Budget(generations, 6, share=halving.share)
    return toy.run(), toy.evaluated


def test_failures_at_a_rung_neither_shorten_a_search_nor_count_as_trainings(tmp_path):
    events, trained = halved(tmp_path / "run", lambda i, number: None if i % 3 == 0 else i)
    told = [e for e in events if e["event"] == "generation"]
    at_rungs = [e for e in individuals(events) if e["reason"].startswith("rung") and e["status"] == "DIVERGED"]
    assert at_rungs
    assert [e["trained"] for e in told] == [3, 3, 3, 3]
    assert told[-1]["evaluations"] == len(trained) == 12
    rows = funnel_rows(told)
    assert (rows["rung 1"].entered, rows["rung 1"].left) == (24, 12)
    assert rows["training"].entered == 12
    assert rows["training"].left == sum(e["status"] == "OK" for e in individuals(events))


def test_a_generation_that_fails_as_a_whole_at_a_rung_is_not_the_end(tmp_path):
    events, trained = halved(tmp_path / "run", lambda i, number: None if number == 1 else i)
    assert [e["trained"] for e in events if e["event"] == "generation"] == [0, 3, 3, 3]
    assert len(trained) == 9


def test_a_resumed_search_does_not_propose_again_what_was_tuned(problem):
    """`seen` after a replay is what it was before: the text that was proposed, and the tuned one."""
    event = {
        "event": "individual",
        "id": 0,
        "generation": 0,
        "op": "random",
        "parents": [],
        "key": content_key("new"),
        "status": "OK",
    }
    event |= {"tree": ["l1"], "fitness": 1.0, "reason": "", "seconds": 0.0, "metrics": {"tuned_from": "old"}}
    controller = type("Told", (), {"tell": lambda self, individuals: None})()
    search = Search("arm", problem.grammar, controller, None, None, Budget(1, 2), 0)
    replay(search, [event, {"event": "generation", "generation": 0, "seconds": 1.0}], lambda names: [], read_outcome)
    assert search.seen == {content_key("old"), content_key("new")}


# --- from end to end ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halving_settings(tiny):
    more = {"funnel": {"rungs": ((0.5, 1, 0.5),), "tune": 2}, "population": 4, "generations": 3, "baselines": False, "seed": 1}
    return tiny | more | {"protocol": tiny["protocol"] | {"repeats": 2}}


class Remembered(Copies):
    """Copies that can be found again."""

    made: ClassVar[list] = []

    def __init__(self, *args):
        super().__init__(*args)
        self.made.append(self)


@pytest.fixture(scope="module")
def watched(halving_settings):
    """(run folder, its events, jobs that were trained, texts that the gate against copies remembers)."""
    jobs = []

    class Watched(evokd.problem.Distiller):
        def __call__(self, job):
            jobs.append(job)
            return super().__call__(job)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evokd.problem, "Distiller", Watched)
        patch.setattr(evokd.problem, "Copies", Remembered)
        result = evolve_distiller(**halving_settings)
    return result.run, read_events(result.run), jobs, Remembered.made[-1].texts


def test_the_journal_tells_what_the_funnel_did(watched):
    _, events, _, _ = watched
    for told in (e for e in events if e["event"] == "generation"):
        mine = [e for e in individuals(events) if e["generation"] == told["generation"]]
        through = [e for e in mine if e["status"] != "REJECTED" or e["reason"].startswith("rung")]
        assert list(told["funnel"]) == ["static", "probe", "copies", "descent", "rung 1"]
        assert told["funnel"]["static"]["entered"] == told["new"] == len(mine)
        assert told["funnel"]["descent"]["left"] == told["funnel"]["rung 1"]["entered"] == told["sound"] == len(through) == 4
        assert told["funnel"]["rung 1"]["left"] == told["trained"] == 2
        for e in through:
            assert e["metrics"]["rung_1"] > 0
    assert any("tuned_from" in e["metrics"] for e in individuals(events))


def test_nothing_is_trained_twice(watched):
    _, events, jobs, _ = watched
    through = [e for e in individuals(events) if e["status"] == "OK" or e["reason"].startswith("rung")]
    texts = [e["text"] for e in through]
    before = [e["metrics"]["tuned_from"] for e in through if "tuned_from" in e["metrics"]]
    assert len({*texts, *before}) == len(texts) + len(before)
    asked = [(job.loss, job.seeds, job.steps) for job in jobs if job.split == "validation" and len(job.seeds) > 0]
    assert len(asked) == len(set(asked))
    full = {tuple(e["tree"]) for e in through if e["status"] == "OK"}
    assert {loss for loss, seeds, steps in asked if steps == 1 and len(seeds) == 2} == full


def test_a_rung_is_a_training_of_its_candidate_as_it_was_proposed(watched, halving_settings):
    from evokd.config import make_config
    from evokd.problem import open_problem

    _, events, _, _ = watched
    opened = open_problem(make_config(halving_settings), lambda line: None)
    short = opened.config.protocol.model_copy(update={"steps": 4})
    opened.executor.evaluate.protocol = short
    tuned = [e for e in individuals(events) if "tuned_from" in e["metrics"]]
    for e in tuned[:2]:
        seeds = evokd.run.evaluation_seeds(1, "search", 1)
        old, new = (parse_loss(text) for text in (e["metrics"]["tuned_from"], e["text"]))
        assert opened.executor.evaluate(opened.job(old, seeds)).fitness == e["metrics"]["rung_1"]
        assert opened.executor.evaluate(opened.job(new, seeds)).fitness == e["metrics"]["tuned"]


def test_two_workers_write_the_same_journal(watched, halving_settings):
    again = evolve_distiller(**halving_settings | {"workers": 2})
    assert without_clock(read_events(again.run)) == without_clock(watched[1])


@pytest.mark.parametrize("cut", ["after a generation", "inside one", "before its last line"])
def test_a_cut_run_goes_on_to_the_same_end_and_remembers_the_same(watched, tmp_path, monkeypatch, cut):
    run, events, _, texts = watched
    copy = tmp_path / run.name
    shutil.copytree(run, copy)
    (tmp_path / "cache").symlink_to(run.parent / "cache")
    first, second = [i for i, e in enumerate(events) if e["event"] == "generation"][:2]
    trained = next(i for i, e in enumerate(events) if i > first and e["event"] == "individual" and e["status"] == "OK")
    place = {"after a generation": first + 1, "inside one": trained + 1, "before its last line": second}[cut]
    torn = json.dumps(events[place])[:40]
    (copy / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events[:place]) + torn)
    monkeypatch.setattr(evokd.problem, "Copies", Remembered)
    resume(copy, Terminal(quiet=True))
    assert without_clock(read_events(copy)) == without_clock(events)
    assert Remembered.made[-1].texts == texts


def test_training_of_ones_own_has_no_rungs(halving_settings):
    with pytest.raises(EvokdError, match=r"funnel\.rungs.*cannot be shortened"):
        evolve_distiller(**halving_settings, evaluate=lambda loss: 1.0)
