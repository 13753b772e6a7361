import math
import random
import statistics
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evokd.genome.codec import to_names
from evokd.losses.growth import vary_number
from evokd.losses.language import node_named, parse_loss, to_terms, write_loss
from evokd.losses.schedules import Schedule
from evokd.search.leaves import LIMITS, logs_of, numbers_of, tune, with_numbers
from evokd.streams import stream
from tests.losses.common import random_trees
from tests.toy import toy_grammar

KD = parse_loss("0.9*kl(logits, tau=4)")
MANY = parse_loss("3*entropy*kl(logits, tau=anneal(8, 2)) + ramp(0, 3)*l2(features[-1]) + -2*l1(embedding)")
SPREADS = st.lists(st.floats(-40, 40), min_size=5, max_size=5)


def bowl(optimum, noise=0.0, seed=0):
    """Fitness −‖log numbers − optimum‖², with noise; how often it was asked, and with how many trees, in `.asked`."""
    draw = random.Random(seed)

    def evaluate(trees):
        evaluate.asked.append([write_loss(tree) for tree in trees])
        return [
            -sum((a - b) ** 2 for a, b in zip(logs_of(tree), optimum, strict=True)) + noise * draw.gauss(0, 1) for tree in trees
        ]

    evaluate.asked = []
    return evaluate


def distance(tree, optimum):
    return math.dist(logs_of(tree), optimum)


# --- the numbers of a tree -----------------------------------------------------------------------------------------------------


def ends(tree):
    """Every weight and temperature by the language's own terms, the ends of schedules apart."""
    numbers = []
    for term in to_terms(tree):
        numbers += [term.weight, *term.mode.params]
        for call in [] if term.module else _below(term.distance):
            numbers += call.params
    return [end for n in numbers for end in ((n.start, n.end) if isinstance(n, Schedule) else (n,))]


def _below(call):
    """Calls in the order of their numbers: a call's own come after those of its arguments."""
    for arg in call.args:
        yield from _below(arg)
    yield call


@pytest.mark.parametrize("tree", [KD, MANY, *random_trees("kd_zero", range(40))], ids=write_loss)
def test_numbers_are_those_that_the_language_reads(tree):
    assert logs_of(tree) == pytest.approx([math.log(abs(v)) for v in ends(tree) if v])
    kinds = {tree[i].ret.__name__ for i in numbers_of(tree)}
    assert kinds <= {"value", "tau"}
    assert len(numbers_of(tree)) == sum(node.ret.__name__ in ("value", "tau") for node in tree)


def test_numbers_by_hand():
    assert [MANY[i].name for i in numbers_of(MANY)] == ["3", "tau=anneal(8, 2)", "ramp(0, 3)", "-2"]
    new = with_numbers(MANY, [math.log(v) for v in (0.12345, 16, 1, 40.4, 0.5)])
    assert write_loss(new) == "0.12*entropy*kl(logits, tau=anneal(16, 1)) + ramp(0, 40)*l2(features[-1]) + -0.5*l1(embedding)"
    assert write_loss(MANY).startswith("3*entropy"), "the tree given is not touched"


def test_a_tree_with_its_own_numbers_is_itself():
    assert with_numbers(MANY, logs_of(MANY)) == MANY


@given(SPREADS)
def test_numbers_stay_within_limits_with_their_signs_and_zeros(logs):
    new = with_numbers(MANY, logs)
    assert new == [node_named(node.name) for node in new], "every node is one that the language knows"
    assert parse_loss(write_loss(new)) == new
    for old, now in zip(ends(MANY), ends(new), strict=True):
        assert math.copysign(1, now) == math.copysign(1, old)
        assert (now == 0) == (old == 0)
    for i in numbers_of(new):
        low, high = LIMITS[new[i].ret.__name__]
        assert all(low <= abs(v) <= high for v in ends_of(new[i]) if v)


def ends_of(node):
    inside = node.name.removeprefix("tau=").partition("(")[2].removesuffix(")") or node.name.removeprefix("tau=")
    return [float(part) for part in inside.split(", ")]


@given(st.floats(math.log(1e-3), math.log(1e4)), st.floats(math.log(0.1), math.log(64)))
def test_numbers_are_rounded_to_two_digits(weight, tau):
    term = to_terms(with_numbers(KD, [weight, tau]))[0]
    for exact, rounded in ((weight, term.weight), (tau, term.distance.params[0])):
        assert rounded == float(f"{math.exp(exact):.1e}")


@pytest.mark.parametrize(("position", "kind"), [(2, "value"), (-1, "tau")])
def test_limits_are_those_of_mutation(position, kind):
    class Far(random.Random):
        def gauss(self, mu=0.0, sigma=1.0):
            return self.by

    source = Far()
    for source.by, limit in zip((-50, 50), LIMITS[kind], strict=True):
        assert KD[position].ret.__name__ == kind
        assert ends_of(vary_number(KD[position], source)) == [limit]


def test_too_few_or_too_many_numbers_are_refused():
    for logs in ([0.0], [0.0] * 3):
        with pytest.raises(ValueError, match="2 numbers"):
            with_numbers(KD, logs)


# --- tuning ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "trials"), [("kl(logits, tau=4)", 40), ("2*cosine(embedding)", 30), (write_loss(MANY), 120)])
def test_the_optimum_is_found(text, trials):
    tree = parse_loss(text)
    for seed in range(5):
        optimum = [log + random.Random(seed).choice((-1.2, 1.2)) for log in logs_of(tree)]
        best, fitness, used = tune(tree, bowl(optimum), trials, stream(seed, "tests"))
        assert distance(best, optimum) < 0.25 * distance(tree, optimum)
        assert fitness == pytest.approx(-(distance(best, optimum) ** 2))
        assert used <= trials


def test_published_kd_is_tuned_as_any_tree_is():
    """A baseline whose best weight is 10 and best temperature 1.5."""
    best, _, _ = tune(KD, bowl([math.log(10), math.log(1.5)]), 60, stream(0, "tests"))
    (term,) = to_terms(best)
    assert term.weight == pytest.approx(10, rel=0.25)
    assert term.distance.params[0] == pytest.approx(1.5, rel=0.25)


def random_draws(tree, evaluate, trials, source):
    """The best of the tree and of mutated copies of it, every number moved as mutation moves it."""
    copies = [[vary_number(node, source) or node for node in tree] for _ in range(trials - 1)]
    seen = [tree, *copies]
    return max(zip(evaluate(seen), seen, strict=True), key=lambda pair: pair[0])[1]


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_tuning_goes_further_than_mutating_numbers_at_random(noise):
    """Paired: the same twenty optima, the same number of trials."""
    gains = []
    for seed in range(20):
        draw = random.Random(seed)
        optimum = [log + draw.gauss(0, 1.5) for log in logs_of(MANY)]
        tuned = tune(MANY, bowl(optimum, noise, seed), 20, stream(seed, "tuned"))[0]
        drawn = random_draws(MANY, bowl(optimum, noise, seed), 20, stream(seed, "drawn"))
        gains.append(distance(drawn, optimum) - distance(tuned, optimum))
    assert statistics.fmean(gains) > 2.1 * statistics.stdev(gains) / math.sqrt(20), "beyond the 95 % interval"
    assert sum(gain > 0 for gain in gains) >= 15


@given(st.integers(0, 10**6), st.integers(0, 15), st.integers(1, 5))
def test_nothing_worse_than_the_start_comes_back(seed, trials, size):
    """By the evaluations seen, however misleading: a landscape without any order."""
    values = {}

    def evaluate(trees):
        for tree in trees:
            assert write_loss(tree) not in values, "evaluated twice"
            values[write_loss(tree)] = random.Random(f"{seed} {write_loss(tree)}").choice((None, math.nan, -1.0, 0.0, 2.0))
        return [values[write_loss(tree)] for tree in trees]

    best, fitness, used = tune(KD, evaluate, trials, stream(seed, "tests"), size=size)
    assert used == len(values) <= trials
    sound = [v for v in values.values() if v is not None and v == v]
    assert fitness == max(sound, default=None)
    assert write_loss(best) in ({t for t, v in values.items() if v == fitness} if sound else {write_loss(KD)})


def test_a_known_start_is_not_evaluated_and_holds_against_what_is_worse():
    evaluate = bowl([0.0, 0.0])
    best, fitness, used = tune(KD, evaluate, 8, stream(0, "tests"), start=5.0)
    assert (best, fitness, used) == (KD, 5.0, 8)
    assert write_loss(KD) not in [text for asked in evaluate.asked for text in asked]


def test_generations_are_evaluated_together_and_trials_are_kept():
    for size, trials, expected in ((2, 6, [1, 2, 2, 1]), (4, 11, [1, 4, 4, 2]), (1, 3, [1, 1, 1])):
        evaluate = bowl([3.0, 3.0])
        assert tune(KD, evaluate, trials, stream(0, "tests"), size=size)[2] == trials
        assert [len(asked) for asked in evaluate.asked] == expected


def test_failures_are_worse_than_anything():
    def evaluate(trees):
        found = bowl([math.log(10), math.log(2)])(trees)
        return [None if to_terms(tree)[0].weight < 2 else value - 1e6 for tree, value in zip(trees, found, strict=True)]

    best, fitness, _ = tune(KD, evaluate, 60, stream(0, "tests"))
    assert to_terms(best)[0].weight >= 2
    assert -1e6 - 1 < fitness < -1e6 + 1
    assert tune(KD, lambda trees: [None] * len(trees), 9, stream(0, "tests")) == (KD, None, 9)


def test_an_optimum_beyond_the_limits_is_met_at_the_limits():
    evaluate = bowl([30.0, 30.0])
    best, _, used = tune(KD, evaluate, 300, stream(0, "tests"))
    (term,) = to_terms(best)
    assert (term.weight, term.distance.params[0]) == (1e4, 64.0)
    texts = [text for asked in evaluate.asked for text in asked]
    assert len(set(texts)) == len(texts) == used


def test_a_point_that_rounding_leaves_alone_ends_the_tuning():
    evaluate = bowl(logs_of(KD))
    assert tune(KD, evaluate, 50, stream(0, "tests"), spread=1e-9) == (KD, 0.0, 1)


def test_nothing_to_tune_returns_at_once():
    def never(trees):
        raise AssertionError("evaluated")

    toy = [toy_grammar().nodes["7"]]
    nought = parse_loss("0*l2(logits)")
    for tree, trials in ((toy, 9), (nought, 9), (KD, 0)):
        for start in (None, 1.5):
            assert tune(tree, never, trials, stream(0, "tests"), start=start) == (tree, start, 0)


def test_spread_is_the_size_of_the_first_steps():
    for spread in (0.1, 0.7, 2.0):
        logs = []
        for seed in range(200):
            evaluate = bowl([0.0, 0.0])
            tune(KD, evaluate, 2, stream(seed, "tests"), spread=spread, start=0.0)
            logs += [
                new - old for text in evaluate.asked[0] for new, old in zip(logs_of(parse_loss(text)), logs_of(KD), strict=True)
            ]
        assert statistics.pstdev(logs) == pytest.approx(spread, rel=0.2 if spread < 2 else 0.4)  # limits cut the widest


SCRIPT = """
import math, random, sys
import numpy
from evokd.genome.codec import to_names
from evokd.genome.grammar import Rule
from evokd.search.leaves import logs_of, tune
from evokd.streams import stream

def search(others, seed):
    def evaluate(trees):
        numpy.random.rand(others), random.random()
        return [-sum(v * v for v in logs_of(tree)) for tree in trees]

    numpy.random.seed(others), random.seed(others)
    names = [("term", "term", ("value", "tau", "tau")), ("30", "value"), ("tau=ramp(8, 2)", "tau"), ("tau=5", "tau")]
    tree, fitness, used = tune([Rule(*name).node() for name in names], evaluate, 25, stream(seed, "tests"))
    return f"{to_names(tree)} {fitness} {used}"
"""


def test_another_process_and_other_draws_change_nothing():
    home: dict = {}
    exec(SCRIPT, home)
    here = home["search"](1, 3)
    command = [sys.executable, "-c", SCRIPT + "\nprint(search(2, 3))"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == here
    assert home["search"](1, 4) != here, "another stream, another search"


def test_global_generators_are_left_alone():
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2]  # noqa: NPY002
    first = tune(MANY, bowl([0.0] * 5), 12, stream(0, "tests"))
    assert (random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2]) == before  # noqa: NPY002
    np.random.seed(2)  # noqa: NPY002
    assert tune(MANY, bowl([0.0] * 5), 12, stream(0, "tests")) == first


def test_both_ends_of_a_schedule_are_tuned_and_a_zero_end_stays():
    tree = parse_loss("ramp(0, 3)*kl(logits, tau=anneal(8, 2))")
    optimum = [math.log(30), math.log(3), math.log(0.5)]
    best, _, _ = tune(tree, bowl(optimum), 100, stream(0, "tests"))
    (term,) = to_terms(best)
    assert (term.weight.name, term.weight.start) == ("ramp", 0)
    assert term.weight.end == pytest.approx(30, rel=0.3)
    tau = term.distance.params[0]
    assert (tau.name, tau.start, tau.end) == ("anneal", pytest.approx(3, rel=0.3), pytest.approx(0.5, rel=0.3))
    assert to_names(best)[:2] == to_names(tree)[:2]
