"""AKD on DisWOT's table of 64 ResNets: every figure was counted from the published file by hand (see the project's reference)."""

import math

import pytest

from evokd.akd.results import told
from evokd.akd.table import BANDS, optima, table_results
from evokd.errors import EvokdError
from evokd.evaluate.tabular import Table, read_table
from evokd.students import read_student_space


@pytest.fixture(scope="module")
def s0(shared_data):
    return read_table("resnet_s0", shared_data), read_student_space("resnet_s0")


@pytest.mark.parametrize(
    ("band", "nas", "akd", "knowledge", "ahead"),
    [
        ((0, math.inf), "777", "557", 1.05, 0.42), ((30e6, 45e6), "117", "135", 0.84, 0.41), ((45e6, 60e6), "157", "157", 0, 0),
        ((60e6, 75e6), "537", "357", 1.53, 0.97), ((75e6, 95e6), "377", "557", 0.96, 0.44),
    ],
)  # fmt: skip
def test_budgets_have_the_published_optima(s0, band, nas, akd, knowledge, ahead):
    found = optima(*s0, band)
    assert (found.nas, found.akd) == (nas, akd)
    assert found.cells.knowledge == pytest.approx(knowledge, abs=0.005)
    assert found.cells.ahead == pytest.approx(ahead, abs=0.005)


def test_the_whole_space_has_the_published_cells(s0):
    assert optima(*s0).cells == pytest.approx((72.56, 74.44, 71.93, 74.86))
    assert optima(*s0).students == 64


def test_results_tell_every_budget_and_quote_the_paper(s0):
    found = table_results(*s0)
    assert [row[0] for row in found.tables[0].rows] == ["all", *(f"{a / 1e6:g}–{b / 1e6:g} M MACs" for a, b in BANDS)]
    assert [told(cell) for cell in found.tables[1].rows[0][-2:]] == ["0.93", "2.60"]
    assert found.metrics["equation_1"] == pytest.approx(1.05)
    assert found.pictures["optima"].png.startswith(b"\x89PNG")


def test_bands_without_students_and_tables_without_distillation_are_refused(s0):
    with pytest.raises(EvokdError, match="5–10 M MACs"):
        optima(*s0, (5e6, 10e6))
    table = Table("resnet_s0", {"111": 0}, {"cifar10": s0[0].accuracies["plain"]})
    with pytest.raises(EvokdError, match="plain"):
        optima(table, s0[1])
