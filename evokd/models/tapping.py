"""Taps of any `nn.Module`, read by forward hooks that are removed when the context ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evokd.errors import EvokdError, closest
from evokd.losses.taps import Taps, split_position


@dataclass(frozen=True)
class TapPlan:
    """Where a network is tapped: module paths of the stages (last stage last), of the classifier, and of the ReLU that ends each stage.

    `pre_relu` is empty where a stage does not end in an `nn.ReLU`; all is empty for a network that returns `Taps` by itself.
    """

    features: tuple[str, ...]
    head: str
    pre_relu: tuple[str, ...] = ()


def plan_taps(network: nn.Module, images: Tensor, paths: Sequence[str] = (), where: str = "taps") -> TapPlan:
    """Choose taps from one forward pass: the stages, and the last linear layer.

    Stages are those that the network names in a tuple `stage_paths`, or else the last module of each resolution.

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
    if outputs is None:
        return TapPlan((), "")
    maps = {path: out.shape for path, out in outputs.items() if out.dim() == 4}
    if missing := [path for path in paths if path not in maps]:
        raise EvokdError(where, "modules that give maps (N,C,H,W)", missing[0], "such as " + ", ".join(list(maps)[-4:]))
    head = next((p for p in reversed(outputs) if isinstance(modules[p], nn.Linear) and outputs[p].dim() == 2), None)
    if head is None:
        raise EvokdError(where, "a network that ends in a linear layer", type(network).__name__)
    named = getattr(network, "stage_paths", ())
    features = tuple(paths) or (named if isinstance(named, tuple) else ()) or _last_of_each_size(maps)
    return TapPlan(features, head, _last_relus(modules, outputs, features))


def thirds(depth: int, stages: int = 3) -> list[int]:
    """Blocks of a transformer of one resolution whose outputs stand for stages: the last of each third, counted from 0."""
    return sorted({max(round(depth * i / stages), 1) - 1 for i in range(1, stages + 1)})


def _last_of_each_size(maps: dict[str, torch.Size]) -> tuple[str, ...]:
    """Containers finish after their parts, so the last module of a size is the outermost one."""
    by_size = {}
    for path, shape in maps.items():
        if path and tuple(shape[2:]) != (1, 1):
            by_size.pop(tuple(shape[2:]), None)
            by_size[tuple(shape[2:])] = path
    return tuple(by_size.values())


def _last_relus(modules: dict[str, nn.Module], outputs: dict[str, Tensor], features: Sequence[str]) -> tuple[str, ...]:
    """The ReLU whose output is the stage's output, for each stage; empty if one has none."""
    relus = {outputs[p].data_ptr(): p for p in outputs if isinstance(modules[p], nn.ReLU)}
    found = [relus.get(outputs[path].data_ptr()) for path in features]
    return tuple(found) if all(found) else ()


def _outputs(network: nn.Module, images: Tensor) -> dict[str, Tensor] | None:
    """path → output, in order of completion; None for a network that returns `Taps`."""
    found: dict[str, Tensor] = {}

    def note(path: str):
        def hook(module, args, output):
            if isinstance(output, Tensor):
                found.pop(path, None)
                found[path] = output

        return hook

    handles = [module.register_forward_hook(note(path)) for path, module in network.named_modules()]
    training = network.training
    try:
        with torch.no_grad():
            taps = isinstance(network.eval()(images), Taps)
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    return None if taps else found


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
        if not self.plan.head:
            return self
        modules = dict(self.network.named_modules())
        for path in self.plan.features:
            self._handles.append(modules[path].register_forward_hook(lambda m, a, out, path=path: self._keep(path, out)))
        for path in self.plan.pre_relu:
            self._handles.append(modules[path].register_forward_pre_hook(lambda m, a, path=path: self._before(path, m, a[0])))
        self._head = modules[self.plan.head]
        self._handles.append(self._head.register_forward_pre_hook(lambda m, args: self._keep("embedding", args[0])))
        return self

    def _keep(self, path: str, value: Tensor) -> None:
        self._seen[path] = value

    def _before(self, path: str, relu: nn.ReLU, value: Tensor) -> None:
        """The input of a ReLU, saved from one that works in place."""
        self._keep(f"before {path}", value.clone() if relu.inplace else value)

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen.clear()

    def __call__(self, images: Tensor) -> Taps:
        out = self.network(images)
        if isinstance(out, Taps):
            return out
        features = tuple(self._seen[path] for path in self.plan.features)
        before = tuple(self._seen[f"before {path}"] for path in self.plan.pre_relu)
        bias = self._head.bias if self._head.bias is not None else self._head.weight.new_zeros(len(self._head.weight))
        return Taps(out, self._seen["embedding"].flatten(1), features, pre_relu=before, head=(self._head.weight, bias))


def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    """(N,K), of a network that returns logits or `Taps`."""
    out = network(images)
    return out.logits if isinstance(out, Taps) else out


def tap_table(student: Taps, teacher: Taps, student_plan: TapPlan, teacher_plan: TapPlan) -> list[tuple[str, str, str]]:
    """Rows (position, student, teacher) with paths and shapes, for the start of a run."""

    def cell(taps: Taps, plan: TapPlan, position: str) -> str:
        if position not in taps.positions():
            return "–"
        name, index = split_position(position)
        path = getattr(plan, name)[index] if index is not None and plan.head else plan.head
        return f"{path} {'×'.join(map(str, taps.at(position).shape[1:]))}".strip()

    positions = list(dict.fromkeys(student.positions() + teacher.positions()))
    return [(p, cell(student, student_plan, p), cell(teacher, teacher_plan, p)) for p in positions]
