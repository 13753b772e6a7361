"""MobileNetV2 (Sandler et al., CVPR 2018) as CRD's benchmark has it for 32×32 images: half width, and a stem of stride 2."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# table 2 of the paper: expansion, channels, blocks, stride of the first; the second row strides by 1 for small images
STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
LAST = 1280


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow without an activation; with a shortcut where the shape is kept."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inside = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *_normed(nn.Conv2d(inputs, inside, 1, bias=False)),
            *_normed(nn.Conv2d(inside, inside, 3, stride, 1, groups=inside, bias=False)),
            *_normed(nn.Conv2d(inside, outputs, 1, bias=False), relu=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """(N,C,H,W) → logits (N,K). Keys as in CRD's benchmark (Tian et al., ICLR 2020).

    Args:
        classes: K.
        channels: C.
        width: factor of all channels but the last 1280.
    """

    stage_paths = ("blocks.1", "blocks.2", "blocks.4", "blocks.6")

    def __init__(self, classes: int = 10, channels: int = 3, width: float = 0.5) -> None:
        super().__init__()
        inputs = int(32 * width)
        self.conv1 = nn.Sequential(*_normed(nn.Conv2d(channels, inputs, 3, 2, 1, bias=False)))
        self.blocks = nn.ModuleList()
        for expansion, base, count, stride in STAGES:
            outputs = int(base * width)
            blocks = [
                InvertedResidual(inputs if i == 0 else outputs, outputs, 1 if i else stride, expansion) for i in range(count)
            ]
            self.blocks.append(nn.Sequential(*blocks))
            inputs = outputs
        self.conv2 = nn.Sequential(*_normed(nn.Conv2d(inputs, LAST, 1, bias=False)))
        self.classifier = nn.Sequential(nn.Linear(LAST, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.classifier[0].weight, 0, 0.01)
        nn.init.zeros_(self.classifier[0].bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for stage in self.blocks:
            x = stage(x)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(self.conv2(x), 1), 1))


def _normed(convolution: nn.Conv2d, relu: bool = True) -> list[nn.Module]:
    return [convolution, nn.BatchNorm2d(convolution.out_channels), *([nn.ReLU()] if relu else [])]
