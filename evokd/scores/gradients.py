"""Scores of gradients (zero-cost proxies, Abdelfattah et al., ICLR 2021), and those of ZiCo and AZ-NAS.

Sums run over the weights w_l of convolutions and linear layers, g_l = dCE/dw_l with the mean over the batch; one backward pass serves
all scores of that gradient.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evokd.errors import EvokdError
from evokd.models.tapping import logits_of
from evokd.scores.activations import correlations
from evokd.scores.passes import blocks, untouched
from evokd.scores.score import Case, Score, shared
from evokd.streams import derive


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer after the backward pass; it may stand on no path to the logits.

    Attributes:
        weight: (O,…).
        gradient: of the cross-entropy, shaped like the weight, or None.
        output: (N,O,…), what the layer gave.
        output_gradient: of the cross-entropy for it, or None.
    """

    weight: Tensor
    gradient: Tensor | None
    output: Tensor
    output_gradient: Tensor | None


def weighted_layers(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def cross_entropy(case: Case, part: slice = slice(None)) -> Tensor:
    """Of (a part of) the batch, samples with unknown labels left out.

    Raises:
        EvokdError: if no label is known.
    """
    if not bool((case.labels[part] >= 0).any()):
        raise EvokdError("labels", "a known label, whose cross-entropy the score differentiates", "none")
    return F.cross_entropy(logits_of(case.student, case.images[part]), case.labels[part], ignore_index=-1)


def backward(case: Case) -> list[Layer]:
    """One backward pass of the cross-entropy, kept out of `.grad`."""
    outputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, args, output: Tensor) -> Tensor:
        outputs[module] = output
        return output.clone()  # what follows may work in place

    handles = [layer.register_forward_hook(keep) for layer in weighted_layers(case.student)]
    try:
        with untouched(case.student, derive(case.seed, "backward"), gradients=True), torch.enable_grad():
            loss = cross_entropy(case)
            weights, values = [layer.weight for layer in outputs], list(outputs.values())
            found = torch.autograd.grad(loss, weights + values, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    parts = zip(weights, found[: len(weights)], values, found[len(weights) :], strict=True)
    return [Layer(w.detach(), g, y.detach(), dy) for w, g, y, dy in parts]


def live_layers(case: Case) -> list[Layer]:
    """Layers that the loss depends on; the others add nothing to any of these scores."""
    return [layer for layer in case.once(backward) if layer.gradient is not None]


def grad_norm(case: Case) -> Tensor:
    return sum(torch.linalg.vector_norm(layer.gradient.double()) for layer in live_layers(case))


def snip(case: Case) -> Tensor:
    return sum((layer.weight * layer.gradient).abs().sum().double() for layer in live_layers(case))


def fisher(case: Case) -> Tensor:
    return sum(_channel_fisher(layer).sum() * layer.weight[0].numel() for layer in live_layers(case))


def _channel_fisher(layer: Layer) -> Tensor:
    """½ mean_n (Σ_hw y dL/dy)², (O,)."""
    product = (layer.output.double() * layer.output_gradient).flatten(1)
    return product.unflatten(1, (len(layer.weight), -1)).sum(2).square().mean(0) / 2


def grasp(case: Case) -> Tensor:
    """−Σ w · (H g)."""
    weights = [layer.weight for layer in weighted_layers(case.student)]
    with untouched(case.student, derive(case.seed, "backward"), gradients=True), torch.enable_grad():
        gradients = torch.autograd.grad(cross_entropy(case), weights, create_graph=True, allow_unused=True)
        used = [(w, g) for w, g in zip(weights, gradients, strict=True) if g is not None]
        along = sum((g.detach() * g).sum() for _, g in used)
        products = torch.autograd.grad(along, [w for w, _ in used], allow_unused=True)
    return -sum((w.detach() * h).sum().double() for (w, _), h in zip(used, products, strict=True) if h is not None)


def synflow(case: Case) -> Tensor:
    """On a copy in double precision with absolute values of all weights and without batch norms, for an image of ones."""
    network = copy.deepcopy(case.student).double().eval().requires_grad_(True)
    with torch.no_grad():
        for value in [*network.parameters(), *(b for b in network.buffers() if b.is_floating_point())]:
            value.abs_()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda m, args, output: args[0])
    weights = [layer.weight for layer in weighted_layers(network)]
    with torch.enable_grad():
        total = logits_of(network, torch.ones_like(case.images[:1], dtype=torch.float64)).sum()
        gradients = torch.autograd.grad(total, weights, allow_unused=True)
    return sum((w.detach() * g).abs().sum() for w, g in zip(weights, gradients, strict=True) if g is not None)


def jacov(case: Case, eps: float = 1e-5) -> Tensor:
    images = case.images.detach().clone().requires_grad_(True)
    with untouched(case.student, derive(case.seed, "backward")), torch.enable_grad():
        jacobian = torch.autograd.grad(logits_of(case.student, images).sum(), images)[0]
    values = torch.linalg.eigvalsh(correlations(jacobian.flatten(1).double()))
    return -((values + eps).log() + 1 / (values + eps)).sum()


def zico(case: Case) -> Tensor:
    """Halves of the batch stand for the mini-batches of the paper; weights whose gradients agree to the bit are left out."""
    half = len(case.images) // 2
    weights = [layer.weight for layer in weighted_layers(case.student)]
    found = []
    for part in (slice(0, half), slice(half, None)):
        with untouched(case.student, derive(case.seed, "backward"), gradients=True), torch.enable_grad():
            found.append(torch.autograd.grad(cross_entropy(case, part), weights, allow_unused=True))
    sums = [_inverse_spread(torch.stack(pair).double()) for pair in zip(*found, strict=True) if pair[0] is not None]
    return sum(value.log() for value in sums if value > 0)


def _inverse_spread(gradients: Tensor) -> Tensor:
    """Σ_w mean|g| / sd(g) of (batches,…)."""
    mean, spread = gradients.abs().mean(0), gradients.std(0, correction=0)
    return (mean[spread > 0] / spread[spread > 0]).sum()


def trainability(case: Case) -> Tensor:
    """Mean over neighbouring blocks of 2 − s − 1/s, s the norm of the matrix that links signs sent back with what arrives.

    Raises:
        EvokdError: if there are fewer than two blocks.
    """
    with untouched(case.student, derive(case.seed, "backward"), gradients=True), torch.enable_grad():
        maps = _block_maps(case)
        if len(maps) < 2:
            raise EvokdError("az_trainability", "a network of two blocks or more", str(len(maps)))
        draw = case.draw("trainability")
        return torch.stack([_link(*pair, draw) for pair in pairwise(maps)]).mean()


def _block_maps(case: Case) -> list[Tensor]:
    """The maps after every block, with their graph."""
    maps: list[Tensor] = []

    def keep(module: nn.Module, args, output):
        if not (isinstance(output, Tensor) and output.dim() == 4):
            return output
        maps.append(output)
        return output.clone()

    handles = [block.register_forward_hook(keep) for block in blocks(case.student)]
    try:
        case.student(case.images.detach().clone().requires_grad_(True))
    finally:
        for handle in handles:
            handle.remove()
    return maps


def _link(before: Tensor, after: Tensor, draw: torch.Generator) -> Tensor:
    """2 − s − 1/(s + 1e-6); −∞ for a block that hands gradients through unchanged, or not at all."""
    signs = (torch.randint(0, 2, after.shape, generator=draw) * 2 - 1).to(after)
    back = torch.autograd.grad(after, before, signs, allow_unused=True)[0]
    if back is None or (back.shape == signs.shape and torch.equal(back, signs)):
        return torch.tensor(-float("inf"))
    if back.shape[2:] != signs.shape[2:]:
        back = F.pixel_unshuffle(back, back.shape[2] // signs.shape[2])
    sent, arrived = (x.transpose(0, 1).flatten(1) for x in (signs, back))
    s = torch.linalg.matrix_norm(arrived @ sent.t() / sent.shape[1], 2)
    return 2 - s - 1 / (s + 1e-6)


ZERO_COST = "as in zero-cost proxies (Abdelfattah et al., ICLR 2021)"

GRADIENTS: dict[str, Score] = {
    "grad_norm": shared(grad_norm, f"Σ_l ‖g_l‖₂, {ZERO_COST}"),
    "snip": shared(snip, f"SNIP (Lee et al., ICLR 2019): Σ |w g|, {ZERO_COST}"),
    "fisher": shared(
        fisher, f"Fisher (Turner et al., ICLR 2020): Σ over channels of fan-in · ½ mean_n (Σ_hw y dL/dy)², {ZERO_COST}"
    ),
    "grasp": shared(grasp, f"GraSP (Wang et al., ICLR 2020): −Σ w (H g), {ZERO_COST}"),
    "synflow": shared(synflow, f"Synflow (Tanaka et al., NeurIPS 2020): Σ |w dR/dw|, {ZERO_COST}"),
    "jacov": shared(
        jacov, "Jacob_cov (Mellor et al. 2020): −Σ log(v + k) + 1/(v + k), v of the inputs' gradient correlations, k = 1e-5"
    ),
    "zico": shared(zico, "ZiCo (Li et al., ICLR 2023): Σ_l log Σ_w mean|g| / sd(g) over two halves of the batch"),
    "az_trainability": shared(trainability, "AZ-NAS (Lee & Ham, CVPR 2024): mean over blocks of 2 − s − 1/s"),
}
