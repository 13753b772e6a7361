"""Loss and student in turn: the figures of the closing table by hand, and a whole joint search, cut and gone on with."""

import csv

import pytest

from evokd.compare.loss_plan import KD, PLAIN
from evokd.compare.pairs import Pair
from evokd.config import read_config
from evokd.errors import EvokdError
from evokd.joint import FOR_FOUND, FOR_HUMAN, Square, make_joint, read_joint, run
from evokd.models.zoo import build, parameters
from evokd.report.terminal import Terminal
from evokd.students import read_student_space


def pair(own, other):
    return Pair({}, {FOR_FOUND: own, FOR_HUMAN: other, KD: other}, {}, {})


def test_interaction_is_the_difference_of_differences(tmp_path):
    """By hand: the found student gains 5 and 7 from its own loss, the human one 1 and 3: 4 with both seeds."""
    square = Square(tmp_path, ("a", "b"), (pair([81, 83], [80, 80]), pair([85, 87], [80, 80])), ())
    assert square.interaction(FOR_HUMAN) == (4, 4, 4)
    assert square.interaction(KD) == (4, 4, 4)


def test_both_searches_share_protocol_seed_and_teacher(tiny):
    joint = make_joint(tiny | {"max_params": 5000}, ("protocol.steps=5",))
    assert joint.students.protocol == joint.losses.protocol
    assert joint.students.protocol.steps == 5
    assert (joint.students.max_params, joint.students.teacher) == (5000, tiny["teacher"])
    assert not joint.losses.baselines


@pytest.mark.parametrize(("counts", "told"), [({"rounds": 0}, "--rounds"), ({"seeds": 1}, "--seeds")])
def test_what_tells_nothing_is_refused(tiny, counts, told):
    with pytest.raises(EvokdError, match=told):
        make_joint(tiny, **counts)


def test_a_found_student_is_a_network_by_name():
    space = read_student_space("digits")
    assert parameters(build("space:digits:basic8-1-1-1", 10, 1, 0)) == parameters(space.build(space.parse("basic8-1-1-1"), 10, 1))
    for wrong in ("space:digits:basic9-1-1-1", "space:nosuch:x", "space:"):
        with pytest.raises(EvokdError, match="space:NAME:TEXT"):
            build(wrong, 10, 1, 0)


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(EvokdError, match=r"joint\.json"):
        read_joint(tmp_path)


@pytest.mark.slow
def test_a_joint_search_goes_on_to_the_same_table(tiny, tmp_path):
    values = {k: v for k, v in tiny.items() if k != "space"} | {
        "out": str(tmp_path),
        "generations": 1,
        "confirm": 1,
        "max_params": 8000,
    }
    square = run(make_joint(values, seeds=2), Terminal(quiet=True))
    tasks = sorted(read_config(path).task for path in square.folder.glob("*/config.toml"))
    assert tasks == ["distiller", "distiller", "student"]
    rows = list(csv.DictReader((square.folder / "square.csv").read_text().splitlines()))
    assert [row["loss"] for row in rows[:4]] == [FOR_FOUND, FOR_HUMAN, KD, PLAIN]
    before = {path: path.read_bytes() for path in square.folder.glob("*/events.jsonl") if path.parent.name != "finals"}
    lines = (square.folder / "finals" / "pair-1" / "trainings.jsonl").read_text().splitlines(True)
    (square.folder / "finals" / "pair-1" / "trainings.jsonl").write_text("".join(lines[:3]))
    again = run(read_joint(square.folder), Terminal(quiet=True), square.folder)
    assert again.pairs == square.pairs
    assert {path: path.read_bytes() for path in before} == before
