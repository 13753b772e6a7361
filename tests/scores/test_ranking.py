import csv
import math

import numpy as np
import pytest
from scipy.stats import kendalltau, pearsonr, spearmanr

from evokd.commands import score as command
from evokd.errors import EvokdError
from evokd.evaluate.tabular import Table
from evokd.scores.ranking import COSTS, Setting, agreement, partial, rank
from evokd.students import nas_bench_201

DRAW = np.random.Generator(np.random.PCG64(0))
SIZES = DRAW.normal(size=60)
ACCURACIES = 70 + SIZES + DRAW.normal(size=60)
VALUES = np.stack([ACCURACIES + DRAW.normal(size=60) for _ in range(2)])
SPACE = nas_bench_201.space(channels=4, cells=1)
CELLS = ["nor_conv_3x3", "nor_conv_1x1", "avg_pool_3x3", "skip_connect", "none"]


def test_the_figures_are_means_over_seeds():
    found = agreement("x", VALUES, ACCURACIES, SIZES)
    assert found.kendall == pytest.approx(np.mean([kendalltau(v, ACCURACIES)[0] for v in VALUES]))
    assert found.spearman == pytest.approx(np.mean([spearmanr(v, ACCURACIES)[0] for v in VALUES]))
    assert found.pearson == pytest.approx(np.mean([pearsonr(v, ACCURACIES)[0] for v in VALUES]))
    top = np.argsort(-ACCURACIES)[:6]
    assert found.top == pytest.approx(np.mean([kendalltau(v[top], ACCURACIES[top])[0] for v in VALUES]))
    assert found.regret == pytest.approx(np.mean([ACCURACIES.max() - ACCURACIES[v.argmax()] for v in VALUES]))
    assert found.kendall_low < found.kendall < found.kendall_high
    assert found.spearman_low < found.spearman < found.spearman_high
    assert found == agreement("x", VALUES, ACCURACIES, SIZES)


def test_intervals_hold_the_true_correlation_nineteen_times_in_twenty():
    draw, true, held = np.random.Generator(np.random.PCG64(1)), 2 / math.pi * math.asin(0.6), 0
    for i in range(30):
        x, e = draw.normal(size=(2, 40))
        found = agreement("x", x[None], 0.6 * x + 0.8 * e, x, seed=i)
        held += found.kendall_low <= true <= found.kendall_high
    assert 25 <= held <= 30


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
    return Table("nas_bench_201", {text: i for i, text in enumerate(texts)}, {"made": np.array([5.0, 4, 3, 2, 1])})


def test_a_ranking_repeats_and_adds_the_costs(table, digits):
    setting = Setting(archs=5, seeds=2, batch=6, teacher="resnet8w4")
    rows = rank(["nwot", "diswot"], SPACE, table, "", digits, setting)
    assert [row.score for row in rows] == ["nwot", "diswot", *COSTS]
    again = rank(["diswot"], SPACE, table, "", digits, setting)
    assert [again[0].kendall, again[0].regret] == [rows[1].kendall, rows[1].regret]
    assert rows[0].seconds > 0
    with pytest.raises(EvokdError, match="nwot"):
        rank(["nvot"], SPACE, table, "", digits, setting)


def test_the_command(shared_data, tmp_path, capsys):
    path = tmp_path / "rows.csv"
    options = ["rank", "--against", "resnet_s0:distilled", "--tables", str(shared_data), "--data", "digits", "--archs", "4"]
    options += ["--batch", "4", "--teacher", "resnet8w4", "--scores", "diswot,logit_spread", "--csv", str(path)]
    assert command.main(options) == 0
    said = capsys.readouterr().out
    assert "diswot" in said
    assert "live_parameters" in said
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["score"] for row in rows] == ["diswot", "logit_spread", *COSTS]
    assert all(-1 <= float(row["kendall"]) <= 1 for row in rows)
    with pytest.raises(EvokdError, match="space of the table"):
        command.main([*options, "--space", "nas_bench_201"])
