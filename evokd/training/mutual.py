"""Deep mutual learning (Zhang et al., CVPR 2018): students without a teacher, trained together, each by labels and by the others.

The student that is measured and kept is the first. It begins as the student of any other loss does with the same seed, and sees the same
images, so that it is paired with them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evokd.data import Data
from evokd.models.tapping import logits_of
from evokd.models.zoo import build
from evokd.streams import derive
from evokd.training.recipes import Recipe
from evokd.training.seed import FullTraining, Say, State, Trained, hard_loss


class Peers(nn.Module):
    """Networks that see the same images; called it is the first of them."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        """(N,C,H,W) → the first one's logits (N,K)."""
        return logits_of(self.networks[0], images)

    def all(self, images: Tensor) -> list[Tensor]:
        """(N,C,H,W) → logits (N,K) of each."""
        return [logits_of(network, images) for network in self.networks]


class MutualTraining(FullTraining):
    """A full training of several students of one architecture; see `FullTraining`.

    One optimiser steps them all at once: what one teaches another is not differentiated, so that each has the gradient of its own loss.
    A recipe's limit on the gradient's norm holds for all of them together.

    Args:
        data: as for `FullTraining`; so are `student`, `recipe` and `device`.
        student: of one architecture for all.
        recipe: how.
        peers: how many, at least two.
        gamma: weight of the cross-entropy.
        device: cpu or cuda.
    """

    def __init__(self, data: Data, student, recipe: Recipe, *, peers: int, gamma: float = 1.0, device: str = "cpu") -> None:
        super().__init__(data, student, recipe, gamma=gamma, device=device)
        self.peers = peers

    def train(self, seed: int, checkpoint: Path | None = None, say: Say = lambda line: None, until: int | None = None) -> Trained:
        """The first student, with its figures."""
        trained = super().train(seed, checkpoint, say, until)
        return Trained(trained.network.networks[0].eval(), trained.figures, trained.epochs)

    def _begin(self, seed: int, stack: ExitStack) -> State:
        seeds = [derive(seed, "student"), *(derive(seed, "peer", number) for number in range(1, self.peers))]
        peers = Peers([build(self.student, self.data.classes, self.data.shape[0], each) for each in seeds])
        peers = peers.to(self.device, memory_format=self.format)
        return State(seed, self.recipe, peers, copy.deepcopy(peers) if self.recipe.ema else None, None, None, None)

    def _step(
        self, state: State, images: Tensor, index: Tensor, view: Tensor | None, progress: float, noise: torch.Generator
    ) -> Tensor:
        """One step of all; mean cross-entropy and mean mutual loss of a student (2,)."""
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.recipe.mixed and self.device != "cpu"):
            logits = [each.float() for each in state.network.all(images)]
        hard = sum(hard_loss(each, self.labels[index], self.recipe.smoothing) for each in logits)
        soft = sum(mutual(logits))
        state.optimiser.zero_grad(set_to_none=True)
        (self.gamma * hard + soft).backward()
        if self.recipe.clip:
            nn.utils.clip_grad_norm_(state.weights, self.recipe.clip, foreach=True)
        state.optimiser.step()
        state.average()
        return torch.stack([hard.detach(), soft.detach()]) / self.peers


def mutual(logits: Sequence[Tensor]) -> list[Tensor]:
    """The loss of each of M students beside its cross-entropy: 1/(M−1) Σ KL(p_other ‖ p_own), a mean over the batch (equations 4 and 8).

    Args:
        logits: (N,K) of each; only the own ones carry a gradient.
    """
    logs = [each.log_softmax(1) for each in logits]
    return [
        sum(
            F.kl_div(own, other.detach(), reduction="batchmean", log_target=True)
            for place, other in enumerate(logs)
            if place != here
        )
        / (len(logs) - 1)
        for here, own in enumerate(logs)
    ]
