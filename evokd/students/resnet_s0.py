"""DisWOT's space S0: CIFAR ResNets of widths 16, 32, 64 with 1, 3, 5 or 7 basic blocks a stage (Dong et al., CVPR 2023; 64 genomes).

Its published table of accuracies belongs to these networks with shortcuts of option B: 0.084 to 0.667 M parameters and 12.5 to 97.4 M
multiply–accumulates at 32×32 and 100 classes.
"""

from __future__ import annotations

import re

from torch import nn

from evokd.errors import EvokdError
from evokd.students import resnet
from evokd.students.space import Cost, Genome, StudentSpace

_SLOTS = {f"blocks{stage}": ("1", "3", "5", "7") for stage in (1, 2, 3)}


def _full(genome: Genome) -> Genome:
    """The same network in the language of `resnet`."""
    return {"block": "basic", "width": "16", **genome}


def _network(genome: Genome, classes: int, channels: int) -> nn.Module:
    return resnet.network(_full(genome), classes, channels)


def _cost(genome: Genome, classes: int, channels: int, side: int) -> Cost:
    return resnet.cost(_full(genome), classes, channels, side)


def flops(genome: Genome, classes: int = 100, channels: int = 3, side: int = 32) -> int:
    """Multiply–accumulates, and one operation for each number that a batch norm, a ReLU, a sum of a block or the pooling works on.

    Conv MACs alone tie between stages (twice the channels on a quarter of the pixels); these operations order them, and with them the
    FLOPs row of DisWOT's table of correlations comes out (Kendall 51.6, Spearman 72.9, Pearson 76.4 with the distilled accuracies).
    """
    half = -(-side // 2)
    sides = (side, half, -(-half // 2))
    operations = 2 * 16 * side**2 + 64 * sides[2] ** 2  # the stem's batch norm and ReLU; the pooling
    for i, width in enumerate((16, 32, 64)):
        layers = 5 * int(genome[f"blocks{i + 1}"])  # two batch norms, two ReLUs and a sum a block
        layers += i > 0  # the batch norm of the projection
        operations += layers * width * sides[i] ** 2
    return _cost(genome, classes, channels, side).macs + operations


def _write(genome: Genome) -> str:
    return "".join(genome[slot] for slot in _SLOTS)


def _read(text: str) -> Genome:
    if not re.fullmatch("[1357]{3}", text):
        raise EvokdError("resnet_s0", "three digits among 1, 3, 5 and 7, such as 713", repr(text)[:40])
    return dict(zip(_SLOTS, text, strict=True))


def _diagram(genome: Genome) -> str:
    return resnet.diagram(_full(genome))


def space() -> StudentSpace:
    """The space S0; written `713`: seven blocks in the first stage, one in the second, three in the third."""
    return StudentSpace("resnet_s0", _SLOTS, _network, _write, _read, _write, _cost, _diagram)
