"""Losses as stand-alone PyTorch source: one readable file that imports only torch and equals the compiled loss.

The operators' own functions are copied as they stand, so that what was searched with is what is handed over.
"""

from collections import Counter
from collections.abc import Sequence

from evokd.errors import EvokdError
from evokd.genome.codec import write_number
from evokd.genome.grammar import Node
from evokd.losses import schedules
from evokd.losses.distances import DISTANCES
from evokd.losses.formula import to_sympy
from evokd.losses.language import NO, Call, Term, to_terms, write_loss
from evokd.losses.operators import source_of
from evokd.losses.program import DistillLoss, module_name
from evokd.losses.schedules import SCHEDULES, Number, Schedule
from evokd.losses.taps import Taps
from evokd.losses.transforms import TRANSFORMS
from evokd.losses.weights import MODES

_HEADER = '''"""{text}

A distillation loss evolved by evokd. Student and teacher are given as mappings from position to tensor:
{positions}
The task loss is not part of it: the loss was found beside {gamma} · cross-entropy, averaged over the whole batch.
In index notation, one definition a line (S student, T teacher):

{formula}

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
            f = self.resize(f)
        return F.linear(f.flatten(2).transpose(1, 2), self.weight).transpose(1, 2).unflatten(2, self.size)

    def resize(self, f: Tensor) -> Tensor:
        flat = len(self.size) == 1
        if all(have >= want for have, want in zip(f.shape[2:], self.size)):
            return F.adaptive_avg_pool1d(f, self.size[0]) if flat else F.adaptive_avg_pool2d(f, self.size)
        return F.interpolate(f, self.size, mode="linear" if flat else "bilinear")


'''

_MASK = '''def bernoulli(f: Tensor, keep: float, axes: tuple, generator: torch.Generator | None) -> Tensor:
    """A mask of 0 and 1, shared by student and teacher."""
    sizes = [size if axis in axes else 1 for axis, size in enumerate(f.shape)]
    device = generator.device if generator is not None else f.device
    return (torch.rand(sizes, generator=generator, device=device) < keep).to(f.device, f.dtype)


'''

_SHAPES = {
    "logits": "(N,K) before the softmax",
    "embedding": "(N,D) the classifier's input",
    "tokens": "(N,M,C) the last layer's tokens",
    "attention": "(N,heads,M,M) before the softmax",
    "pre_relu": "(N,C,H,W) before a stage's last ReLU, the last stage is [-1]",
    "features": "(N,C,H,W) after a stage, the last stage is [-1]",
}


def to_torch_source(
    tree: Sequence[Node], student: Taps | None = None, teacher: Taps | None = None, gamma: float | None = None
) -> str:
    """A Python file with the class `EvolvedLoss`.

    Args:
        tree: the loss.
        student: example taps of the pair, which tell where connectors stand; without them none do.
        teacher: example taps.
        gamma: weight of the cross-entropy in the protocol that found the loss, for the docstring.

    Raises:
        EvokdError: if a term has trained parts or memory.
    """
    terms = to_terms(tree)
    if named := [term for term in terms if term.module]:
        raise EvokdError(
            str(named[0]), "a loss that is a formula", "one with trained parts or memory", "it is code: losses/modules.py"
        )
    compiled = DistillLoss(terms, student, teacher, seed=0) if student and teacher else None
    sizes = {name: (c.weight.shape[1], c.weight.shape[0], *c.size) for name, c in compiled.connectors.items()} if compiled else {}
    formula = to_sympy(tree, student, teacher).pretty().splitlines()[1:]
    parts = [_header(tree, terms, gamma, formula), _operators(terms)]
    if any(TRANSFORMS[call.name].mask for call in _calls(terms)):
        parts.append(_MASK)
    if sizes:
        parts.append(_CONNECTOR)
    return "".join([*parts, _Class(terms, sizes, compiled).text()])


def _calls(terms: Sequence[Term]) -> list[Call]:
    """Every transform of the loss, inner ones first."""
    return [c for term in terms for arg in term.distance.args for c in reversed([*arg.walk()]) if c.args]


def _header(tree: Sequence[Node], terms: Sequence[Term], gamma: float | None, formula: Sequence[str]) -> str:
    used = list(dict.fromkeys(position for term in terms for position in term.distance.positions()))
    if "teacher_head" in used:
        used = [*(p for p in used if p not in ("teacher_head", "embedding", "logits")), "embedding", "logits"]
    positions = "\n".join(f"    {p}: {_SHAPES[p.partition('[')[0]]}" for p in used)
    if any(position == "teacher_head" for term in terms for position in term.distance.positions()):
        positions += "\n    head: (weight (K,D), bias (K,)) of the teacher's classifier, in the teacher's mapping"
    weight = "γ" if gamma is None else write_number(gamma)
    lines = "\n".join(f"    {line.removeprefix('# ')}" for line in formula)
    return _HEADER.format(text=write_loss(tree), positions=positions, gamma=weight, formula=lines)


def _operators(terms: Sequence[Term]) -> str:
    names = dict.fromkeys(c.name for term in terms for c in term.distance.walk() if c.args)
    functions = [(TRANSFORMS.get(name) or DISTANCES[name]).fn for name in names]
    functions += [MODES[name].fn for name in dict.fromkeys(term.mode.name for term in terms if term.mode != NO)]
    texts = [source_of(fn) for fn in functions]
    # a schedule may share its name with a distance
    moving = dict.fromkeys(n.name for n in _numbers(terms) if isinstance(n, Schedule))
    texts += [source_of(SCHEDULES[name]).replace("def ", "def schedule_", 1) for name in moving]
    return "".join(text + "\n\n" for text in texts)


def _numbers(terms: Sequence[Term]) -> list[Number]:
    inside = [n for term in terms for c in (term.mode, *term.distance.walk()) for n in c.params]
    return [term.weight for term in terms] + inside


class _Class:
    """Writes `EvolvedLoss`: values that occur twice, and masks, get a line of their own; the rest is nested as in the notation."""

    def __init__(self, terms: Sequence[Term], sizes: dict[str, tuple], compiled: DistillLoss | None) -> None:
        self.terms, self.sizes, self.compiled = terms, sizes, compiled
        self.lines: list[str] = []
        self.names: dict[tuple, str] = {}
        self.masks: dict[Call, str] = {}
        self.bounds = 0
        connected = [compiled is not None and compiled.connects(i) for i in range(len(terms))]
        self.roots = list(zip(terms, connected, strict=True))
        made = {(call, connect) for term, connect in self.roots for call in term.distance.args[0].walk()}
        self.uses = Counter((term.distance.args[0], connect) for term, connect in self.roots)
        self.uses.update((arg, connect) for call, connect in made for arg in call.args)

    def text(self) -> str:
        modes, masks = any(term.mode != NO for term in self.terms), any(TRANSFORMS[c.name].mask for c in _calls(self.terms))
        labels = modes or any(TRANSFORMS[c.name].labels for c in _calls(self.terms))
        moving = any(isinstance(n, Schedule) for n in _numbers(self.terms))
        extra = ", progress: float = 1.0" * moving + ", generator: torch.Generator | None = None" * masks
        lines = ["class EvolvedLoss(nn.Module):", f'    """{" + ".join(map(str, self.terms))}"""', "", *self.connectors()]
        lines += [
            f"    def forward(self, student: dict, teacher: dict, labels: Tensor | None = None{extra}) -> Tensor:",
            '        """A scalar; labels are (N,), −1 where unknown'
            + "; progress is the share of training done." * moving
            + '"""',
        ]
        if labels:
            lines += ["        if labels is None:", '            labels = torch.full((student["logits"].shape[0],), -1)']
            lines[-1] = lines[-1][:-1] + ', device=student["logits"].device)'
        if modes:
            lines.append('        z_s, z_t = student["logits"].detach(), teacher["logits"].detach()')
        for i, (term, connect) in enumerate(self.roots):
            self.term(i + 1, term, connect)
        total = " + ".join(f"term{i + 1}" for i in range(len(self.terms)))
        return "\n".join([*lines, *self.lines, f"        return {total}"]) + "\n"

    def connectors(self) -> list[str]:
        if not self.sizes:
            return []
        made = [
            f'        self.connectors["{name}"] = Connector({", ".join(map(str, size))})' for name, size in self.sizes.items()
        ]
        first = ["    def __init__(self) -> None:", "        super().__init__()", "        self.connectors = nn.ModuleDict()"]
        return [*first, *made, ""]

    def term(self, number: int, term: Term, connect: bool) -> None:
        s, t = self.value(term.distance.args[0], connect)
        distance = f"{term.distance.name}({', '.join(['s', 't', *map(_number, term.distance.params)])})"
        if term.mode != NO:
            mode = f"{term.mode.name}({', '.join(['z_s', 'z_t', 'labels', *map(_number, term.mode.params)])})"
            distance = f"({mode} * {distance}.reshape(len(s), -1).mean(1))"
        weight = "" if term.weight == 1 else f"{_number(term.weight)} * "
        self.lines += [f"        s, t = {s}, {t}", f"        term{number} = {weight}{distance}.mean()"]

    def value(self, call: Call, connect: bool) -> tuple[str, str]:
        """Expressions for the student's and the teacher's value."""
        if not call.args:
            return self.leaf(call.name, connect)
        if (call, connect) in self.names:
            name = self.names[call, connect]
            return f"{name}_s", f"{name}_t"
        s, t = zip(*(self.value(arg, connect) for arg in call.args), strict=True)
        operator, params = TRANSFORMS[call.name], [*map(_number, call.params)]
        extra = ["labels"] if operator.labels else []
        if operator.mask:
            s, t = (self.bound(*s, "f_s"),), (self.bound(*t, "f_t"),)
            extra = [self.mask(call, s[0])]
        made = [f"{call.name}({', '.join([*side, *extra, *params])})" for side in (s, t)]
        pair = (s[0] if call.side == "teacher" else made[0], t[0] if call.side == "student" else made[1])
        if self.uses[call, connect] == 1 and not operator.mask:
            return pair
        name = self.names[call, connect] = f"v{len(self.names) + 1}"
        self.lines.append(f"        {name}_s, {name}_t = {pair[0]}, {pair[1]}")
        return f"{name}_s", f"{name}_t"

    def bound(self, expression: str, stem: str) -> str:
        if expression.isidentifier():
            return expression
        self.bounds += 1
        self.lines.append(f"        {stem}{self.bounds} = {expression}")
        return f"{stem}{self.bounds}"

    def mask(self, call: Call, value: str) -> str:
        """One mask a call, the same before and behind a connector."""
        if call not in self.masks:
            keep, axes = TRANSFORMS[call.name].mask
            self.masks[call] = f"mask{len(self.masks) + 1}"
            self.lines.append(f"        {self.masks[call]} = bernoulli({value}, {keep}, {axes}, generator)")
        return self.masks[call]

    def leaf(self, position: str, connect: bool) -> tuple[str, str]:
        if position == "teacher_head":
            e = self.leaf("embedding", "embedding" in self.sizes)[0]
            return f'F.linear({e}, *(w.detach() for w in teacher["head"]))', 'teacher["logits"].detach()'
        s, t = f'student["{position}"]', f'teacher["{position}"].detach()'
        turn = {"tokens": ".transpose(1, 2)", "attention": ".permute(0, 3, 1, 2)"}.get(position, "")
        s, t = s + turn, t + turn
        return (
            (f'self.connectors["{module_name(position)}"]({s})', t) if connect and module_name(position) in self.sizes else (s, t)
        )


def _number(value: Number) -> str:
    if isinstance(value, Schedule):
        return f"schedule_{value.name}({write_number(value.start)}, {write_number(value.end)}, progress)"
    return repr(float(value)) if value != int(value) else schedules.write(value)
