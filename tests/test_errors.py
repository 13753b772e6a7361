from evokd.errors import EvokdError, closest, unknown


def test_the_four_parts_make_one_line():
    error = EvokdError("--labels", "1 to 500", "-3", "take --labels 50")
    assert str(error) == "--labels: expected 1 to 500, got -3; take --labels 50"
    assert (error.where, error.expected, error.got, error.hint) == ("--labels", "1 to 500", "-3", "take --labels 50")
    assert str(EvokdError("a", "b", "c")) == "a: expected b, got c"


def test_near_names_are_offered_and_otherwise_all():
    assert closest("digitz", ["digits", "mnist"]) == "did you mean 'digits'?"
    assert closest("zzz", ["b", "a"]) == "choose from a, b"
    assert closest("zzz", map(str, range(20))).endswith(", …")


def test_hostile_names_are_cut():
    assert len(str(unknown("x", "a name", "y" * 10_000, ["a"]))) < 200
