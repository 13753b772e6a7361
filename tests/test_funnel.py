"""The funnel's gates and ledger against plain loops, and what a configuration may say of them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import evokd.funnel
from evokd.config import make_config
from evokd.errors import EvokdError
from evokd.funnel import Funnel, Passage, funnel_rows, passed, reasons, told_funnel
from evokd.genome.individual import Outcome, Status

COSTS = {"even": 1.0, "threes": 10.0, "fives": 100.0}  # seconds on a clock of the test's own
DIVISORS = {"even": 2, "threes": 3, "fives": 5}


@pytest.fixture
def clocked(monkeypatch):
    """A funnel that refuses multiples; (funnel, calls of its gates, admitted trees)."""
    now, calls, admitted = [0.0], [], []
    monkeypatch.setattr(evokd.funnel.time, "perf_counter", lambda: now[0])

    def gate(name):
        def refuse(tree):
            calls.append((name, tree))
            now[0] += COSTS[name]
            return f"{name}: {tree}" if tree % DIVISORS[name] == 0 else ""

        return refuse

    return Funnel({name: gate(name) for name in COSTS}, admitted.append), calls, admitted


def test_gates_stand_in_their_order_and_the_first_refusal_is_the_last_word(clocked):
    funnel, calls, admitted = clocked
    assert [funnel(tree) for tree in (7, 4, 30, 9, 25)] == ["", "even: 4", "even: 30", "threes: 9", "fives: 25"]
    whole = ["even", "threes", "fives"]
    expected = [*((n, 7) for n in whole), ("even", 4), ("even", 30), ("even", 9), ("threes", 9), *((n, 25) for n in whole)]
    assert calls == expected
    assert admitted == [7]


def test_the_ledger_counts_and_clocks_every_gate_and_is_empty_once_closed(clocked):
    funnel, _, _ = clocked
    for tree in (7, 4, 30, 9, 25):
        funnel(tree)
    assert funnel.close() == {
        "even": {"entered": 5, "left": 3, "seconds": 5.0},
        "threes": {"entered": 3, "left": 2, "seconds": 30.0},
        "fives": {"entered": 2, "left": 1, "seconds": 200.0},
    }
    assert funnel.close() == {}
    funnel(4)
    assert funnel.close() == {"even": {"entered": 1, "left": 0, "seconds": 1.0}}


@given(st.lists(st.integers(0, 200)))
def test_what_leaves_a_gate_enters_the_next(trees):
    funnel = Funnel({name: lambda tree, d=d: "no" if tree % d == 0 else "" for name, d in DIVISORS.items()})
    assert [bool(funnel(tree)) for tree in trees] == [math.gcd(tree, 30) > 1 for tree in trees]
    left, ledger = trees, funnel.close()
    for name, divisor in DIVISORS.items():
        told = ledger.get(name, {"entered": 0, "left": 0})
        entered, left = left, [tree for tree in left if tree % divisor]
        assert (told["entered"], told["left"]) == (len(entered), len(left))


def test_a_funnel_without_gates_admits_everything_and_recall_asks_no_gate(clocked):
    admitted = []
    assert Funnel(admitted=admitted.append)(5) == ""
    assert admitted == [5]
    funnel, calls, remembered = clocked
    funnel.recall([4, 9])
    assert (remembered, calls, funnel.close()) == ([4, 9], [], {})


def test_a_passage_is_clocked_over_its_visits(clocked):
    funnel, _, _ = clocked
    for entered, left in ((5, 3), (4, 0)):
        with funnel.passing("rung 1", entered) as passage:
            funnel(4)  # a second of this clock
            passage.left += left
    assert funnel.close()["rung 1"] == {"entered": 9, "left": 3, "seconds": 2.0}


COUNT, CLOCK = st.integers(0, 50), st.floats(0, 100).map(lambda x: round(x, 3))
PASSAGES = st.fixed_dictionaries({"entered": COUNT, "left": COUNT, "seconds": CLOCK})
EVENT = st.fixed_dictionaries(
    {"proposed": COUNT, "new": COUNT, "trained": COUNT, "finished": COUNT, "failed": COUNT, "seconds": CLOCK},
    optional={"funnel": st.dictionaries(st.sampled_from(["static", "probe", "rung 1"]), PASSAGES)},
)


@given(st.lists(EVENT, max_size=5))
def test_the_rows_of_a_run_are_the_sums_of_its_generations(events):
    rows = funnel_rows(events)
    if not events:
        assert rows == {}
        return
    assert (rows["duplicates"].entered, rows["duplicates"].left) == (
        sum(e["proposed"] for e in events),
        sum(e["new"] for e in events),
    )
    assert (rows["training"].entered, rows["training"].left) == (
        sum(e["trained"] for e in events),
        sum(e["finished"] for e in events),
    )
    training = 0.0
    for e in events:
        training += max(0, e["seconds"] - sum(p["seconds"] for p in e.get("funnel", {}).values()))
    assert rows["training"].seconds == pytest.approx(training)
    seen = {name for e in events for name in e.get("funnel", {})}
    assert set(rows) == seen | {"duplicates", "training"}
    for name in seen:
        mine = [e["funnel"][name] for e in events if name in e.get("funnel", {})]
        assert rows[name].entered == sum(p["entered"] for p in mine)
        assert rows[name].left == sum(p["left"] for p in mine)
        assert rows[name].seconds == pytest.approx(sum(p["seconds"] for p in mine))


def test_a_generations_rows_stand_in_the_order_of_its_funnel():
    gate = {"entered": 1, "left": 1, "seconds": 0.0}
    event = {
        "proposed": 1,
        "new": 1,
        "trained": 1,
        "finished": 1,
        "failed": 0,
        "seconds": 1.0,
        "funnel": {"probe": gate, "rung 1": gate},
    }
    assert list(funnel_rows([event])) == ["duplicates", "probe", "rung 1", "training"]


def test_the_table_of_a_funnel_has_a_line_a_gate_and_no_time_for_what_takes_none():
    lines = told_funnel({"duplicates": Passage(40, 30, 0.0), "probe": Passage(30, 20, 1.5), "rung 1": Passage(0, 0, 0.0)})
    assert [line.split() for line in lines] == [
        ["funnel", "entered", "left", "seconds", "each"],
        ["duplicates", "40", "30", "0.0"],
        ["probe", "30", "20", "1.5", "50.0", "ms"],
        ["rung", "1", "0", "0", "0.0"],
    ]
    columns = [line.index(word) + len(word) for line, word in ((lines[0], "entered"), (lines[1], "40"), (lines[2], "30"))]
    assert len(set(columns)) == 1


def test_reasons_are_counted_by_sort_the_commonest_first():
    told = ["probe: 3 is odd", "rung 1: place 3 of 4", "rung 2: place 1 of 4", "rung 1: NaN", "", "probe: no"]
    outcomes = [Outcome(Status.REJECTED, reason=reason) for reason in told]
    assert list(reasons(outcomes).items()) == [("rung #", 3), ("probe", 2)]


@pytest.mark.parametrize(
    ("status", "reason", "through"),
    [
        (Status.OK, "", True),
        (Status.DIVERGED, "loss is nan", True),
        (Status.DIVERGED, "rung 1: loss is nan", True),
        (Status.REJECTED, "rung 2: place 3 of 4 with 0.5", True),
        (Status.REJECTED, "copy: same gradient as l1(logits)", False),
        (Status.REJECTED, "static: term 1 is constant", False),
    ],
)
def test_all_but_what_a_gate_refused_has_passed(status, reason, through):
    assert passed(Outcome(status, 1.0 if status is Status.OK else None, reason=reason)) is through


@pytest.mark.parametrize(
    ("values", "text", "told"),
    [
        ({}, 'funnel.gates=["nope"]', ["gates", "'static', 'probe', 'copies' or 'descent'", "'nope'"]),
        ({}, "fitness=nope", ["--fitness", "'accuracy', 'ce', 'gap' or 'gap_printed'", "'nope'"]),
        ({}, "funnel.gate=[]", ["did you mean 'gates'"]),
        ({}, "funnel.tune=-1", ["funnel.tune", "-1"]),
        ({}, "funnel.copies=0.9", ["funnel.copies", "0.9"]),
        ({}, "funnel.rungs=[[0.0, 1, 0.5]]", ["funnel.rungs", "(0, 1]"]),
        ({}, "funnel.rungs=[[1.1, 1, 0.5]]", ["funnel.rungs", "(0, 1]"]),
        ({}, "funnel.rungs=[[0.5, 0, 0.5]]", ["funnel.rungs", "seeds ≥ 1"]),
        ({}, "funnel.rungs=[[0.5, 1, 0.0]]", ["funnel.rungs", "(0, 1]"]),
        ({}, "funnel.rungs=[[0.5, 1, 1.5]]", ["funnel.rungs", "(0, 1]"]),
        ({}, "funnel.rungs=[[0.5, 1]]", ["funnel.rungs"]),
    ],
)
def test_what_is_wrong_with_a_funnel_is_said_in_one_line(values, text, told):
    with pytest.raises(EvokdError) as caught:
        make_config(values, [text])
    message = str(caught.value)
    assert "\n" not in message
    assert all(words in message for words in told), message


def test_a_funnel_is_read_as_it_was_meant():
    config = make_config({"protocol": {"repeats": 3}}, ["funnel.rungs=[[0.33, 3, 0.5], [1, 2, 0.4]]", 'funnel.gates=["probe"]'])
    assert config.funnel.rungs == ((0.33, 3, 0.5), (1.0, 2, 0.4))
    assert config.funnel.gates == ("probe",)
    assert config.share == pytest.approx(0.2)
    assert make_config({"data": "cifar10"}).share == 1


def test_the_gates_of_a_problem_are_those_named_cheapest_first(problem, tiny):
    from dataclasses import replace

    from evokd.losses import parse_loss

    def opened(*gates):
        return replace(problem, config=make_config(tiny | {"funnel": {"gates": gates, "rungs": ()}})).funnel()

    assert list(opened("descent", "static").gates) == ["static", "descent"]
    with_copies, without = opened("static", "copies"), opened("static")
    first, twice = parse_loss("3*l1(logits)"), parse_loss("3.1*l1(logits)")
    assert [with_copies(first), without(first), without(twice)] == ["", "", ""]
    assert with_copies(twice).startswith("copy: 1.03")
    assert opened("static", "copies")(twice) == ""  # each search remembers for itself


def test_a_rung_that_would_be_the_full_training_is_none():
    config = make_config({"protocol": {"repeats": 1}, "funnel": {"rungs": ((0.5, 1, 0.4), (1.0, 1, 0.5))}})
    assert config.rungs == ((0.5, 1, 0.4),)
    assert config.share == pytest.approx(0.4)
