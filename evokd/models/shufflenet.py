"""ShuffleNets as CRD's benchmark has them for 32×32 images: a 1×1 stem without stride, three stages of stride 2.

V1: Zhang et al., CVPR 2018, three groups. V2: Ma et al., ECCV 2018, width 1. Keys as in that benchmark (Tian et al., ICLR 2020).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEM = 24
BLOCKS = (4, 8, 4)
GROUPS = 3
WIDTHS_V1 = (240, 480, 960)
WIDTHS_V2 = (116, 232, 464)
LAST_V2 = 1024


def shuffled(x: Tensor, groups: int) -> Tensor:
    """(N,C,H,W) with its channels dealt out: the i-th of every group, then the next."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def _pointwise(inputs: int, outputs: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, groups=groups, bias=False)


def _depthwise(width: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False)


class BlockV1(nn.Module):
    """Grouped 1×1, shuffle, depthwise 3×3, grouped 1×1; added to the input, or set beside its average where it strides."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        made = outputs - inputs if stride == 2 else outputs
        inside = made // 4
        self.stride, self.groups = stride, 1 if inputs == STEM else GROUPS
        self.conv1, self.bn1 = _pointwise(inputs, inside, self.groups), nn.BatchNorm2d(inside)
        self.conv2, self.bn2 = _depthwise(inside, stride), nn.BatchNorm2d(inside)
        self.conv3, self.bn3 = _pointwise(inside, made, GROUPS), nn.BatchNorm2d(made)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = shuffled(F.relu(self.bn1(self.conv1(x))), self.groups)
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return self.relu(torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1) if self.stride == 2 else y + x)


class ShuffleNetV1(nn.Module):
    """(N,C,H,W) → logits (N,K)."""

    stage_paths = ("layer1", "layer2", "layer3")

    def __init__(self, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = _pointwise(channels, STEM), nn.BatchNorm2d(STEM), nn.ReLU()
        widths = (STEM, *WIDTHS_V1)
        for i, count in enumerate(BLOCKS):
            blocks = [BlockV1(widths[i + 1] if j else widths[i], widths[i + 1], 1 if j else 2) for j in range(count)]
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class BlockV2(nn.Module):
    """Half of the channels pass, the others go through 1×1, depthwise 3×3 and 1×1; shuffled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1, self.bn1 = _pointwise(half, half), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = _depthwise(half, 1), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = _pointwise(half, half), nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        kept, y = x.chunk(2, 1)
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(y)))))
        return shuffled(torch.cat([kept, F.relu(self.bn3(self.conv3(y)))], 1), 2)


class DownV2(nn.Module):
    """Two branches of stride 2, each with half of the outputs; shuffled."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1, self.bn1 = _depthwise(inputs, 2), nn.BatchNorm2d(inputs)
        self.conv2, self.bn2 = _pointwise(inputs, half), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = _pointwise(inputs, half), nn.BatchNorm2d(half)
        self.conv4, self.bn4 = _depthwise(half, 2), nn.BatchNorm2d(half)
        self.conv5, self.bn5 = _pointwise(half, half), nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x)))))
        return shuffled(torch.cat([left, F.relu(self.bn5(self.conv5(right)))], 1), 2)


class ShuffleNetV2(nn.Module):
    """(N,C,H,W) → logits (N,K)."""

    stage_paths = ("layer1", "layer2", "layer3")

    def __init__(self, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = _pointwise(channels, STEM), nn.BatchNorm2d(STEM), nn.ReLU()
        widths = (STEM, *WIDTHS_V2)
        for i, count in enumerate(BLOCKS):
            blocks = [DownV2(widths[i], widths[i + 1]), *[BlockV2(widths[i + 1]) for _ in range(count - 1)]]
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.conv2, self.bn2 = _pointwise(widths[-1], LAST_V2), nn.BatchNorm2d(LAST_V2)
        self.linear = nn.Linear(LAST_V2, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
