import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evokd.errors import EvokdError
from evokd.genome.codec import MAX_NODES, from_names, read_number, to_names, write_number
from evokd.genome.grammar import kind
from evokd.genome.grow import grow_tree, random_chooser
from tests.genome.common import shipped, toy

QUICK = settings(derandomize=True, deadline=None, max_examples=200)


def read(names, grammar):
    return from_names(names, grammar.nodes.get, grammar.root)


@pytest.mark.parametrize("space", ["compact", "logits"])
def test_names_round_trip_exactly(space):
    grammar, stream = shipped(space), random.Random(0)
    for _ in range(200):
        tree = grow_tree(grammar, random_chooser(stream))
        names = to_names(tree)
        assert all(isinstance(name, str) for name in names)
        again = read(names, grammar)
        assert list(again) == list(tree)
        assert to_names(again) == names


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], "S to complete"),
        (["one"], "A to complete"),
        (["pair", "a"], "B to complete"),
        (["one", "b"], r"expected A, got b \(B\)"),
        (["a"], r"expected S, got a \(A\)"),
        (["pair", "b", "a"], "expected A"),
        (["one", "a", "a"], "the end of the tree"),
        (["one", "nonsense"], "known operator.*'nonsense'"),
        (["one", "__import__('os').abort()"], "known operator"),
        (["one", 3], "known operator"),
        (["one", None], "known operator"),
        (["one", ["a"]], "known operator"),
        (["one", *["up"] * MAX_NODES, "a"], f"at most {MAX_NODES}"),
    ],
)
def test_what_is_no_tree_is_refused(names, says):
    with pytest.raises(EvokdError, match=says):
        read(names, toy(3))


def test_the_longest_list_allowed_is_read():
    names = ["one", *["up"] * (MAX_NODES - 2), "a"]
    assert to_names(read(names, toy(3))) == names


def test_wrong_kinds_deep_inside_are_found():
    grammar, stream = shipped(), random.Random(4)
    for _ in range(100):
        names = to_names(grow_tree(grammar, random_chooser(stream)))
        at = stream.randrange(len(names))
        stranger = stream.choice([n for n in grammar.nodes.values() if n.ret is not grammar.nodes[names[at]].ret])
        with pytest.raises(EvokdError):
            read([*names[:at], stranger.name, *names[at + 1 :]], grammar)
        with pytest.raises(EvokdError):
            read(names[:at], grammar)


def test_a_lookup_may_make_nodes_of_any_kind_but_the_root_is_fixed():
    grammar = toy(3)
    with pytest.raises(EvokdError):
        from_names(["one", "a"], grammar.nodes.get, kind("B"))


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("-2.5", -2.5), ("+1e-3", 1e-3), (".5", 0.5), ("4.", 4), ("1E5", 1e5), ("007", 7), ("1e-400", 0)],
)
def test_decimal_text_is_read(text, value):
    assert read_number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "nan",
        "NaN",
        "inf",
        "-inf",
        "infinity",
        "1e999",
        "-1e400",
        "1e1000",
        "9" * 41,
        "0x10",
        "1_000",
        "1e",
        "e5",
        ".",
        "1.2.3",
        "--1",
        "1 ",
        " 1",
        "1\n",
        "1,5",
        "True",
        "1j",
        "1/2",
        "1+1",
        "1e5.0",
        "1e-",
        "10**9",
    ],
)
def test_anything_else_is_refused(text):
    with pytest.raises(EvokdError, match="a finite number"):
        read_number(text)


@pytest.mark.parametrize("text", ["\u0663", "\u0967.5", "\uff11\uff12"])
def test_digits_of_other_scripts_are_refused(text):
    with pytest.raises(EvokdError):
        read_number(text)


@QUICK
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_written_numbers_read_back_as_the_same_float(value):
    assert read_number(write_number(value)) == value


@QUICK
@given(st.text(max_size=50))
def test_reading_never_fails_in_another_way(text):
    try:
        value = read_number(text)
    except EvokdError:
        return
    assert math.isfinite(value)


@pytest.mark.parametrize(("value", "text"), [(3.0, "3"), (0.25, "0.25"), (1e-08, "1e-08"), (-2.0, "-2"), (1e16, "1e+16")])
def test_numbers_are_written_short(value, text):
    assert write_number(value) == text
