"""Trees made to run: a loss compiled once into a flat list of steps, shared prefixes computed once.

Where the chain of a term would hand its distance unequal shapes, a connector aligns the student's tap with the teacher's (FitNets,
ICLR 2015): a 1×1 convolution on maps, a linear layer on rows, with average pooling or bilinear interpolation for size. One connector
serves all terms of a position. Terms that compare relations (`mm`) or drop the differing axis need none and get none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evokd.errors import EvokdError
from evokd.genome.grammar import Node
from evokd.losses.distances import DISTANCES
from evokd.losses.language import Call, Term, to_terms
from evokd.losses.taps import Taps
from evokd.losses.transforms import TRANSFORMS
from evokd.losses.weights import MODES
from evokd.streams import derive


class Connector(nn.Module):
    """Student's tap → the teacher's shape, (N,C,H,W) → (N,C',H',W') or (N,D) → (N,D'). Initialised from (seed, position, shapes)."""

    def __init__(self, position: str, student: torch.Size, teacher: torch.Size, seed: int) -> None:
        super().__init__()
        self.size = tuple(teacher[2:])
        draw = torch.Generator().manual_seed(derive(seed, "connector", position, tuple(student[1:]), tuple(teacher[1:])))
        bound = 1 / math.sqrt(student[1])
        self.weight = nn.Parameter((torch.rand(teacher[1], student[1], generator=draw) * 2 - 1) * bound)

    def forward(self, f: Tensor) -> Tensor:
        if f.dim() == 2:
            return F.linear(f, self.weight)
        if tuple(f.shape[2:]) != self.size:
            f = self.resize(f)
        # a 1×1 convolution; as a matrix product it is a third faster than conv2d on small maps
        return F.linear(f.flatten(2).transpose(1, 2), self.weight).transpose(1, 2).unflatten(2, self.size)

    def resize(self, f: Tensor) -> Tensor:
        """Average pooling to a smaller size, bilinear interpolation to a larger one."""
        if f.shape[2] >= self.size[0] and f.shape[3] >= self.size[1]:
            return F.adaptive_avg_pool2d(f, self.size)
        return F.interpolate(f, self.size, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class Step:
    """values[out] = fn(values[source], *params) on both sides."""

    fn: Callable[..., Tensor]
    params: tuple[float, ...]
    source: int
    out: int


@dataclass(frozen=True)
class Finish:
    """One term: weight · mean(mode · distance(values[source]))."""

    weight: float
    mode: Callable | None
    fn: Callable[..., Tensor]
    params: tuple[float, ...]
    source: int


class DistillLoss(nn.Module):
    """A compiled loss. Calling it gives the distillation term(s) alone, a scalar; gradients reach the student and the connectors only.

    Attributes:
        terms: what was compiled.
        connectors: position → connector, trained by the student's optimiser without weight decay.
        needs: positions in use.
    """

    def __init__(self, terms: Sequence[Term], student: Taps, teacher: Taps, seed: int) -> None:
        super().__init__()
        self.terms = tuple(terms)
        self._slots: dict[tuple[Call, bool], int] = {}
        self._leaves: list[tuple[str, str, int]] = []  # position, connector name or "", slot
        self._steps: list[Step] = []
        self.connectors = nn.ModuleDict()
        self._finishes = [self._compile(term, student, teacher, seed) for term in self.terms]
        self.needs = tuple(dict.fromkeys(position for position, _, _ in self._leaves))
        self._modes = any(finish.mode for finish in self._finishes)

    def _compile(self, term: Term, student: Taps, teacher: Taps, seed: int) -> Finish:
        value = term.distance.args[0]
        position = position_of(value)
        s, t = student.at(position), teacher.at(position)
        connect = not comparable(value, s, t)
        if connect and module_name(position) not in self.connectors:
            if position == "logits":
                raise EvokdError("loss", f"student and teacher of equally many classes ({t.shape[1]})", str(s.shape[1]))
            self.connectors[module_name(position)] = Connector(position, s.shape, t.shape, seed)
        mode = MODES[term.mode].fn if term.mode != "no" else None
        return Finish(term.weight, mode, DISTANCES[term.distance.name].fn, term.distance.params, self._slot(value, connect))

    def connects(self, term: int) -> bool:
        """Whether a term reads the student's tap behind a connector."""
        return self._slots.get((self.terms[term].distance.args[0], True)) == self._finishes[term].source

    def _slot(self, call: Call, connect: bool) -> int:
        """The slot that holds a value, adding the steps that make it."""
        if (call, connect) not in self._slots:
            if call.args:
                source = self._slot(call.args[0], connect)
                self._steps.append(Step(TRANSFORMS[call.name].fn, call.params, source, len(self._slots)))
            else:
                self._leaves.append((call.name, module_name(call.name) if connect else "", len(self._slots)))
            self._slots[call, connect] = len(self._slots)
        return self._slots[call, connect]

    def forward(
        self,
        student: Taps,
        teacher: Taps,
        labels: Tensor | None = None,
        progress: float = 1.0,
        generator: torch.Generator | None = None,
        index: Tensor | None = None,
    ) -> Tensor:
        """Σ over terms, a scalar.

        Args:
            student: taps of the network that learns.
            teacher: taps of the teacher for the same batch; detached here.
            labels: (N,) class of each sample, −1 where unknown; None when all are unknown.
            progress: share of training done, 0…1, for schedules.
            generator: source of every random draw of the loss.
            index: (N,) position of each sample in its data set, for losses with memory.
        """
        s: list = [None] * len(self._slots)
        t: list = [None] * len(self._slots)
        for position, connector, slot in self._leaves:
            tap = student.at(position)
            s[slot] = self.connectors[connector](tap) if connector else tap
            t[slot] = teacher.at(position).detach()
        for step in self._steps:
            s[step.out] = step.fn(s[step.source], *step.params)
            t[step.out] = step.fn(t[step.source], *step.params)
        if self._modes and labels is None:
            labels = torch.full((student.logits.shape[0],), -1, device=student.logits.device)
        return sum(self._finish(finish, s, t, student, teacher, labels) for finish in self._finishes)

    def _finish(self, finish: Finish, s: list, t: list, student: Taps, teacher: Taps, labels: Tensor | None) -> Tensor:
        value = finish.fn(s[finish.source], t[finish.source], *finish.params)
        if finish.mode:
            with torch.no_grad():
                weight = finish.mode(student.logits, teacher.logits, labels)
            value = weight * value
        return finish.weight * value.mean()


def compile_loss(tree: Sequence[Node], student: Taps, teacher: Taps, seed: int = 0) -> DistillLoss:
    """A tree made to run for one pair.

    Args:
        tree: from `parse_loss`, an evolved individual, or `KNOWN`.
        student: example taps, which give the shapes.
        teacher: example taps.
        seed: initialises connectors.

    Raises:
        EvokdError: if a position is not shown by both networks.
    """
    return DistillLoss(to_terms(tree), student, teacher, seed)


def position_of(call: Call) -> str:
    """The position at which a chain starts."""
    return call.name if not call.args else position_of(call.args[0])


def module_name(position: str) -> str:
    """`features[-1]` → `features_1`, a name that a module may have."""
    return position.replace("[-", "_").replace("]", "")


# Stand-ins for sizes, far apart so that pooling keeps them distinct.
_PRIMES = (101, 211, 307, 401, 503, 601, 701, 809)


def comparable(value: Call, student: Tensor, teacher: Tensor) -> bool:
    """Whether a chain gives both sides one shape by itself, so that no connector is needed.

    The chain runs on empty tensors in which every size of every axis is replaced by a prime of its own: a flattened axis then agrees only
    if it is made of equal axes, and not because 2·4·4 happens to be 8·2·2.
    """
    primes: dict[tuple[int, int], int] = {}

    def shape(tap: Tensor) -> torch.Size:
        sizes = [primes.setdefault(axis, _PRIMES[len(primes)]) for axis in enumerate(tap.shape)]
        return run_chain(value, torch.empty(sizes, device="meta")).shape

    return shape(student) == shape(teacher)


def run_chain(call: Call, tap: Tensor) -> Tensor:
    """The value of a chain on one side."""
    return TRANSFORMS[call.name].fn(run_chain(call.args[0], tap), *call.params) if call.args else tap
