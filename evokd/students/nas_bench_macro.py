"""NAS-Bench-Macro (Su et al., CVPR 2021): eight layers in three stages, each an identity or a MobileNetV2 block; 6,561 networks.

The first layer of a stage halves the maps and doubles the channels; there the identity is a 1×1 convolution with batch norm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from torch import Tensor, nn

from evokd.errors import EvokdError
from evokd.losses.taps import Taps
from evokd.students.layers import Conv, chain_cost, classify, integers
from evokd.students.space import Cost, Genome, StudentSpace

LAYERS = (2, 3, 3)  # in each stage
BLOCKS = {"identity": None, "mb3_k3": (3, 3), "mb6_k5": (6, 5)}  # (expansion, kernel), in the order of the benchmark's digits
SLOTS = tuple(f"layer{i + 1}" for i in range(sum(LAYERS)))
LAST = 1280  # channels of the map before the classifier


def space(channels: int = 32) -> StudentSpace:
    """All networks of a given width, written as the benchmark's eight digits; the benchmark's own width is the default.

    Args:
        channels: of the stem; the stages have 2, 4 and 8 times as many.

    Raises:
        EvokdError: a number out of range.
    """
    integers("nas_bench_macro, channels", [channels], 1, 1024)
    return StudentSpace(
        name="nas_bench_macro",
        slots=dict.fromkeys(SLOTS, tuple(BLOCKS)),
        network=partial(Network, channels),
        write=write,
        read=read,
        key_of=key_of,
        cost=partial(cost, channels),
        diagram=partial(diagram, channels),
    )


def write(genome: Genome) -> str:
    """A digit for each layer: 0 identity, 1 expansion 3 with kernel 3, 2 expansion 6 with kernel 5."""
    return "".join(str(list(BLOCKS).index(genome[slot])) for slot in SLOTS)


def read(text: str) -> Genome:
    """The inverse of `write`.

    Raises:
        EvokdError: anything but eight of these digits.
    """
    if len(text) != len(SLOTS) or set(text) - set("012"):
        raise EvokdError("nas_bench_macro", f"{len(SLOTS)} digits from 0 to 2", repr(text)[:40])
    return {slot: list(BLOCKS)[int(digit)] for slot, digit in zip(SLOTS, text, strict=True)}


def by_stage(layers: Sequence) -> list[Sequence]:
    """What belongs to the eight layers, parted into the stages."""
    ends = [sum(LAYERS[: i + 1]) for i in range(len(LAYERS))]
    return [layers[end - count : end] for end, count in zip(ends, LAYERS, strict=True)]


def key_of(genome: Genome) -> str:
    """The digits of each stage but for the identities after its first layer, which do nothing: 3,969 networks."""
    return "-".join(digits[0] + digits[1:].replace("0", "") for digits in by_stage(write(genome)))


def _layers(width: int, genome: Genome) -> Iterator[list[Conv]]:
    """The convolutions of each layer, one after another."""
    for slots in by_stage(SLOTS):
        for slot, stride in zip(slots, (2, 1, 1), strict=False):
            yield list(_convs(width, stride, BLOCKS[genome[slot]]))
            width *= stride


def _convs(inputs: int, stride: int, block: tuple[int, int] | None) -> Iterator[Conv]:
    """A layer that gives `inputs · stride` channels."""
    if block:
        expansion, kernel = block
        hidden = inputs * expansion
        yield Conv(inputs, hidden, 1)
        yield Conv(hidden, hidden, kernel, stride, hidden)
        yield Conv(hidden, inputs * stride, 1)
    elif stride > 1:
        yield Conv(inputs, inputs * stride, 1, stride)


def cost(width: int, genome: Genome, classes: int, channels: int, side: int) -> Cost:
    """In closed form, equal to the benchmark's parameters and FLOPs, which are multiply–accumulates without the classifier's bias."""
    layers = [conv for layer in _layers(width, genome) for conv in layer]
    convs = [Conv(channels, width, 3), *layers, Conv(8 * width, LAST, 1)]
    parameters, macs, _ = chain_cost(convs, side)
    parameters += (LAST + 1) * classes
    return Cost(parameters, macs + LAST * classes, live_parameters=parameters, depth=len(convs) + 1)


def diagram(width: int, genome: Genome) -> str:
    """One line a stage."""
    lines = [f"image → conv 3×3, {width} channels"]
    for i, slots in enumerate(by_stage(SLOTS), 1):
        lines.append(f"  → ÷{2**i}, {width * 2**i} channels: " + ", ".join(genome[slot] for slot in slots))
    return "\n".join([*lines, f"  → conv 1×1, {LAST} channels → mean → classifier"])


class Layer(nn.Module):
    """Convolutions with a ReLU between them; an inverted block whose shape stays is added to its input."""

    def __init__(self, convs: Sequence[Conv]) -> None:
        super().__init__()
        parts = [part for conv in convs for part in (nn.ReLU(), conv.module())]
        self.convs = nn.Sequential(*parts[1:])
        self.residual = len(convs) > 1 and all(conv.stride == 1 for conv in convs)

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x) + x if self.residual else self.convs(x)


class Network(nn.Module):
    """(N,channels,H,W) → Taps with logits (N,classes), embedding (N,1280) and the maps of two stages and of the last convolution."""

    def __init__(self, width: int, genome: Genome, classes: int, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(Conv(channels, width, 3).module(), nn.ReLU())
        layers = [Layer(convs) for convs in _layers(width, genome)]
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in by_stage(layers))
        self.last = nn.Sequential(Conv(8 * width, LAST, 1).module(), nn.ReLU())
        self.classifier = nn.Linear(LAST, classes)

    def forward(self, images: Tensor) -> Taps:
        x, features = self.stem(images), []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        features[-1] = self.last(x)
        logits, embedding = classify(features[-1], self.classifier)
        return Taps(logits, embedding, tuple(features), head=(self.classifier.weight, self.classifier.bias))
