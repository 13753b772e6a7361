"""Training along a route: each checkpoint teaches its share of the steps, and two like checkpoints are plain distillation."""

from dataclasses import replace

import pytest
import torch

from evokd.config import make_config
from evokd.evaluate.route import RouteJudge, route_of
from evokd.evaluate.students import StudentJob
from evokd.genome.codec import to_names
from evokd.genome.individual import Status
from evokd.student_problem import open_student_problem

STEPS = 8


@pytest.fixture(scope="module")
def judge(tiny):
    kept = {k: v for k, v in tiny.items() if k not in ("student", "space", "population")}
    settings = kept | {"task": "student", "space": "digits", "protocol": tiny["protocol"] | {"steps": STEPS, "transfer": 150}}
    return open_student_problem(make_config(settings), lambda line: None).executor.evaluate


def marked(bank, value):
    """The same bank, its teacher's logits replaced by one number."""
    return replace(bank, taps={name: torch.full_like(tap, value) for name, tap in bank.taps.items()})


def accuracy(judge, tier, student=None):
    student = student or tuple(to_names(judge.finished.space.parse("basic4-1-1-1")))
    outcome = judge(StudentJob(student, tier, (3,), "test"))
    assert outcome.status is Status.OK, outcome.reason
    return outcome.metrics["ce"], outcome.metrics["curve"]


def test_checkpoints_take_turns_in_order_and_every_training_starts_anew(judge):
    route = route_of([marked(judge.bank, value) for value in (1.0, 2.0, 3.0)], 9)
    index = view = torch.zeros(2, dtype=torch.long)
    for _ in range(2):
        assert route.teacher_taps(index, view).logits.unique().tolist() == [3]
        assert [route.teacher_taps(index, view, {"logits"}).logits.unique().item() for _ in range(9)] == [1] * 3 + [2] * 3 + [
            3
        ] * 3


def test_a_route_of_like_checkpoints_is_distillation(judge):
    same = RouteJudge([judge.bank, judge.bank], judge.teacher, judge.setup)
    assert accuracy(same, "rco") == accuracy(same, "distill")


def test_the_early_checkpoint_teaches_the_first_half_alone(judge):
    other = RouteJudge([marked(judge.bank, 0.0), judge.bank], judge.teacher, judge.setup)
    late = RouteJudge([judge.bank, marked(judge.bank, 0.0)], judge.teacher, judge.setup)
    plain, first, last = accuracy(other, "distill")[1], accuracy(other, "rco")[1], accuracy(late, "rco")[1]
    assert first[0] != plain[0]
    assert last[: STEPS // 2] == plain[: STEPS // 2]
    assert last[STEPS // 2] != plain[STEPS // 2]


def test_labels_alone_know_no_teacher(judge):
    one, other = (RouteJudge([judge.bank, bank], judge.teacher, judge.setup) for bank in (judge.bank, marked(judge.bank, 0.0)))
    assert accuracy(one, "train") == accuracy(other, "train")


def test_a_design_is_trained_in_every_way(judge):
    route = RouteJudge([marked(judge.bank, 0.0), judge.bank], judge.teacher, judge.setup)
    found = {tier: accuracy(route, tier, "mobilenet_v3x0.05")[0] for tier in ("train", "distill", "rco")}
    assert len(set(found.values())) == 3


def test_the_seed_draws_a_designs_weights(judge):
    route = RouteJudge([judge.bank] * 2, judge.teacher, judge.setup)
    jobs = [StudentJob("mnasnetx0.05", "train", (seed,), "test") for seed in (1, 1, 2)]
    found = [route(job).metrics["curve"][0] for job in jobs]
    assert found[0] == found[1] != found[2]


def test_a_live_teacher_has_no_route(judge):
    with pytest.raises(ValueError, match="live"):
        route_of([replace(judge.bank, card=judge.bank.card | {"live": True})], 4)
