"""What is shown is what the score compares."""

import numpy as np
import pytest
import torch
from torch import nn

from evokd.errors import EvokdError
from evokd.scores import view_teacher
from evokd.scores.explain import explain, grad_cam
from tests.scores.networks import CLASSES, SIDE, N, Tiny, batch, generator, value


def explained(width=4):
    images, labels = batch()
    student, teacher = Tiny(), Tiny(width, seed=1)
    return explain(student, view_teacher(teacher, images, labels), images, labels, generator()), student, teacher


def test_the_parts_are_the_scores():
    found, student, teacher = explained()
    for name, part in found.parts.items():
        assert part == value(name, student, teacher)


def test_samples_are_in_the_order_of_their_labels():
    found, _, teacher = explained()
    images, labels = batch()
    assert found.labels.tolist() == sorted(labels.tolist())
    assert labels[found.order].tolist() == found.labels.tolist()
    maps = teacher(images).features[-1].flatten(1)[found.order].detach()
    gram = maps @ maps.t()
    expected = gram / gram.norm(dim=1, keepdim=True)
    assert np.allclose(found.relation[0], expected)


def test_the_relation_is_the_distance_of_its_matrices():
    found, *_ = explained()
    teacher, student = found.relation
    assert found.parts["diswot_relation"] == pytest.approx(-np.square(teacher - student).mean())


@pytest.mark.parametrize(("width", "side", "channels"), [(4, 4, True), (6, N, False)])
def test_channels_are_related_where_widths_agree_and_samples_elsewhere(width, side, channels):
    found, *_ = explained(width)
    assert found.channels is channels
    assert [matrix.shape for matrix in found.semantic] == [(side, side)] * 2


def test_channel_products_are_the_mean_over_classes():
    found, student, _ = explained()
    images, labels = batch()
    loss = nn.functional.cross_entropy(student(images).logits, labels)
    rows = torch.autograd.grad(loss, student.fc.weight)[0]
    products = [nn.functional.normalize(torch.outer(row, row), dim=1) for row in rows]
    assert np.allclose(found.semantic[1], torch.stack(products).mean(0))
    assert len(products) == CLASSES


def test_grad_cam_is_autograds():
    _, student, _ = explained()
    images, labels = batch()
    taps = student(images)
    gradient = torch.autograd.grad(taps.logits.gather(1, labels[:, None]).sum(), taps.features[-1])[0]
    expected = (gradient.mean((2, 3), keepdim=True) * taps.features[-1]).sum(1).relu()
    found = grad_cam(taps, labels)
    assert found.shape == (N, SIDE // 2, SIDE // 2)
    peaks = expected.amax((1, 2), keepdim=True)
    assert torch.allclose(found * peaks, expected)
    assert (found.amax((1, 2))[peaks.flatten() > 0] == 1).all()


def test_the_dead_are_refused():
    images, labels = batch()
    student = Tiny()
    nn.init.zeros_(student.fc.weight)
    with pytest.raises(EvokdError, match="dead"):
        explain(student, view_teacher(Tiny(seed=1), images, labels), images, labels)
