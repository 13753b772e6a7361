import math
from dataclasses import replace

import pytest
import torch

from evokd.evaluate.descent import CLIP, RATE, FreeStudent, descend, descent
from evokd.losses import KNOWN, Taps, parse_loss
from evokd.losses.language import to_terms
from evokd.losses.modules import MODULES
from evokd.losses.transforms import TRANSFORMS
from tests.losses.common import make_taps


@pytest.fixture(scope="module")
def examples(problem):
    return problem.examples


@pytest.fixture(scope="module")
def made():
    """A pair that shows everything; no classifier, so that every tap is free."""
    student, teacher = make_taps(1, 16, dtype=torch.float32), make_taps(2, 16, dtype=torch.float32)
    return student, teacher, teacher.logits.argmax(1)


@pytest.mark.parametrize("name", [*KNOWN, *MODULES])
def test_published_losses_lead_to_the_teacher(examples, made, name):
    tree = parse_loss(KNOWN.get(name, name))
    shown = {p for term in to_terms(tree) for p in term.distance.positions()} <= set(examples[0].positions())
    pair = examples if shown else made
    for gamma in (0.1, 1.0):
        found = descend(tree, *pair, gamma)
        assert max(found.agreement[0], found.accuracy[0]) < 40
        assert max(found.agreement[1], found.accuracy[1]) >= 75
        assert math.isfinite(found.value)
        assert found.rises


@pytest.mark.parametrize(
    "text",
    ["-3*kl(logits, tau=1)", "-3*kl(logits, tau=4)", "-3*ce(logits, tau=1)", "-10*pearson(logits)", "-3*hard(logits)",
     "-10*cosine(logits)", "kl(logits, tau=4) + -100*cosine(logits)", "ramp(-3, -9)*kl(logits, tau=1)"],
)  # fmt: skip
def test_losses_that_push_away_are_refused(examples, text):
    reason = descent(parse_loss(text), *examples, 1.0)
    assert reason.startswith("descent: agreement with the teacher")
    assert reason.endswith(" %")


def test_a_weak_push_that_the_labels_overcome_is_no_reason(examples):
    assert descent(parse_loss("-0.05*kl(logits, tau=1)"), *examples, 1.0) == ""
    assert descent(parse_loss("-0.05*kl(logits, tau=1)"), *examples, 0.0) != ""


def test_a_good_start_that_is_lost_is_a_fall():
    taps = make_taps(1, 16, dtype=torch.float32)
    labels = taps.logits.argmax(1)
    reason = descent(parse_loss("-3*hard(logits)"), Taps(taps.logits * 0.9), taps, labels, 0.5)
    assert reason == "descent: agreement with the teacher falls from 100 to 0 %"
    assert descent(parse_loss("3*hard(logits)"), Taps(taps.logits * 0.9), taps, labels, 0.5) == ""


def test_the_descent_is_adam_on_the_taps():
    student, teacher, labels = make_taps(1, 20).logits, make_taps(2, 20).logits, torch.arange(20) % 5
    labels[3] = -1
    for steps in (1, 7):
        found = descend(parse_loss("300*l2(logits)"), Taps(student), Taps(teacher), labels, 0.7, steps, samples=12)
        free = student[:12].clone().requires_grad_()
        adam = torch.optim.Adam([free], RATE)
        for step in range(steps + 1):
            known = labels[:12] >= 0
            picked = -free.log_softmax(1)[torch.arange(12), labels[:12].clamp(min=0)]
            value = 0.7 * (picked * known).sum() / 12 + 300 * (free - teacher[:12]).square().mean()
            if step < steps:
                adam.zero_grad()
                value.backward()
                norm = free.grad.norm()
                free.grad *= min(1.0, CLIP / (norm.item() + 1e-6))
                adam.step()
        decided = [x.argmax(1) for x in (student[:12], free)]
        assert found.value == pytest.approx(value.item(), rel=1e-5)
        assert found.steps == steps
        assert found.agreement == pytest.approx([100 * (d == teacher[:12].argmax(1)).float().mean().item() for d in decided])
        assert found.accuracy == pytest.approx([100 * (d == labels[:12])[known].float().mean().item() for d in decided])


def test_what_follows_is_recomputed(examples):
    student = examples[0]
    free = FreeStudent(student, ("features[-1]", "features[-2]", "embedding", "logits"))
    assert free.positions == ["features[-1]", "features[-2]"]
    shown = free()
    for position in ("features[-1]", "features[-2]", "embedding", "logits"):
        assert torch.allclose(shown.at(position), student.at(position), atol=1e-5)
    gradients = torch.autograd.grad(shown.logits.sum(), list(free.parameters()), allow_unused=True)
    moved = {name: g is not None for (name, _), g in zip(free.named_parameters(), gradients, strict=True)}
    assert moved == {"free.0": True, "free.1": False, "head.0": True, "head.1": True}
    assert FreeStudent(student, ("logits",)).positions == ["embedding"]
    assert FreeStudent(student, ("features[-2]", "teacher_head")).positions == ["embedding", "features[-2]"]


def test_what_does_not_follow_is_free(examples):
    student = examples[0]
    other = Taps(student.logits, student.embedding + 1, student.features, head=student.head)
    assert FreeStudent(other, ("features[-1]", "embedding")).positions == ["embedding", "features[-1]", "logits"]
    bare = Taps(student.logits, student.embedding, student.features)
    assert FreeStudent(bare, ("features[-1]", "embedding")).positions == ["features[-1]", "logits"]
    assert FreeStudent(Taps(student.logits), ("logits",)).positions == ["logits"]


def test_only_what_cannot_fall_for_ever_ends_early(examples):
    assert descend(parse_loss(KNOWN["kd"]), *examples, 1.0).steps < 100
    for text in ("-0.001*kl(logits, tau=1)", "-3*kl(logits, tau=1)"):
        assert descend(parse_loss(text), *examples, 1.0).steps == 100


def test_connectors_go_along(examples, monkeypatch):
    """A student of few channels cannot be the teacher behind a fixed matrix; behind one that learns it comes nearer."""
    learning = descend(parse_loss("l2(features[-2])"), *examples, 0.0, 60).value
    monkeypatch.setattr("evokd.evaluate.descent.SLOW", 0.0)
    assert learning < 0.95 * descend(parse_loss("l2(features[-2])"), *examples, 0.0, 60).value


def test_hidden_labels_leave_the_teacher_alone(examples):
    student, teacher, labels = examples
    hidden = torch.full_like(labels, -1)
    kd = parse_loss(KNOWN["kd"])
    a, b = (descend(kd, student, teacher, hidden, gamma) for gamma in (0.0, 1.0))
    assert all(map(math.isnan, a.accuracy))
    assert a.agreement[1] >= 75
    assert a.value == b.value
    assert descent(kd, student, teacher, hidden, 1.0) == ""
    assert descent(parse_loss("-1*kl(logits, tau=1)"), student, teacher, hidden, 1.0) != ""


def test_leaving_the_finite_numbers_is_told_with_the_step(monkeypatch):
    monkeypatch.setitem(TRANSFORMS, "sqrt", replace(TRANSFORMS["sqrt"], fn=torch.sqrt))  # NaN below 0
    taps, labels = make_taps(1, 16, dtype=torch.float32), torch.arange(16) % 5
    student, teacher = Taps(taps.logits.abs() + 0.25), Taps(torch.zeros_like(taps.logits))
    assert descent(parse_loss("l2(sqrt(logits))"), student, teacher, labels, 1.0) == "descent: value nan at step 3"


def test_an_error_is_a_reason(examples):
    assert descent(parse_loss("l2(features[-9])"), *examples, 1.0).startswith("descent: EvokdError: position features[-9]")


def test_the_descent_leaves_taps_and_global_draws_alone(examples):
    student = examples[0]
    before, weight, state = student.logits.clone(), student.head[0].clone(), torch.get_rng_state()
    first, second = (descend(parse_loss("l2(logits) + l2(drop(features[-1]))"), *examples, 1.0) for _ in range(2))
    assert first == second
    assert torch.equal(student.logits, before)
    assert torch.equal(student.head[0], weight)
    assert torch.equal(torch.get_rng_state(), state)
