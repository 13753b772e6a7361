import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from evokd.commands.compare import main
from evokd.compare import ladder, pairs
from evokd.compare.ladder import correlation, make_plan
from evokd.errors import EvokdError

ACCURACIES = st.lists(st.integers(0, 20), min_size=4, max_size=4)


@given(ACCURACIES, ACCURACIES)
def test_value_is_scipys(teachers, students):
    found = correlation(teachers, [[v, v] for v in students], resamples=2)
    if len(set(teachers)) == 1 or len(set(students)) == 1:
        assert math.isnan(found.spearman[0])
        return
    assert found.spearman[0] == pytest.approx(stats.spearmanr(teachers, students).statistic, abs=1e-9)
    assert found.kendall[0] == pytest.approx(stats.kendalltau(teachers, students).statistic, abs=1e-9)
    assert found.spearman[1] == pytest.approx(found.spearman[2])  # seeds that agree leave no doubt


def test_interval_is_of_resampled_seeds():
    """By hand: two seeds, of which one ranks as the teachers do and one the other way round, give all of −1, 0 or 1."""
    up, down = [1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]
    found = correlation([70, 71, 72, 73], np.array([up, down]).T)
    assert math.isnan(found.kendall[0])
    assert found.kendall[1:] == (-1.0, 1.0)


def test_seeds_that_failed_are_left_out_for_all_teachers():
    whole = correlation([1, 2, 3], [[1, 5], [2, 6], [3, 7]])
    torn = correlation([1, 2, 3], [[1, 5, 9], [2, 6, math.nan], [3, 7, 0]])
    assert whole == torn


def test_the_command_line_names_teachers_and_losses(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(pairs, "train_pairs", lambda plan, terminal, folder: asked.append(plan) or (tmp_path, []))
    monkeypatch.setattr(ladder, "draw", lambda *given: None)
    monkeypatch.setattr(ladder, "told", lambda *given: [])
    main(
        [
            "teachers",
            "--teachers",
            "resnet8w2, resnet8w4,resnet8w8",
            "--student",
            "conv3w8",
            "--loss",
            "dist",
            "--loss",
            "kd",
            "--quiet",
        ]
    )
    assert [config.teacher for config in asked[0].configs] == ["resnet8w2", "resnet8w4", "resnet8w8"]
    assert [row.name for row in asked[0].rows] == ["dist", "kd"]
    assert {config.student for config in asked[0].configs} == {"conv3w8"}


@pytest.mark.parametrize(
    ("teachers", "losses", "seeds", "told"),
    [(["a", "b", "b"], ["kd"], 2, "--teachers"), (["a", "b", "c"], [], 2, "--loss"), (["a", "b", "c"], ["kd"], 1, "--seeds")],
)
def test_what_tells_nothing_is_refused(teachers, losses, seeds, told):
    with pytest.raises(EvokdError, match=told):
        make_plan({}, (), losses, teachers, seeds)
