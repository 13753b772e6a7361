"""Losses as SymPy expressions: explicit sums over indexed tensors, one let-binding a step. The only door to SymPy.

Inlining nested normalisations explodes, so a formula is a list of definitions A₁[i,j] = …, and L in terms of them. Every operator states
its own formula through the `Builder`; `Formula.evaluate` computes it with NumPy, independently of the torch functions it is tested
against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce

import numpy as np
import sympy as sp
from sympy.concrete.expr_with_limits import ExprWithLimits
from sympy.printing.mathml import MathMLPresentationPrinter

from evokd.errors import EvokdError
from evokd.genome.grammar import Node
from evokd.losses import schedules
from evokd.losses.distances import DISTANCES
from evokd.losses.language import NO, Call, Term, to_terms, write_loss
from evokd.losses.program import comparable, read_tap
from evokd.losses.schedules import Number, Schedule
from evokd.losses.taps import Taps
from evokd.losses.transforms import TRANSFORMS
from evokd.losses.weights import MODES

T = sp.Symbol("t", real=True)
LETTERS = "ijklm"
DUMMIES = "pqruvw"


class MaxOver(ExprWithLimits):
    """Greatest value of an expression over index ranges, as `Sum` is its total."""

    fold, word = staticmethod(np.max), r"\max"

    def __new__(cls, function, *limits):
        return ExprWithLimits.__new__(cls, function, *limits)

    def _latex(self, printer) -> str:
        ranges = [r" \leq ".join(map(printer._print, (low, index, high))) for index, low, high in self.limits]
        return rf"{self.word}_{{{', '.join(ranges)}}} {printer._print(self.function)}"

    def _sympystr(self, printer) -> str:
        return f"{type(self).__name__}({', '.join(printer._print(a) for a in self.args)})"


class MinOver(MaxOver):
    """Least value of an expression over index ranges."""

    fold, word = staticmethod(np.min), r"\min"


class _MathML(MathMLPresentationPrinter):
    """Cases and extremes as they are set in print, which SymPy would spell out as calls."""

    def _print_Piecewise(self, e):
        rows = []
        for value, when in e.args:
            last = when == True  # noqa: E712 (SymPy's own truth)
            told = self._set("mrow", self._text("mtext", "otherwise" if last else "if "), *([] if last else [self._print(when)]))
            rows.append(self._set("mtr", self._set("mtd", self._print(value)), self._set("mtd", told)))
        return self._set("mrow", self._text("mo", "{"), self._set("mtable", *rows))

    def _print_MaxOver(self, e):
        ranges = []
        for index, low, high in e.limits:
            ends = [self._print(low), self._text("mo", "≤"), self._print(index), self._text("mo", "≤"), self._print(high)]
            ranges += [self._text("mo", ","), *ends] if ranges else ends
        word = self._set("munder", self._text("mo", e.word[1:]), self._set("mrow", *ranges))
        return self._set("mrow", word, self._print(e.function))

    def _set(self, tag: str, *inside):
        node = self.dom.createElement(tag)
        for child in inside:
            node.appendChild(child)
        return node

    def _text(self, tag: str, text: str):
        return self._set(tag, self.dom.createTextNode(text))


@dataclass(frozen=True)
class Array:
    """An indexed tensor; `a[i, j]` is an entry. A scalar has no sizes, and `a[()]` is its symbol."""

    name: str
    sizes: tuple

    def __getitem__(self, index):
        index = index if isinstance(index, tuple) else (index,)
        return sp.IndexedBase(self.name)[index] if self.sizes else sp.Symbol(self.name, real=True)


@dataclass(frozen=True)
class Let:
    """array[indices] = body."""

    array: Array
    indices: tuple
    body: sp.Expr


class Builder:
    """What operators write their formulas with."""

    sp = sp

    def __init__(self) -> None:
        self.lets: list[Let] = []
        self.side = ""
        self._dummies = 0

    def let(self, sizes: Sequence, body: Callable) -> Array:
        """Define a new array by its general entry."""
        self._dummies = 0
        indices = tuple(sp.Symbol(letter, integer=True) for letter in LETTERS[: len(sizes)])
        count = 1 + len(self.lets)
        array = Array(f"A_{count}" + (f"^{self.side}" if self.side else ""), tuple(map(sp.sympify, sizes)))
        self.lets.append(Let(array, indices, sp.sympify(body(*indices))))
        return array

    def dummy(self) -> sp.Symbol:
        name = DUMMIES[self._dummies % len(DUMMIES)] + (
            "" if self._dummies < len(DUMMIES) else str(self._dummies // len(DUMMIES))
        )
        self._dummies += 1
        return sp.Symbol(name, integer=True)

    def number(self, value: float) -> sp.Expr:
        """An exact rational, so that 1e-8 prints as a power of ten."""
        return sp.Rational(str(value))

    def size(self, a: Array, axes: Sequence[int]) -> sp.Expr:
        return sp.Mul(*[a.sizes[axis] for axis in axes])

    def sum(self, size, body: Callable) -> sp.Expr:
        p = self.dummy()
        return sp.Sum(body(p), (p, 0, size - 1))

    def sum_axes(self, a: Array, index: Sequence, axes: Sequence[int], pick: Callable) -> sp.Expr:
        """Σ of pick(entry) over some axes, the others held at `index`."""
        return self.sum_axes2(a, a, index, axes, lambda x, _: pick(x))

    def sum_axes2(self, a: Array, b: Array, index: Sequence, axes: Sequence[int], pick: Callable) -> sp.Expr:
        index, limits = list(index), []
        for axis in axes:
            index[axis] = self.dummy()
            limits.append((index[axis], 0, a.sizes[axis] - 1))
        return sp.Sum(pick(a[tuple(index)], b[tuple(index)]), *limits)

    def mean_axes(self, a: Array, index: Sequence, axes: Sequence[int], pick: Callable) -> sp.Expr:
        return self.sum_axes(a, index, axes, pick) / self.size(a, axes)

    def dot(self, a: Array, left: Sequence, right: Sequence, axes: Sequence[int], pick: Callable = lambda x, y: x * y) -> sp.Expr:
        """Σ over axes of a[left] · a[right], or of pick of both."""
        left, right, limits = list(left), list(right), []
        for axis in axes:
            left[axis] = right[axis] = self.dummy()
            limits.append((left[axis], 0, a.sizes[axis] - 1))
        return sp.Sum(pick(a[tuple(left)], a[tuple(right)]), *limits)

    def if_(self, condition, then, otherwise) -> sp.Expr:
        """`then` where the condition holds, `otherwise` elsewhere."""
        return sp.Piecewise((then, condition), (otherwise, True))

    def max_over(self, body: Callable, windows: Sequence[tuple]) -> sp.Expr:
        """Greatest value of body(indices), each index from its low to its high end."""
        indices = [self.dummy() for _ in windows]
        return MaxOver(body(*indices), *[(i, low, high) for i, (low, high) in zip(indices, windows, strict=True)])

    def mean_pool(self, a: Array, sides: Sequence) -> Array:
        """Adaptive average pool of the axes of space to given sizes."""

        def at(i, j, *k):
            windows = _windows(k, a.sizes[2:], sides)
            indices = [self.dummy() for _ in windows]
            limits = [(index, low, high) for index, (low, high) in zip(indices, windows, strict=True)]
            return sp.Sum(a[(i, j, *indices)], *limits) / sp.Mul(*[high - low + 1 for low, high in windows])

        return self.let((*a.sizes[:2], *sides), at)

    def max_pool(self, a: Array, sides: Sequence) -> Array:
        """Adaptive max-pool of the axes of space to given sizes."""

        def at(i, j, *k):
            return self.max_over(lambda *p: a[(i, j, *p)], _windows(k, a.sizes[2:], sides))

        return self.let((*a.sizes[:2], *sides), at)

    def extreme(self, which, a: Array) -> sp.Expr:
        """Greatest or least entry of an array, as a scalar of its own."""
        over = MaxOver if which is sp.Max else MinOver
        index = [self.dummy() for _ in a.sizes]
        return self.let((), lambda: over(a[tuple(index)], *[(i, 0, n - 1) for i, n in zip(index, a.sizes, strict=True)]))[()]

    def row_max(self, a: Array, i) -> sp.Expr:
        p = self.dummy()
        return MaxOver(a[i, p], (p, 0, a.sizes[1] - 1))

    def argmax(self, a: Array) -> Array:
        """First index of the greatest entry of each row."""

        def at(i):
            p = self.dummy()
            here = sp.Piecewise((p, sp.Ge(a[i, p], self.row_max(a, i))), (a.sizes[1], True))
            return MinOver(here, (p, 0, a.sizes[1] - 1))

        return self.let(a.sizes[:1], at)

    def unflatten(self, index, sizes: Sequence) -> tuple:
        """The multi-index of a flat index, last axis fastest."""
        found = []
        for axis in range(len(sizes)):
            inner = sp.Mul(*sizes[axis + 1 :])
            found.append(sp.Mod(sp.floor(index / inner), sizes[axis]) if axis else sp.floor(index / inner))
        return tuple(found)


def _windows(index: Sequence, sizes: Sequence, pooled: Sequence) -> list[tuple]:
    """(first, last) index of PyTorch's adaptive windows: ⌊i·H/h⌋ … ⌈(i+1)·H/h⌉ − 1."""
    return [
        (sp.floor(i * size / small), sp.ceiling((i + 1) * size / small) - 1)
        for i, size, small in zip(index, sizes, pooled, strict=True)
    ]


@dataclass(frozen=True)
class Formula:
    """A loss in index notation.

    Attributes:
        text: the loss in evokd's notation.
        taps: input arrays by (side, position), side S or T; labels under ("", "labels"), the masks m_1, m_2, … under ("", "m_1"), the
            weight of a connector under ("W", position), the teacher's classifier under ("T", "weight") and ("T", "bias").
        lets: definitions in order of use.
        loss: L in terms of them.
    """

    text: str
    taps: dict[tuple[str, str], Array]
    lets: tuple[Let, ...]
    loss: sp.Expr

    def inline(self, limit: int = 2000) -> sp.Expr:
        """One expression without definitions.

        Raises:
            EvokdError: if it would exceed `limit` operations.
        """
        expression, definitions = self.loss, {let.array.name: let for let in self.lets}
        while any(str(base) in definitions for base in _bases(expression)):
            expression = _unfold(expression, definitions)
            if sp.count_ops(expression) > limit:
                raise EvokdError("inline", f"at most {limit} operations", "more", "read the definitions, or raise the limit")
        return expression

    def evaluate(self, values: dict[tuple[str, str], np.ndarray], progress: float = 1.0) -> float:
        """The loss in NumPy, for arrays given by (side, position), at a share of training done."""
        sizes: dict[sp.Symbol, float] = {T: np.longdouble(progress)}
        arrays: dict[str, np.ndarray] = {}
        for where, array in self.taps.items():
            given = np.asarray(values[where])
            # extended precision where the machine has it: e^x of a large logit would overflow in a formula without the shift by the maximum
            arrays[array.name] = given.astype(np.longdouble) if given.dtype.kind == "f" else given
            sizes |= dict(zip(array.sizes, arrays[array.name].shape, strict=True))
        for let in self.lets:
            arrays[let.array.name] = _tabulate(let, sizes, arrays)
        return float(_value(self.loss, dict(sizes), arrays, 0))

    @property
    def equations(self) -> list[tuple[sp.Expr, sp.Expr]]:
        """(left, right) of every definition, and of L."""
        return [(let.array[let.indices], let.body) for let in self.lets] + [(sp.Symbol("L"), self.loss)]

    def pretty(self) -> str:
        """Readable text: one definition a line."""
        lines = [f"# {self.text}"] + [f"# {line}" for line in self.legend()]
        lines += [f"{sp.sstr(left)} = {sp.sstr(right)}" for left, right in self.equations]
        return "\n".join(lines) + "\n"

    def srepr(self) -> str:
        """The same as SymPy constructors, one definition a line, for programs."""
        return "\n".join(f"{sp.srepr(left)} = {sp.srepr(right)}" for left, right in self.equations) + "\n"

    def latex(self) -> str:
        """An `aligned` block."""
        rows = [rf"{sp.latex(left)} &= {sp.latex(right)}" for left, right in self.equations]
        return "\\begin{aligned}\n" + " \\\\\n".join(rows) + "\n\\end{aligned}\n"

    def mathml(self) -> list[str]:
        """One `<math>` element a definition, which browsers set by themselves."""
        made = [f"<math>{_MathML().doprint(a)}<mo>=</mo>{_MathML().doprint(b)}</math>" for a, b in self.equations]
        return [text.replace("<mo><</mo>", "<mo>&lt;</mo>") for text in made]  # SymPy leaves it bare

    def legend(self) -> list[str]:
        """What the letters stand for."""
        lines = []
        for (side, name), array in self.taps.items():
            sizes = ", ".join(map(str, array.sizes))
            lines.append(f"{array.name}: {_WHAT[side](name)}, sizes ({sizes})")
        moving = any(T in right.free_symbols for _, right in self.equations)
        return [*lines, *(["t: share of training done, from 0 to 1"] if moving else []), "indices run from 0"]


_WHAT = {
    "S": lambda name: f"student's {name}",
    "T": lambda name: f"teacher's {name}",
    "W": lambda name: f"weight of the student's connector at {name}",
    "": lambda name: "class of each sample, -1 where unknown" if name == "labels" else "random mask of 0 and 1",
}


def to_sympy(
    tree: Sequence[Node], student: Taps | None = None, teacher: Taps | None = None, gamma: float | None = None
) -> Formula:
    """A loss as definitions over indexed tensors, equal in value to the compiled loss.

    Args:
        tree: the loss.
        student: example taps of the pair, which tell where shapes differ; without them both sides have equal sizes.
        teacher: example taps.
        gamma: adds gamma · cross-entropy, the task loss of the protocol.

    Raises:
        EvokdError: if a term has trained parts or memory.
    """
    return _Writer(student, teacher).formula(tree, gamma)


def to_latex(tree: Sequence[Node], student: Taps | None = None, teacher: Taps | None = None) -> str:
    """The formula of a loss as a LaTeX `aligned` block."""
    return to_sympy(tree, student, teacher).latex()


def tabulate(
    formula: Callable, inputs: Sequence[np.ndarray], extra: Sequence[np.ndarray], params: Sequence[float], mask
) -> np.ndarray:
    """The value of one operator's formula on given arrays, to check it by itself."""
    b, arrays, given, sizes = Builder(), {}, [], {}
    for count, value in enumerate([*inputs, *extra]):
        if mask and count == len(inputs):
            value = value.reshape([value.shape[axis] for axis in mask[1] if axis < value.ndim])
        axes = [sp.Symbol(f"n{count}_{axis}", integer=True, positive=True) for axis in range(value.ndim)]
        shared = {size: symbol for symbol, size in sizes.items()}
        axes = [shared.get(size, axis) for axis, size in zip(axes, value.shape, strict=True)]
        given.append(Array(f"x{count}", tuple(axes)))
        arrays[f"x{count}"] = value.astype(np.longdouble) if value.dtype.kind == "f" else value
        sizes |= dict(zip(axes, value.shape, strict=True))
    out = formula(b, *given, *map(number, params))
    for let in b.lets:
        arrays[let.array.name] = _tabulate(let, sizes, arrays)
    return np.asarray(arrays[out.name], dtype=float)


class _Writer:
    """Walks the terms of one loss; equal values are written once."""

    def __init__(self, student: Taps | None, teacher: Taps | None) -> None:
        self.pair = (student, teacher) if student and teacher else None
        self.b = Builder()
        self.taps: dict[tuple[str, str], Array] = {}
        self.known: dict[tuple, Array] = {}

    def formula(self, tree: Sequence[Node], gamma: float | None) -> Formula:
        terms = [self.term(term) for term in to_terms(tree)]
        if gamma is not None:
            terms.append(number(gamma) * self.cross_entropy())
        return Formula(write_loss(tree), self.taps, tuple(self.b.lets), sp.Add(*terms, evaluate=False))

    def term(self, term: Term) -> sp.Expr:
        if term.module:
            raise EvokdError(
                str(term), "a loss that is a formula", "one with trained parts or memory", "it is code: losses/modules.py"
            )
        value = term.distance.args[0]
        connect = self.pair is not None and not comparable(value, *self.pair)
        s, t = self.value(value, "S", connect), self.value(value, "T", False)
        self.b.side = ""
        distance = DISTANCES[term.distance.name].formula(self.b, s, t, *map(number, term.distance.params))
        return number(term.weight) * self.mean(distance, self.mode(term.mode))

    def value(self, call: Call, side: str, connect: bool) -> Array:
        if (call, side, connect) not in self.known:
            self.known[call, side, connect] = self.made(call, side, connect) if call.args else self.leaf(call.name, side, connect)
        return self.known[call, side, connect]

    def made(self, call: Call, side: str, connect: bool) -> Array:
        below = [self.value(arg, side, connect) for arg in call.args]
        operator = TRANSFORMS[call.name]
        extra = [self.labels(below[0].sizes[0])] if operator.labels else []
        if operator.mask:
            extra = [self.mask(call, [below[0].sizes[axis] for axis in operator.mask[1] if axis < len(below[0].sizes)])]
        if call.side and call.side[0].upper() != side:
            return below[0]
        self.b.side = side
        return operator.formula(self.b, *below, *extra, *map(number, call.params))

    def mask(self, call: Call, sizes: Sequence) -> Array:
        """One array of 0 and 1 for both sides."""
        if ("mask", call) not in self.known:
            name = f"m_{1 + sum(side == '' and name != 'labels' for side, name in self.taps)}"
            self.known["mask", call] = self.taps["", name] = Array(name, tuple(sizes))
        return self.known["mask", call]

    def labels(self, size) -> Array:
        return self.taps.setdefault(("", "labels"), Array("y", (size,)))

    def leaf(self, position: str, side: str, connect: bool) -> Array:
        """A tap as the operators see it: behind its connector, and channels first."""
        if position == "teacher_head":
            return self.head(side)
        tap = self.tap(position, side)
        self.b.side = side
        if position == "tokens":
            tap = self.b.let((tap.sizes[0], tap.sizes[2], tap.sizes[1]), lambda i, j, k: tap[i, k, j])
        if position == "attention":
            n, heads, queries, keys = tap.sizes
            tap = self.b.let((n, keys, heads, queries), lambda i, j, k, m: tap[i, k, m, j])
        return self.connected(position, tap) if connect and self.differs(position) else tap

    def head(self, side: str) -> Array:
        """The embedding through the teacher's classifier."""
        if side == "T":
            return self.value(Call("logits"), "T", False)
        e = self.value(Call("embedding"), "S", self.pair is not None)
        k = sp.Symbol("K", integer=True, positive=True)
        weight = self.taps.setdefault(("T", "weight"), Array("V", (k, e.sizes[1])))
        bias = self.taps.setdefault(("T", "bias"), Array("beta", (k,)))
        self.b.side = side
        return self.b.let((e.sizes[0], k), lambda i, j: bias[j] + self.b.sum(e.sizes[1], lambda p: weight[j, p] * e[i, p]))

    def connected(self, position: str, tap: Array) -> Array:
        """The student's value behind its connector: resized, then its channels mixed by W."""
        key = ("connector", position)
        if key not in self.known:
            student, teacher = (read_tap(taps, position).shape for taps in self.pair)
            target = self.sizes(position, "")
            if position == "tokens":
                target = (target[0], target[2], target[1])
            if student[2:] != teacher[2:]:
                shrink = all(have >= want for have, want in zip(student[2:], teacher[2:], strict=True))
                tap = self.b.mean_pool(tap, target[2:]) if shrink else _interpolated(self.b, tap, target[2:])
            name = f"W{_stage(position)}^{_LETTERS[position.partition('[')[0]][0]}"
            weight = self.taps["W", position] = Array(name, (target[1], tap.sizes[1]))
            body = lambda i, j, *k: self.b.sum(tap.sizes[1], lambda p: weight[j, p] * tap[(i, p, *k)])  # noqa: E731
            self.known[key] = self.b.let((tap.sizes[0], target[1], *tap.sizes[2:]), body)
        return self.known[key]

    def tap(self, position: str, side: str) -> Array:
        """The student's sizes are its own (^S) where the pair's taps differ."""
        if (side, position) not in self.taps:
            own = "^S" if side == "S" and self.pair and self.differs(position) else ""
            self.taps[side, position] = Array(
                f"{_LETTERS[position.partition('[')[0]][0]}{_stage(position)}^{side}", self.sizes(position, own)
            )
        return self.taps[side, position]

    def sizes(self, position: str, own: str) -> tuple:
        names = _LETTERS[position.partition("[")[0]][1:]
        marked = [axis if axis in ("N", "K") else axis + _stage(position) + own for axis in names]
        return tuple(sp.Symbol(name, integer=True, positive=True) for name in marked)

    def differs(self, position: str) -> bool:
        return self.pair[0].at(position).shape[1:] != self.pair[1].at(position).shape[1:]

    def mode(self, mode: Call) -> Array | None:
        if mode == NO:
            return None
        if mode not in self.known:
            s, t = (self.value(Call("logits"), side, False) for side in "ST")
            self.b.side = ""
            labels = self.labels(s.sizes[0]) if mode.name == "focal" else None
            self.known[mode] = MODES[mode.name].formula(self.b, s, t, labels, *map(number, mode.params))
        return self.known[mode]

    def mean(self, distance: Array, weight: Array | None) -> sp.Expr:
        if not distance.sizes:
            return distance[()]
        p = sp.Symbol("i", integer=True)
        w = (weight[p] if weight.sizes else weight[()]) if weight else sp.Integer(1)
        return sp.Sum(w * distance[p], (p, 0, distance.sizes[0] - 1)) / distance.sizes[0]

    def cross_entropy(self) -> sp.Expr:
        """−log softmax of the true class, averaged over the whole batch; unknown labels count as zero."""
        z = self.value(Call("logits"), "S", False)
        y, self.b.side = self.labels(z.sizes[0]), ""
        total = self.b.let(z.sizes[:1], lambda i: sp.log(self.b.sum_axes(z, (i, 0), (1,), sp.exp)))
        p = sp.Symbol("i", integer=True)
        return sp.Sum(self.b.if_(y[p] < 0, 0, total[p] - z[p, y[p]]), (p, 0, z.sizes[0] - 1)) / z.sizes[0]


def number(value: Number) -> sp.Expr:
    """An exact rational, or a schedule as an expression in t."""
    if isinstance(value, Schedule):
        return schedules.FORMULAS[value.name](sp, number(value.start), number(value.end), T)
    return sp.Rational(str(value))


# position → its letter and the letters of its axes
_LETTERS = {
    "logits": ("z", "N", "K"),
    "embedding": ("e", "N", "D"),
    "features": ("F", "N", "C", "H", "W"),
    "pre_relu": ("G", "N", "C", "H", "W"),
    "tokens": ("X", "N", "M", "C"),
    "attention": ("Q", "N", "h", "L", "L"),
}


def _stage(position: str) -> str:
    """`features[-2]` → `_2`."""
    return "_" + position[position.index("[") + 2 : -1] if "[" in position else ""


def _interpolated(b: Builder, a: Array, sides: Sequence) -> Array:
    """Linear interpolation along each axis of space in turn, pixel centres aligned (`align_corners=False`)."""
    for axis, want in enumerate(sides, start=2):
        a = b.let((*a.sizes[:axis], want, *a.sizes[axis + 1 :]), partial(_between, a, axis, want))
    return a


def _between(a: Array, axis: int, want, *index) -> sp.Expr:
    have = a.sizes[axis]
    place = sp.Max((index[axis] + sp.Rational(1, 2)) * have / want - sp.Rational(1, 2), 0)
    low = sp.floor(place)
    high = sp.Min(low + 1, have - 1)
    left, right = (a[(*index[:axis], at, *index[axis + 1 :])] for at in (low, high))
    return left * (1 - place + low) + right * (place - low)


def _bases(expression: sp.Expr) -> set:
    return {a.base.label for a in expression.atoms(sp.Indexed)} | {s for s in expression.atoms(sp.Symbol)}


def _unfold(expression: sp.Expr, definitions: dict[str, Let]) -> sp.Expr:
    """Replace every defined entry by its body once."""

    def entry(atom):
        let = definitions[str(atom.base.label) if isinstance(atom, sp.Indexed) else str(atom)]
        fresh = {d: sp.Dummy(d.name, integer=True) for s in let.body.atoms(ExprWithLimits, sp.Sum) for d in s.bound_symbols}
        body = let.body.xreplace(fresh)
        return body.xreplace(dict(zip(let.indices, atom.indices, strict=True))) if let.indices else body

    atoms = [a for a in expression.atoms(sp.Indexed) if str(a.base.label) in definitions]
    atoms += [a for a in expression.atoms(sp.Symbol) if str(a) in definitions and not definitions[str(a)].indices]
    return expression.xreplace({a: entry(a) for a in atoms})


def _tabulate(let: Let, sizes: dict, arrays: dict) -> np.ndarray:
    """All entries of a definition. Axis a counts from the right, so that NumPy's broadcasting lines them up."""
    shape = [int(_value(size, dict(sizes), arrays, 0)) for size in let.array.sizes]
    env = dict(sizes)
    for axis, (index, size) in enumerate(zip(let.indices, shape, strict=True)):
        env[index] = np.arange(size).reshape(size, *[1] * axis)
    value = np.asarray(_value(let.body, env, arrays, len(shape)))
    return np.broadcast_to(value, shape[::-1]).transpose() if shape else value


# 3 · (7 · ⅓) is a little above 7 in floating point, and its ceiling must be 7
_POINTWISE = {
    sp.floor: lambda x: np.floor(x + 1e-9), sp.ceiling: lambda x: np.ceil(x - 1e-9), sp.Not: np.logical_not,
    sp.exp: np.exp, sp.log: np.log, sp.Abs: np.abs, sp.sign: np.sign,
    sp.sin: np.sin, sp.cos: np.cos, sp.tan: np.tan, sp.asin: np.arcsin, sp.acos: np.arccos, sp.atan: np.arctan,
    sp.sinh: np.sinh, sp.cosh: np.cosh, sp.tanh: np.tanh, sp.asinh: np.arcsinh, sp.acosh: np.arccosh, sp.atanh: np.arctanh,
}  # fmt: skip
_FOLDS = {
    sp.Add: np.add,
    sp.Mul: np.multiply,
    sp.Max: np.maximum,
    sp.Min: np.minimum,
    sp.And: np.logical_and,
    sp.Or: np.logical_or,
}
_PAIRS = {
    sp.Pow: np.power, sp.Mod: np.mod, sp.Ge: np.greater_equal, sp.Gt: np.greater, sp.Le: np.less_equal, sp.Lt: np.less, sp.Eq: np.equal,
    sp.Ne: np.not_equal,
}  # fmt: skip


def _value(e, env: dict, arrays: dict, axes: int):
    """Value of an expression where every index symbol in `env` is an array along an axis of its own."""
    if e.is_Number:
        return np.longdouble(e.p) / np.longdouble(e.q) if e.is_Rational else np.longdouble(float(e))
    if e.is_Symbol:
        return env[e] if e in env else arrays[e.name]
    if isinstance(e, sp.Indexed):
        at = np.broadcast_arrays(*[np.asarray(_value(i, env, arrays, axes), dtype=int) for i in e.indices])
        return arrays[str(e.base.label)][tuple(at)]
    if isinstance(e, ExprWithLimits):
        return _reduce(e, env, arrays, axes)
    if isinstance(e, sp.Piecewise):
        (then, when), (otherwise, _) = e.args
        return np.where(*(_value(x, env, arrays, axes) for x in (when, then, otherwise)))
    if e.is_NumberSymbol:
        return np.longdouble(str(e.evalf(30)))
    args = [_value(arg, env, arrays, axes) for arg in e.args]
    if type(e) in _POINTWISE:
        return _POINTWISE[type(e)](args[0])
    if type(e) in _PAIRS:
        return _PAIRS[type(e)](np.longdouble(1) * args[0], args[1])
    return reduce(_FOLDS[type(e)], args)


def _reduce(e: ExprWithLimits, env: dict, arrays: dict, axes: int):
    """A Sum, MaxOver or MinOver: new axes to the left, folded away again. Windows may differ in length: the shorter ones are masked."""
    inner, shape, inside = dict(env), [], np.True_
    for index, first, last in e.limits:
        low, high = (np.asarray(_value(limit, env, arrays, axes), dtype=int) for limit in (first, last))
        size = int((high - low).max()) + 1
        place = low + np.arange(size).reshape(size, *[1] * (axes + len(shape)))
        inner[index], inside = np.minimum(place, high), inside & (place <= high)
        shape.append(size)
    value = np.asarray(_value(e.function, inner, arrays, axes + len(shape)))
    value = np.broadcast_to(value, np.broadcast_shapes(value.shape, inside.shape, (*shape[::-1], *[1] * axes)))
    if isinstance(e, sp.Sum):
        return np.sum(np.where(inside, value, 0), axis=tuple(range(len(shape))))
    return e.fold(value, axis=tuple(range(len(shape))))  # a repeated entry changes no extreme
