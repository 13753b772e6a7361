"""All that changes in a full training, and its checkpoint: one safetensors file, from which it goes on to the same bits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from evokd.errors import EvokdError
from evokd.losses.program import DistillLoss
from evokd.models.tapping import Tapped
from evokd.training.recipes import Recipe


@dataclass
class State:
    """All that changes in a training; what a checkpoint holds."""

    seed: int
    recipe: Recipe
    network: nn.Module
    averaged: nn.Module | None
    loss: DistillLoss | None
    tapped: Tapped | None
    live: Tapped | None

    def __post_init__(self) -> None:
        recipe, own = self.recipe, list(self.network.parameters())
        decayed = [w for w in own if recipe.decay_all or w.dim() > 1]
        free = [w for w in own if not recipe.decay_all and w.dim() <= 1]
        free += [w for w in self.loss.parameters() if w.requires_grad] if self.loss is not None else []
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
        self.weights = decayed + free
        sgd = {"momentum": recipe.momentum, "nesterov": recipe.nesterov}
        self.optimiser = (
            torch.optim.AdamW(groups, recipe.lr) if recipe.optimizer == "adamw" else torch.optim.SGD(groups, recipe.lr, **sgd)
        )

    @property
    def measured(self) -> nn.Module:
        """The network that figures are of."""
        return self.averaged if self.averaged is not None else self.network

    @torch.no_grad()
    def average(self) -> None:
        """Exponential moving average of the weights; the statistics of batch norm are those of now."""
        if self.averaged is None:
            return
        for mean, now in zip(self.averaged.parameters(), self.network.parameters(), strict=True):
            mean.lerp_(now, 1 - self.recipe.ema)
        for mean, now in zip(self.averaged.buffers(), self.network.buffers(), strict=True):
            mean.copy_(now)

    @property
    def _modules(self) -> dict[str, nn.Module]:
        named = {"student": self.network, "averaged": self.averaged, "loss": self.loss}
        return {name: module for name, module in named.items() if module is not None}

    def save(self, path: Path, rows: list[dict[str, float]]) -> None:
        """Weights, momenta and rows in one safetensors file, written whole or not at all."""
        from safetensors.torch import save_file

        found = {f"{name}.{key}": value for name, module in self._modules.items() for key, value in module.state_dict().items()}
        for number, slots in self.optimiser.state_dict()["state"].items():
            found |= {f"optimiser.{number}.{key}": value for key, value in slots.items() if isinstance(value, Tensor)}
        part = path.with_suffix(".part")
        card = {"seed": str(self.seed), "rows": json.dumps(rows)}
        save_file(
            {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in found.items()}, part, card
        )
        part.replace(path)

    def load(self, path: Path) -> list[dict[str, float]]:
        """The rows of a checkpoint, after its weights and momenta were taken over.

        Raises:
            EvokdError: a torn file, or one of another training.
        """
        from safetensors import SafetensorError, safe_open

        hint = "delete it; this seed begins anew"
        try:
            with safe_open(path, "pt") as file:
                found, card = {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 (not a dict)
            rows = json.loads(card["rows"])
            if card["seed"] != str(self.seed):
                raise ValueError(f"seed {card['seed']}")
            for name, module in self._modules.items():
                module.load_state_dict(_under(found, name))
        except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
            raise EvokdError(str(path), "a whole checkpoint of this training", str(error).splitlines()[0][:80], hint) from None
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in _under(found, "optimiser").items():
            number, _, slot = key.partition(".")
            slots.setdefault(int(number), {})[slot] = value
        self.optimiser.load_state_dict({"state": slots, "param_groups": self.optimiser.state_dict()["param_groups"]})
        return rows


def _under(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
