"""The survey: KD-Zero's table of methods, row by row, with a verdict that holds."""

import pytest
import torch

from evokd.commands.spaces import survey
from evokd.losses.language import parse_loss, to_terms
from evokd.losses.modules import MODULES
from evokd.losses.program import compile_loss
from evokd.losses.schedules import Schedule
from evokd.losses.survey import SURVEY
from tests.losses.common import learning, make_taps

# the table as printed: teacher's and student's transform, position, distance, lost knowledge
TABLE = {
    "FitNet": ("none", "1×1 conv", "middle layer", "L1", "none"),
    "AT": ("attention map", "attention map", "end of layer group", "L2", "channels"),
    "KP": ("projection matrix", "projection matrix", "middle layers", "L1 + KP loss", "space"),
    "FSP": ("FSP matrix", "FSP matrix", "end of layer group", "L2", "space"),
    "FT": ("encoder–decoder", "encoder–decoder", "end of layer group", "L1", "channels, space"),
    "MINILM": ("self-attention", "self-attention", "end of layer group", "KL", "channels"),
    "Jacobian": ("gradient penalty", "gradient penalty", "end of layer group", "L2", "channels"),
    "SVD": ("truncated SVD", "truncated SVD", "end of layer group", "L2", "space"),
    "VID": ("none", "1×1 conv", "middle layers", "KL", "none"),
    "IRG": ("instance graph", "instance graph", "middle layers", "L2", "space"),
    "RCO": ("none", "none", "teacher's train route", "L2", "none"),
    "SP": ("similarity matrix", "similarity matrix", "middle layer", "Frobenius norm", "none"),
    "MEAL": ("adaptive pooling", "adaptive pooling", "end of layer group", "L1/L2/KL/GAN", "none"),
    "Heo": ("margin ReLU", "1×1 conv", "pre-ReLU", "partial L2", "negative features"),
    "AB": ("binarization", "1×1 conv", "pre-ReLU", "margin L2", "feature values"),
    "Chung": ("none", "none", "end of layer", "GAN", "none"),
    "Wang": ("none", "adaptation layer", "middle layer", "margin L1", "channels, space"),
    "KSANC": ("average pooling", "average pooling", "middle layers", "L2 + GAN", "space"),
    "Kulkarni": ("none", "none", "end of layer group", "L2", "none"),
    "IR": ("attention matrix", "attention matrix", "middle layers", "KL + cosine", "none"),
    "Liu": ("transform matrix", "transform matrix", "middle layers", "KL", "space"),
    "NST": ("none", "none", "intermediate layers", "MMD", "none"),
    "Gao": ("none", "none", "intermediate layers", "L2", "none"),
}
ROWS = {row.method: row for row in SURVEY}


def rows(*verdicts):
    return [pytest.param(row, id=row.method) for row in SURVEY if row.verdict in verdicts]


def test_the_survey_has_every_method_of_the_table_once():
    assert len(TABLE) == 23
    assert [row.method for row in SURVEY] == list(TABLE)


@pytest.mark.parametrize("method", TABLE)
def test_columns_are_those_of_the_table(method):
    row = ROWS[method]
    assert (row.teacher, row.student, row.position, row.distance, row.lost) == TABLE[method]


def test_every_row_has_one_of_four_verdicts():
    assert {row.verdict for row in SURVEY} == {"tree", "module", "schedule", "refused"}


@pytest.mark.parametrize("progress", [0.0, 1.0])
@pytest.mark.parametrize("row", rows("tree", "schedule"))
def test_losses_of_the_survey_run_and_teach_the_student(row, progress):
    s, t = learning(make_taps(1)), make_taps(2)
    value = compile_loss(parse_loss(row.loss), s, t)(s, t, torch.arange(4), progress)
    value.backward()
    grads = []
    s.map(lambda tap: grads.append(tap.grad))
    assert value.isfinite()
    assert all(g.isfinite().all() for g in grads if g is not None)
    assert any(g.any() for g in grads if g is not None)


@pytest.mark.parametrize("row", rows("schedule"))
def test_what_follows_training_is_a_schedule_or_is_said_to_be(row):
    assert row.note
    assert row.method == "RCO" or all(isinstance(term.weight, Schedule) for term in to_terms(parse_loss(row.loss)))


@pytest.mark.parametrize("row", rows("module"))
def test_modules_of_the_survey_exist(row):
    assert row.loss in MODULES


@pytest.mark.parametrize("row", rows("refused"))
def test_what_is_refused_has_a_reason_and_no_loss(row):
    assert not row.loss
    assert len(row.note.split()) > 5


@pytest.mark.parametrize("row", rows("tree", "module", "schedule", "refused"))
def test_the_survey_is_printed_whole(row):
    told = survey()
    (line,) = [line for line in told.splitlines() if line.startswith(f"{row.method} ")]
    assert line.endswith(row.verdict)
    assert row.loss in told
    assert row.note in told


def test_the_survey_counts_its_verdicts():
    assert survey().endswith("23 methods: 15 tree, 2 module, 3 schedule, 3 refused")
