"""Human-designed mobile networks of torchvision for images of any size: MobileNetV2, MNASNet, MobileNetV3.

They are made for 224×224. Here the first strides are 1 where images are small, so that the last maps are 4×4 or more (2×2 for images below
16×16), and the channels of the head scale with the width as all others do: with 1,280 of them a small student would be all head. Dropout
is left out: it draws from torch's global generator, and short trainings have no use for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import nn
from torchvision import models
from torchvision.ops import Conv2dNormActivation

from evokd.errors import EvokdError, unknown

HEAD = 1280
_FORM = re.compile(r"(\w+)x(\d+(?:\.\d+)?)", re.ASCII)

DESIGNS: dict[str, Callable[[float, int], nn.Module]] = {
    "mobilenet_v2": lambda width, classes: models.mobilenet_v2(width_mult=width, num_classes=classes),
    "mnasnet": lambda width, classes: models.MNASNet(width, classes),
    "mobilenet_v3": lambda width, classes: models.mobilenet_v3_small(width_mult=width, num_classes=classes),
}


def build_mobile(spec: str, classes: int, channels: int, side: int) -> nn.Module:
    """A network initialised from torch's global generator; it maps (N,C,H,W) to (N,K).

    Args:
        spec: design and width, such as `mobilenet_v2x0.5`; `mobilenet_v3` is the small one.
        classes: K.
        channels: C of the images.
        side: H and W of the images, at least 4.

    Raises:
        EvokdError: another form, an unknown design, or a width of 0.
    """
    found = _FORM.fullmatch(spec)
    if not found or not float(found[2]) > 0:
        raise EvokdError("design", "NAMExWIDTH, such as mobilenet_v2x0.5", repr(spec)[:40])
    if found[1] not in DESIGNS:
        raise unknown("design", "a design", found[1], DESIGNS)
    width = float(found[2])
    network = DESIGNS[found[1]](width, classes)
    _narrow_head(network, found[1], width, classes)
    _fit_images(network, channels, side)
    for name, module in list(network.classifier.named_children()):
        if isinstance(module, nn.Dropout):
            network.classifier[int(name)] = nn.Identity()
    return network


def _narrow_head(network: nn.Module, design: str, width: float, classes: int) -> None:
    """The head's 1,280 channels times the width; MobileNetV3's scale by themselves."""
    channels = max(8, round(HEAD * width / 8) * 8)
    if design == "mobilenet_v2":
        last = network.features[-1]
        network.features[-1] = Conv2dNormActivation(last[0].in_channels, channels, 1, activation_layer=nn.ReLU6)
    elif design == "mnasnet":
        network.layers[14] = nn.Conv2d(network.layers[14].in_channels, channels, 1, bias=False)
        network.layers[15] = nn.BatchNorm2d(channels)
    if design != "mobilenet_v3":
        network.classifier[1] = nn.Linear(channels, classes)


def _fit_images(network: nn.Module, channels: int, side: int) -> None:
    """Images of any number of channels at the stem; of the strides of 2 the last ones are kept."""
    convolutions = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    strided = [module for _, module in convolutions if module.stride == (2, 2)]
    kept, least = 0, 2 if side < 16 else 4
    while -(-side // 2 ** (kept + 1)) >= least:
        kept += 1
    for module in strided[: max(0, len(strided) - kept)]:
        module.stride = (1, 1)
    name, stem = convolutions[0]
    home, _, attribute = name.rpartition(".")
    fresh = nn.Conv2d(channels, stem.out_channels, stem.kernel_size, stem.stride, stem.padding, bias=stem.bias is not None)
    nn.init.kaiming_normal_(fresh.weight, mode="fan_out")
    setattr(network.get_submodule(home), attribute, fresh)
