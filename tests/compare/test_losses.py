"""Comparisons of losses from end to end: what is trained with which seeds, what chooses, what a death leaves, what is refused."""

import csv
import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest

from evokd.commands import main
from evokd.compare import losses as rooms
from evokd.compare.loss_plan import KD, PLAIN, RANDOM, TUNED, Entrant, make_plan, read_plan
from evokd.compare.loss_tables import Compared, told, verdict
from evokd.compare.losses import compare_losses
from evokd.compare.tuning import variants
from evokd.config import make_config
from evokd.distiller import run
from evokd.errors import EvokdError
from evokd.evaluate.distill import Distiller, Job
from evokd.genome.codec import to_names
from evokd.genome.individual import content_key
from evokd.journal import read_events
from evokd.losses import KNOWN, parse_loss
from evokd.problem import open_problem
from evokd.report.terminal import Terminal
from evokd.run import evaluation_seeds
from evokd.training.recipes import read_recipe
from evokd.training.run import Order, open_order

QUIET = Terminal(quiet=True)
HAND_MADE = ["kd", "dist", "sp", "minilm"]
COUNTS = {"seeds": 2, "trials": 2, "best": 2, "more": 1}


@pytest.fixture(scope="module")
def searched(tiny):
    return run(make_config(tiny), QUIET)


@pytest.fixture(scope="module")
def plan(searched, tmp_path_factory):
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    students = ["resnet8w4", "conv3w8"]
    return make_plan(
        {"tracking_uri": uri}, run=searched.run, students=students, losses=["skd_pairwise"], known=HAND_MADE, **COUNTS
    )


@pytest.fixture(scope="module")
def jobs_and_compared(plan):
    """The comparison, and (student, job) of everything that it trained."""
    seen, inner = [], Distiller.__call__

    def spied(self, job):
        seen.append((self.student, job))
        return inner(self, job)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Distiller, "__call__", spied)
        return seen, compare_losses(plan, QUIET)


@pytest.fixture(scope="module")
def compared(jobs_and_compared) -> Compared:
    return jobs_and_compared[1]


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_those_of_the_search_the_best_hand_made_and_the_controls(searched, compared):
    names = [each.name for each in compared.entrants]
    assert names[0] == "evolved"
    assert compared.entrants[0].text == searched.best
    assert {RANDOM, TUNED, KD, PLAIN, "skd_pairwise"} < set(names)
    assert sum(name.endswith(", tuned") for name in names) == COUNTS["best"]
    told_by_search = {e["row"]: e["text"] for e in read_events(searched.run) if e["event"] == "final"}
    assert {e.name: e.text for e in compared.entrants}[RANDOM] == told_by_search[RANDOM]


def test_choices_are_made_on_validation_of_the_first_pair_and_test_is_told_with_fresh_seeds(searched, plan, jobs_and_compared):
    jobs, _ = jobs_and_compared
    first_final = next(i for i, (_, job) in enumerate(jobs) if job.split == "test")
    assert all(student == "resnet8w4" and job.split == "validation" for student, job in jobs[:first_final])
    assert all(job.split == "test" for _, job in jobs[first_final:])
    fresh = evaluation_seeds(0, "compare", 2)
    used = {seed for _, job in jobs[:first_final] for seed in job.seeds}
    used |= {e["seed"] for e in read_events(searched.run) if e["event"] == "final"}
    assert {seed for _, job in jobs[first_final:] for seed in job.seeds} == set(fresh)
    assert not used & set(fresh)
    tests = [(student, job.loss, job.gamma, job.seeds) for student, job in jobs[first_final:]]
    assert len(tests) == len(set(tests))  # told once


def test_every_hand_made_loss_has_as_many_trials(plan, jobs_and_compared, problem):
    jobs, compared = jobs_and_compared
    tried = [
        (job.loss, job.gamma) for _, job in jobs if job.split == "validation" and job.seeds == evaluation_seeds(0, "search", 1)
    ]
    for tuning in compared.tunings:
        expected = (
            []
            if tuning.name == "minilm"
            else variants(tuning.name, KNOWN[tuning.name], 0.1 if tuning.name == "kd" else 1.0, 3, 0)
        )
        made = [text for text, gamma in expected if (tuple(to_names(parse_loss(text))), gamma) in tried]
        assert len(made) == tuning.trials == {"minilm": 0}.get(tuning.name, 3 if tuning.goes_on else 2)
    refused = next(t for t in compared.tunings if t.name == "minilm")
    assert "attention" in refused.reason


def test_the_best_on_validation_go_on(compared):
    trials = [e for e in read_events(compared.folder) if e["event"] == "trial"]
    first = {name: [e["fitness"] for e in trials if e["loss"] == name][: COUNTS["trials"]] for name in ("kd", "dist", "sp")}
    best = sorted(first, key=lambda name: -max(first[name]))[: COUNTS["best"]]
    assert {t.name for t in compared.tunings if t.goes_on} == set(best)
    assert len(trials) == 3 * COUNTS["trials"] + 2 * COUNTS["more"]


def test_figures_are_those_of_single_trainings(plan, compared):
    config = plan.config.model_copy(update={"student": "conv3w8"})
    alone = open_problem(config, lambda line: None, guests=[parse_loss(KNOWN[name]) for name in HAND_MADE])
    seed = evaluation_seeds(0, "compare", 2)[1]
    text = compared.entrants[0].text
    outcome = alone.executor.outcome(Job(tuple(to_names(parse_loss(text))), (seed,), 1.0, "test", content_key(text)))
    pair = next(pair for pair in compared.values if "conv3w8" in pair)
    assert compared.values[pair]["evolved"][1] == outcome.metrics["accuracy"]
    rows = rows_of(compared.folder / "losses.csv")
    mine = [float(r["accuracy"]) for r in rows if r["pair"] == pair and r["loss"] == "evolved"]
    assert mine == compared.values[pair]["evolved"]


def test_connectors_are_counted(compared):
    for pair, rows in compared.connectors.items():
        assert rows[PLAIN] == rows[KD] == 0
        assert set(rows) == {each.name for each in compared.entrants}, pair


def test_what_was_cut_goes_on_to_the_same_figures(plan, compared, monkeypatch):
    """It dies in the finals; what was trained is not trained again."""
    monkeypatch.setattr(rooms, "mirrored", unmirrored)
    inner, left = Distiller.__call__, [14]

    def dying(self, job):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return inner(self, job)

    monkeypatch.setattr(Distiller, "__call__", dying)
    with pytest.raises(KeyboardInterrupt):
        compare_losses(plan, QUIET)
    folder = max(plan_folders(plan), key=lambda path: path.stat().st_mtime_ns)
    assert folder != compared.folder
    left[0], total = 1000, len((compared.folder / "pair-0/trainings.jsonl").read_bytes().splitlines())
    total += len((compared.folder / "pair-1/trainings.jsonl").read_bytes().splitlines())
    again = compare_losses(read_plan(folder), QUIET, folder)
    assert 1000 - left[0] == total - 14
    assert again.values == compared.values
    assert (again.folder / "standings.csv").read_bytes() == (compared.folder / "standings.csv").read_bytes()


def test_more_seeds_keep_those_that_are_there(plan, compared, monkeypatch):
    monkeypatch.setattr(rooms, "mirrored", unmirrored)
    more = compare_losses(read_plan(compared.folder, seeds=3), QUIET, compared.folder)
    for pair, rows in compared.values.items():
        for name, values in rows.items():
            assert more.values[pair][name][:2] == values
            assert len(more.values[pair][name]) == 3


def test_another_pair_is_told(compared):
    path = compared.folder / "problems.json"
    before = path.read_text()
    path.write_text(json.dumps({"resnet8w4": "0", "conv3w8": "0"}))
    with pytest.raises(EvokdError, match="the pairs that"):
        compare_losses(read_plan(compared.folder), QUIET, compared.folder)
    path.write_text(before)


def test_rows_are_children_in_mlflow(plan, jobs_and_compared):
    _, compared = jobs_and_compared
    client = mlflow.MlflowClient(plan.config.tracking_uri)
    experiment = client.search_experiments(filter_string="name LIKE 'losses/%'")[0].experiment_id
    parent = client.search_runs([experiment], f"tags.`evokd.folder` = '{compared.folder.name}'")[0]
    assert parent.info.status == "FINISHED"
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert len(children) == len(compared.values) * len(compared.entrants)
    evolved = [c for c in children if c.data.tags["evokd.row"] == "evolved"]
    means = sorted(np.mean(rows["evolved"]) for rows in compared.values.values())
    assert sorted(c.data.metrics["test_accuracy"] for c in evolved) == pytest.approx(means)


def test_the_verdict_says_what_the_intervals_say(compared):
    values = {"pair": {"evolved": [9.0, 9.2, 9.1], KD: [8.0, 8.3, 8.1], PLAIN: [9.5, 9.6, 9.5]}}
    entrants = (Entrant("evolved", "l2(logits)", 1.0, found=9.4), Entrant(KD, "kl(logits, tau=4)", 0.1), Entrant(PLAIN, "", 1.0))
    apart = replace(compared, values=values, entrants=entrants, tunings=[], connectors={})
    assert f"evolved is ahead of the best hand-made row, {KD}, by +0.97" in verdict(apart)[0]
    assert "luck" in verdict(apart)[1]
    behind = replace(apart, values={"pair": {"evolved": [7.0, 7.2, 7.1], KD: [8.0, 8.3, 8.1], PLAIN: [9.5, 9.6, 9.5]}})
    assert "evolved is behind" in verdict(behind)[0]
    unclear = replace(apart, values={"pair": {"evolved": [7.0, 9.2, 8.1], KD: [8.0, 8.3, 8.1], PLAIN: [9.5, 9.6, 9.5]}})
    assert "evolved is not told apart from" in verdict(unclear)[0]
    assert any(line.strip().startswith("evolved") for line in told(apart))


def test_without_a_run_random_search_has_the_budget_of_the_configuration(tiny):
    values = tiny | {"population": 2, "generations": 1}
    plan = make_plan(values, known=["kd"], seeds=2, trials=1, best=1, more=0)
    found = compare_losses(plan, QUIET)
    trials = {each.name: each.trials for each in found.entrants}
    assert trials[RANDOM] == trials[TUNED] == 2


def test_with_a_recipe_rows_are_trained_in_full(tiny):
    """The figure of `evokd distill` with the same loss, recipe and seed."""
    values = tiny | {"protocol": tiny["protocol"] | {"transfer": 256}, "population": 2, "generations": 1}
    found = compare_losses(make_plan(values, losses=["sp"], recipe="short-2", seeds=2), QUIET)
    config, seed = found.plan.config, evaluation_seeds(0, "compare", 2)[1]
    order = Order(
        "digits", config.student, read_recipe("short-2"), config.teacher, KNOWN["sp"], 1.0, transfer=256, teacher_epochs=3
    )
    trained = open_order(order, Path(config.out), "cpu", lambda line: None).training.train(seed)
    (rows,) = found.values.values()
    assert rows["sp"][1] == trained.figures["top1"]
    assert len({tuple(values) for values in rows.values()}) > 3
    assert not list(found.folder.glob("pair-0/full/*.safetensors"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--known", "kdd"], "did you mean 'kd'"),
        ([], "a run, --loss or --known"),
        (["no/such/run"], "config.toml"),
        (["--known", "kd", "--seeds", "1"], "--seeds: expected at least 2"),
        (["--resume", "no/such/folder"], "comparison.json"),
        (["--resume", "x", "--known", "kd"], "no other option"),
        (["--loss", "l2(logit)"], "did you mean"),
        (["--known", "kd", "--recipe", "short-1"], "classes that are all alike"),
    ],
)
def test_what_cannot_be_compared_is_one_line(arguments, said, capsys):
    assert main(["compare", "losses", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def plan_folders(plan):
    return [path.parent for path in Path(plan.config.out).glob("*losses*/comparison.json")]


@contextmanager
def unmirrored(*args):
    yield lambda compared: None
