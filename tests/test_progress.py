"""Figures of a generation against counts by hand, and against what a search and its journal tell."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evokd.config import make_config
from evokd.progress import POPULATION, Progress, curves_of, diversity, rejected
from evokd.search.front import hypervolume, undominated


def event(i, fitness, size, tree=("a",), status="OK"):
    return {
        "id": i, "generation": 0, "op": "seed", "parents": [], "text": f"t{i}", "tree": list(tree), "status": status,
        "fitness": fitness, "metrics": {"size": float(size)},
    }  # fmt: skip


SUMMARY = {"generation": 0, "best": 80.0, "best_id": 1, "best_text": "t1", "evaluations": 3, "median": 70.0, "mean": None}


def figures(told, step=0):
    return {name: value for name, value, at in told.metrics if at == step}


def test_a_generation_s_figures_by_hand():
    """Front of accuracy against nodes: (60, 10) and (80, 50); the corner is 0 % at 100 nodes: 60·90 + 20·50 = 6,400."""
    funnel = {"static": {"entered": 9, "left": 7, "seconds": 0.1}, "rung 1": {"entered": 7, "left": 3, "seconds": 2.0}}
    new = [event(0, 60.0, 10, "ab"), event(1, 80.0, 50, "abc"), event(2, 70.0, 60, "xy"), event(3, None, 5, status="CRASHED")]
    told = Progress(make_config({})).generation(SUMMARY | {"funnel": funnel}, new)
    found = figures(told)
    assert (found["rejected_static"], found["rejected_rung_1"]) == (2, 4)
    assert found["front_hypervolume"] == 6400
    assert found["front_size"] == 2
    assert found["diversity"] == pytest.approx((1 / 3 + 1 + 1) / 3)
    assert ("best_by_evaluations", 80.0, 3) in told.metrics
    assert {"best_id", "mean", "funnel"}.isdisjoint(found)
    table = json.loads(told.texts[POPULATION])
    assert [dict(zip(table["columns"], row, strict=True))["expression"] for row in table["data"]] == ["t1", "t2", "t0"]


def test_the_population_is_the_best_so_far_and_no_larger_than_the_search_s():
    progress = Progress(make_config({"population": 2}))
    progress.generation(SUMMARY, [event(0, 60.0, 9), event(1, 80.0, 9)])
    told = progress.generation(SUMMARY | {"generation": 1}, [event(2, 70.0, 9), event(3, 10.0, 9)])
    assert [row[0] for row in json.loads(told.texts[POPULATION])["data"]] == [1, 2]


def test_without_a_floor_of_the_fitness_the_worst_so_far_is_the_corner():
    """Cross-entropies are told with their sign turned: −2 and −0.5, of 40 and 50 nodes against 100."""
    told = Progress(make_config({"fitness": "ce"})).generation(SUMMARY, [event(0, -2.0, 40), event(1, -0.5, 50)])
    assert figures(told)["front_hypervolume"] == pytest.approx(1.5 * 50)


def test_students_are_measured_by_their_parameters_up_to_the_limit():
    config = make_config({"task": "student", "max_params": 1000})
    new = [event(0, 50.0, 3) | {"metrics": {"parameters": 400.0}}]
    assert figures(Progress(config).generation(SUMMARY, new))["front_hypervolume"] == 50 * 600


def test_a_search_on_its_journal_s_last_word_has_no_population_before_something_trains():
    told = Progress(make_config({})).generation(SUMMARY | {"best": None, "best_text": ""}, [event(0, None, 3, status="DIVERGED")])
    assert not told.texts
    assert {"front_hypervolume", "best", "best_by_evaluations"}.isdisjoint(figures(told))


@pytest.mark.parametrize(
    ("trees", "expected"), [([], 0), (["abc"], 0), (["ab", "ab"], 0), (["ab", "cd"], 1), (["aab", "ab"], 1 / 3)]
)
def test_diversity(trees, expected):
    assert diversity(trees) == pytest.approx(expected)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no fault of the draw
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=8))
def test_the_front_s_volume_counts_unit_squares(points):
    """Against a count of the cells that some point dominates, from (0, 20)."""
    cells = {(x, y) for value, cost in points for x in range(value) for y in range(cost, 20)}
    front = undominated(points)
    assert hypervolume(front, (0, 20)) == len(cells)
    assert all(any(v >= value and c <= cost for v, c in front) for value, cost in points)
    assert not [a for a in front for b in front if a != b and b[0] >= a[0] and b[1] <= a[1]]


def test_each_term_of_a_loss_has_its_own_curve():
    told = curves_of([(0, 2.0, 5.0, 3.0, 2.0), (9, 1.0, 4.0, 3.0, 1.0)])
    assert [(value, step) for name, value, step in told if name == "train_term_2"] == [(2.0, 0), (1.0, 9)]
    assert [value for name, value, _ in told if name == "train_distill"] == [5.0, 4.0]
    assert {name for name, *_ in curves_of([[0, 2.0, 5.0]])} == {"train_ce", "train_distill"}


def test_rejections_are_told_by_gate():
    assert rejected({"funnel": {"probe": {"entered": 5, "left": 5}}}) == {"rejected_probe": 0}
    assert rejected({}) == {}


def test_terms_of_a_compiled_loss_add_up(distiller):
    """On the tiny problem: the journal's curve tells each term, and their sum is the loss."""
    from evokd.finals import Entry

    job = Entry("x", "3*kl(logits, tau=4) + 2*l2(norm_C(embedding))").job([1], "validation")
    curve = distiller(job).metrics["curve"]
    assert {len(row) for row in curve} == {5}
    assert all(row[2] == pytest.approx(row[3] + row[4], rel=1e-5) for row in curve)
    assert {len(row) for row in distiller(Entry("x", "3*kl(logits, tau=4)").job([1], "validation")).metrics["curve"]} == {3}


def test_a_table_of_all_candidates(tmp_path):
    from pyarrow import parquet

    from evokd.parquet import write_individuals

    rows = [event(0, 60.0, 10) | {"parents": []}, event(1, None, 5, status="CRASHED") | {"parents": [0], "reason": "x"}]
    rows[0]["metrics"] |= {"curve": [(0, 1.0, 2.0)], "fitness_by_seed": [60, 61.5], "tuned_from": "old"}
    table = parquet.read_table(write_individuals(tmp_path, rows)).to_pylist()
    assert [row["parents"] for row in table] == [[], [0]]
    assert table[0]["figures.curve"] == [[0, 1, 2]]
    assert table[0]["figures.fitness_by_seed"] == [60, 61.5]
    assert (table[1]["fitness"], table[1]["figures.size"], table[1]["figures.tuned_from"]) == (None, 5, None)
    assert SimpleNamespace(**table[1]).reason == "x"
