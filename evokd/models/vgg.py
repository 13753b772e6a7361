"""VGG for small images (Simonyan & Zisserman, ICLR 2015, with batch norm): five blocks of 3×3 convolutions and one linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {  # name → convolutions a block; vgg8 is CRD's own "S", the others the paper's A, B, D and E
    "vgg8": (1, 1, 1, 1, 1),
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


class VGG(nn.Module):
    """(N,C,H,W) → logits (N,K). Keys as in CRD's benchmark (Tian et al., ICLR 2020), where its variant is `vgg8_bn`, ….

    Pooled after the first three blocks, so that the last two share a resolution; averaged at the end.
    """

    stage_paths = ("relu1", "relu2", "relu3", "relu4")

    def __init__(self, convolutions: tuple[int, ...], classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        inputs = (channels, *WIDTHS)
        for i, count in enumerate(convolutions):
            setattr(self, f"block{i}", _block(inputs[i], WIDTHS[i], count))
            setattr(self, f"relu{i}", nn.ReLU())  # outside the block: what published weights count as its parts ends before
        self.pool = nn.MaxPool2d(2)
        self.classifier = nn.Linear(WIDTHS[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.classifier.weight, 0, 0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(len(WIDTHS)):
            x = getattr(self, f"relu{i}")(getattr(self, f"block{i}")(x))
            x = self.pool(x) if i < 3 else x
        return self.classifier(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


def _block(inputs: int, outputs: int, count: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU, …, without the last ReLU."""
    layers: list[nn.Module] = []
    for i in range(count):
        layers += [nn.Conv2d(inputs if i == 0 else outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
