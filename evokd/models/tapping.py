"""Taps of any `nn.Module`, read by forward hooks that are removed when the context ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evokd.errors import EvokdError, closest
from evokd.losses.taps import Taps


@dataclass(frozen=True)
class TapPlan:
    """Where a network is tapped: module paths of the stages (last stage last) and of the classifier."""

    features: tuple[str, ...]
    head: str


def plan_taps(network: nn.Module, images: Tensor, paths: Sequence[str] = (), where: str = "taps") -> TapPlan:
    """Choose taps from one forward pass: the last module of each resolution, and the last linear layer.

    Args:
        network: any module that maps images to logits.
        images: (N,C,H,W), an example batch.
        paths: the user's own choice of stages, which replaces the automatic one.
        where: option named in errors.

    Raises:
        EvokdError: a path that does not exist, a module that gives no map, or no linear classifier.
    """
    modules = dict(network.named_modules())
    for path in paths:
        if path not in modules:
            raise EvokdError(where, "the path of a module", repr(path), closest(path, [m for m in modules if m]))
    try:
        outputs = _outputs(network, images)
    except (RuntimeError, ValueError, TypeError) as error:
        got = str(error).splitlines()[0][:100]
        raise EvokdError(where, f"a network for images of shape {tuple(images.shape[1:])}", got) from None
    maps = {path: shape for path, shape in outputs if len(shape) == 4}
    if missing := [path for path in paths if path not in maps]:
        raise EvokdError(where, "modules that give maps (N,C,H,W)", missing[0], "such as " + ", ".join(list(maps)[-4:]))
    head = next((p for p, shape in reversed(outputs) if isinstance(modules[p], nn.Linear) and len(shape) == 2), None)
    if head is None:
        raise EvokdError(where, "a network that ends in a linear layer", type(network).__name__)
    return TapPlan(tuple(paths) or _last_of_each_size(maps), head)


def _last_of_each_size(maps: dict[str, torch.Size]) -> tuple[str, ...]:
    """Containers finish after their parts, so the last module of a size is the outermost one."""
    by_size = {}
    for path, shape in maps.items():
        if path and tuple(shape[2:]) != (1, 1):
            by_size.pop(tuple(shape[2:]), None)
            by_size[tuple(shape[2:])] = path
    return tuple(by_size.values())


def _outputs(network: nn.Module, images: Tensor) -> list[tuple[str, torch.Size]]:
    """(path, output shape) in order of completion."""
    found: dict[str, torch.Size] = {}

    def note(path: str):
        def hook(module, args, output):
            if isinstance(output, Tensor):
                found.pop(path, None)
                found[path] = output.shape

        return hook

    handles = [module.register_forward_hook(note(path)) for path, module in network.named_modules()]
    training = network.training
    try:
        with torch.no_grad():
            network.eval()(images)
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    return list(found.items())


class Tapped:
    """A network whose call returns `Taps`; a context manager, so that no hook outlives it.

    with Tapped(network, plan) as tapped:
        taps = tapped(images)
    """

    def __init__(self, network: nn.Module, plan: TapPlan) -> None:
        self.network, self.plan = network, plan
        self._seen: dict[str, Tensor] = {}
        self._handles: list = []

    def __enter__(self) -> Tapped:
        modules = dict(self.network.named_modules())
        for path in self.plan.features:
            self._handles.append(modules[path].register_forward_hook(lambda m, a, out, path=path: self._keep(path, out)))
        self._head = modules[self.plan.head]
        self._handles.append(self._head.register_forward_pre_hook(lambda m, args: self._keep("embedding", args[0])))
        return self

    def _keep(self, path: str, value: Tensor) -> None:
        self._seen[path] = value

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen.clear()

    def __call__(self, images: Tensor) -> Taps:
        logits = self.network(images)
        features = tuple(self._seen[path] for path in self.plan.features)
        return Taps(logits, self._seen["embedding"].flatten(1), features, head=(self._head.weight, self._head.bias))


def tap_table(student: Taps, teacher: Taps, student_plan: TapPlan, teacher_plan: TapPlan) -> list[tuple[str, str, str]]:
    """Rows (position, student, teacher) with paths and shapes, for the start of a run."""

    def cell(taps: Taps, plan: TapPlan, position: str) -> str:
        if position not in taps.positions():
            return "–"
        path = plan.features[int(position[9:-1])] if position.startswith("features") else plan.head
        return f"{path} {'×'.join(map(str, taps.at(position).shape[1:]))}"

    positions = list(dict.fromkeys(student.positions() + teacher.positions()))
    return [(p, cell(student, student_plan, p), cell(teacher, teacher_plan, p)) for p in positions]
