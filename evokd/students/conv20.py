"""AKD's toy space: a chain of twenty convolutions, each with its filters, size and stride (Liu et al., CVPR 2020; 24²⁰ genomes).

Almost every genome asks for more strides than an image has pixels: of uniformly drawn ones, 2 % have the five or fewer that 32×32 bears.
They are repaired, not refused: the first strides are kept as long as their product is at most the side of the images.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product

from torch import Tensor, nn

from evokd.errors import EvokdError
from evokd.losses.taps import Taps
from evokd.students.layers import Conv, chain_cost, classify, initialise, integers
from evokd.students.space import Cost, Genome, StudentSpace

FIELDS = ("filters", "size", "stride")


class Chain(nn.Module):
    """(N,C,H,W) → `Taps`; convolution, batch norm and ReLU, layer after layer.

    A stage is a run of layers of one resolution; its last layer is tapped, before and after the ReLU.
    """

    def __init__(self, convs: Sequence[Conv], classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(conv.module() for conv in convs)
        self.relus = nn.ModuleList(nn.ReLU() for _ in convs)
        self.ends = [i for i in range(len(convs)) if i + 1 == len(convs) or convs[i + 1].stride > 1]
        self.fc = nn.Linear(convs[-1].outputs, classes)
        initialise(self)

    def forward(self, images: Tensor) -> Taps:
        x, before, after = images, [], []
        for i, (layer, relu) in enumerate(zip(self.layers, self.relus, strict=True)):
            y = layer(x)
            x = relu(y)
            if i in self.ends:
                before.append(y)
                after.append(x)
        logits, embedding = classify(x, self.fc)
        return Taps(logits, embedding, tuple(after), pre_relu=tuple(before), head=(self.fc.weight, self.fc.bias))


def repair(genome: Genome, side: int = 32) -> Genome:
    """The genome that is built: each stride 2 is kept while the product of the strides is at most `side`, later ones become 1."""
    fixed, scale = dict(genome), 1
    for i in range(len(genome) // 3):
        if genome[f"layer{i + 1}.stride"] == "2":
            scale *= 2
            fixed[f"layer{i + 1}.stride"] = "2" if scale <= side else "1"
    return fixed


def _rows(genome: Genome) -> list[tuple[str, ...]]:
    """(filters, size, stride) of each layer."""
    return [tuple(genome[f"layer{i + 1}.{field}"] for field in FIELDS) for i in range(len(genome) // 3)]


def _convs(genome: Genome, channels: int, side: int) -> list[Conv]:
    convs: list[Conv] = []
    for row in _rows(repair(genome, side)):
        convs.append(Conv(convs[-1].outputs if convs else channels, *map(int, row)))
    return convs


def _network(limit: int, genome: Genome, classes: int, channels: int) -> nn.Module:
    return Chain(_convs(genome, channels, limit), classes)


def _cost(limit: int, genome: Genome, classes: int, channels: int, side: int) -> Cost:
    convs = _convs(genome, channels, limit)
    parameters, macs, _ = chain_cost(convs, side)
    width = convs[-1].outputs
    parameters += (width + 1) * classes
    return Cost(parameters, macs + width * classes, parameters, len(convs) + 1)


def _write(genome: Genome) -> str:
    return " ".join("{}k{}s{}".format(*row) for row in _rows(genome))


def _read(slots: Mapping[str, tuple[str, ...]], text: str) -> Genome:
    words, layers = text.split(), len(slots) // 3
    if len(words) != layers:
        raise EvokdError("conv20", f"{layers} words, each a layer such as 24k3s1", f"{len(words)} words")
    return {slot: choice for i, word in enumerate(words, 1) for slot, choice in _layer(slots, i, word).items()}


def _layer(slots: Mapping[str, tuple[str, ...]], i: int, word: str) -> Genome:
    fields = [f"layer{i}.{field}" for field in FIELDS]
    found = re.fullmatch(r"(\d+)k(\d+)s(\d+)", word, re.ASCII)
    layer = dict(zip(fields, found.groups(), strict=True)) if found else {}
    if not layer or any(choice not in slots[slot] for slot, choice in layer.items()):
        filters, sizes, strides = (",".join(slots[field]) for field in fields)
        choices = f"filters of {filters}, size of {sizes}, stride of {strides}"
        raise EvokdError(f"conv20, layer {i}", f"FILTERSkSIZEsSTRIDE, {choices}", repr(word)[:40])
    return layer


def _key(limit: int, genome: Genome) -> str:
    return _write(repair(genome, limit))


def _diagram(limit: int, genome: Genome) -> str:
    """One line a resolution."""
    stages: dict[int, list[str]] = {}
    scale = 1
    for conv in _convs(genome, 1, limit):
        scale *= conv.stride
        stages.setdefault(scale, []).append(f"{conv.outputs}k{conv.size}")
    return "\n".join([*(f"÷{scale:<3d} {' '.join(words)}" for scale, words in stages.items()), "mean over space, linear"])


def space(
    *, layers: int = 20, filters: Sequence[int] = (24, 36, 48, 64), sizes: Sequence[int] = (3, 5, 7), side: int = 32
) -> StudentSpace:
    """The space of chains; written as one word a layer, `24k3s1 48k5s2 …`.

    Args:
        layers: convolutions in the chain.
        filters: choices of each layer's channels.
        sizes: choices of each kernel's side, odd.
        side: of the images, which bounds the product of the strides.

    Raises:
        EvokdError: an option out of range.
    """
    integers("conv20, layers", [layers], 1, 80)
    integers("conv20, side", [side], 1, 4096)
    kernels = [str(size) for size in integers("conv20, sizes", sizes, 1, 15)]
    if any(int(size) % 2 == 0 for size in kernels):
        raise EvokdError("conv20, sizes", "odd integers, so that padding keeps the map", repr(sizes)[:60])
    widths = [str(width) for width in integers("conv20, filters", filters, 1, 4096)]
    choices = zip(FIELDS, (tuple(widths), tuple(kernels), ("1", "2")), strict=True)
    slots = {f"layer{i}.{field}": values for i, (field, values) in product(range(1, layers + 1), choices)}
    return StudentSpace(
        "conv20",
        slots,
        network=partial(_network, side),
        write=_write,
        read=partial(_read, slots),
        key_of=partial(_key, side),
        cost=partial(_cost, side),
        diagram=partial(_diagram, side),
    )
