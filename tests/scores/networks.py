"""Tiny students in double precision, whose activations a test can list by itself."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from evokd.losses.taps import Taps

N, CLASSES, SIDE = 6, 5, 8


class Block(nn.Module):
    """Two convolutions; a ReLU as a module in place, one as a function, one as a method in place."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        return F.relu(self.conv2(self.act(self.bn1(self.conv1(x))))) * 0.5


class Tiny(nn.Module):
    """(N,3,H,W) → Taps of three stages, the last of `width` channels."""

    def __init__(self, width=4, classes=CLASSES, seed=0, dropout=0.0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem, self.norm = nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4)
            self.stages = nn.ModuleList(
                [nn.Sequential(Block(4, 4, 1)), nn.Sequential(Block(4, width, 2), Block(width, width, 1))]
            )
            self.drop, self.fc = nn.Dropout(dropout), nn.Linear(width, classes)
        self.calls = 0
        self.double()

    def maps(self, x):
        """Every map after the stem's ReLU and each block, and the output of every ReLU in order."""
        x = self.norm(self.stem(x)).relu_()
        maps, relus = [x], [x]
        for block in (block for stage in self.stages for block in stage):
            inner = block.act(block.bn1(block.conv1(x)))
            outer = F.relu(block.conv2(inner))
            x = outer * 0.5
            maps, relus = [*maps, x], [*relus, inner, outer]
        return maps, relus

    def forward(self, x):
        self.calls += 1
        x = self.norm(self.stem(x)).relu_()
        features = [x]
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        embedding = self.drop(x.mean((2, 3)))
        return Taps(self.fc(embedding), embedding, tuple(features), head=(self.fc.weight, self.fc.bias))


class Bare(Tiny):
    """The same, giving logits alone."""

    def forward(self, x):
        return super().forward(x).logits


class Chain(nn.Module):
    """Linear layers with nothing between them; (N,1,1,D) → logits."""

    def __init__(self, *sizes):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in pairwise(sizes)))
        self.double()

    def forward(self, x):
        x = x.flatten(1)
        embedding = self.layers[:-1](x)
        return Taps(self.layers[-1](embedding), embedding)


def batch(n=N, seed=0, side=SIDE, channels=3):
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(n, channels, side, side, generator=draw, dtype=torch.float64)
    return images, torch.randint(CLASSES, (n,), generator=draw)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def value(name, student, teacher=None, images=None, labels=None, seed=0):
    from evokd.scores import SCORES

    if images is None:
        images, labels = batch()
    return SCORES[name].fn(student, teacher, images, labels, generator(seed))
