import torch

from evokd.models.tapping import Tapped, plan_taps
from evokd.models.zoo import build, parameters


def test_the_parameter_count_is_the_published_one():
    """4.2 M (Howard et al. 2017, table 8), counted from its table 1 with two figures a channel for batch norm."""
    total, i = 27 * 32 + 2 * 32, 32
    for o in (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024):
        total += 9 * i + 2 * i + i * o + 2 * o
        i = o
    found = parameters(build("MobileNetV1", 1000, 3, 0))
    assert found == total + 1024 * 1000 + 1000
    assert round(found / 1e6, 1) == 4.2


def test_stages_are_those_of_the_benchmark():
    """128, 256, 512 and 1024 channels, as DKD's benchmark taps it, at a quarter of the side and less."""
    network, images = build("MobileNetV1", 10, 3, 0).eval(), torch.randn(2, 3, 64, 64)
    with Tapped(network, plan_taps(network, images)) as tapped, torch.no_grad():
        taps = tapped(images)
    assert [tuple(f.shape[1:]) for f in taps.features] == [(128, 16, 16), (256, 8, 8), (512, 4, 4), (1024, 2, 2)]
    assert torch.allclose(taps.features[-1].mean((2, 3)), taps.embedding, atol=1e-5)
    for before, after in zip(taps.pre_relu, taps.features, strict=True):
        assert torch.equal(before.relu(), after)
