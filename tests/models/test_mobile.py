"""Mobile networks for small images: torchvision's own where images are large, and what is scaled where they are not."""

import pytest
import torch
from torch import nn
from torchvision import models

from evokd.errors import EvokdError
from evokd.models.mobile import DESIGNS, build_mobile
from evokd.models.zoo import parameters
from evokd.students.cost import measure


@pytest.mark.parametrize("design", DESIGNS)
def test_at_full_size_they_are_torchvisions(design):
    theirs = {"mobilenet_v2": models.mobilenet_v2, "mnasnet": models.mnasnet1_0, "mobilenet_v3": models.mobilenet_v3_small}[
        design
    ]
    assert measure(build_mobile(f"{design}x1", 1000, 3, 224), (1, 3, 224, 224)) == measure(theirs(), (1, 3, 224, 224))


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize(("side", "channels", "last"), [(8, 1, 2), (28, 1, 4), (32, 3, 4), (64, 3, 4)])
def test_the_last_maps_of_small_images_are_not_single_points(design, side, channels, last):
    network = build_mobile(f"{design}x0.25", 7, channels, side).eval()
    seen = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, i, out: seen.append(out.shape[-1]))
    with torch.no_grad():
        out = network(torch.zeros(2, channels, side, side))
    assert out.shape == (2, 7)
    assert min(size for size in seen if size > 1) == last  # squeeze-and-excitation works on single points


@pytest.mark.parametrize("design", DESIGNS)
def test_all_parts_scale_with_the_width(design):
    sizes = [parameters(build_mobile(f"{design}x{width}", 10, 1, 8)) for width in (0.1, 0.25, 0.5, 1)]
    assert sizes == sorted(sizes)
    assert sizes[0] < 100_000 < 1_000_000 < sizes[-1]


@pytest.mark.parametrize("spec", ["mobilenet_v2", "mobilenet_v2x0", "x1", "mobilenet_v4x1", "mnasnetx-1", ""])
def test_other_forms_are_refused(spec):
    with pytest.raises(EvokdError, match="design"):
        build_mobile(spec, 10, 3, 32)
