"""Fingerprints: the direction of a loss's gradient on two fixed batches, by which losses that train alike are known.

Only 38–39 % of random valid losses on logits and embeddings differ in the direction of their gradient; the canonical form knows some of
the reasons, the gradient all of them. The idea is AutoLoss-Zero's gradient-equivalence check (Li et al., CVPR 2022), which compares norms
of gradients; here it is the gradient itself, sketched (count sketch; Charikar et al., ICALP 2002).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product

import numpy as np
import torch
from torch import Tensor

from evokd.evaluate.gates import call, changed, leaves, reach
from evokd.genome.grammar import Node
from evokd.losses.program import DistillLoss, compile_loss
from evokd.losses.taps import Taps
from evokd.streams import derive

SIZE = 512  # entries of a sketch: cosines are kept to 1/√512, equal directions exactly
SAME = 1e-8  # 1 − cosine below which two directions are one
REACH = 1.01 * math.sqrt(2 * SAME)  # between entries of two directions that are one
WIDTH, AXES = 1 / 64, 6  # of the cells: entries are about 1/√SIZE, so that 100,000 losses lie in some 10,000 of them
TIMES = (0.0, 0.3, 1.0)  # of training; at 0.5 ramp and cosine would meet

Batch = tuple[Taps, Taps, Tensor]


@dataclass(frozen=True)
class Fingerprint:
    """What a loss does to a student.

    Attributes:
        direction: (SIZE,), the sketched gradient as a unit vector.
        size: norm of the whole gradient.
    """

    direction: np.ndarray
    size: float


def halves(student: Taps, teacher: Taps, labels: Tensor) -> list[Batch]:
    """Two batches of one, in double precision: the first as it is, the second as if the student had come further.

    There its logits have gone seven eighths of the way to the teacher's and all else is tripled, as losses may agree far from the teacher
    (`focal` weighs all alike where the student is much worse) or near it (smooth_l1 is half of l2 below 1), and are no copies for that.
    """
    middle = len(labels) // 2
    first, second = ((_part(student, rows), _part(teacher, rows), labels[rows]) for rows in (slice(middle), slice(middle, None)))
    return [first, (_further(*second[:2]), *second[1:])]


def _part(taps: Taps, rows: slice) -> Taps:
    return leaves(changed(taps, lambda tap: tap[rows]), torch.float64)


def _further(student: Taps, teacher: Taps) -> Taps:
    tripled = changed(student, lambda tap: 3 * tap)
    if student.logits.shape == teacher.logits.shape:
        tripled = replace(tripled, logits=torch.lerp(student.logits, teacher.logits, 7 / 8))
    return leaves(tripled)


def fingerprint(tree: Sequence[Node], batches: Sequence[Batch]) -> Fingerprint | None:
    """The fingerprint of a loss, or None if it has none: it draws at random, fails, or has a gradient that is zero or not finite.

    The gradient is that for the student's taps as independent values, one after the other, at three times of training. Connectors and
    modules start from one seed, so that losses that share them stay comparable.

    Args:
        tree: the candidate.
        batches: as `halves` gives them; the same for all losses that are compared.
    """
    try:
        loss = compile_loss(tree, *batches[0][:2]).double()
        times = TIMES if any("(" in node.name for node in tree if node.ret.__name__ in ("value", "tau")) else TIMES[:1]
        gradients = None if draws(loss, *batches[0]) else [[_gradient(loss, *batch, t) for batch in batches] for t in times]
    except Exception:  # a user's operator may raise anything; that is for the probe to tell
        return None
    return _sketched(gradients * (len(TIMES) // len(times))) if gradients else None


def draws(loss: DistillLoss, student: Taps, teacher: Taps, labels: Tensor) -> bool:
    """Whether a loss asks the generator for anything."""
    if not loss.random:
        return False
    noise = torch.Generator().manual_seed(0)
    before = noise.get_state()
    loss(student, teacher, labels, 0.0, noise, torch.arange(len(labels)))
    return not torch.equal(before, noise.get_state())


def cosine(a: Fingerprint, b: Fingerprint) -> float:
    """Cosine of two directions, for niches; that of the whole gradients to about 0.05, and exact at 1 and −1."""
    return float(a.direction @ b.direction)


def _gradient(loss: DistillLoss, student: Taps, teacher: Taps, labels: Tensor, time: float) -> dict[str, np.ndarray]:
    gradients = reach(loss, call(loss, student, teacher, labels, time), student)
    return {position: gradient.flatten().numpy() for position, gradient in gradients.items()}


@np.errstate(over="ignore", invalid="ignore")  # told apart at the end
def _sketched(gradients: Sequence[Sequence[dict[str, np.ndarray]]]) -> Fingerprint | None:
    """The gradients by time, batch and position as one vector, sketched."""
    sketch, square = np.zeros(SIZE), 0.0
    for time, batches in enumerate(gradients):
        for batch, positions in enumerate(batches):
            for position, gradient in positions.items():
                bucket, sign = _hashes(position, batch, time, gradient.size)
                sketch += np.bincount(bucket, gradient * sign, SIZE)
                square += float(gradient @ gradient)
    norm = float(np.linalg.norm(sketch))
    if not (0 < norm < math.inf and 0 < square < math.inf):
        return None
    return Fingerprint(sketch / norm, math.sqrt(square))


@lru_cache(maxsize=256)
def _hashes(position: str, batch: int, time: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(bucket, sign) of every entry of a gradient, the same in any process."""
    draw = np.random.Generator(np.random.PCG64(derive(0, "sketch", position, batch, time)))
    return draw.integers(0, SIZE, size), draw.choice(np.array((-1, 1), dtype=np.int8), size)


@dataclass
class Copies:
    """Remembers losses by their fingerprints.

    The protocol adds a cross-entropy, so that a multiple of a loss is another objective, and only near multiples are copies.

    Args:
        batches: as `halves` gives them.
        within: greatest factor between two gradients of one direction that are still taken for the same; infinity for any.
    """

    batches: Sequence[Batch]
    within: float = 1.25
    texts: list[str] = field(default_factory=list)
    _known: dict[tuple[int, ...], list[tuple[int, Fingerprint]]] = field(default_factory=dict)  # cell → (place in texts, …)
    _last: tuple[tuple[str, ...], Fingerprint | None] = ((), None)

    def copy_of(self, tree: Sequence[Node]) -> str:
        """Reason to refuse a loss that trains as a remembered one does, or an empty text."""
        found = self.fingerprint(tree)
        if found is None or not self.texts:
            return ""
        near = sorted((each for cell in _cells(found.direction) for each in self._known.get(cell, ())), key=lambda each: each[0])
        ratios = [(found.size / known.size, self.texts[i]) for i, known in near if _apart(found, known) <= SAME]
        ratio, text = min(ratios, key=lambda pair: abs(math.log(pair[0])), default=(math.inf, ""))
        if not text or abs(math.log(ratio)) > math.log(self.within):
            return ""
        factor = f"{ratio:.3g}"
        return f"copy: same gradient as {text}" if factor == "1" else f"copy: {factor} × the gradient of {text}"

    def remember(self, tree: Sequence[Node], text: str) -> None:
        """Keep a loss under its text, or id."""
        found = self.fingerprint(tree)
        if found is None:
            return
        kept = replace(found, direction=found.direction.astype(np.float32))  # moved by 4e-8 at most, where `SAME` allows 1.4e-4
        self._known.setdefault(_cell(found.direction), []).append((len(self.texts), kept))
        self.texts.append(text)

    def fingerprint(self, tree: Sequence[Node]) -> Fingerprint | None:
        """As `fingerprint`; what was asked last is at hand, as a loss is looked up first and then remembered."""
        names = tuple(node.name for node in tree)
        if self._last[0] != names:
            self._last = names, fingerprint(tree, self.batches)
        return self._last[1]


def _apart(a: Fingerprint, b: Fingerprint) -> float:
    """1 − cosine of two unit vectors, by their distance, which rounding spares: |a − b|² = 2 − 2 cos."""
    return 0.5 * float(np.square(a.direction - b.direction).sum())


def _cell(direction: np.ndarray) -> tuple[int, ...]:
    """Where a direction is kept, so that its like are found without a look at all."""
    return tuple(math.floor(entry / WIDTH) for entry in direction[:AXES])


def _cells(direction: np.ndarray) -> Iterator[tuple[int, ...]]:
    """All cells in which directions may lie that are the same as this one; nearly always one."""
    return product(*({math.floor((x - REACH) / WIDTH), math.floor((x + REACH) / WIDTH)} for x in direction[:AXES].tolist()))
