"""Passes through a network that leave it as it was, and what can be seen on the way.

A watch is a function of an `Event`; a pass hands every event to every watch and keeps what they return.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from evokd.losses.taps import Taps
from evokd.models.tapping import Tapped, plan_taps

RELUS = {F.relu, F.relu6, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}


@dataclass(frozen=True)
class Event:
    """Something computed on the way.

    Attributes:
        module: that finished, or None for the call of a ReLU, as module or as function.
        input: its first one; None for a ReLU, which may have overwritten it.
        output: what it gave.
        block: whether the module is one of `blocks`.
    """

    module: nn.Module | None
    input: Tensor | None
    output: Tensor
    block: bool = False


Watch = Callable[[Event], Tensor | int | None]


def watched(
    network: nn.Module, images: Tensor, watches: Sequence[Watch], seed: int = 0, where: str = "student"
) -> tuple[Taps, dict[Watch, list[Tensor]]]:
    """One pass in train mode, without gradients, channels last: (taps, what each watch returned).

    A network that gives logits alone runs twice, for its taps have to be found first.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    with untouched(network, seed), torch.no_grad():
        with watching(network, watches) as seen:
            out = network(images)
        if isinstance(out, Taps):
            return out.map(Tensor.detach), seen
        plan = plan_taps(network, images[:2], where=where)
    with untouched(network, seed), torch.no_grad(), Tapped(network, plan) as tapped:
        return tapped(images).map(Tensor.detach), seen


@contextmanager
def watching(network: nn.Module, watches: Sequence[Watch]) -> Iterator[dict[Watch, list[Tensor]]]:
    """Hand every event of the passes within to every watch; gives watch → what it returned."""
    seen: dict[Watch, list[Tensor]] = {watch: [] for watch in watches}
    outer = set(blocks(network)) if watches else set()

    def note(event: Event) -> None:
        for watch, values in seen.items():
            if (value := watch(event)) is not None:
                values.append(value)

    def hook(module, args, output) -> None:
        if isinstance(output, Tensor):
            note(Event(module, args[0] if args else None, output, module in outer))

    with ExitStack() as stack:
        if watches:
            for module in network.modules():
                stack.callback(module.register_forward_hook(hook).remove)
            stack.enter_context(_ReluMode(lambda output: note(Event(None, None, output))))
        yield seen


class _ReluMode(TorchFunctionMode):
    """Reports the output of every ReLU, however it is called."""

    def __init__(self, note: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_function__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if func in RELUS or (func is F.hardtanh and kwargs.get("min_val") == 0):  # nn.ReLU6 is a hardtanh
            self.note(output)
        return output


def blocks(network: nn.Module) -> list[nn.Module]:
    """The outermost modules with parts of their own, stages that are mere sequences opened; plain convolutions if there are none."""
    outer = list(_outermost(network))
    return [m for m in outer if any(m.children())] or [m for m in outer if isinstance(m, nn.Conv2d)]


def _outermost(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if type(child) in (nn.Sequential, nn.ModuleList):
            yield from _outermost(child)
        else:
            yield child


@contextmanager
def untouched(network: nn.Module, seed: int = 0, gradients: bool = False) -> Iterator[None]:
    """A network in train mode; modes, buffers and what asks for gradients are put back at the end.

    What the network itself draws (dropout) comes from the seed; the global generator is left as it was.
    """
    modes = [(module, module.training) for module in network.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in network.buffers()]
    wishes = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    with ExitStack() as stack:
        stack.callback(partial(_restore, modes, buffers, wishes))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        torch.random.default_generator.manual_seed(seed)
        network.train()
        for parameter, wish in wishes:
            parameter.requires_grad_(wish or gradients)
        yield


def _restore(modes: list, buffers: list, wishes: list) -> None:
    for module, training in modes:
        module.training = training
    for buffer, before in buffers:
        buffer.copy_(before)
    for parameter, wish in wishes:
        parameter.requires_grad_(wish)
