"""What student languages build with: a convolution and its price, initialisation, the classifier, and the check of integer options."""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from evokd.errors import EvokdError


class Conv(NamedTuple):
    """A convolution and the batch norm after it, or its bias where `norm` is off; padded, so that only strides make maps smaller."""

    inputs: int
    outputs: int
    size: int
    stride: int = 1
    groups: int = 1
    norm: bool = True

    def shrink(self, side: int) -> int:
        """Side of the map that comes out."""
        return -(-side // self.stride)

    @property
    def parameters(self) -> int:
        return self.outputs * (self.inputs // self.groups * self.size**2 + (2 if self.norm else 1))

    def macs(self, side: int) -> int:
        """Multiply–accumulates for one map of a side."""
        return self.outputs * (self.inputs // self.groups) * (self.size * self.shrink(side)) ** 2

    def module(self) -> nn.Module:
        """(N,inputs,H,W) → (N,outputs,⌈H/stride⌉,⌈W/stride⌉), without an activation."""
        conv = nn.Conv2d(*self[:4], self.size // 2, groups=self.groups, bias=not self.norm)
        return nn.Sequential(conv, nn.BatchNorm2d(self.outputs)) if self.norm else conv


def chain_cost(convs: Iterable[Conv], side: int) -> tuple[int, int, int]:
    """(parameters, macs, side of the last map) of convolutions one after another."""
    parameters = macs = 0
    for conv in convs:
        parameters, macs, side = parameters + conv.parameters, macs + conv.macs(side), conv.shrink(side)
    return parameters, macs, side


def initialise(network: nn.Module) -> None:
    """Convolutions as in He et al. 2015: normal, variance 2 / (numbers that one input reaches); biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            reach = module.out_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
            nn.init.normal_(module.weight, std=sqrt(2) / sqrt(reach))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def integers(where: str, values: object, low: int, high: int) -> tuple[int, ...]:
    """Distinct integers of an option, in its order.

    Raises:
        EvokdError: no list of integers, an empty one, or one out of range.
    """
    found = tuple(dict.fromkeys(values)) if isinstance(values, list | tuple) and {*map(type, values)} == {int} else ()
    if not found or min(found) < low or max(found) > high:
        raise EvokdError(where, f"integers from {low} to {high}", repr(values)[:60])
    return found


def classify(features: Tensor, fc: nn.Linear) -> tuple[Tensor, Tensor]:
    """(N,D,H,W) → logits (N,K) and the embedding (N,D), the mean over space."""
    embedding = F.adaptive_avg_pool2d(features, 1).flatten(1)
    return fc(embedding), embedding
