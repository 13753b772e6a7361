"""NAS-Bench-201 (Dong & Yang, ICLR 2020): one cell of four nodes and six edges, repeated in three stages; 15,625 networks.

Node 0 is the cell's input, node 3 its output; a node is the sum of its incoming edges. Stages are parted by residual blocks of stride 2.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, partial
from itertools import product
from random import Random

import torch
from torch import Tensor, nn

from evokd.errors import EvokdError, unknown
from evokd.losses.taps import Taps
from evokd.students.layers import Conv, chain_cost, classify, integers
from evokd.students.space import Cost, Genome, StudentSpace

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
KERNELS = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}
EDGES = {f"{source}<{target}": (source, target) for target in (1, 2, 3) for source in range(target)}
STAGES = 3
_FORM = "|op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
_TEXT = re.compile(re.escape(_FORM).replace("op", r"(\w{1,40})"))


def space(channels: int = 16, cells: int = 5) -> StudentSpace:
    """All cells in a network of given size; the benchmark's own is the default.

    Args:
        channels: of the first stage; the others have 2 and 4 times as many.
        cells: in each stage.

    Raises:
        EvokdError: a number out of range.
    """
    integers("nas_bench_201, channels", [channels], 1, 1024)
    integers("nas_bench_201, cells", [cells], 1, 50)
    return StudentSpace(
        name="nas_bench_201",
        slots=dict.fromkeys(EDGES, OPS),
        network=partial(Network, channels, cells),
        write=write,
        read=read,
        key_of=key_of,
        cost=partial(cost, channels, cells),
        diagram=partial(diagram, channels, cells),
    )


def write(genome: Genome) -> str:
    """The benchmark's architecture string: a bar-separated `operator~source` for each edge, nodes parted by plus signs."""
    return "+".join(
        "|" + "".join(f"{genome[slot]}~{source}|" for slot, (source, end) in EDGES.items() if end == target)
        for target in (1, 2, 3)
    )


def read(text: str) -> Genome:
    """The inverse of `write`.

    Raises:
        EvokdError: another form, or an operator that is not in the space.
    """
    found = _TEXT.fullmatch(text)
    if not found:
        raise EvokdError("architecture", _FORM, repr(text)[:80])
    for op in found.groups():
        if op not in OPS:
            raise unknown("architecture", "an operator of NAS-Bench-201", op, OPS)
    return dict(zip(EDGES, found.groups(), strict=True))


def key_of(genome: Genome) -> str:
    """The benchmark's unique string, which has 6,466 values: sums are sorted, identities vanish, and what carries zeros is `#`.

    Cells that differ only in how many zeros a node adds up still differ here, as they do in the benchmark's own count; without
    those zeros 5,390 strings would remain.
    """
    nodes = ["0"]
    for target in (1, 2, 3):
        terms = [_term(nodes[source], genome[f"{source}<{target}"]) for source in range(target)]
        nodes.append("+".join(sorted(terms)))
    return nodes[3]


def _term(node: str, op: str) -> str:
    if op == "none" or node == "#":
        return "#"
    return node if op == "skip_connect" else f"({node})@{op}"


def live_edges(genome: Genome) -> tuple[str, ...]:
    """The edges on a path from input to output, none in a cell that is dead."""
    edges = {slot: ends for slot, ends in EDGES.items() if genome[slot] != "none"}
    reached, needed = {0}, {3}
    for source, target in edges.values():
        if source in reached:
            reached.add(target)
    for source, target in reversed(edges.values()):
        if target in needed:
            needed.add(source)
    return tuple(slot for slot, (source, target) in edges.items() if source in reached and target in needed)


def is_dead(genome: Genome) -> bool:
    """Whether no path leads from input to output (341 cells)."""
    return not live_edges(genome)


def index_of(genome: Genome) -> int:
    """The row in the benchmark's tables."""
    return _rows()[tuple(genome[slot] for slot in EDGES)]


@cache
def _rows() -> dict[tuple[str, ...], int]:
    """The benchmark's order: all cells, last edge fastest, shuffled by Python's generator with seed 88."""
    cells = list(product(OPS, repeat=len(EDGES)))
    Random(88).shuffle(cells)
    return {cell: row for row, cell in enumerate(cells)}


def cost(width: int, cells: int, genome: Genome, classes: int, channels: int, side: int) -> Cost:
    """In closed form. The benchmark's FLOPs are these multiply–accumulates and one addition a class, for the classifier's bias."""
    frame, price = _prices(width, cells, classes, channels, side)
    live = live_edges(genome)
    bought = [price[op] for op in genome.values() if op in price]
    kept = [price[genome[slot]] for slot in live if genome[slot] in price]
    return Cost(
        parameters=frame[0] + sum(parameters for parameters, _ in bought),
        macs=frame[1] + sum(macs for _, macs in bought),
        live_parameters=frame[0] + sum(parameters for parameters, _ in kept),
        depth=2 + 2 * (STAGES - 1) + STAGES * cells * _longest(genome, live),
    )


@cache
def _prices(width: int, cells: int, classes: int, channels: int, side: int) -> tuple[tuple[int, int], dict]:
    """(parameters, multiply–accumulates) of all but the cells, and of each operator on one edge of all cells."""
    frame = [chain_cost([Conv(channels, width, 3)], side)[:2]]
    price = dict.fromkeys(KERNELS, (0, 0))
    for stage in range(STAGES):
        if stage:
            parameters, macs, side = chain_cost([Conv(width, 2 * width, 3, 2), Conv(2 * width, 2 * width, 3)], side)
            shortcut = 2 * width**2
            frame.append((parameters + shortcut, macs + shortcut * side**2))
            width *= 2
        for op, (parameters, macs) in price.items():
            conv = Conv(width, width, KERNELS[op])
            price[op] = parameters + cells * conv.parameters, macs + cells * conv.macs(side)
    frame.append((2 * width + (width + 1) * classes, width * classes))
    return (sum(p for p, _ in frame), sum(m for _, m in frame)), price


def _longest(genome: Genome, live: tuple[str, ...]) -> int:
    """Convolutions on the longest path through the cell."""
    depth = [0, 0, 0, 0]
    for slot in live:
        source, target = EDGES[slot]
        depth[target] = max(depth[target], depth[source] + (genome[slot] in KERNELS))
    return depth[3]


def diagram(width: int, cells: int, genome: Genome) -> str:
    """The stages in one line, then what each node adds up; edges on no path from input to output stand in brackets."""
    stages = " → reduce → ".join(f"{cells} cells of {width * 2**stage}" for stage in range(STAGES))
    live = live_edges(genome)
    lines = [f"image → conv 3×3 → {stages} → mean → classifier"]
    for target in (1, 2, 3):
        terms = []
        for source in range(target):
            slot = f"{source}<{target}"
            term = f"{genome[slot]}({source})"
            if genome[slot] != "none":
                terms.append(term if slot in live else f"[{term}]")
        lines.append(f"  node {target} = " + (" + ".join(terms) or "0"))
    return "\n".join(lines)


OPERATIONS: dict[str, Callable[[int], nn.Module]] = {
    "skip_connect": lambda width: nn.Identity(),
    "nor_conv_1x1": lambda width: relu_conv_norm(width, width, 1),
    "nor_conv_3x3": lambda width: relu_conv_norm(width, width, 3),
    "avg_pool_3x3": lambda width: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
}


def relu_conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(outputs))


class Cell(nn.Module):
    """(N,C,H,W) → the same. Edges that are `none` do not exist; edges on no path are computed, as in the benchmark."""

    def __init__(self, genome: Genome, width: int) -> None:
        super().__init__()
        self.edges = nn.ModuleDict({slot: OPERATIONS[op](width) for slot, op in genome.items() if op != "none"})

    def forward(self, x: Tensor) -> Tensor:
        nodes = [x]
        for target in (1, 2, 3):
            slots = [(f"{source}<{target}", node) for source, node in enumerate(nodes)]
            terms = [self.edges[slot](node) for slot, node in slots if slot in self.edges]
            nodes.append(sum(terms[1:], terms[0]) if terms else torch.zeros_like(x))
        return nodes[3]


class Reduction(nn.Module):
    """(N,C,H,W) → (N,2C,⌈H/2⌉,⌈W/2⌉): two convolutions beside an average pool and a 1×1 convolution.

    The benchmark knows even sides only; at odd ones the pool's last windows average what they have.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = relu_conv_norm(width, 2 * width, 3, stride=2)
        self.conv2 = relu_conv_norm(2 * width, 2 * width, 3)
        self.shortcut = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(width, 2 * width, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.conv2(self.conv1(x))


class Network(nn.Module):
    """(N,channels,H,W) → Taps with logits (N,classes), embedding (N,4·width) and three maps, the last one after batch norm and ReLU."""

    def __init__(self, width: int, cells: int, genome: Genome, classes: int, channels: int) -> None:
        super().__init__()
        self.live = live_edges(genome)
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))
        self.stages = nn.ModuleList()
        for stage in range(STAGES):
            reduction = [Reduction(width)] if stage else []
            width *= 2 if stage else 1
            self.stages.append(nn.Sequential(*reduction, *[Cell(genome, width) for _ in range(cells)]))
        self.last = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU())
        self.classifier = nn.Linear(width, classes)

    def live_parameters(self) -> int:
        """Parameters but for the edges on no path from input to output."""
        cells = [module for module in self.modules() if isinstance(module, Cell)]
        idle = [edge for cell in cells for slot, edge in cell.edges.items() if slot not in self.live]
        return sum(p.numel() for p in self.parameters()) - sum(p.numel() for edge in idle for p in edge.parameters())

    def forward(self, images: Tensor) -> Taps:
        x, features = self.stem(images), []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        features[-1] = self.last(x)
        logits, embedding = classify(features[-1], self.classifier)
        return Taps(logits, embedding, tuple(features), head=(self.classifier.weight, self.classifier.bias))
