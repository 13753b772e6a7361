import math

import numpy as np
import pytest
from safetensors.torch import save_file
from scipy.stats import kendalltau, pearsonr, rankdata, spearmanr

from evokd.errors import EvokdError
from evokd.evaluate.tabular import Table
from evokd.models.zoo import build
from evokd.scores import AZ_NAS
from evokd.scores.ranking import COSTS, Setting, agreement, measure, partial, rank, targets
from evokd.students import nas_bench_201

DRAW = np.random.Generator(np.random.PCG64(0))
SIZES = DRAW.normal(size=60)
ACCURACIES = 70 + SIZES + DRAW.normal(size=60)
VALUES = np.stack([ACCURACIES + DRAW.normal(size=60) for _ in range(2)])
SPACE = nas_bench_201.space(channels=4, cells=1)
CELLS = ["nor_conv_3x3", "nor_conv_1x1", "avg_pool_3x3", "skip_connect", "none"]


def test_the_figures_are_means_over_seeds():
    found = agreement("x", VALUES, ACCURACIES, SIZES, residual=SIZES)
    assert found.kendall == pytest.approx(np.mean([kendalltau(v, ACCURACIES)[0] for v in VALUES]))
    assert found.spearman == pytest.approx(np.mean([spearmanr(v, ACCURACIES)[0] for v in VALUES]))
    assert found.pearson == pytest.approx(np.mean([pearsonr(v, ACCURACIES)[0] for v in VALUES]))
    top = np.argsort(-ACCURACIES)[:6]
    assert found.top == pytest.approx(np.mean([kendalltau(v[top], ACCURACIES[top])[0] for v in VALUES]))
    assert found.regret == pytest.approx(np.mean([ACCURACIES.max() - ACCURACIES[v.argmax()] for v in VALUES]))
    assert found.kendall_low < found.kendall < found.kendall_high
    assert found.spearman_low < found.spearman < found.spearman_high
    assert found == agreement("x", VALUES, ACCURACIES, SIZES, residual=SIZES)


def test_intervals_hold_the_true_correlation_nineteen_times_in_twenty():
    draw, true, held = np.random.Generator(np.random.PCG64(1)), 2 / math.pi * math.asin(0.6), 0
    for i in range(30):
        x, e = draw.normal(size=(2, 40))
        found = agreement("x", x[None], 0.6 * x + 0.8 * e, x, seed=i)
        held += found.kendall_low <= true <= found.kendall_high
    assert 25 <= held <= 30


def test_the_residual_is_ranked_where_it_is_known():
    assert math.isnan(agreement("x", VALUES, ACCURACIES, SIZES).residual)
    found = agreement("x", VALUES, ACCURACIES, SIZES, residual=-SIZES).residual
    assert found == pytest.approx(np.mean([spearmanr(v, -SIZES)[0] for v in VALUES]))


def test_the_partial_correlation_is_that_of_residual_ranks():
    x, y, h = (np.argsort(np.argsort(v)).astype(float) for v in (VALUES[0], ACCURACIES, SIZES))
    residuals = [v - np.polyval(np.polyfit(h, v, 1), h) for v in (x, y)]
    assert partial(VALUES[0], ACCURACIES, SIZES) == pytest.approx(pearsonr(*residuals)[0])
    assert math.isnan(partial(SIZES, ACCURACIES, SIZES))


def test_the_dead_come_last_and_a_constant_has_no_correlation():
    values = ACCURACIES.copy()
    values[ACCURACIES.argmin()] = -math.inf
    found = agreement("x", values[None], ACCURACIES, SIZES)
    assert [found.kendall, found.pearson, found.regret] == pytest.approx([1, 1, 0])
    nothing = agreement("x", np.zeros((1, 60)), ACCURACIES, SIZES)
    assert all(map(math.isnan, (nothing.kendall, nothing.spearman, nothing.pearson, nothing.kendall_low, nothing.partial)))


@pytest.fixture(scope="module")
def table():
    texts = [SPACE.write(dict.fromkeys(nas_bench_201.EDGES, op)) for op in CELLS]
    columns = {"distilled": np.array([5.0, 4, 3, 2, 1]), "plain": np.array([4.0, 3.5, 3, 1, 0.5]), "other": np.ones(5)}
    return Table("nas_bench_201", {text: i for i, text in enumerate(texts)}, columns)


@pytest.fixture(scope="module")
def setting():
    return Setting(archs=5, seeds=2, batch=6, teacher="resnet8w4")


def test_a_ranking_repeats_and_adds_the_costs(table, digits, setting):
    rows = rank(measure(["nwot", "diswot"], SPACE, table, "", digits, setting))
    assert [row.score for row in rows] == ["nwot", "diswot", *COSTS]
    again = rank(measure(["diswot"], SPACE, table, "", digits, setting))
    assert [again[0].kendall, again[0].regret] == [rows[1].kendall, rows[1].regret]
    assert rows[0].seconds > 0


def test_progress_is_told_seed_by_seed(table, digits, setting):
    told = []
    measure(["params"], SPACE, table, "", digits, setting, told.append)
    assert told == ["seed 1 of 2: 5 of 5 students", "seed 2 of 2: 5 of 5 students"]


def test_az_nas_is_the_rank_sum_of_its_parts_in_every_seed(table, digits, setting):
    values = measure(["az_nas"], SPACE, table, "", digits, setting).values
    assert list(values) == ["az_nas", *AZ_NAS[:-1], *COSTS]
    for seed in range(2):
        parts = [values[part][min(seed, len(values[part]) - 1)] for part in AZ_NAS]
        assert values["az_nas"][seed] == pytest.approx(sum(np.log(rankdata(part) / 5) for part in parts))


def test_the_target_is_a_column_or_a_difference_of_two(table):
    texts = list(table.rows)
    for column in ("", "distilled"):
        found, residual = targets(table, texts, column)
        assert found.tolist() == [5, 4, 3, 2, 1]
        assert residual.tolist() == [1, 0.5, 0, 1, 0.5]
    assert targets(table, texts, "plain")[1] is None
    found, residual = targets(table, texts, "distilled-plain")
    assert (found.tolist(), residual) == ([1, 0.5, 0, 1, 0.5], None)


@pytest.mark.parametrize("column", ["distiled", "distilled-", "-plain", "distilled-plian", "a-b-c"])
def test_what_is_no_target_is_refused(column, table):
    with pytest.raises(EvokdError):
        targets(table, list(table.rows), column)


@pytest.mark.parametrize("names", [["nvot"], ["nwot", ""]])
def test_what_is_no_score_is_refused(names, table, digits, setting):
    with pytest.raises(EvokdError, match="--scores"):
        measure(names, SPACE, table, "", digits, setting)


@pytest.mark.parametrize(("classes", "channels", "match"), [(7, 1, "10 classes"), (10, 3, "images of shape")])
def test_a_teacher_of_other_data_is_refused(classes, channels, match, table, digits, tmp_path):
    path = tmp_path / "teacher.safetensors"
    save_file(build("resnet8w4", classes, channels, 0).state_dict(), path)
    with pytest.raises(EvokdError, match=match):
        measure(["kd"], SPACE, table, "", digits, Setting(archs=2, batch=4, teacher=str(path)))
