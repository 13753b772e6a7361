"""Gates: cheap reasons to refuse a candidate before it is trained. Each returns the reason, or an empty text."""

import torch

from evokd.losses.program import compile_loss
from evokd.losses.taps import Taps


def probe(tree: list, student: Taps, teacher: Taps, labels: torch.Tensor) -> str:
    """Value and gradient on one real batch: finite, and reaching the student.

    Args:
        tree: the candidate.
        student: taps of the untrained student, leaves of a graph.
        teacher: the teacher's taps for the same images.
        labels: (N,), −1 where unknown.
    """
    student = student.map(lambda tap: tap.detach().requires_grad_(tap.is_floating_point()))
    try:
        loss = compile_loss(tree, student, teacher)
        value = loss(student, teacher, labels, generator=torch.Generator().manual_seed(0))
    except Exception as error:  # a user's operator may raise anything
        return f"probe: {type(error).__name__}: {error}".splitlines()[0][:160]
    if not torch.isfinite(value):
        return f"probe: value {value.item()}"
    if not value.requires_grad:
        return "static: no gradient path to the student"
    taps = [student.at(position) for position in loss.needs]
    gradients = torch.autograd.grad(value, taps, allow_unused=True)
    total = sum(g.abs().sum().item() for g in gradients if g is not None)
    if not total < float("inf"):
        return "probe: gradient is not finite"
    return "" if total > 0 else "probe: gradient is zero"
