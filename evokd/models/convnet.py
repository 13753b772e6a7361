"""A plain student: three 3×3 convolutions with batch norm and ReLU, stride 2 before the second and the third."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvNet(nn.Module):
    """(N,C,H,W) → logits (N,K); widths W, 2W and 4W."""

    def __init__(self, width: int, classes: int = 10, channels: int = 1) -> None:
        super().__init__()
        self.stage1 = self._stage(channels, width, 1)
        self.stage2 = self._stage(width, 2 * width, 2)
        self.stage3 = self._stage(2 * width, 4 * width, 2)
        self.fc = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
