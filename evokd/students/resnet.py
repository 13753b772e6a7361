"""Residual students of three stages: how deep each stage, how wide the first, and which block (He et al., CVPR 2016, section 4.2).

Stages have w, 2w and 4w channels whatever the block, with stride 2 between them and projections (option B) where shapes change.
With `basic` blocks, width 16 and n blocks a stage this is the CIFAR ResNet of 6n+2 layers, with the same names of weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from torch import Tensor, nn

from evokd.errors import EvokdError, unknown
from evokd.losses.taps import Taps
from evokd.models.resnet import Block
from evokd.students.layers import Conv, chain_cost, classify, initialise, integers
from evokd.students.space import Cost, Genome, StudentSpace


def basic(inputs: int, outputs: int, stride: int) -> list[Conv]:
    """Two 3×3 convolutions."""
    return [Conv(inputs, outputs, 3, stride), Conv(outputs, outputs, 3)]


def bottleneck(inputs: int, outputs: int, stride: int) -> list[Conv]:
    """1×1 to a quarter of the outputs (no fewer than four channels), 3×3, and 1×1 back."""
    inner = max(4, outputs // 4)
    return [Conv(inputs, inner, 1), Conv(inner, inner, 3, stride), Conv(inner, outputs, 1)]


def mobile(inputs: int, outputs: int, stride: int) -> list[Conv]:
    """The basic block with either convolution separated into depthwise 3×3 and 1×1 (Howard et al. 2017)."""
    first = [Conv(inputs, inputs, 3, stride, inputs), Conv(inputs, outputs, 1)]
    return [*first, Conv(outputs, outputs, 3, 1, outputs), Conv(outputs, outputs, 1)]


BODIES = {"basic": basic, "bottleneck": bottleneck, "mobile": mobile}


def projection(inputs: int, outputs: int, stride: int) -> list[Conv]:
    """The convolution of a shortcut whose shape changes; none where it does not."""
    return [Conv(inputs, outputs, 1, stride)] if stride > 1 or inputs != outputs else []


class Residual(nn.Module):
    """Convolutions with a ReLU between them, a shortcut around them, and a ReLU on the sum."""

    def __init__(self, body: Sequence[Conv], shortcut: Sequence[Conv]) -> None:
        super().__init__()
        parts = [part for conv in body for part in (nn.ReLU(), conv.module())]
        self.body = nn.Sequential(*parts[1:])
        self.downsample = nn.Sequential(*(conv.module() for conv in shortcut))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.downsample(x))


class StagedResNet(nn.Module):
    """(N,C,H,W) → `Taps`; each of the three stages is tapped before and after its last ReLU.

    That ReLU belongs to the network rather than to the stage's last block, so that both sides of it can be shown.
    """

    def __init__(self, block: str, width: int, blocks: Sequence[int], classes: int, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = Conv(channels, width, 3).module()
        self.relu = nn.ReLU()
        self.layer1, self.layer2, self.layer3 = (_stage(block, shapes) for shapes in _stages(width, blocks))
        self.relus = nn.ModuleList(nn.ReLU() for _ in blocks)
        self.fc = nn.Linear(4 * width, classes)
        initialise(self)

    def forward(self, images: Tensor) -> Taps:
        x, before, after = self.relu(self.bn1(self.conv1(images))), [], []
        for stage, relu in zip((self.layer1, self.layer2, self.layer3), self.relus, strict=True):
            before.append(stage(x))
            x = relu(before[-1])
            after.append(x)
        logits, embedding = classify(x, self.fc)
        return Taps(logits, embedding, tuple(after), pre_relu=tuple(before), head=(self.fc.weight, self.fc.bias))


def _stages(width: int, blocks: Sequence[int]) -> Iterator[list[tuple[int, int, int]]]:
    """For each stage the (inputs, outputs, stride) of its blocks."""
    for stage, count in enumerate(blocks):
        outputs = width * 2**stage
        first = (max(width, outputs // 2), outputs, 2 if stage else 1)
        yield [first] + [(outputs, outputs, 1)] * (count - 1)


def _stage(block: str, shapes: Sequence[tuple[int, int, int]]) -> nn.Sequential:
    """Blocks, the last one without its ReLU."""
    if block == "basic":
        stage = nn.Sequential(*(Block(*shape, "B") for shape in shapes))
    else:
        stage = nn.Sequential(*(Residual(BODIES[block](*shape), projection(*shape)) for shape in shapes))
    stage[-1].relu = nn.Identity()
    return stage


def _parts(genome: Genome) -> tuple[str, int, list[int]]:
    return genome["block"], int(genome["width"]), [int(genome[f"blocks{i}"]) for i in (1, 2, 3)]


def network(genome: Genome, classes: int, channels: int) -> nn.Module:
    block, width, blocks = _parts(genome)
    return StagedResNet(block, width, blocks, classes, channels)


def cost(genome: Genome, classes: int, channels: int, side: int) -> Cost:
    """Every parameter is live; the depth is 2 and the convolutions of all blocks, shortcuts left out."""
    block, width, blocks = _parts(genome)
    stem = Conv(channels, width, 3)
    parameters, macs = stem.parameters + (4 * width + 1) * classes, stem.macs(side) + 4 * width * classes
    for shape in (shape for stage in _stages(width, blocks) for shape in stage):
        extra, extra_macs, _ = chain_cost(projection(*shape), side)
        body, body_macs, side = chain_cost(BODIES[block](*shape), side)
        parameters, macs = parameters + body + extra, macs + body_macs + extra_macs
    return Cost(parameters, macs, parameters, 2 + sum(blocks) * len(BODIES[block](1, 1, 1)))


def diagram(genome: Genome) -> str:
    """One line a stage, one square a block."""
    block, width, blocks = _parts(genome)
    lines = [f"÷{2**i} {width * 2**i:4d}  {'■' * count} {block}" for i, count in enumerate(blocks)]
    return "\n".join([f"÷1 {width:4d}  □ 3×3", *lines, "mean over space, linear"])


def write(genome: Genome) -> str:
    return "{block}{width}-{blocks1}-{blocks2}-{blocks3}".format_map(genome)


def read(slots: Mapping[str, tuple[str, ...]], text: str) -> Genome:
    """The inverse of `write`.

    Raises:
        EvokdError: another form, or a choice that the space does not have.
    """
    form = "({block})({width})-({blocks1})-({blocks2})-({blocks3})"
    found = re.fullmatch(form.format_map({slot: "|".join(choices) for slot, choices in slots.items()}), text)
    if not found:
        choices = "; ".join(f"{slot}: {', '.join(values)}" for slot, values in slots.items())
        raise EvokdError("resnet", "BLOCKWIDTH-BLOCKS1-BLOCKS2-BLOCKS3", repr(text)[:40], choices)
    return dict(zip(slots, found.groups(), strict=True))


def space(
    *,
    blocks: Sequence[int] = (1, 2, 3, 5, 7, 9),
    widths: Sequence[int] = (8, 12, 16, 24, 32),
    kinds: Sequence[str] = tuple(BODIES),
) -> StudentSpace:
    """The space of residual students; written `basic16-3-3-3`.

    Args:
        blocks: choices of the number of blocks, the same for each stage.
        widths: choices of the first stage's channels.
        kinds: choices of the block, among basic, bottleneck and mobile.

    Raises:
        EvokdError: an option out of range.
    """
    depths = tuple(str(count) for count in integers("resnet, blocks", blocks, 1, 200))
    channels = tuple(str(width) for width in integers("resnet, widths", widths, 1, 4096))
    if not isinstance(kinds, list | tuple) or not kinds:
        raise EvokdError("resnet, kinds", "a list of blocks", repr(kinds)[:60])
    for kind in kinds:
        if not isinstance(kind, str) or kind not in BODIES:
            raise unknown("resnet, kinds", "a block", str(kind), BODIES)
    slots = {"block": tuple(dict.fromkeys(kinds)), "width": channels, "blocks1": depths, "blocks2": depths, "blocks3": depths}
    return StudentSpace("resnet", slots, network, write, partial(read, slots), write, cost, diagram)
