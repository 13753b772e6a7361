"""Weights of an untrained network from a seed, in the ways that scores are published with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from evokd.errors import unknown
from evokd.streams import derive


def initialise(network: nn.Module, mode: str, seed: int, where: str = "--init") -> nn.Module:
    """The same network with its weights drawn anew, in place; the global generator is left as it was.

    Args:
        network: any.
        mode: one of `MODES`.
        seed: derive(seed, key) gives every student its own weights, whatever the order.
        where: option named in errors.

    Raises:
        EvokdError: unknown mode.
    """
    if mode not in MODES:
        raise unknown(where, "an initialisation", mode, MODES)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.random.default_generator.manual_seed(derive(seed, "initialise"))
        for module in network.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            MODES[mode](module)
    return network


def _default(module: nn.Module) -> None:
    """PyTorch's own: uniform with a = √5 for convolutions and linear layers."""


def _kaiming(module: nn.Module) -> None:
    """He et al. 2015 by fan-out for convolutions, as CIFAR ResNets have it; PyTorch's own for linear layers."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _gaussian(module: nn.Module) -> None:
    """N(0,1) for weights of convolutions and linear layers, zero biases: DisWOT's scripts and Zen."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


MODES: dict[str, Callable[[nn.Module], None]] = {"default": _default, "kaiming": _kaiming, "gaussian": _gaussian}
