import pytest
import torch
from torch import nn

from evokd.errors import EvokdError
from evokd.models.resnet import ResNet
from evokd.scores import initialise
from evokd.scores.initialise import MODES
from evokd.streams import derive


def weights(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


@pytest.mark.parametrize("mode", MODES)
def test_weights_come_from_the_seed_alone(mode):
    before = torch.random.get_rng_state()
    first, second = ResNet(8, 4, 10), ResNet(8, 4, 10)
    made = torch.random.get_rng_state()
    assert not torch.equal(weights(first), weights(second))
    for network in (first, second):
        network(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))  # moves the batch norms
        assert initialise(network, mode, derive(0, "8-4")) is network
    assert torch.equal(torch.random.get_rng_state(), made)
    assert torch.equal(weights(first), weights(second))
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers(), strict=True))
    assert not torch.equal(weights(first), weights(initialise(second, mode, derive(0, "8-8"))))
    assert not torch.equal(before, made)


def test_the_modes_are_what_they_say():
    network = ResNet(14, 16, 100)
    deviation = {}
    for mode in MODES:
        initialise(network, mode, 0)
        deviation[mode] = (network.layer3[1].conv1.weight.std().item(), network.fc.weight.std().item())
        assert network.bn1.weight.eq(1).all()
        assert network.bn1.bias.eq(0).all()
    fan = 64 * 9
    uniform = (3 * fan) ** -0.5, (3 * 64) ** -0.5  # deviation of U(−1/√fan, 1/√fan)
    assert deviation["default"] == pytest.approx(uniform, rel=0.05)
    assert deviation["kaiming"] == pytest.approx(((2 / fan) ** 0.5, uniform[1]), rel=0.05)
    assert deviation["gaussian"] == pytest.approx((1, 1), rel=0.05)
    assert network.fc.bias.eq(0).all()


def test_frozen_weights_are_drawn_too_and_stay_frozen():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).requires_grad_(False)
    before = weights(network)
    initialise(network, "gaussian", 1)
    assert not torch.equal(before, weights(network))
    assert not network[0].weight.requires_grad


def test_an_unknown_mode_is_said():
    with pytest.raises(EvokdError, match="kaiming"):
        initialise(ResNet(8, 4, 10), "kaimin", 0)
