"""One-shot searches in NAS-Bench-201: a supernet holds the weights of all 15,625 cells, and gradients or chance say which are trained.

DARTS (Liu et al., ICLR 2019, first order), GDAS (Dong & Yang, CVPR 2019), and the random paths of RSPS (Li & Talwalkar, UAI 2019). Sizes
and rates are those of NAS-Bench-201's own baselines (Dong & Yang, ICLR 2020). They ask no evaluator and tell no controller: one training
is the whole search. Norms keep no running statistics, which would mix those of different cells, and have no scale of their own on edges.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evokd.data import Data, Split
from evokd.errors import EvokdError
from evokd.losses.taps import Taps
from evokd.models.views import augmented, draw_views, normalised, plain_strides
from evokd.streams import derive
from evokd.students.nas_bench_201 import EDGES, OPERATIONS, OPS, Network
from evokd.students.space import Genome, StudentSpace

Gates = Mapping[str, Mapping[str, Tensor | float]]  # edge → operator → its weight; what is absent is not computed


@dataclass(frozen=True)
class Recipe:
    """How a supernet is trained; the defaults are those published for NAS-Bench-201.

    Attributes:
        epochs: over the images that train weights; DARTS is published with 50.
        steps: in place of epochs, where not 0.
        batch: images a step, of the weights as of the choices.
        lr: of the weights at the start (SGD with Nesterov momentum), falling as a cosine to `last_lr`.
        weight_decay: of the weights.
        clip: limit of the weights' gradient norm.
        choice_lr: of the choices (Adam, betas 0.5 and 0.999).
        choice_decay: likewise.
        hot: GDAS's temperature at the start; `cold` at the end, linear between.
    """

    epochs: int = 250
    steps: int = 0
    batch: int = 64
    lr: float = 0.025
    last_lr: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip: float = 5.0
    choice_lr: float = 3e-4
    choice_decay: float = 1e-3
    hot: float = 10.0
    cold: float = 0.1

    def total(self, images: int) -> int:
        """Steps of the weights."""
        return self.steps or self.epochs * max(images // self.batch, 1)


@dataclass(frozen=True)
class Found:
    """The end of a one-shot search.

    Attributes:
        network: the trained supernet.
        genome: the most probable operator of every edge; None where chance chose the paths.
        probabilities: edge → operator → softmax of its choice, likewise.
        curve: (step, cross-entropy of the weights' batch) at some ten points.
        seconds: of the search.
    """

    network: Supernet
    genome: Genome | None
    probabilities: dict[str, dict[str, float]] | None
    curve: list[tuple[int, float]]
    seconds: float


class MixedCell(nn.Module):
    """(N,C,H,W) → the same. Every edge has every operator; `gates` say which are computed, and how much of each is added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        ops = [op for op in OPS if op != "none"]
        self.edges = nn.ModuleDict({slot: nn.ModuleDict({op: OPERATIONS[op](width) for op in ops}) for slot in EDGES})
        self.gates: Gates = {}
        for norm in (m for m in self.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.affine, norm.weight, norm.bias = False, None, None

    def forward(self, x: Tensor) -> Tensor:
        nodes = [x]
        for target in (1, 2, 3):
            slots = [(f"{source}<{target}", node) for source, node in enumerate(nodes)]
            terms = [weight * self.edges[slot][op](node) for slot, node in slots for op, weight in self.gates[slot].items()]
            nodes.append(sum(terms[1:], terms[0]) if terms else torch.zeros_like(x))
        return nodes[3]


class Supernet(Network):
    """(N,channels,H,W) and gates → Taps: the network of the space with a mixed cell in place of each cell."""

    def __init__(self, width: int, cells: int, classes: int, channels: int) -> None:
        super().__init__(width, cells, dict.fromkeys(EDGES, "none"), classes, channels)
        for number, stage in enumerate(self.stages):
            for place in range(len(stage) - cells, len(stage)):
                stage[place] = MixedCell(width * 2**number)
        for norm in (m for m in self.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.track_running_stats, norm.running_mean, norm.running_var, norm.num_batches_tracked = False, None, None, None

    def forward(self, images: Tensor, gates: Gates) -> Taps:
        for cell in self.modules():
            if isinstance(cell, MixedCell):
                cell.gates = gates
        return super().forward(images)


def supernet(space: StudentSpace, classes: int, channels: int, seed: int) -> Supernet:
    """The untrained supernet of a space's size.

    Raises:
        EvokdError: a space of another language.
    """
    if getattr(space.network, "func", None) is not Network:
        raise EvokdError("--space", "a space of the language nas_bench_201, whose cells share weights", space.name)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(derive(seed, "supernet"))
        return Supernet(*space.network.args, classes, channels)


def path(genome: Genome) -> Gates:
    """The gates of one cell."""
    return {slot: {} if op == "none" else {op: 1.0} for slot, op in genome.items()}


def random_path(choices: Tensor, share: float, recipe: Recipe, draw: torch.Generator) -> Gates:
    """Any cell, all alike probable."""
    picks = torch.randint(len(OPS), (len(EDGES),), generator=draw).tolist()
    return path({slot: OPS[pick] for slot, pick in zip(EDGES, picks, strict=True)})


def mixed(choices: Tensor, share: float, recipe: Recipe, draw: torch.Generator) -> Gates:
    """DARTS (eq. 2): all operators, each with its softmax weight."""
    weights = choices.softmax(1)
    return {slot: {op: weights[i, j] for j, op in enumerate(OPS) if op != "none"} for i, slot in enumerate(EDGES)}


def single_path(choices: Tensor, share: float, recipe: Recipe, draw: torch.Generator) -> Gates:
    """GDAS (eqs. 3 to 5): one operator an edge, drawn by Gumbel-max, with the gradient of the Gumbel-softmax; its weight is 1.

    Only what was drawn is computed and carries gradient, as the paper says; the released code also adds the others' zeros.
    """
    heat = recipe.hot + (recipe.cold - recipe.hot) * share
    noise = -torch.empty(choices.shape).exponential_(generator=draw).log().to(choices.device)
    soft = ((choices.log_softmax(1) + noise) / heat).softmax(1)
    gates: dict[str, dict[str, Tensor]] = {}
    for i, (slot, pick) in enumerate(zip(EDGES, soft.argmax(1).tolist(), strict=True)):
        gates[slot] = {} if OPS[pick] == "none" else {OPS[pick]: 1 - soft[i, pick].detach() + soft[i, pick]}
    return gates


METHODS: dict[str, Callable[[Tensor, float, Recipe, torch.Generator], Gates]] = {
    "rsps": random_path,
    "gdas": single_path,
    "darts": mixed,
}


def search(
    method: str, space: StudentSpace, data: Data, recipe: Recipe, seed: int, device: str = "cpu", say: Callable = lambda line: None
) -> Found:  # fmt: skip
    """Train a supernet; GDAS and DARTS learn their choices meanwhile.

    Weights learn from the labelled training images, or from one half of them where choices learn from the other (DARTS, section 2.3).

    Args:
        method: one of `METHODS`.
        space: of the language nas_bench_201; its size is the supernet's.
        data: its validation and test images are not touched.
        recipe: of the training.
        seed: of everything drawn.
        device: where it trains.
        say: progress line by line.

    Raises:
        EvokdError: a space of another language, fewer than four labelled images, or a loss that is not finite.
    """
    torch.set_num_threads(1)  # two change the bits
    start = time.perf_counter()
    network = supernet(space, data.classes, data.shape[0], seed).to(device).train()
    learns = method != "rsps"
    parts = split_in(data.train, 2 if learns else 1, derive(seed, "halves"))
    streams = [batches(data, part, recipe.batch, derive(seed, "batches", i), device) for i, part in enumerate(parts)]
    draw = torch.Generator().manual_seed(derive(seed, method))
    choices = (1e-3 * torch.randn(len(EDGES), len(OPS), generator=draw)).to(device).requires_grad_(learns)
    gates = lambda share: METHODS[method](choices, share, recipe, draw)  # noqa: E731
    curve = optimise(network, choices, gates, streams, recipe, recipe.total(len(parts[0])), lambda line: say(f"{method}: {line}"))
    genome, probabilities = read_choices(choices) if learns else (None, None)
    return Found(network, genome, probabilities, curve, time.perf_counter() - start)


def optimise(
    network: nn.Module, choices: Tensor, gates: Callable[[float], Gates], streams: list[Iterator], recipe: Recipe, steps: int,
    say: Callable[[str], None],
) -> list[tuple[int, float]]:  # fmt: skip
    """The loop: a step of the weights, then, on other images, one of the choices where there is a second stream."""
    weights = torch.optim.SGD(
        network.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.momentum > 0
    )
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(weights, steps, recipe.last_lr)
    chooser = torch.optim.Adam([choices], recipe.choice_lr, (0.5, 0.999), weight_decay=recipe.choice_decay)
    curve: list[tuple[int, float]] = []
    for step in range(steps):
        share = step / max(steps - 1, 1)
        loss = _backward(network, gates(share), next(streams[0]), (weights, chooser))
        nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
        weights.step()
        falling.step()
        if len(streams) > 1:
            _backward(network, gates(share), next(streams[1]), (weights, chooser))
            chooser.step()
        if step % max(steps // 10, 1) == 0 or step == steps - 1:
            curve.append((step, loss.item()))
            _check_finite(curve[-1])
            say(f"step {step + 1}/{steps}, cross-entropy {curve[-1][1]:.3f}")
    return curve


def _backward(network: nn.Module, gates: Gates, batch: tuple[Tensor, Tensor], optimisers: tuple) -> Tensor:
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)
    loss = F.cross_entropy(network(batch[0], gates).logits, batch[1])
    loss.backward()
    return loss.detach()


def _check_finite(point: tuple[int, float]) -> None:
    if not np.isfinite(point[1]):
        raise EvokdError("oneshot", "a finite loss of the supernet", f"{point[1]} at step {point[0]}", "take a smaller --lr")


def read_choices(choices: Tensor) -> tuple[Genome, dict[str, dict[str, float]]]:
    """(the most probable operator of each edge, all probabilities); `none` counts like any other, so the cell may be dead."""
    rows = choices.detach().double().softmax(1).tolist()
    shown = {slot: dict(zip(OPS, row, strict=True)) for slot, row in zip(EDGES, rows, strict=True)}
    return {slot: max(row, key=row.get) for slot, row in shown.items()}, shown


def split_in(split: Split, parts: int, seed: int) -> list[Split]:
    """The labelled images in equal parts, by chance.

    Raises:
        EvokdError: fewer than four of them.
    """
    known = np.flatnonzero(split.labels >= 0)
    if len(known) < 4:
        raise EvokdError("oneshot", "at least 4 labelled training images", str(len(known)))
    order = np.random.Generator(np.random.PCG64(seed)).permutation(known)
    return [split.take(np.sort(order[part::parts])) for part in range(parts)]


def batches(data: Data, split: Split, size: int, seed: int, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised images (B,C,H,W) with their labels, for ever: epochs without replacement, shifted and, where natural, mirrored."""
    draw, pad, size = np.random.Generator(np.random.PCG64(seed)), max(1, data.shape[1] // 8), min(size, len(split))
    images, labels = (torch.from_numpy(array).to(device) for array in (split.images, split.labels))
    while True:
        order = torch.from_numpy(draw.permutation(len(split))).to(device)
        for index in order[: len(order) // size * size].split(size):
            views = draw_views(draw, size, pad, data.flip).to(device)
            shown = plain_strides(augmented(images[index], views, pad))
            yield normalised(shown, data.mean, data.std), labels[index]
