"""The judge of students: scores repeat, losses are scores, and every tier is paired by its seeds."""

import pytest
import torch

from evokd.config import make_config
from evokd.evaluate.students import StudentJob, find_score
from evokd.genome.codec import to_names
from evokd.scores import SCORES
from evokd.student_problem import open_student_problem, read_score

NAMES = ("basic4-1-1-1", "mobile4-1-2-1")


@pytest.fixture(scope="module")
def judge_of(tiny):
    def opened(**changes):
        kept = {k: v for k, v in tiny.items() if k not in ("student", "space")}
        protocol = tiny["protocol"] | {"steps": 4, "transfer": 150}
        config = make_config(kept | {"task": "student", "protocol": protocol} | changes)
        return open_student_problem(config, lambda line: None).executor.evaluate

    return opened


def job(judge, text: str, tier: str, seeds=(11,), split="validation") -> StudentJob:
    return StudentJob(tuple(to_names(judge.space.parse(text))), tier, seeds, split, text)


@pytest.mark.parametrize("score", ["diswot", "params", "loss:sp", "loss:0.5*l2(logits)"])
def test_a_score_repeats_whatever_was_scored_before(judge_of, score):
    judge = judge_of(score=score)
    first = [judge(job(judge, text, "score")) for text in NAMES]
    torch.rand(7)  # the global generator is nobody's business
    again = [judge(job(judge, text, "score")) for text in reversed(NAMES)]
    assert [o.fitness for o in first] == [o.fitness for o in reversed(again)]
    assert all(o.metrics.pop("score") == o.fitness for o in first)
    assert all(sum(o.metrics.values()) == pytest.approx(o.fitness) for o in first if o.metrics)  # the parts of a sum
    assert bool(first[0].metrics) == (score == "diswot")
    assert first[0].fitness != first[1].fitness


def test_a_score_is_the_mean_over_its_seeds(judge_of):
    judge = judge_of(score="nwot")
    one, two, both = (judge(job(judge, NAMES[0], "score", seeds)).fitness for seeds in ((1,), (2,), (1, 2)))
    assert both == pytest.approx((one + two) / 2)


def test_a_loss_as_score_is_negated(judge_of):
    assert judge_of(score="loss:kd")(job(judge_of(), NAMES[0], "score")).fitness < 0


def test_scores_are_read_by_name_or_as_a_loss():
    assert read_score("nwot") == "nwot"
    assert read_score("loss:kd") == read_score("loss:0.9*kl(logits, tau=4)") == "loss:0.9*kl(logits, tau=4)"
    assert find_score("nwot") is SCORES["nwot"]
    assert find_score(read_score("loss:kd")).needs_teacher


def test_a_score_that_cannot_be_had_concerns_its_student_alone(judge_of):
    judge = judge_of(score="loss:l2(tokens)")
    outcome = judge(job(judge, NAMES[0], "score"))
    assert outcome.status == "CRASHED"
    assert "tokens" in outcome.reason


@pytest.mark.parametrize("tier", ["distill", "train"])
def test_trainings_repeat_and_need_no_score(judge_of, tier):
    judge = judge_of()
    one, two = (judge(job(judge, NAMES[0], tier, (3,), "test")) for _ in range(2))
    assert one.status == "OK"
    assert one.metrics == two.metrics
    named = judge(StudentJob("resnet8w4", tier, (3,), "test"))
    assert 0 <= named.metrics["accuracy"] <= 100
