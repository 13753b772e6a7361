"""Wide ResNets for small images (Zagoruyko & Komodakis, BMVC 2016): 6n+4 layers, batch norm and ReLU before every convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3×3 convolutions with their batch norms before them; where the width changes, the shortcut is a 1×1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        side = x if self.convShortcut is None else self.convShortcut(y)  # the widening shortcut starts behind the activation
        return side + self.conv2(F.relu(self.bn2(self.conv1(y))))


class Stage(nn.Module):
    """n blocks, the first of which widens and strides; `layer` is what published weights call them."""

    def __init__(self, inputs: int, outputs: int, blocks: int, stride: int) -> None:
        super().__init__()
        first = Block(inputs, outputs, stride)
        self.layer = nn.Sequential(first, *[Block(outputs, outputs, 1) for _ in range(blocks - 1)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """(N,C,H,W) → logits (N,K). Without dropout; keys as in CRD's benchmark (Tian et al., ICLR 2020).

    Args:
        depth: 6n+4.
        factor: the stages have 16, 32 and 64 channels times this.
        classes: K.
        channels: C.
    """

    stage_paths = ("block1", "block2", "relu")  # the last behind its batch norm, so that its average is the embedding

    def __init__(self, depth: int, factor: int, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        blocks, width = (depth - 4) // 6, 16 * factor
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.block1 = Stage(16, width, blocks, 1)
        self.block2 = Stage(width, 2 * width, blocks, 2)
        self.block3 = Stage(2 * width, 4 * width, blocks, 2)
        self.bn1 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = self.relu(self.bn1(x))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
