"""Losses as stand-alone PyTorch source: one readable file that imports only torch and equals the compiled loss.

The operators' own functions are copied as they stand, so that what was searched with is what is handed over.
"""

import inspect
from collections.abc import Sequence

from evokd.genome.codec import write_number
from evokd.genome.grammar import Node
from evokd.losses.distances import DISTANCES
from evokd.losses.language import Call, Term, to_terms, write_loss
from evokd.losses.program import DistillLoss, module_name
from evokd.losses.taps import Taps
from evokd.losses.transforms import TRANSFORMS
from evokd.losses.weights import MODES

_HEADER = '''"""{text}

A distillation loss evolved by evokd. Student and teacher are given as mappings from position to tensor:
{positions}
The task loss is not part of it: the loss was found beside {gamma} · cross-entropy, averaged over the whole batch.

    loss = EvolvedLoss()
    total = {gamma} * cross_entropy + loss(student, teacher, labels)
"""

import math  # noqa: F401

import torch  # noqa: F401
import torch.nn.functional as F  # noqa: F401
from torch import Tensor, nn


'''

_CONNECTOR = '''class Connector(nn.Module):
    """Student's tap → the teacher's shape: a 1×1 convolution (a linear layer on rows) after resizing."""

    def __init__(self, inputs: int, outputs: int, *size: int) -> None:
        super().__init__()
        self.size = size
        self.weight = nn.Parameter((torch.rand(outputs, inputs) * 2 - 1) / inputs**0.5)

    def forward(self, f: Tensor) -> Tensor:
        if not self.size:
            return F.linear(f, self.weight)
        if tuple(f.shape[2:]) != self.size:
            smaller = f.shape[2] >= self.size[0] and f.shape[3] >= self.size[1]
            f = F.adaptive_avg_pool2d(f, self.size) if smaller else F.interpolate(f, self.size, mode="bilinear")
        return F.linear(f.flatten(2).transpose(1, 2), self.weight).transpose(1, 2).unflatten(2, self.size)


'''

_SHAPES = {"logits": "(N,K) before the softmax", "embedding": "(N,D) the classifier's input"}


def to_torch_source(
    tree: Sequence[Node], student: Taps | None = None, teacher: Taps | None = None, gamma: float | None = None
) -> str:
    """A Python file with the class `EvolvedLoss`.

    Args:
        tree: the loss.
        student: example taps of the pair, which tell where connectors stand; without them none do.
        teacher: example taps.
        gamma: weight of the cross-entropy in the protocol that found the loss, for the docstring.
    """
    terms = to_terms(tree)
    compiled = DistillLoss(terms, student, teacher, seed=0) if student and teacher else None
    sizes = {name: (c.weight.shape[1], c.weight.shape[0], *c.size) for name, c in compiled.connectors.items()} if compiled else {}
    connected = [compiled is not None and compiled.connects(i) for i in range(len(terms))]
    parts = [_header(tree, terms, gamma), _operators(terms)]
    if sizes:
        parts.append(_CONNECTOR)
    return "".join([*parts, _class(terms, sizes, connected)])


def _header(tree: Sequence[Node], terms: Sequence[Term], gamma: float | None) -> str:
    used = dict.fromkeys(c.name for term in terms for c in term.distance.walk() if not c.args)
    positions = "\n".join(f"    {p}: {_SHAPES.get(p, '(N,C,H,W) after a stage, the last stage is [-1]')}" for p in used)
    weight = "γ" if gamma is None else write_number(gamma)
    return _HEADER.format(text=write_loss(tree), positions=positions, gamma=weight)


def _operators(terms: Sequence[Term]) -> str:
    names = dict.fromkeys(c.name for term in terms for c in term.distance.walk() if c.args)
    functions = [(TRANSFORMS.get(name) or DISTANCES[name]).fn for name in names]
    functions += [MODES[mode].fn for mode in dict.fromkeys(term.mode for term in terms) if mode != "no"]
    return "".join(inspect.getsource(fn) + "\n\n" for fn in functions)


def _class(terms: Sequence[Term], sizes: dict[str, tuple], connected: Sequence[bool]) -> str:
    lines = ["class EvolvedLoss(nn.Module):", f'    """{" + ".join(map(str, terms))}"""', ""]
    if sizes:
        lines += [
            "    def __init__(self) -> None:",
            "        super().__init__()",
            "        self.connectors = nn.ModuleDict()",
        ]
        lines += [f'        self.connectors["{name}"] = Connector({", ".join(map(str, size))})' for name, size in sizes.items()]
        lines.append("")
    lines += [
        "    def forward(self, student: dict, teacher: dict, labels: Tensor | None = None) -> Tensor:",
        '        """A scalar; labels are (N,), −1 where unknown."""',
        "        teacher = {name: tap.detach() for name, tap in teacher.items()}",
    ]
    if any(term.mode != "no" for term in terms):
        lines += [
            '        z_s, z_t = student["logits"].detach(), teacher["logits"]',
            "        if labels is None:",
            "            labels = torch.full((z_t.shape[0],), -1, device=z_t.device)",
        ]
    for i, term in enumerate(terms):
        lines += _term(i + 1, term, connected[i])
    total = " + ".join(f"term{i + 1}" for i in range(len(terms)))
    return "\n".join([*lines, f"        return {total}"]) + "\n"


def _term(number: int, term: Term, connect: bool) -> list[str]:
    value = term.distance.args[0]
    sides = _expression(value, "student", connect), _expression(value, "teacher", False)
    distance = f"{term.distance.name}({', '.join(['s', 't', *map(repr, term.distance.params)])})"
    weighted = f"({term.mode}(z_s, z_t, labels) * {distance})" if term.mode != "no" else distance
    return [
        f"        s, t = {sides[0]}, {sides[1]}",
        f"        term{number} = {write_number(term.weight)} * {weighted}.mean()",
    ]


def _expression(call: Call, side: str, connect: bool) -> str:
    if not call.args:
        tap = f'{side}["{call.name}"]'
        return f'self.connectors["{module_name(call.name)}"]({tap})' if connect else tap
    return f"{call.name}({', '.join([_expression(call.args[0], side, connect), *map(repr, call.params)])})"
