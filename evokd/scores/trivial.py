"""What a student costs, as scores: the rows that every other score has to beat. They know nothing of dead networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from evokd.models.tapping import logits_of
from evokd.models.zoo import parameters
from evokd.scores.passes import Event, untouched, watched
from evokd.scores.score import Score

WEIGHTED = ("ConvolutionBackward", "AddmmBackward", "MmBackward")


def params(student: nn.Module, teacher, images: Tensor, labels: Tensor, generator=None) -> float:
    return float(parameters(student))


def live_params(student: nn.Module, teacher, images: Tensor, labels: Tensor, generator=None) -> float:
    count = getattr(student, "live_parameters", None)
    return float(count() if callable(count) else parameters(student))


def macs(student: nn.Module, teacher, images: Tensor, labels: Tensor, generator=None) -> float:
    counts: list[int] = []

    def count(layer: nn.Module, args, output: Tensor) -> None:
        counts.append(output.numel() * layer.weight[0].numel())

    handles = [m.register_forward_hook(count) for m in student.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    try:
        with untouched(student), torch.no_grad():
            student.eval()(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    return float(sum(counts))


def flops(student: nn.Module, teacher, images: Tensor, labels: Tensor, generator=None) -> float:
    _, seen = watched(student, images[:2], (numbers_made,))
    return macs(student, teacher, images, labels) + sum(seen[numbers_made])


def numbers_made(event: Event) -> int | None:
    """By batch norm, ReLU or pooling, for one image."""
    elementwise = event.module is None or isinstance(event.module, nn.BatchNorm2d | nn.AvgPool2d | nn.AdaptiveAvgPool2d)
    return event.output[0].numel() if elementwise else None


def depth(student: nn.Module, teacher, images: Tensor, labels: Tensor, generator=None) -> float:
    """Read off autograd's graph, so that shortcuts and dead ends do not count."""
    with untouched(student, gradients=True), torch.enable_grad():
        return float(_longest(logits_of(student, images[:2]).grad_fn))


def _longest(root) -> int:
    """The most layers with weights on a path from a node of autograd's graph to its leaves."""
    depths: dict = {}
    stack = [root]
    while stack:
        node = stack[-1]
        parts = [part for part, _ in node.next_functions if part is not None]
        if missing := [part for part in parts if part not in depths]:
            stack += missing
        else:
            depths[stack.pop()] = node.name().startswith(WEIGHTED) + max((depths[part] for part in parts), default=0)
    return depths[root]


def _plain(fn: Callable[..., float], source: str) -> Score:
    return Score(fn, higher_is_better=True, needs_teacher=False, source=source)


TRIVIAL: dict[str, Score] = {
    "params": _plain(params, "parameters"),
    "live_params": _plain(live_params, "parameters on a path from input to output, where the network can tell; else all"),
    "macs": _plain(macs, "multiply–accumulates of convolutions and linear layers for one image"),
    "flops": _plain(flops, "MACs and the numbers that batch norm, ReLU and pooling modules give: DisWOT's FLOPs"),
    "depth": _plain(depth, "layers with weights on the longest path"),
}
