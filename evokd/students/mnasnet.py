"""AKD's space, the factorised hierarchy of MnasNet: seven blocks, each of one layer design repeated (Tan et al., CVPR 2019, section 4.1).

A block chooses its operation (4), kernel (2), squeeze-and-excitation (2), skip (3), filters (3) and layers (3): 432 designs, 432⁷ genomes.
Filters and layers vary around those of MobileNetV2 (Sandler et al., CVPR 2018, table 2), which is itself a genome of the space.
A genome is first unrolled into blocks with their real widths and skips; network, cost, export and key are all read off these.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from evokd.errors import EvokdError
from evokd.losses.taps import Taps
from evokd.students.layers import Conv, chain_cost, classify, initialise, integers
from evokd.students.space import Cost, Genome, StudentSpace

FIELDS = {
    "op": ("conv", "sep", "mb3", "mb6"),  # convolution, depthwise-separable, inverted bottleneck of expansion 3 or 6
    "kernel": ("3", "5"),
    "se": ("0", "0.25"),
    "skip": ("pool", "identity", "none"),
    "filters": ("0.75", "1", "1.25"),
    "layers": ("-1", "0", "+1"),
}
MOBILENET = ((16, 1), (24, 2), (32, 3), (64, 4), (96, 3), (160, 3), (320, 1))  # (filters, layers) of MobileNetV2's blocks
STEM = 32
LARGE = (2, 1, 2, 2, 2, 1, 2, 1)  # strides of the stem and of the blocks for 224×224 images
SMALL = (1, 1, 1, 2, 2, 1, 2, 1)  # the same for 32×32: the last maps are 4×4
_SLOTS = {f"block{i}.{field}": choices for i in range(1, 8) for field, choices in FIELDS.items()}
_FORM = re.compile(r"([a-z]+\d?)_k(\d)_se([\d.]+)_([a-z]+)_x([\d.]+)_([+-]?\d)", re.ASCII)


@dataclass(frozen=True)
class Options:
    """What the space fixes for all genomes.

    Attributes:
        strides: of the stem and of the first layer of each of the seven blocks.
        width: factor of all filters but those of the head.
        head: channels of the 1×1 convolution before the classifier.
    """

    strides: tuple[int, ...] = SMALL
    width: float = 1.0
    head: int = 1280


@dataclass(frozen=True)
class Layer:
    """One layer; `skip` is "none" where shapes do not allow the one that was asked for."""

    op: str
    kernel: int
    se: bool
    skip: str
    inputs: int
    outputs: int
    stride: int

    def convs(self) -> list[Conv]:
        """The convolutions in order; the last is linear, except for the regular convolution's."""
        if self.op == "conv":
            return [Conv(self.inputs, self.outputs, self.kernel, self.stride)]
        inner = self.inputs * int(self.op.removeprefix("mb") if self.op != "sep" else 1)
        wide = [Conv(self.inputs, inner, 1)] if self.op != "sep" else []
        return [*wide, Conv(inner, inner, self.kernel, self.stride, inner), Conv(inner, self.outputs, 1)]

    def excitation(self) -> list[Conv]:
        """The two 1×1 convolutions of squeeze-and-excitation, through a quarter of the layer's inputs."""
        channels = self.outputs if self.op == "conv" else self.convs()[-1].inputs
        inner = self.inputs // 4
        return [Conv(channels, inner, 1, norm=False), Conv(inner, channels, 1, norm=False)] if self.se else []


def round8(channels: float) -> int:
    """The nearest multiple of 8, at least 8, and never less than nine tenths of what was asked for (MobileNet's rule)."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near + 8 if near < 0.9 * channels else near


def unroll(genome: Genome, options: Options = Options()) -> list[list[Layer]]:
    """The layers of each of the seven blocks.

    Block i has at least one layer. A skip needs a shape it can keep: `identity` the same one on both sides, `pool` (a 3×3 mean with the
    layer's stride, new channels zero) no fewer channels than before.
    """
    inputs, blocks = round8(STEM * options.width), []
    for i, (filters, count) in enumerate(MOBILENET, 1):
        op, kernel, se, skip, factor, more = (genome[f"block{i}.{field}"] for field in FIELDS)
        outputs = round8(filters * options.width * float(factor))
        shapes = [(inputs, options.strides[i])] + [(outputs, 1)] * (count + int(more) - 1)
        design = op, int(kernel), se != "0"
        blocks.append([Layer(*design, _fitting(skip, c, outputs, stride), c, outputs, stride) for c, stride in shapes])
        inputs = outputs
    return blocks


def _fitting(skip: str, inputs: int, outputs: int, stride: int) -> str:
    fits = {"identity": stride == 1 and inputs == outputs, "pool": inputs <= outputs, "none": True}
    return skip if fits[skip] else "none"


class SqueezeExcite(nn.Module):
    """(N,C,H,W) → the same, each channel scaled by a figure in (0,1) made from all channels' means (Hu et al., CVPR 2018)."""

    def __init__(self, convs: Sequence[Conv]) -> None:
        super().__init__()
        self.reduce, self.expand = (conv.module() for conv in convs)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.expand(self.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))).sigmoid()


class MobileLayer(nn.Module):
    """One layer: convolutions with ReLU between them, excitation after the depthwise or regular one, and the skip."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        parts = [part for conv in layer.convs() for part in (conv.module(), nn.ReLU())]
        excite = [SqueezeExcite(layer.excitation())] if layer.se else []
        if layer.op == "conv":
            self.body = nn.Sequential(*parts, *excite)
        else:
            self.body = nn.Sequential(*parts[:-2], *excite, parts[-2])
        self.skip, self.stride, self.extra = layer.skip, layer.stride, layer.outputs - layer.inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.skip == "pool":
            x = F.avg_pool2d(x, 3, self.stride, 1, count_include_pad=False)
            return y + F.pad(x, (0, 0, 0, 0, 0, self.extra))
        return y + x if self.skip == "identity" else y


class MnasNet(nn.Module):
    """(N,C,H,W) → `Taps`.

    A stage is a run of blocks of one resolution: its last block's output is tapped, which has no activation; the last stage is tapped
    after the head's ReLU, and its mean over space is the embedding.
    """

    def __init__(self, blocks: Sequence[Sequence[Layer]], options: Options, classes: int, channels: int) -> None:
        super().__init__()
        stem, head = _ends(blocks, options, channels)
        self.stem = nn.Sequential(*stem.module(), nn.ReLU())
        self.blocks = nn.ModuleList(nn.Sequential(*map(MobileLayer, block)) for block in blocks)
        self.head = nn.Sequential(*head.module(), nn.ReLU())
        self.ends = [i for i, stride in enumerate(options.strides[2:]) if stride > 1]
        self.fc = nn.Linear(options.head, classes)
        initialise(self)

    def forward(self, images: Tensor) -> Taps:
        x, features = self.stem(images), []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.ends:
                features.append(x)
        features.append(self.head(x))
        logits, embedding = classify(features[-1], self.fc)
        return Taps(logits, embedding, tuple(features), head=(self.fc.weight, self.fc.bias))


def _ends(blocks: Sequence[Sequence[Layer]], options: Options, channels: int) -> tuple[Conv, Conv]:
    """The stem and the head."""
    return Conv(channels, blocks[0][0].inputs, 3, options.strides[0]), Conv(blocks[-1][-1].outputs, options.head, 1)


def _network(options: Options, genome: Genome, classes: int, channels: int) -> nn.Module:
    return MnasNet(unroll(genome, options), options, classes, channels)


def _cost(options: Options, genome: Genome, classes: int, channels: int, side: int) -> Cost:
    """Every parameter is live; the longest path runs through the excitations."""
    blocks = unroll(genome, options)
    stem, head = _ends(blocks, options, channels)
    (parameters, macs, side), depth = chain_cost([stem], side), 3
    for layer in (layer for block in blocks for layer in block):
        excitation, excitation_macs, _ = chain_cost(layer.excitation(), 1)
        body, body_macs, side = chain_cost(layer.convs(), side)
        parameters, macs = parameters + body + excitation, macs + body_macs + excitation_macs
        depth += len(layer.convs()) + len(layer.excitation())
    parameters += head.parameters + (options.head + 1) * classes
    return Cost(parameters, macs + head.macs(side) + options.head * classes, parameters, depth)


def arch_def(genome: Genome, options: Options = Options()) -> list[list[str]]:
    """The blocks in the notation of timm, as `decode_arch_def` and `EfficientNet` there read it: `ir_r2_k5_s2_e6_c24_se0.25`.

    The stem (`stem_size`) and the head (`num_features`) are arguments of timm's network, whose stem has stride 2. The network is the
    same but for what `beyond_timm` tells.
    """
    return [[_word(block)] for block in unroll(genome, options)]


def _word(block: Sequence[Layer]) -> str:
    first = block[0]
    kind = {"conv": "cn", "sep": "ds"}.get(first.op, "ir")
    word = f"{kind}_r{len(block)}_k{first.kernel}_s{first.stride}"
    word += f"_e{first.op[2:]}" if kind == "ir" else ""
    word += f"_c{first.outputs}" + ("_se0.25" if first.se else "")
    return word + _skip_word(kind, {layer.skip for layer in block})


def _skip_word(kind: str, skips: set[str]) -> str:
    """Regular convolutions skip only if told to, the others unless told not to."""
    if "pool" in skips:
        return "_noskip_pool"
    if kind == "cn":
        return "_skip" if "identity" in skips else ""
    return "" if "identity" in skips else "_noskip"


def beyond_timm(genome: Genome, options: Options = Options()) -> list[str]:
    """What timm reads over when it decodes the genome's `arch_def`: skips by pooling, and excitation after a regular convolution."""
    lost = []
    for i, block in enumerate(unroll(genome, options), 1):
        lost += [f"block {i}: skip by pooling"] if any(layer.skip == "pool" for layer in block) else []
        lost += [f"block {i}: squeeze-and-excitation"] if block[0].op == "conv" and block[0].se else []
    return lost


def _key(options: Options, genome: Genome) -> str:
    return " ".join(word for block in arch_def(genome, options) for word in block)


def _diagram(options: Options, genome: Genome) -> str:
    """One line a block, one square a layer."""
    scale = options.strides[0]
    lines = [f"÷{scale:<3d}{round8(STEM * options.width):5d}  □ 3×3"]
    for block in unroll(genome, options):
        first, scale = block[0], scale * block[0].stride
        skips = " ".join(sorted({layer.skip for layer in block} - {"none"}))
        text = f"{'■' * len(block)} {first.op} {first.kernel}×{first.kernel} {'se ' if first.se else ''}{skips}"
        lines.append(f"÷{scale:<3d}{first.outputs:5d}  {text.strip()}")
    return "\n".join([*lines, f"÷{scale:<3d}{options.head:5d}  □ 1×1", "mean over space, linear"])


def _write(genome: Genome) -> str:
    blocks = ([genome[f"block{i}.{field}"] for field in FIELDS] for i in range(1, 8))
    return " ".join("{}_k{}_se{}_{}_x{}_{}".format(*block) for block in blocks)


def _read(text: str) -> Genome:
    words = text.split()
    if len(words) != len(MOBILENET):
        raise EvokdError("mnasnet", "7 words, each a block such as mb6_k3_se0_identity_x1_0", f"{len(words)} words")
    return {slot: choice for i, word in enumerate(words, 1) for slot, choice in _block(i, word)}


def _block(i: int, word: str) -> Iterator[tuple[str, str]]:
    found = _FORM.fullmatch(word)
    if not found:
        raise EvokdError(f"mnasnet, block {i}", "OP_kKERNEL_seRATIO_SKIP_xFILTERS_LAYERS", repr(word)[:40])
    for (field, choices), choice in zip(FIELDS.items(), found.groups(), strict=True):
        if choice not in choices:
            raise EvokdError(f"mnasnet, block {i}, {field}", "one of " + ", ".join(choices), repr(choice)[:40])
        yield f"block{i}.{field}", choice


def space(*, strides: Sequence[int] = SMALL, width: float = 1.0, head: int = 1280) -> StudentSpace:
    """The space of seven blocks; written as one word a block, `mb6_k5_se0.25_identity_x1.25_+1 …`.

    Args:
        strides: 1 or 2 for the stem and the first layer of each block; `LARGE` are those of MobileNetV2 at 224×224.
        width: factor of the filters of the stem and the blocks, above 0 and at most 8.
        head: channels of the last convolution.

    Raises:
        EvokdError: an option out of range.
    """
    if not isinstance(strides, list | tuple) or len(strides) != 8 or any(type(s) is not int or s not in (1, 2) for s in strides):
        raise EvokdError("mnasnet, strides", "eight of 1 or 2: of the stem and of seven blocks", repr(strides)[:60])
    if not isinstance(width, int | float) or isinstance(width, bool) or not 0 < width <= 8:
        raise EvokdError("mnasnet, width", "a number in (0, 8]", repr(width)[:60])
    options = Options(tuple(strides), float(width), *integers("mnasnet, head", [head], 1, 16384))
    parts = {"network": _network, "key_of": _key, "cost": _cost, "diagram": _diagram}
    return StudentSpace("mnasnet", _SLOTS, write=_write, read=_read, **{k: partial(part, options) for k, part in parts.items()})
