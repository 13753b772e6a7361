"""Losses as SymPy expressions: explicit sums over indexed tensors, one let-binding a step. The only door to SymPy.

Inlining nested normalisations explodes, so a formula is a list of definitions A₁[i,j] = …, and L in terms of them. Every operator states
its own formula through the `Builder`; `Formula.evaluate` computes it with NumPy, independently of the torch functions it is tested
against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import sympy as sp
from sympy.concrete.expr_with_limits import ExprWithLimits
from sympy.printing.mathml import mathml

from evokd.errors import EvokdError
from evokd.genome.grammar import Node
from evokd.losses.distances import DISTANCES
from evokd.losses.language import Call, Term, to_terms, write_loss
from evokd.losses.program import comparable, position_of
from evokd.losses.taps import Taps
from evokd.losses.transforms import TRANSFORMS
from evokd.losses.weights import MODES

CONNECTED = "S connected"
LETTERS = "ijklm"
DUMMIES = "pqruvw"


class MaxOver(ExprWithLimits):
    """Greatest value of an expression over index ranges, as `Sum` is its total."""

    fold, word = staticmethod(np.max), r"\max"

    def __new__(cls, function, *limits):
        return ExprWithLimits.__new__(cls, function, *limits)

    def _latex(self, printer) -> str:
        indices = ", ".join(printer._print(limit[0]) for limit in self.limits)
        return rf"{self.word}_{{{indices}}} {printer._print(self.function)}"

    def _sympystr(self, printer) -> str:
        return f"{type(self).__name__}({', '.join(printer._print(a) for a in self.args)})"


class MinOver(MaxOver):
    """Least value of an expression over index ranges."""

    fold, word = staticmethod(np.min), r"\min"


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

    def dot(self, a: Array, left: Sequence, right: Sequence, axes: Sequence[int]) -> sp.Expr:
        """Σ over axes of a[left] · a[right]."""
        left, right, limits = list(left), list(right), []
        for axis in axes:
            left[axis] = right[axis] = self.dummy()
            limits.append((left[axis], 0, a.sizes[axis] - 1))
        return sp.Sum(a[tuple(left)] * a[tuple(right)], *limits)

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


@dataclass(frozen=True)
class Formula:
    """A loss in index notation.

    Attributes:
        text: the loss in evokd's notation.
        taps: input arrays by (side, position); side is S, T, or `S connected` for the student's tap behind its connector;
            `labels` under ("", "labels").
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

    def evaluate(self, values: dict[tuple[str, str], np.ndarray]) -> float:
        """The loss in NumPy float64, for arrays given by (side, position)."""
        sizes: dict[sp.Symbol, int] = {}
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
        return [f"<math>{mathml(a, 'presentation')}<mo>=</mo>{mathml(b, 'presentation')}</math>" for a, b in self.equations]

    def legend(self) -> list[str]:
        """What the letters stand for."""
        lines = []
        for (side, position), array in self.taps.items():
            who = {"S": "student's", CONNECTED: "student's", "T": "teacher's", "": ""}[side]
            behind = " behind its connector" if side == CONNECTED else ""
            sizes = ", ".join(map(str, array.sizes))
            lines.append(f"{array.name}: {who} {position}{behind}, sizes ({sizes})".replace(":  ", ": "))
        return [*lines, "indices run from 0"]


def to_sympy(tree: Sequence[Node], student: Taps | None = None, teacher: Taps | None = None) -> Formula:
    """A loss as definitions over indexed tensors, equal in value to the compiled loss.

    Args:
        tree: the loss.
        student: example taps of the pair, which tell where shapes differ; without them both sides have equal sizes.
        teacher: example taps.
    """
    return _Writer(student, teacher).formula(tree)


def to_latex(tree: Sequence[Node], student: Taps | None = None, teacher: Taps | None = None) -> str:
    """The formula of a loss as a LaTeX `aligned` block."""
    return to_sympy(tree, student, teacher).latex()


class _Writer:
    """Walks the terms of one loss; equal values are written once."""

    def __init__(self, student: Taps | None, teacher: Taps | None) -> None:
        self.pair = (student, teacher) if student and teacher else None
        self.b = Builder()
        self.taps: dict[tuple[str, str], Array] = {}
        self.known: dict[tuple, Array] = {}

    def formula(self, tree: Sequence[Node]) -> Formula:
        total = sp.Add(*[self.term(term) for term in to_terms(tree)], evaluate=False)
        return Formula(write_loss(tree), self.taps, tuple(self.b.lets), total)

    def term(self, term: Term) -> sp.Expr:
        value = term.distance.args[0]
        s, t = self.value(value, self.student_side(value)), self.value(value, "T")
        self.b.side = ""
        params = map(sp.Rational, map(str, term.distance.params))
        distance = DISTANCES[term.distance.name].formula(self.b, s, t, *params)
        return sp.Rational(str(term.weight)) * self.mean(distance, self.mode(term.mode))

    def student_side(self, value: Call) -> str:
        """Whether a chain reads the student's tap as it is or behind its connector; without a pair shapes are taken as equal."""
        if self.pair is None:
            return "S"
        s, t = (taps.at(position_of(value)) for taps in self.pair)
        return "S" if s.shape[1:] == t.shape[1:] or comparable(value, s, t) else CONNECTED

    def value(self, call: Call, side: str) -> Array:
        if (call, side) not in self.known:
            if call.args:
                below = self.value(call.args[0], side)
                self.b.side = side[0]
                params = map(sp.Rational, map(str, call.params))
                self.known[call, side] = TRANSFORMS[call.name].formula(self.b, below, *params)
            else:
                self.known[call, side] = self.tap(call.name, side)
        return self.known[call, side]

    def tap(self, position: str, side: str) -> Array:
        """The student's sizes are its own (^S) where the pair's taps differ and no connector stands between."""
        stage = position[10:-1] and f"_{position[10:-1]}"
        letter, axes = {"logits": ("z", "NK"), "embedding": ("e", "ND")}.get(position, ("F", "NCHW"))
        own = "^S" if side == "S" and self.pair and self.differs(position) else ""
        names = [axis if axis in "NK" else axis + stage + own for axis in axes]
        sizes = tuple(sp.Symbol(n, integer=True, positive=True) for n in names)
        hat = "hat" if side == CONNECTED else ""
        self.taps[side, position] = Array(f"{letter}{hat}{stage}^{side[0]}", sizes)
        return self.taps[side, position]

    def differs(self, position: str) -> bool:
        return self.pair[0].at(position).shape[1:] != self.pair[1].at(position).shape[1:]

    def mode(self, name: str) -> Array | None:
        if name == "no":
            return None
        if name not in self.known:
            s, t = (self.value(Call("logits"), side) for side in "ST")
            labels = Array("y", s.sizes[:1])
            self.b.side = ""
            if name == "focal":
                self.taps["", "labels"] = labels
            self.known[name] = MODES[name].formula(self.b, s, t, labels)
        return self.known[name]

    def mean(self, distance: Array, weight: Array | None) -> sp.Expr:
        if not distance.sizes:
            return distance[()]
        p = sp.Symbol("i", integer=True)
        w = (weight[p] if weight.sizes else weight[()]) if weight else sp.Integer(1)
        return sp.Sum(w * distance[p], (p, 0, distance.sizes[0] - 1)) / distance.sizes[0]


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


_POINTWISE = {
    sp.exp: np.exp, sp.log: np.log, sp.Abs: np.abs, sp.sign: np.sign, sp.tanh: np.tanh, sp.floor: np.floor, sp.ceiling: np.ceil,
}  # fmt: skip
_FOLDS = {sp.Add: np.add, sp.Mul: np.multiply, sp.Max: np.maximum, sp.Min: np.minimum}
_PAIRS = {sp.Pow: np.power, sp.Mod: np.mod, sp.Ge: np.greater_equal}


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
    args = [_value(arg, env, arrays, axes) for arg in e.args]
    if type(e) in _POINTWISE:
        return _POINTWISE[type(e)](args[0])
    if type(e) in _PAIRS:
        return _PAIRS[type(e)](np.longdouble(1) * args[0], args[1])
    return reduce(_FOLDS[type(e)], args)


def _reduce(e: ExprWithLimits, env: dict, arrays: dict, axes: int):
    """A Sum, MaxOver or MinOver: new axes to the left, folded away again."""
    inner, shape = dict(env), []
    for index, low, high in e.limits:
        size = int(_value(high, env, arrays, axes)) - int(_value(low, env, arrays, axes)) + 1
        inner[index] = np.arange(size).reshape(size, *[1] * (axes + len(shape)))
        shape.append(size)
    value = np.asarray(_value(e.function, inner, arrays, axes + len(shape)))
    missing = axes + len(shape) - value.ndim
    value = np.broadcast_to(value, np.broadcast_shapes(value.shape, (*shape[::-1], *[1] * axes))) if missing or shape else value
    fold = np.sum if isinstance(e, sp.Sum) else e.fold
    return fold(value, axis=tuple(range(len(shape))))
