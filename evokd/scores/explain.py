"""What DisWOT compares, for one student and its teacher: correlation maps and class activation maps, as arrays to look at."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from evokd.errors import EvokdError
from evokd.losses.taps import Taps
from evokd.scores import TeacherView, score_all, view_teacher
from evokd.scores.diswot import DISWOT, activation_maps, gradient_grams, gradient_rows, rown, sample_gram

Pair = tuple[np.ndarray, np.ndarray]  # of teacher and student


@dataclass(frozen=True, eq=False)
class Explanation:
    """The parts of the score, and what they are made from. Samples are in the order of their labels.

    Attributes:
        parts: score → value.
        semantic: matrices, mean over classes, (C,C), or (N,N) where the widths differ.
        channels: whether `semantic` relates channels.
        relation: matrices of samples, (N,N).
        activations: class activation maps of the label's class, (N,H,W), 0…1.
        labels: (N,).
        order: (N,), where each sample stood in the batch.
    """

    parts: dict[str, float]
    semantic: Pair
    channels: bool
    relation: Pair
    activations: Pair
    labels: np.ndarray
    order: np.ndarray


def explain(
    student: nn.Module, view: TeacherView, images: Tensor, labels: Tensor, generator: torch.Generator | None = None
) -> Explanation:
    """DisWOT's parts, and the matrices whose distances they are.

    Raises:
        EvokdError: a student that is dead, or that does not show its classifier.
    """
    parts = score_all(list(DISWOT), student, view, images, labels, generator)
    if not all(np.isfinite(value) for value in parts.values()):
        raise EvokdError("ARCH", "a student whose output depends on its input", "a dead one")
    order = labels.argsort(stable=True)
    taps = [_ordered(taps, order) for taps in (view.taps, view_teacher(student, images, labels).taps)]
    known = labels[order]
    channels = taps[0].at("embedding").shape[1] == taps[1].at("embedding").shape[1]
    semantic = channel_products if channels else sample_products
    return Explanation(
        parts,
        _pair(taps, semantic, known),
        channels,
        _pair(taps, sample_gram, known),
        _pair(taps, grad_cam, known),
        known.numpy(),
        order.numpy(),
    )


def _ordered(taps: Taps, order: Tensor) -> Taps:
    """The samples in another order; the classifier has none."""
    return replace(taps.map(lambda x: x[order] if len(x) == len(order) else x), head=taps.head)


def _pair(taps: list[Taps], statistic, labels: Tensor) -> Pair:
    with torch.no_grad():
        teacher, student = (statistic(each, labels).double().numpy() for each in taps)
    return teacher, student


def channel_products(taps: Taps, labels: Tensor) -> Tensor:
    """Mean over classes of rown(a_k a_kᵀ), a_k the class's row of the classifier's gradient: (C,C)."""
    a = gradient_rows(taps, labels).double()
    return sum(rown(torch.outer(row, row)) for row in a) / len(a)


def sample_products(taps: Taps, labels: Tensor) -> Tensor:
    """The same between samples, (N,N), for networks of different width."""
    return gradient_grams(taps, labels).mean(0)


def grad_cam(taps: Taps, labels: Tensor) -> Tensor:
    """Grad-CAM (ICCV 2017) of the label's class, (N,H,W): the positive part of the weighted channels' sum, its maximum being 1."""
    maps = activation_maps(taps, labels).sum(1).clamp_min(0)
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)
