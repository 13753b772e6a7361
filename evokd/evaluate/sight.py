"""What a trained network looks at, and how alike it finds classes: class activation maps, embeddings, correlations of logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evokd.losses.taps import Taps
from evokd.models.tapping import Tapped, TapPlan

CHUNK = 500  # images at a time
EPS = 1e-12


@dataclass(frozen=True)
class Sight:
    """One network on the images of a report, as arrays on the CPU.

    Attributes:
        logits: (N,K).
        embedding: (N,D), the input of the classifier.
        cam: Grad-CAM of the first M images, (M,H,W) within [0, 1].
        cam_plus: Grad-CAM++, likewise.
    """

    logits: Tensor
    embedding: Tensor
    cam: Tensor
    cam_plus: Tensor


def look(network: nn.Module, plan: TapPlan, images: Tensor, classes: Tensor) -> Sight:
    """A network in eval mode on normalised images (N,C,H,W); its maps are of the first M images for their classes (M,)."""
    network.eval()
    with Tapped(network, plan) as tapped:
        logits, embedding = (
            torch.cat(parts) for parts in zip(*(_told(tapped, part) for part in images.split(CHUNK)), strict=True)
        )
        shown = images[: len(classes)]
        maps = (activation_maps(tapped, shown, classes, plus).cpu() for plus in (False, True))
        return Sight(logits, embedding, *maps)


@torch.no_grad()
def _told(tapped: Tapped, images: Tensor) -> tuple[Tensor, Tensor]:
    taps = tapped(images)
    return taps.logits.cpu(), taps.at("embedding").cpu()


def activation_maps(tapped: Tapped, images: Tensor, classes: Tensor, plus: bool = False) -> Tensor:
    """Where the last stage speaks for a class, (N,H,W) at the images' size, each between 0 and 1.

    Grad-CAM (Selvaraju et al., ICCV 2017, eq. 1 and 2): ReLU Σ_k w_k A_k with w_k the mean of the gradient G = ∂z_c/∂A_k over places.
    Grad-CAM++ (Chattopadhyay et al., WACV 2018, eq. 10 and 19): w_k = Σ_ij α_ij ReLU(G_ij), α = G² / (2 G² + G³ Σ_ab A_ab), with
    Y = exp z_c, whose factor exp z_c is the same everywhere in a map and goes with its scale.

    Args:
        tapped: a network in eval mode, so that images do not touch one another.
        images: (N,C,H,W), normalised.
        classes: (N,), for which the maps are made.
        plus: Grad-CAM++.
    """
    images = images.clone().requires_grad_()  # a frozen teacher has no other leaf that asks for a gradient
    with torch.enable_grad():
        taps = tapped(images)
        features = taps.at("features[-1]")
        gradient = torch.autograd.grad(_of_classes(taps, classes), features)[0]
    features = features.detach()
    weights = plus_weights(features, gradient) if plus else gradient.mean((2, 3))
    maps = (weights[:, :, None, None] * features).sum(1, keepdim=True).relu()
    return _scaled(F.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=False)[:, 0])


def _of_classes(taps: Taps, classes: Tensor) -> Tensor:
    return taps.logits.gather(1, classes[:, None]).sum()


def plus_weights(features: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM++'s weight of every channel, (N,C), from maps and gradient (N,C,H,W)."""
    below = 2 * gradient.square() + gradient.pow(3) * features.sum((2, 3), keepdim=True)
    alpha = gradient.square() / torch.where(below.abs() > EPS, below, torch.ones_like(below))
    return (alpha * gradient.relu()).sum((2, 3))


def _scaled(maps: Tensor) -> Tensor:
    """Every map from 0 to 1; one that is 0 everywhere stays so."""
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(EPS)


def class_correlation(logits: Tensor) -> Tensor:
    """Pearson's correlation of every two classes' logits over images: (N,K) → (K,K); 0 where a class has the same logit everywhere."""
    centred = logits.double() - logits.double().mean(0)
    size = torch.linalg.vector_norm(centred, dim=0)
    still = size <= EPS
    unit = centred / torch.where(still, torch.ones_like(size), size)
    return torch.where(still[:, None] | still[None, :], torch.zeros(()).double(), unit.t() @ unit)
