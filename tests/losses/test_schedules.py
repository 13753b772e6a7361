import math
from itertools import pairwise

import pytest
import sympy as sp
import torch
import torch.nn.functional as F

from evokd.errors import EvokdError
from evokd.losses import schedules
from evokd.losses.language import parse_loss, write_loss
from evokd.losses.program import compile_loss
from evokd.losses.schedules import FORMULAS, SCHEDULES, Schedule
from evokd.losses.weights import MODES
from tests.losses.common import make_taps

S, T = make_taps(1), make_taps(2)
MIDDLE = {"ramp": 5.0, "cosine": 5.0, "anneal": 4.0, "step": 2.0}  # of 8 → 2


def run(text, progress, s=S, t=T):
    return compile_loss(parse_loss(text), s, t)(s, t, progress=progress)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_goes_from_its_first_number_to_its_second(name):
    schedule = Schedule(name, 8.0, 2.0)
    assert schedule.at(0.0) == pytest.approx(8)
    assert schedule.at(1.0) == pytest.approx(2)


@pytest.mark.parametrize("name", SCHEDULES)
def test_half_way_a_schedule_has_the_value_of_its_sort(name):
    assert Schedule(name, 8.0, 2.0).at(0.5) == pytest.approx(MIDDLE[name])


def test_a_quarter_of_the_way_each_sort_has_a_value_of_its_own():
    values = {name: Schedule(name, 8.0, 2.0).at(0.25) for name in SCHEDULES}
    assert values == pytest.approx({"ramp": 6.5, "cosine": 5 + 3 * math.sqrt(0.5), "anneal": 8 * 0.25**0.25, "step": 8})


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("start", "end"), [(8.0, 2.0), (0.01, 3.0), (1.0, 1.0)])
def test_a_schedule_never_turns_and_never_leaves_its_ends(name, start, end):
    values = [Schedule(name, start, end).at(i / 50) for i in range(51)]
    steps = [b - a for a, b in pairwise(values)]
    assert all(step * (end - start) >= 0 for step in steps) if start != end else max(map(abs, steps)) < 1e-12
    assert min(start, end) - 1e-12 <= min(values) <= max(values) <= max(start, end) + 1e-12


def test_a_step_holds_its_first_number_through_the_first_half():
    schedule = Schedule("step", 1.0, 0.0)
    assert [schedule.at(t) for t in (0.0, 0.499, 0.5, 1.0)] == [1, 1, 0, 0]


def test_annealing_cools_by_equal_factors():
    values = [Schedule("anneal", 16.0, 1.0).at(i / 4) for i in range(5)]
    assert values == pytest.approx([16, 8, 4, 2, 1])


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_formula_is_the_function(name):
    t = sp.Symbol("t")
    formula = FORMULAS[name](sp, sp.Integer(8), sp.Integer(2), t)
    for progress in (0.0, 0.3, 0.5, 0.9, 1.0):
        assert float(formula.subs(t, progress)) == pytest.approx(Schedule(name, 8.0, 2.0).at(progress))


def test_every_schedule_has_a_formula():
    assert set(FORMULAS) == set(SCHEDULES) == set(MIDDLE)


@pytest.mark.parametrize(
    "text", ["3", "0.25", "-1", "1e-08", "ramp(0, 3)", "cosine(1, 0)", "anneal(8, 1)", "step(-0.5, 1e-06)", "ramp(0.1, 12.5)"]
)
def test_what_is_read_is_written_the_same(text):
    assert schedules.write(schedules.read(text)) == text


@pytest.mark.parametrize(
    "number", [0.1, 3.0, Schedule("ramp", 0.1, 1 / 3), Schedule("anneal", 1e-7, 7.0), Schedule("step", -2.0, 0.0)]
)
def test_what_is_written_is_read_the_same(number):
    assert schedules.read(schedules.write(number)) == number


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ramp",
        "ramp(",
        "ramp()",
        "ramp(1)",
        "ramp(1, )",
        "ramp(1,2)",
        "ramp(1, 2",
        "ramp(1, 2, 3)",
        "ramp(1, 2) ",
        "ramp(nan, 2)",
        "ramp(1, inf)",
        "ramp(0, ramp(0, 1))",
        "Ramp(1, 2)",
        "linear(1, 2)",
        "anneal(0, 1)",
        "anneal(8, 0)",
        "anneal(-1, 2)",
        "nan",
    ],
)
def test_other_forms_are_refused(text):
    with pytest.raises(EvokdError, match="here"):
        schedules.read(text, "here")


def test_a_number_stands_still():
    assert schedules.at(3.0, 0.0) == schedules.at(3.0, 1.0) == 3


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (1.0, True),
        (0.0, False),
        (-1.0, False),
        (Schedule("ramp", 1.0, 4.0), True),
        (Schedule("ramp", 0.0, 4.0), False),
        (Schedule("cosine", 4.0, 0.0), False),
        (Schedule("step", -1.0, 4.0), False),
    ],
)
def test_a_number_is_positive_if_it_is_so_throughout(number, expected):
    assert schedules.positive(number) == expected


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("progress", [0.0, 0.3, 0.5, 1.0])
def test_a_moving_weight_scales_its_term_alone(name, progress):
    value = run(f"{name}(8, 2)*l2(logits) + l1(embedding)", progress)
    expected = Schedule(name, 8.0, 2.0).at(progress) * F.mse_loss(S.logits, T.logits) + F.l1_loss(S.embedding, T.embedding)
    torch.testing.assert_close(value, expected)


def test_a_term_may_be_switched_off_and_may_turn_its_sign():
    assert run("ramp(0, 3)*l2(logits)", 0.0) == 0
    torch.testing.assert_close(run("ramp(-1, 1)*l2(logits)", 0.0), -run("l2(logits)", 0.0))


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    "text", ["kl(logits, tau={})", "ce(logits, tau={})", "l2(temper(logits, tau={}))", "power_sum(tau={})*l2(logits)"]
)
def test_a_moving_temperature_is_that_of_the_moment(text, progress):
    now = Schedule("anneal", 8.0, 1.0).at(progress)
    torch.testing.assert_close(run(text.format("anneal(8, 1)"), progress), run(text.format(repr(now)), progress))


def test_temperatures_move_on_one_side_alone():
    value = run("l2(teacher.temper(logits, tau=ramp(1, 3)))", 0.5)
    torch.testing.assert_close(value, F.mse_loss(S.logits, T.logits / 2))


def test_a_weight_and_its_modes_temperature_move_together():
    value = run("ramp(0, 2)*power_sum(tau=ramp(1, 3))*l2(logits)", 0.5)
    weight = MODES["power_sum"].fn(S.logits, T.logits, None, 2.0)
    torch.testing.assert_close(value, (weight * (S.logits - T.logits).square().mean(1)).mean())


def test_without_progress_training_is_over():
    loss = compile_loss(parse_loss("ramp(0, 3)*l2(logits)"), S, T)
    torch.testing.assert_close(loss(S, T), 3 * F.mse_loss(S.logits, T.logits))


def test_a_module_takes_a_moving_weight():
    loss = compile_loss(parse_loss("ramp(0, 3)*srrl"), S, T).double()
    values = [loss(S, T, progress=p) for p in (0.0, 1 / 3, 1.0)]
    assert values[0] == 0
    torch.testing.assert_close(values[2], 3 * values[1])


def test_a_schedule_and_a_distance_of_one_name_are_told_apart():
    text = "cosine(1, 0)*cosine(logits) + cosine(embedding)"
    assert write_loss(parse_loss(text)) == text
    torch.testing.assert_close(run(text, 1.0), run("cosine(embedding)", 1.0))


@pytest.mark.parametrize(
    "text", ["kl(logits, tau=ramp(0, 4))", "l2(temper(logits, tau=step(1, -1)))", "power_sum(tau=cosine(4, 0))*l2(logits)"]
)
def test_temperatures_that_touch_zero_are_refused(text):
    with pytest.raises(EvokdError, match="tau > 0"):
        parse_loss(text)


def test_an_annealing_weight_that_touches_zero_is_refused():
    with pytest.raises(EvokdError, match="anneal between numbers above 0"):
        parse_loss("anneal(0, 1)*l2(logits)")
