"""Activation maps against plain autograd and a network whose answer is known, correlations against numpy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evokd.evaluate.sight import activation_maps, class_correlation, look, plus_weights
from evokd.models.tapping import Tapped, plan_taps


def network(seed=0, classes=3):
    """Two convolutions, mean pooling, a classifier."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, stride=2, padding=1), nn.ReLU())
        return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, classes)).eval()


@pytest.fixture(scope="module")
def case():
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    net = network()
    return net, plan_taps(net, images, ["0.1"]), images, torch.tensor([0, 1, 2, 1])


def by_hand(net, image, label, plus):
    """One image at a time, with exp z as the score in Grad-CAM++, as its paper has it; of the first ReLU, where the gradient varies."""

    def rest(features):
        return net[3](net[2](net[1](net[0][2:](features))))[0, label]

    features = net[0][:2](image[None]).detach().requires_grad_()
    logit = rest(features)
    (grad,) = torch.autograd.grad(torch.exp(logit) if plus else logit, features)
    if plus:
        (g,) = torch.autograd.grad(rest(features), features)
        below = 2 * g**2 + g**3 * features.sum((2, 3), keepdim=True)
        alpha = torch.where(g == 0, torch.zeros(()), g**2 / below)
        weight = (alpha * F.relu(grad)).sum((2, 3))
    else:
        weight = grad.mean((2, 3))
    heat = F.relu((weight[:, :, None, None] * features).sum(1, keepdim=True))
    heat = F.interpolate(heat, (8, 8), mode="bilinear", align_corners=False)[0, 0].detach()
    return heat / heat.max() if heat.max() > 0 else heat


@pytest.mark.parametrize("plus", [False, True])
def test_maps_are_those_of_plain_autograd(case, plus):
    net, plan, images, classes = case
    with Tapped(net, plan) as tapped:
        maps = activation_maps(tapped, images, classes, plus)
    assert maps.shape == (4, 8, 8)
    assert maps.max() > 0.99
    for i in range(4):
        torch.testing.assert_close(maps[i], by_hand(net, images[i], classes[i], plus), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("plus", [False, True])
def test_the_map_lies_where_the_class_is(plus):
    """A network whose class 0 is all brightness and whose class 1 is against it: the bright corner is the whole evidence for class 0."""
    net = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    net[0] = nn.Conv2d(1, 1, 1)
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].bias.zero_()
        net[3].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    image = torch.zeros(1, 1, 6, 6)
    image[..., :2, :3] = 1.0
    both = image.repeat(2, 1, 1, 1)
    with Tapped(net.eval(), plan_taps(net, both, ["0"])) as tapped:
        maps = activation_maps(tapped, both, torch.tensor([0, 1]), plus)
    assert torch.equal(maps[0], image[0, 0])
    assert not maps[1].any()


def test_weights_of_maps_without_gradient_are_nought():
    assert not plus_weights(torch.rand(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)).any()


def test_a_frozen_network_can_be_looked_at(case):
    net, plan, images, classes = case
    frozen = network().requires_grad_(False)
    seen, again = look(frozen, plan, images, classes[:2]), look(net, plan, images, classes[:2])
    assert seen.cam.shape == seen.cam_plus.shape == (2, 8, 8)
    torch.testing.assert_close(seen.cam_plus, again.cam_plus)
    torch.testing.assert_close(seen.logits, net(images).detach())
    assert seen.embedding.shape == (4, 5)


def test_correlations_are_numpys():
    logits = np.random.Generator(np.random.PCG64(0)).normal(size=(50, 6)) @ np.arange(36.0).reshape(6, 6) ** 0.5
    found = class_correlation(torch.from_numpy(logits)).numpy()
    np.testing.assert_allclose(found, np.corrcoef(logits.T), atol=1e-10)
    logits[:, 2] = 7.0
    still = class_correlation(torch.from_numpy(logits)).numpy()
    assert not still[2].any()
    np.testing.assert_allclose(still[[0, 1]][:, [0, 1]], np.corrcoef(logits[:, :2].T), atol=1e-10)
