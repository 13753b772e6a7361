"""MobileNetV1 (Howard et al., 2017, table 1), the student of the distillation papers' second ImageNet pair."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEM = 32
# output channels and stride of each depthwise separable block
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


def _normed(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


class MobileNetV1(nn.Module):
    """(N,C,H,W) → logits (N,K). Keys as in DKD's benchmark (Zhao et al., CVPR 2022); five strides of 2, made for 224×224.

    Args:
        classes: K.
        channels: C.
    """

    stage_paths = ("model.3", "model.5", "model.11", "model.13")

    def __init__(self, classes: int = 1000, channels: int = 3) -> None:
        super().__init__()
        inputs, layers = STEM, [nn.Sequential(*_normed(channels, STEM, 3, 2))]
        for outputs, stride in BLOCKS:
            depthwise = _normed(inputs, inputs, 3, stride, inputs)
            layers.append(nn.Sequential(*depthwise, *_normed(inputs, outputs, 1)))
            inputs = outputs
        self.model = nn.Sequential(*layers)
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(self.model(x), 1), 1))
