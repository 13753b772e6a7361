import csv
import json

import pytest
from scipy import stats

from evokd.compare.bases import Method, compare_bases, corrected, make_plan, method_of, read_plan, write_bases
from evokd.config import change_config, make_config
from evokd.errors import EvokdError
from evokd.report.terminal import Terminal

KD = Method("kd", "kd + a", (80.0, 81.0, 82.0), (82.0, 83.0, 85.0))
DIST = Method("dist", "dist + b", (84.0, 83.0, 85.0), (84.0, 84.0, 84.0))


def test_p_is_scipys_paired_t_after_holm():
    by_hand = [stats.ttest_rel(m.added, m.alone).pvalue for m in (KD, DIST)]
    found = [m.p for m in corrected([KD, DIST])]
    assert found == pytest.approx([2 * by_hand[0], max(2 * by_hand[0], by_hand[1])])


def journal(folder, base, rows):
    """Finals of a search whose winner is also the simplest, so that it is told under that name."""
    folder.mkdir()
    (folder / "config.toml").write_text(make_config({"base": base}).to_toml())
    events = [
        {"event": "final", "row": row, "text": text, "gamma": gamma, "metrics": {} if value is None else {"accuracy": value}}
        for row, (text, gamma, values) in rows.items()
        for value in values
    ]
    events.append({"event": "end", "best": "x"})
    (folder / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    return folder


def test_a_method_is_read_from_the_finals_of_its_search(tmp_path):
    rows = {
        "evolved, simplest within 1σ": ("x", None, [90, 91, None]),
        "kd alone": ("0.9*kl(logits, tau=4)", None, [88, 90, 87]),
        "KD (τ=4), as published": ("0.9*kl(logits, tau=4)", 0.1, [1, 2, 3]),
        "plain, equal steps": (None, 1.0, [1, 2, 3]),
    }
    found = method_of(journal(tmp_path / "run", "kd", rows))
    assert (found.name, found.text, found.alone, found.gaps) == ("kd", "x", (88, 90, 87), [2, 1])


def test_failed_trainings_are_not_in_the_table(tmp_path):
    write_bases(tmp_path / "bases.csv", [Method("kd", "x", (float("nan"), 2.0), (3.0, 4.0))])
    rows = list(csv.DictReader((tmp_path / "bases.csv").read_text().splitlines()))
    assert [(r["row"], r["seed"], r["accuracy"]) for r in rows] == [
        ("alone", "1", "2.0"), ("with its term", "0", "3.0"), ("with its term", "1", "4.0"),
    ]  # fmt: skip


@pytest.mark.parametrize(("bases", "told"), [([], "--bases"), (["nosuch"], "--bases")])
def test_what_is_no_loss_is_refused(bases, told):
    with pytest.raises(EvokdError, match=told):
        make_plan({}, (), bases)


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(EvokdError, match=r"bases\.json"):
        read_plan(tmp_path)


@pytest.mark.slow
def test_all_methods_share_seeds_and_a_second_call_trains_nothing(tiny, tmp_path):
    config, names = make_plan(tiny | {"out": str(tmp_path), "generations": 1, "confirm": 1}, (), ["kd", "sp"])
    folder, methods = compare_bases(config, names, Terminal(quiet=True))
    seeds = [
        {e["seed"] for e in map(json.loads, path.read_text().splitlines()) if e["event"] == "final"}
        for path in folder.glob("*/events.jsonl")
    ]
    assert len(seeds) == 2
    assert seeds[0] == seeds[1]
    assert compare_bases(change_config(config, {}), names, Terminal(quiet=True), folder)[1] == methods
    assert {"bases.csv", "bases.png", "bases.svg"} <= {path.name for path in folder.iterdir()}
