"""Trees made to run: a loss compiled once into a flat list of steps, shared prefixes computed once.

Where the path of a term would hand its distance, or a random mask, unequal shapes, a connector aligns the student's tap with the
teacher's (FitNets, ICLR 2015): a 1×1 convolution on maps and tokens, a linear layer on rows, with average pooling or linear interpolation
for size. One connector serves all terms of a position. Terms that compare relations (`mm`) or drop the differing axis need none and get
none. What is read at `teacher_head` is always the student's embedding behind its connector, if the widths differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evokd.errors import EvokdError
from evokd.genome.grammar import Node
from evokd.losses import schedules
from evokd.losses.distances import DISTANCES
from evokd.losses.language import NO, Call, Term, to_terms
from evokd.losses.modules import MODULES
from evokd.losses.operators import Transform
from evokd.losses.schedules import Number
from evokd.losses.taps import Taps
from evokd.losses.transforms import TRANSFORMS
from evokd.losses.weights import MODES
from evokd.streams import derive


class Connector(nn.Module):
    """Student's value → the teacher's shape: (N,C,H,W) → (N,C',H',W'), (N,C,M) → (N,C',M') or (N,D) → (N,D').

    Initialised from (seed, position, shapes).
    """

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
        """Average pooling to a smaller size, linear interpolation to a larger one."""
        flat = len(self.size) == 1
        if all(have >= want for have, want in zip(f.shape[2:], self.size, strict=True)):
            return F.adaptive_avg_pool1d(f, self.size[0]) if flat else F.adaptive_avg_pool2d(f, self.size)
        return F.interpolate(f, self.size, mode="linear" if flat else "bilinear", align_corners=False)


@dataclass(frozen=True)
class Step:
    """values[out] = operator(values of the sources), on both sides or on one."""

    operator: Transform
    call: Call
    sources: tuple[int, ...]
    out: int
    last: tuple[int, ...] = ()  # slots that nothing reads after this step


@dataclass(frozen=True)
class Finish:
    """One term: weight · mean(mode · distance(values[source])), or weight · module."""

    weight: Number
    mode: Callable | None
    mode_params: tuple[Number, ...]
    fn: Callable[..., Tensor]
    params: tuple[Number, ...]
    source: int | None


@dataclass(frozen=True)
class Batch:
    """What a forward pass may look at besides the values."""

    student: Taps
    teacher: Taps
    labels: Tensor
    progress: float
    generator: torch.Generator | None
    index: Tensor | None


class DistillLoss(nn.Module):
    """A compiled loss. Calling it gives the distillation term(s) alone, a scalar; gradients reach the student and the connectors only.

    Attributes:
        terms: what was compiled.
        connectors: position → connector, trained by the student's optimiser without weight decay.
        parts: terms with trained parts or memory, by name.
        needs: positions in use.
        random: whether two calls may differ: it draws masks, or has parts that draw or remember.
    """

    def __init__(self, terms: Sequence[Term], student: Taps, teacher: Taps, seed: int) -> None:
        super().__init__()
        self.terms = tuple(terms)
        self._slots: dict[tuple[Call, bool], int] = {}
        self._leaves: list[tuple[str, str, int]] = []  # position, connector name or "", slot
        self._steps: list[Step] = []
        self.connectors, self.parts = nn.ModuleDict(), nn.ModuleDict()
        self._pair, self._seed = (student, teacher), seed
        self._finishes = [self._compile(term) for term in self.terms]
        self._steps = _with_last_uses(self._steps, {finish.source for finish in self._finishes})
        own = [position for part in self.parts.values() for position in part.needs]
        self.needs = tuple(dict.fromkeys([*(position for position, _, _ in self._leaves), *own]))
        self.random = bool(self.parts) or any(step.operator.mask for step in self._steps)
        del self._pair

    def _compile(self, term: Term) -> Finish:
        if term.module:
            name = term.distance.name
            if name not in self.parts:
                self.parts[name] = MODULES[name](*self._pair, self._seed)
            return Finish(term.weight, None, (), self.parts[name], (), None)
        value, distance = term.distance.args[0], DISTANCES[term.distance.name]
        source = self._slot(value, not comparable(value, *self._pair))
        mode = MODES[term.mode.name].fn if term.mode != NO else None
        return Finish(term.weight, mode, term.mode.params, distance.fn, term.distance.params, source)

    def connects(self, term: int) -> bool:
        """Whether a term reads the student's taps behind connectors, where they differ."""
        value = self.terms[term].distance
        return not self.terms[term].module and self._slots.get((value.args[0], True)) == self._finishes[term].source

    def _slot(self, call: Call, connect: bool) -> int:
        """The slot that holds a value, adding the steps that make it."""
        if (call, connect) not in self._slots:
            sources = tuple(self._slot(arg, connect) for arg in call.args)
            slot = len(self._slots)
            if call.args:
                self._steps.append(Step(TRANSFORMS[call.name], call, sources, slot))
            else:
                self._leaves.append((call.name, self._connect(call.name) if connect or call.name == "teacher_head" else "", slot))
            self._slots[call, connect] = slot
        return self._slots[call, connect]

    def _connect(self, position: str) -> str:
        """Name of the position's connector, made if the pair's shapes differ there; empty if they agree.

        Raises:
            EvokdError: where shapes may not be mended: classes, and heads and tokens of attention.
        """
        s, t = (read_tap(taps, position) for taps in self._pair)
        if s.shape[1:] == t.shape[1:]:
            return ""
        if position in ("logits", "attention"):
            what = {"logits": "classes", "attention": "heads and tokens"}[position]
            raise EvokdError("loss", f"student and teacher of equally many {what} {tuple(t.shape[1:])}", str(tuple(s.shape[1:])))
        position = position.replace("teacher_head", "embedding")
        name = module_name(position)
        if name not in self.connectors:
            self.connectors[name] = Connector(position, s.shape, t.shape, self._seed)
        return name

    def forward(
        self,
        student: Taps,
        teacher: Taps,
        labels: Tensor | None = None,
        progress: float = 1.0,
        generator: torch.Generator | None = None,
        index: Tensor | None = None,
    ) -> Tensor:
        """Σ over terms, a scalar; see `by_term`."""
        return sum(self.by_term(student, teacher, labels, progress, generator, index))

    def by_term(
        self,
        student: Taps,
        teacher: Taps,
        labels: Tensor | None = None,
        progress: float = 1.0,
        generator: torch.Generator | None = None,
        index: Tensor | None = None,
    ) -> list[Tensor]:
        """What each term contributes, weight included, as scalars in the order of `terms`.

        Args:
            student: taps of the network that learns.
            teacher: taps of the teacher for the same batch; detached here.
            labels: (N,) class of each sample, −1 where unknown; None when all are unknown.
            progress: share of training done, 0…1, for schedules.
            generator: source of every random draw of the loss.
            index: (N,) position of each sample in its data set, for losses with memory.

        Raises:
            EvokdError: if the loss draws masks and there is no generator.
        """
        if labels is None:
            labels = torch.full((student.logits.shape[0],), -1, device=student.logits.device)
        batch = Batch(student, teacher, labels, progress, generator, index)
        s, t = self._values(batch)
        return [self._finish(finish, s, t, batch) for finish in self._finishes]

    def _values(self, batch: Batch) -> tuple[list, list]:
        """The values of all slots, of the student and of the teacher."""
        s: list = [None] * len(self._slots)
        t: list = [None] * len(self._slots)
        for position, connector, slot in self._leaves:
            s[slot], t[slot] = self._leaf(position, connector, batch)
        masks: dict[Call, tuple[Tensor, ...]] = {}
        for values, other in ((s, "teacher"), (t, "student")):
            for step in self._steps:
                self._take(step, values, step.call.side == other, masks, batch)
        return s, t

    def _take(self, step: Step, values: list, passes: bool, masks: dict, batch: Batch) -> None:
        """One step on one side; the student's side comes first and draws the masks."""
        if step.operator.mask and step.call not in masks:  # the same one before and behind a connector
            masks[step.call] = self._mask(step, values, batch)
        extra = (batch.labels,) if step.operator.labels else masks.get(step.call, ())
        params = (schedules.at(p, batch.progress) for p in step.call.params)
        taken = [values[source] for source in step.sources]
        values[step.out] = taken[0] if passes else step.operator.fn(*taken, *extra, *params)
        for slot in step.last:
            values[slot] = None  # a map that is kept costs more than the operator

    def _leaf(self, position: str, connector: str, batch: Batch) -> tuple[Tensor, Tensor]:
        tap = read_tap(batch.student, position)
        s = self.connectors[connector](tap) if connector else tap
        if position != "teacher_head":
            return s, read_tap(batch.teacher, position).detach()
        weight, bias = batch.teacher.head
        return F.linear(s, weight.detach(), bias.detach()), batch.teacher.logits.detach()

    def _mask(self, step: Step, s: list, batch: Batch) -> tuple[Tensor, ...]:
        """The mask that both sides share, drawn on the generator's device so that every device sees the same one."""
        if batch.generator is None:
            raise EvokdError("generator", f"a torch.Generator, from which {step.operator.name} draws its masks", "None")
        keep, axes = step.operator.mask
        f = s[step.sources[0]]
        sizes = [size if axis in axes else 1 for axis, size in enumerate(f.shape)]
        draw = torch.rand(sizes, generator=batch.generator, device=batch.generator.device)
        return ((draw < keep).to(f.device, f.dtype),)

    def _finish(self, finish: Finish, s: list, t: list, batch: Batch) -> Tensor:
        weight = schedules.at(finish.weight, batch.progress)
        if finish.source is None:
            return weight * finish.fn(batch.student, batch.teacher, batch.labels, batch.progress, batch.generator, batch.index)
        params = (schedules.at(p, batch.progress) for p in finish.params)
        value = finish.fn(s[finish.source], t[finish.source], *params)
        if finish.mode:
            value = self._weights(finish, batch) * (value.flatten(1).mean(1) if value.dim() > 1 else value)
        return weight * value.mean()

    @torch.no_grad()
    def _weights(self, finish: Finish, batch: Batch) -> Tensor:
        params = (schedules.at(p, batch.progress) for p in finish.mode_params)
        return finish.mode(batch.student.logits, batch.teacher.logits, batch.labels, *params)


def _with_last_uses(steps: Sequence[Step], kept: set[int | None]) -> list[Step]:
    """The steps, each with the slots that may be let go after it."""
    marked, read = [], set(kept)
    for step in reversed(steps):
        last = {*step.sources} - read
        read |= last
        marked.append(replace(step, last=tuple(sorted(last))))
    return marked[::-1]


def compile_loss(tree: Sequence[Node], student: Taps, teacher: Taps, seed: int = 0) -> DistillLoss:
    """A tree made to run for one pair.

    Args:
        tree: from `parse_loss`, an evolved individual, or `KNOWN`.
        student: example taps, which give the shapes.
        teacher: example taps.
        seed: initialises connectors and modules.

    Raises:
        EvokdError: if a position is not shown by both networks.
    """
    return DistillLoss(to_terms(tree), student, teacher, seed)


def module_name(position: str) -> str:
    """`features[-1]` → `features_1`, a name that a module may have."""
    return position.replace("[-", "_").replace("]", "")


def read_tap(taps: Taps, position: str) -> Tensor:
    """A tap with its channels at axis 1: tokens as (N,C,M), attention as (N,keys,heads,queries)."""
    tap = taps.at(position)
    if position == "tokens":
        return tap.transpose(1, 2)
    return tap.permute(0, 3, 1, 2) if position == "attention" else tap


# Stand-ins for sizes, far apart so that pooling keeps them distinct.
_PRIMES = (101, 211, 307, 401, 503, 601, 701, 809, 907, 1009, 1103, 1201, 1301, 1409, 1511, 1601, 1709, 1801, 1901, 2003)


def comparable(value: Call, student: Taps, teacher: Taps) -> bool:
    """Whether a path gives both sides one shape by itself, also wherever they share a mask, so that no connector is needed.

    The path runs on empty tensors in which every size of every axis is replaced by a prime of its own: a flattened axis then agrees only
    if it is made of equal axes, and not because 2·4·4 happens to be 8·2·2. It runs on the true sizes too, which may be below a pool's.
    """
    pairs = {p: (read_tap(student, p).shape, read_tap(teacher, p).shape) for p in value.positions()}
    if all(s[1:] == t[1:] for s, t in pairs.values()):
        return True
    primes: dict[tuple[int, int], int] = {}

    def prime(shape: torch.Size) -> list[int]:
        return [primes.setdefault((axis, size), _PRIMES[len(primes)]) for axis, size in enumerate(shape)]

    # any embedding becomes logits, behind a connector where the widths differ
    shapes = {p: [teacher.logits.shape if p == "teacher_head" else shape for shape in pair] for p, pair in pairs.items()}
    for sizes in (prime, list):
        leaves = {p: [torch.empty(sizes(shape), device="meta") for shape in pair] for p, pair in shapes.items()}
        try:
            if any(s.shape != t.shape for s, t in _met(value, leaves)):
                return False
        except RuntimeError:  # more entries than can be counted, or a user's operator that needs sides of some sort
            return False
    return True


def _met(call: Call, leaves: dict[str, list[Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """What must be alike on both sides: the argument of every mask and, last, the call itself."""
    args = []
    for arg in call.args:
        *masked, last = _met(arg, leaves)
        yield from masked
        args.append(last)
    if not args:
        yield tuple(leaves[call.name])
        return
    operator = TRANSFORMS[call.name]
    if operator.mask:
        yield args[0]
    if operator.keeps_shape:
        yield args[0]
        return
    labels = [torch.empty(args[0][0].shape[0], dtype=torch.long, device="meta")] if operator.labels else []
    params = [schedules.at(p, 0) for p in call.params]
    yield tuple(operator.fn(*side, *labels, *params) for side in zip(*args, strict=True))
