"""Gates: cheap reasons to refuse a candidate before it is trained. Each returns the reason, or an empty text.

Here stand the two that need one look: `static` at each term by itself, `probe` at values and gradients. `fingerprint.py` knows copies,
`descent.py` follows a loss downhill.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from evokd.genome.grammar import Node, Tree
from evokd.losses.language import Term, to_terms, to_tree
from evokd.losses.program import DistillLoss, compile_loss
from evokd.losses.schedules import Schedule
from evokd.losses.taps import Taps

HALFWAY = 0.5  # of training, where numbers with a schedule are read
NOTHING = 1e-20  # of gradient times value, in double precision and for a weight of 1
RELATIVELY_NOTHING = 1e-10  # the same beside the value: what rounding leaves of zero


def flaws(student: Taps, teacher: Taps, labels: Tensor) -> Callable[[Term], str]:
    """What is wrong with a term by itself, each looked at once: its gradient has no path to the student, is always zero, or does not
    mind the teacher.

    A term has a flaw only if it has it on noise as well: on this batch a hinge may be content, or no label known. Weights do not
    matter, but for a zero. Modules are not asked about the teacher: all of them read it, and one with a memory answers no two calls
    alike.

    Args:
        student: taps of the untrained student.
        teacher: the teacher's taps for the same images.
        labels: (N,), −1 where unknown.
    """
    student, teacher = (leaves(taps, torch.float64) for taps in (student, teacher))

    @cache
    def flaw_of(term: Term) -> str:
        try:
            return _flaw(term, student, teacher, labels)
        except Exception as error:  # a user's operator may raise anything
            return told("static", error)

    return lambda term: "is constant" if _numbers(term.weight) == {0.0} else flaw_of(replace(term, weight=1.0))


def static(tree: Sequence[Node], flaw: Callable[[Term], str]) -> str:
    """The first flaw of a term, by `flaws`."""
    for number, term in enumerate(to_terms(tree), 1):
        if found := flaw(term):
            return found if found.startswith("static: ") else f"static: term {number} {found}"
    return ""


def trim(tree: Sequence[Node], flaw: Callable[[Term], str]) -> Tree:
    """A loss without the terms that teach nothing; as it is, if no term is sound or one raises an error."""
    found = [(term, flaw(term)) for term in to_terms(tree)]
    sound = [term for term, reason in found if not reason]
    raised = any(reason.startswith("static: ") for _, reason in found)
    return list(tree) if raised or len(sound) in (0, len(found)) else to_tree(sound)


def probe(tree: Sequence[Node], student: Taps, teacher: Taps, labels: Tensor) -> str:
    """Value and gradient are finite and reach the student on one real batch, and stay finite at the ends of what training may meet.

    Args:
        tree: the candidate.
        student: taps of the untrained student.
        teacher: the teacher's taps for the same images.
        labels: (N,), −1 where unknown.
    """
    try:
        loss = compile_loss(tree, student, teacher)
        if reason := _probed(loss, student, teacher, labels, need=True):
            return reason
        for name, extreme in EXTREMES.items():
            if reason := _probed(loss, *extreme(student, teacher, labels), need=False):
                return f"{reason} on {name}"
    except Exception as error:  # a user's operator may raise anything
        return told("probe", error)
    return ""


def _probed(loss: DistillLoss, student: Taps, teacher: Taps, labels: Tensor, need: bool) -> str:
    student = leaves(student)
    value = call(loss, student, teacher, labels)
    if not torch.isfinite(value):
        return f"probe: value {value.item()}"
    gradients = reach(loss, value, student)
    if need and not gradients:
        return "static: no gradient path to the student"
    total = sum(g.abs().sum().item() for g in gradients.values())
    if not total < float("inf"):
        return "probe: gradient is not finite"
    return "probe: gradient is zero" if need and total == 0 else ""


def leaves(taps: Taps, dtype: torch.dtype | None = None) -> Taps:
    """The same taps as leaves of a graph, in another precision if one is named."""
    return taps.map(lambda tap: tap.detach().to(dtype or tap.dtype, copy=True).requires_grad_())


def changed(taps: Taps, change: Callable[[Tensor], Tensor]) -> Taps:
    """The taps with everything changed but the classifier, which has no batch, and stages that were not recorded, which are empty."""
    kept = replace(taps, head=None).map(lambda tap: change(tap) if tap.numel() else tap)
    return replace(kept, head=taps.head)


def call(loss: DistillLoss, student: Taps, teacher: Taps, labels: Tensor, progress: float = 1.0, noise: int = 0) -> Tensor:
    """Value of a loss on examples, a scalar; equal seeds of the noise draw equal masks."""
    draw = torch.Generator().manual_seed(noise)
    return loss(student, teacher, labels, progress, draw, torch.arange(len(labels)))


def reach(loss: DistillLoss, value: Tensor, student: Taps, **how: bool) -> dict[str, Tensor]:
    """Gradient by position, where there is a path to it. `teacher_head` reads the embedding and is no position of its own."""
    positions = list(dict.fromkeys(p.replace("teacher_head", "embedding") for p in loss.needs))
    if not value.requires_grad:
        return {}
    found = torch.autograd.grad(value, [student.at(p) for p in positions], allow_unused=True, **how)
    return {p: g for p, g in zip(positions, found, strict=True) if g is not None}


def told(gate: str, error: Exception) -> str:
    """What a candidate raised, as a reason of one line."""
    return f"{gate}: {type(error).__name__}: {error}".splitlines()[0][:160]


# --- one term ----------------------------------------------------------------------------------------------------------------


def _flaw(term: Term, student: Taps, teacher: Taps, labels: Tensor) -> str:
    loss = DistillLoss((term,), student, teacher, 0).double()
    flaw = _still(loss, student, teacher, labels)
    if flaw:
        return _still(loss, _noise(student, 1), _noise(teacher, 2), _any_labels(labels, student))
    if not term.module and _deaf(loss, student, teacher, labels):
        return "does not use the teacher"
    return ""


def _numbers(number: float | Schedule) -> set[float]:
    return {number.start, number.end} if isinstance(number, Schedule) else {number}


def _still(loss: DistillLoss, student: Taps, teacher: Taps, labels: Tensor) -> str:
    """How the gradient of a term fails to move the student."""
    value = call(loss, student, teacher, labels, HALFWAY)
    gradients = reach(loss, value, student)
    if not gradients:
        return "has no gradient path to the student"
    push = sum((g * student.at(p)).abs().sum().item() for p, g in gradients.items())
    return "is constant" if push <= max(NOTHING, RELATIVELY_NOTHING * abs(value.item())) else ""


def _deaf(loss: DistillLoss, student: Taps, teacher: Taps, labels: Tensor) -> bool:
    """Whether value and gradient stay the same beside the teacher's taps of other images."""
    values = [call(loss, student, t, labels, HALFWAY) for t in (teacher, _other_images(teacher))]
    if not torch.isclose(*values, rtol=1e-12, atol=0.0):
        return False
    here, there = (reach(loss, value, student) for value in values)
    return all(torch.allclose(here[p], there[p], rtol=1e-9, atol=0.0) for p in here)


def _other_images(taps: Taps) -> Taps:
    """Each image gets the taps of the one before it, stirred so that sums over the batch notice; zeros and signs stay as they were."""
    draw = torch.Generator().manual_seed(0)

    def other(tap: Tensor) -> Tensor:
        return tap.detach().roll(1, 0) * (0.5 + torch.rand(tap.shape, generator=draw, dtype=tap.dtype))

    return changed(taps, other)


def _noise(taps: Taps, seed: int) -> Taps:
    """Normal values of both signs in the shapes of the taps."""
    draw = torch.Generator().manual_seed(seed)
    return leaves(changed(taps, lambda tap: torch.randn(tap.shape, generator=draw, dtype=tap.dtype)))


def _any_labels(labels: Tensor, student: Taps) -> Tensor:
    return torch.arange(len(labels)) % student.logits.shape[1]


# --- the ends of what training may meet ----------------------------------------------------------------------------------------

Examples = tuple[Taps, Taps, Tensor]


def _dead(student: Taps, teacher: Taps, labels: Tensor) -> Examples:
    """Every ReLU of the student dead, so that all its rows are equal; every image of one class."""
    return changed(student, torch.zeros_like), teacher, torch.full_like(labels, int(labels.max()))


def _saturated(student: Taps, teacher: Taps, labels: Tensor) -> Examples:
    """Logits of both networks times 10⁴: softmaxes of zeros and ones, often in disagreement."""
    return *(replace(taps, logits=taps.logits * 1e4) for taps in (student, teacher)), labels


def _tiny(student: Taps, teacher: Taps, labels: Tensor) -> Examples:
    """Rows without contrast, nearly zero: each of the student's a constant, and everything times 10⁻⁶."""

    def flat(tap: Tensor) -> Tensor:
        return tap.flatten(1).mean(1).view(-1, *[1] * (tap.dim() - 1)).expand_as(tap) * 1e-6

    return changed(student, flat), changed(teacher, lambda tap: tap * 1e-6), labels


EXTREMES: dict[str, Callable[[Taps, Taps, Tensor], Examples]] = {
    "dead maps and one class": _dead,
    "saturated logits": _saturated,
    "tiny constant rows": _tiny,
}
