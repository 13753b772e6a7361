"""CIFAR ResNets (He et al., CVPR 2016, section 4.2): 6n+2 layers in three stages, stride 2 between them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut: identity, 1×1 convolution with batch norm (B), or padded zeros (A)."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()  # a module, so that its input can be tapped
        self.stride, self.extra = stride, outputs - inputs
        self.downsample = None
        if (stride > 1 or self.extra) and shortcut == "B":
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        if self.downsample is not None:
            return self.downsample(x)
        if self.stride == 1 and not self.extra:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))


class ResNet(nn.Module):
    """(N,C,H,W) → logits (N,K).

    Args:
        depth: 6n+2.
        width: channels of the first stage; the others have 2 and 4 times as many.
        classes: K.
        channels: C.
        shortcut: "A" or "B".
        stem: channels before the first stage, if they are others than its own, as in ResNet-8×4.
    """

    def __init__(
        self, depth: int, width: int = 16, classes: int = 10, channels: int = 3, shortcut: str = "B", stem: int | None = None
    ) -> None:
        super().__init__()
        blocks, stem = (depth - 2) // 6, stem or width
        self.conv1 = nn.Conv2d(channels, stem, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = self._stage(stem, width, blocks, 1, shortcut)
        self.layer2 = self._stage(width, 2 * width, blocks, 2, shortcut)
        self.layer3 = self._stage(2 * width, 4 * width, blocks, 2, shortcut)
        self.fc = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int, shortcut: str) -> nn.Sequential:
        first = Block(inputs, outputs, stride, shortcut)
        return nn.Sequential(first, *[Block(outputs, outputs, 1, shortcut) for _ in range(blocks - 1)])

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
