"""DisWOT against its code's loops and its slides' matrices, written out from the formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evokd.errors import EvokdError
from evokd.losses.taps import Taps
from evokd.scores import view_teacher
from evokd.scores.diswot import EPS, gradient_rows, semantic_distance
from tests.scores.networks import N, Tiny, batch, value


def parts(network, images):
    """(P, f, F, W) of a forward pass in train mode."""
    taps = network.train()(images)
    return taps.logits.softmax(1), taps.embedding, taps.features[-1], network.fc.weight


def by_loops(a, b, eps):
    """Σ_k ‖rown(a_k a_kᵀ) − rown(b_k b_kᵀ)‖² / KC with the matrices formed, as the released code does."""
    total = 0.0
    for one, other in zip(a, b, strict=True):
        left, right = (F.normalize(torch.outer(x, x), dim=1, eps=eps) for x in (one, other))
        total += (left - right).square().sum()
    return total / a.numel()


@pytest.mark.parametrize("scale", [1.0, 1e-5, 1e-7], ids=["free", "some floored", "most floored"])
def test_the_closed_form_is_the_released_loop(scale):
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(7, 12, generator=draw, dtype=torch.float64) for _ in range(2))
    a, b = a * scale, b * torch.logspace(0, -8, 7, dtype=torch.float64)[:, None]
    b[3] = 0
    assert semantic_distance(a, b).item() == pytest.approx(by_loops(a, b, EPS).item(), abs=1e-7)
    assert semantic_distance(a, b, 1e-3).item() == pytest.approx(by_loops(a, b, 1e-3).item(), abs=1e-7)


def test_without_a_floor_it_is_two_minus_signs_times_cosines():
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(7, 12, generator=draw, dtype=torch.float64) for _ in range(2))
    agree = (a * b).sign().mean(1)
    assert semantic_distance(a, b) == pytest.approx(2 - 2 * (agree * F.cosine_similarity(a, b)).mean().item())


def test_the_class_gradient_is_autograds():
    student, (images, labels) = Tiny(), batch()
    loss = F.cross_entropy(student(images).logits, labels)
    expected = torch.autograd.grad(loss, student.fc.weight)[0]
    view = view_teacher(student, images, labels)
    assert torch.allclose(view.once(gradient_rows), expected, atol=1e-12)


def test_the_released_parts_and_their_sum():
    student, teacher, (images, labels) = Tiny(), Tiny(seed=1), batch()
    gradients = []
    for network in (student, teacher):
        loss = F.cross_entropy(network(images).logits, labels)
        gradients.append(torch.autograd.grad(loss, network.fc.weight)[0])
    maps = [parts(network, images)[2] for network in (student, teacher)]
    grams = [F.normalize(f.flatten(1) @ f.flatten(1).t(), dim=1) for f in maps]
    images_first = [F.normalize(f[0].flatten(1) @ f[0].flatten(1).t(), dim=1) for f in maps]
    expected = {
        "diswot_semantic": -by_loops(*gradients, EPS),
        "diswot_relation": -(grams[0] - grams[1]).square().sum() / N**2,
        "diswot_relation_released": -(images_first[0] - images_first[1]).square().sum() / 4**2,
    }
    for name, expect in expected.items():
        assert value(name, student, teacher) == pytest.approx(expect.item(), abs=1e-9), name
    both = expected["diswot_semantic"] + expected["diswot_relation"]
    assert value("diswot", student, teacher) == pytest.approx(both.item(), abs=1e-9)


def test_the_presented_parts_and_their_sum():
    student, teacher, (images, labels) = Tiny(), Tiny(seed=1), batch()
    channels, samples = [], []
    for network in (student, teacher):
        _, _, f, weight = parts(network, images)
        g = torch.stack([weight[y][:, None, None] * f[i] for i, y in enumerate(labels)])
        c = torch.einsum("nihw,njhw->ij", g, g)
        b = torch.einsum("ichw,jchw->ij", f, f)
        channels.append(c / c.square().sum().sqrt())
        samples.append(b / b.square().sum().sqrt())
    semantic = (channels[0] - channels[1]).square().sum().sqrt()
    relation = (samples[0] - samples[1]).square().sum().sqrt()
    assert value("diswot_paper_semantic", student, teacher) == pytest.approx(-semantic.item())
    assert value("diswot_paper_relation", student, teacher) == pytest.approx(-relation.item())
    assert value("diswot_paper", student, teacher) == pytest.approx(-(semantic + relation).item())


NAMES = ["diswot", "diswot_semantic", "diswot_relation", "diswot_relation_released"]
NAMES += ["diswot_paper", "diswot_paper_semantic", "diswot_paper_relation"]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_nearer_to_the_teacher_than_itself(name):
    assert value(name, Tiny(), Tiny()) == pytest.approx(0, abs=1e-6)
    assert value(name, Tiny(), Tiny(seed=1)) < -1e-6


def test_other_widths_are_compared_over_samples():
    student, teacher, (images, labels) = Tiny(width=6), Tiny(seed=1), batch()
    grams, samples = [], []
    for network in (student, teacher):
        p, f, maps, weight = parts(network, images)
        gap = p - F.one_hot(labels, p.shape[1])
        per_class = [F.normalize((g[:, None] * f) @ (g[:, None] * f).t() / N**2, dim=1) for g in gap.t()]
        grams.append(torch.stack(per_class))
        g = (weight[labels][:, :, None, None] * maps).flatten(1)
        samples.append(g @ g.t() / (g @ g.t()).norm())
    expected = (grams[0] - grams[1]).square().sum() / (len(grams[0]) * N)
    assert value("diswot_semantic", student, teacher) == pytest.approx(-expected.item(), abs=1e-9)
    assert value("diswot_paper_semantic", student, teacher) == pytest.approx(-(samples[0] - samples[1]).norm().item())
    assert value("diswot_relation_released", student, teacher) == value("diswot_relation", student, teacher)


def test_unknown_labels_are_left_out_or_guessed():
    student, teacher, (images, labels) = Tiny(), Tiny(seed=1), batch()
    labels[0] = -1
    for name in NAMES:
        assert value(name, student, teacher, images, labels) < 0


def test_the_presented_form_needs_a_classifier():
    class Headless(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Tiny()

        def forward(self, x):
            taps = self.body(x)
            return Taps(taps.logits, taps.embedding, taps.features)

    with pytest.raises(EvokdError, match="classifier"):
        value("diswot_paper", Headless(), Tiny())
    assert value("diswot", Headless(), Tiny()) == pytest.approx(0, abs=1e-6)
