"""Networks by name, or from a user's own file."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import torch
from torch import nn

from evokd.errors import EvokdError
from evokd.models.convnet import ConvNet
from evokd.models.from_timm import build_timm
from evokd.models.imagenet_resnet import DEPTHS, ImageNetResNet
from evokd.models.mobilenet_v1 import MobileNetV1
from evokd.models.mobilenet_v2 import MobileNetV2
from evokd.models.resnet import ResNet
from evokd.models.shufflenet import ShuffleNetV1, ShuffleNetV2
from evokd.models.t2t_vit import SIDE, T2TViT
from evokd.models.vgg import CONVOLUTIONS, VGG
from evokd.models.wide_resnet import WideResNet

EXAMPLES = "conv3w8, resnet8w4, resnet56, wrn_40_2, torchvision:resnet18, timm:deit_tiny_patch16_224, or path/to/file.py:callable"
NARROW = 8  # channels; below that channels-last convolutions are not safe
_CONV = re.compile(r"conv3w(\d+)")
_RESNET = re.compile(r"resnet(\d+)(?:w(\d+))?")
_T2T = re.compile(r"t2t_vit_7(?:@(\d+))?")

# The networks of CRD's benchmark by its names, and MobileNetV1: (classes, channels) → network. Its ResNet50 has bottlenecks and four
# stages; `resnet50` in small letters follows the rule of all `resnetD`: basic blocks, three stages.
NAMED: dict[str, Callable[[int, int], nn.Module]] = {
    "resnet8x4": lambda classes, channels: ResNet(8, 64, classes, channels, stem=32),
    "resnet32x4": lambda classes, channels: ResNet(32, 64, classes, channels, stem=32),
    "MobileNetV1": MobileNetV1,
    "MobileNetV2": MobileNetV2,
    "ShuffleNetV1": ShuffleNetV1,
    "ShuffleNetV2": ShuffleNetV2,
}
NAMED |= {f"wrn_{d}_{k}": partial(WideResNet, d, k) for d, k in ((16, 1), (16, 2), (40, 1), (40, 2))}
NAMED |= {name: partial(VGG, convolutions) for name, convolutions in CONVOLUTIONS.items()}
NAMED |= {f"ResNet{depth}": partial(ImageNetResNet, depth) for depth in DEPTHS}


def build(spec: str | Callable[[int], nn.Module], classes: int, channels: int, seed: int, where: str = "--student") -> nn.Module:
    """A freshly initialised network.

    Args:
        spec: `conv3wW` (three plain convolutions), `resnetD` (D = 6n+2, CIFAR layout) or `resnetDwW` of first-stage width W, a name in
            `NAMED`, `t2t_vit_7` or `t2t_vit_7@SIDE` (to which images are resized, else 224), `torchvision:NAME`, `timm:NAME` or
            `timm:NAME@32p4` (images of 32×32 pixels in patches of 4×4), or `file.py:callable`; that, or a callable itself, is called
            with the number of classes.
        classes: K.
        channels: C of the images.
        seed: of the initialisation; the global generator is left as it was.
        where: option named in errors.

    Raises:
        EvokdError: unknown name, or a file that does not give an `nn.Module`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        if callable(spec):
            return spec(classes)
        if ".py:" in spec:
            return _from_file(spec, classes, where)
        if spec.startswith("torchvision:"):
            return _from_torchvision(spec.partition(":")[2], classes, where)
        if spec.startswith("timm:"):
            return build_timm(spec.partition(":")[2], classes, channels, where)
        if spec.startswith("space:"):
            return _from_space(spec, classes, channels, where)
        if spec in NAMED:
            return NAMED[spec](classes, channels)
        if found := _T2T.fullmatch(spec):
            return _t2t_vit(int(found[1] or SIDE), classes, channels, where)
        if (found := _CONV.fullmatch(spec)) and int(found[1]):
            return ConvNet(int(found[1]), classes, channels)
        found = _RESNET.fullmatch(spec)
        if not found or found[2] == "0" or (int(found[1]) - 2) % 6 or not 8 <= int(found[1]) <= 1202:
            near = get_close_matches(spec, [*NAMED, "t2t_vit_7"], n=1, cutoff=0.8)
            hint = f"did you mean {near[0]!r}?" if near else f"for example {EXAMPLES}"
            raise EvokdError(where, "a network", repr(spec), hint)
        return ResNet(int(found[1]), int(found[2] or 16), classes, channels)


def _t2t_vit(side: int, classes: int, channels: int, where: str) -> nn.Module:
    if side % 16 or not 32 <= side <= 1024:
        raise EvokdError(where, "t2t_vit_7@SIDE, a multiple of 16 from 32 to 1024", f"@{side}")
    return T2TViT(classes, channels, side)


def _from_torchvision(name: str, classes: int, where: str) -> nn.Module:
    from torchvision import models

    try:
        return models.get_model(name, weights=None, num_classes=classes)
    except (ValueError, TypeError) as error:
        raise EvokdError(where, "a torchvision model", repr(name), str(error)[:80]) from None


def _from_space(spec: str, classes: int, channels: int, where: str) -> nn.Module:
    """`space:NAME:TEXT`: a student of a space, as a search writes it."""
    from evokd.students import read_student_space

    _, name, text = (*spec.split(":", 2), "", "")[:3]
    try:
        space = read_student_space(name)
        return space.build(space.parse(text), classes, channels)
    except EvokdError as error:
        raise EvokdError(where, f"space:NAME:TEXT, such as space:digits:basic8-1-1-1; {error.expected}", repr(spec)) from None


def _from_file(spec: str, classes: int, where: str) -> nn.Module:
    """Runs a user's file: only ever named on the command line or in code, never by a space or a run folder."""
    path, _, name = spec.rpartition(":")
    if not Path(path).is_file():
        raise EvokdError(where, "an existing Python file", repr(path))
    module_spec = importlib.util.spec_from_file_location(f"evokd_user_{Path(path).stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # dataclasses look their module up
    module_spec.loader.exec_module(module)
    if not callable(getattr(module, name, None)):
        raise EvokdError(
            where,
            f"a callable {name!r} in {path}",
            "none",
            "it has " + ", ".join(n for n in dir(module) if n[0] != "_")[:80],
        )
    network = getattr(module, name)(classes)
    if not isinstance(network, nn.Module):
        raise EvokdError(where, f"{name} to return an nn.Module", type(network).__name__)
    return network


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def layout_of(network: nn.Module, channels_last: bool, device: str) -> torch.memory_format:
    """The memory format of a network that is to be trained: channels-last if wanted, and on a CPU if no convolution is narrow."""
    narrow = device == "cpu" and is_narrow(network)
    return torch.channels_last if channels_last and not narrow else torch.contiguous_format


def is_narrow(network: nn.Module) -> bool:
    """Whether a convolution has fewer than 8 channels, or so few in a group.

    On CPUs without AVX-512 the backward pass of such a convolution writes beyond its buffers if it runs channels-last (seen with torch
    2.14.1), which it does also where only its images have such strides.
    """
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    return any(conv.out_channels < NARROW or conv.groups > 1 for conv in convolutions)
