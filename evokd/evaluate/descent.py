"""Descent: where a loss leads if nothing stands in its way.

AutoLoss-Zero (Li et al., CVPR 2022) rejects losses by optimising the predictions themselves, without a network, and looking at what
becomes of the metric. Here the student's taps are optimised, for one small batch and by the objective of the protocol: a loss that
drives them away from teacher and labels will not train a network, which is less free than they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evokd.evaluate.bank import assemble
from evokd.evaluate.distill import cross_entropy
from evokd.evaluate.gates import call, changed, told
from evokd.genome.grammar import Node
from evokd.losses.program import compile_loss
from evokd.losses.taps import Taps

RATE = 0.1  # of Adam, for values of about 1
SLOW = 0.01  # the same for connectors and modules, whose every weight moves many values
CLIP = 5.0  # greatest norm of the gradient, as in the protocol
LOOKS = (10, 20)  # steps at both of which a descent must have worked to end there
DONE = 80.0  # % of agreement or accuracy that need no further step
LEAST = 0.3  # of the way up to 100 %, which agreement or accuracy must have come in the end
HALF = 50.0  # %, enough wherever it began
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Descent:
    """What became of a batch.

    Attributes:
        agreement: with the teacher's decision before and after, % of samples.
        accuracy: on known labels before and after, %; NaN where none is known.
        steps: that were taken.
        value: of the objective at the last of them.
    """

    agreement: tuple[float, float]
    accuracy: tuple[float, float]
    steps: int
    value: float

    @property
    def rises(self) -> bool:
        """Whether agreement or accuracy went up, or was never low."""
        known = [pair for pair in (self.agreement, self.accuracy) if not math.isnan(pair[0])]
        return any(after >= min(before + LEAST * (100 - before), HALF) for before, after in known)


def descent(
    tree: Sequence[Node], student: Taps, teacher: Taps, labels: Tensor, gamma: float, steps: int = 100, samples: int = 16
) -> str:
    """Reason to refuse a loss that leads away from teacher and labels or out of the finite numbers, or an empty text.

    Refused is what brings neither agreement nor accuracy 30 % of the way from where it was to 100 %, nor to 50 %. Arguments are those of
    `descend`.
    """
    try:
        found = descend(tree, student, teacher, labels, gamma, steps, samples)
    except Exception as error:  # a user's operator may raise anything
        return told("descent", error)
    if not math.isfinite(found.value):
        return f"descent: value {found.value} at step {found.steps}"
    if found.rises:
        return ""
    before, after = found.agreement
    change = "stays at" if before == after else f"{'falls' if after < before else 'rises only'} from {before:.0f} to"
    return f"descent: agreement with the teacher {change} {after:.0f} %"


def descend(
    tree: Sequence[Node], student: Taps, teacher: Taps, labels: Tensor, gamma: float, steps: int = 100, samples: int = 16
) -> Descent:
    """Optimise a student's taps by γ·cross-entropy + loss.

    It ends early where it is not finite, and where it has clearly worked, unless the loss is below 0: what may fall for ever can still win
    over the cross-entropy. Numbers with a schedule are read all over training, in a spread order, so that few steps see all of it.

    Args:
        tree: the candidate.
        student: taps of the untrained student, where the descent starts.
        teacher: the teacher's taps for the same images.
        labels: (N,), −1 where unknown.
        gamma: weight of the cross-entropy, as in the protocol.
        steps: of Adam, at most.
        samples: of the batch that are taken, from its start.
    """
    student, teacher = (changed(taps, lambda tap: tap[:samples].detach()) for taps in (student, teacher))
    labels = labels[:samples]
    loss = compile_loss(tree, student, teacher)
    free = FreeStudent(student, loss.needs)
    optimiser = _optimiser(free, loss)
    shares = [_shares(student.logits, teacher.logits, labels)]
    for step in range(steps + 1):
        taps = free()
        if step in (*LOOKS, steps):
            shares.append(_shares(taps.logits, teacher.logits, labels))
        soft = call(loss, taps, teacher, labels, step * GOLDEN % 1, step)
        value = gamma * cross_entropy(taps.logits, labels) + soft
        if step == steps or not torch.isfinite(value) or (_worked(shares) and soft >= 0):
            break
        optimiser.zero_grad()
        value.backward()
        for group in optimiser.param_groups:
            nn.utils.clip_grad_norm_(group["params"], CLIP, foreach=True)
        optimiser.step()
    return Descent(*((pair[0], pair[-1]) for pair in zip(*shares, strict=True)), step, value.item())


def _optimiser(free: FreeStudent, loss: nn.Module) -> torch.optim.Optimizer:
    groups = [{"params": [*part.parameters()], "lr": rate} for part, rate in ((free, RATE), (loss, SLOW))]
    return torch.optim.Adam([group for group in groups if group["params"]], fused=True)


def _worked(shares: Sequence[tuple[float, float]]) -> bool:
    """Whether every look so far, two at least, found what needs no further step."""
    return len(shares) > len(LOOKS) and all(max(_known(pair)) >= DONE for pair in shares[1:])


class FreeStudent(nn.Module):
    """A student without a network: what it shows are parameters, and what follows from them.

    Free are the deepest values that the loss reads. The embedding follows where it is the mean of the last map; the logits follow where
    the student shows its classifier, which is then free too.

    Args:
        student: example taps, from which the parameters start.
        needs: positions that the loss reads.
    """

    def __init__(self, student: Taps, needs: Sequence[str]) -> None:
        super().__init__()
        shown = {p.replace("teacher_head", "embedding") for p in needs} | {"logits"}
        self.classifies = _classifies(student)
        if self.classifies:
            shown = shown - {"logits"} | {"embedding"}
        self.pools = {"features[-1]", "embedding"} <= shown and _pools(student)
        if self.pools:
            shown.remove("embedding")
        self.positions = sorted(shown)
        self.free = nn.ParameterList([student.at(p).detach().clone() for p in self.positions])
        self.head = nn.ParameterList([w.detach().clone() for w in student.head or ()])

    def forward(self) -> Taps:
        taps = dict(zip(self.positions, self.free, strict=True))
        if self.pools:
            taps["embedding"] = taps["features[-1]"].mean((2, 3))
        if self.classifies:
            taps["logits"] = F.linear(taps["embedding"], *self.head)
        return assemble(taps, tuple(self.head) or None)


def _pools(student: Taps) -> bool:
    """Whether the embedding is the mean of the last map over space."""
    return _close(student.at("features[-1]").mean((2, 3)), student.at("embedding"))


def _classifies(student: Taps) -> bool:
    """Whether the logits are a linear function of the embedding that the student shows."""
    if student.head is None or student.embedding is None:
        return False
    return _close(F.linear(student.embedding, *student.head), student.logits)


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4)


def _shares(student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[float, float]:
    """(agreement, accuracy) in %, accuracy on known labels and NaN if there are none."""
    decided, known = student.argmax(1), labels >= 0
    agreement = (decided == teacher.argmax(1)).float().mean()
    return 100 * agreement.item(), 100 * (decided == labels)[known].float().mean().item()


def _known(shares: tuple[float, float]) -> list[float]:
    return [share for share in shares if not math.isnan(share)]
