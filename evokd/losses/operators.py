"""What an operator is: a torch function, the kinds it maps to kinds, and its twin in index notation.

Axis letters: N batch, C channels, H W space, M = H·W or tokens, K classes, D embedding. Kinds of value, and the axes they have:

    maps (N,C,H,W)   tokens (N,C,M)   rows (N,D)   classes (N,K)   relation (N,·)   columns (·,·), whose axis 0 is not the batch

Tokens have their channels first, as maps do; a tap (N,M,C) is turned when it is read, so that every operator means the same axis on
both. Functions use torch alone, so that the exporter can copy them as they stand. The twin (`formula`) is written by hand with the
builder of `formula.py` and tested against the function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

MAPS, TOKENS, ROWS, CLASSES, RELATION, COLUMNS = "maps", "tokens", "rows", "classes", "relation", "columns"
KINDS = (MAPS, TOKENS, ROWS, CLASSES, RELATION, COLUMNS)
EVERY = {k: k for k in KINDS}
SPATIAL = {MAPS: MAPS, TOKENS: TOKENS}


@dataclass(frozen=True)
class Transform:
    """An operator on values of student and teacher alike.

    Attributes:
        fn: (value, …, *extra, *params) → value; `extra` is the mask or the labels, where the operator takes them.
        kinds: kinds of the arguments, joined by commas → kind of the result; nothing else can be built.
        formula: (builder, array, …, *extra, *params) → array, the same in index notation.
        note: formula in words for listings.
        params: names of numeric parameters.
        keeps_shape: whether it may act on one side alone.
        mask: (probability to keep, axes that the mask has); student and teacher share the mask.
        labels: whether it takes the labels (N,), −1 where unknown.
    """

    fn: Callable[..., Tensor]
    kinds: dict[str, str]
    formula: Callable
    note: str
    params: tuple[str, ...] = ()
    keeps_shape: bool = False
    mask: tuple[float, tuple[int, ...]] | None = None
    labels: bool = False

    @property
    def name(self) -> str:
        return self.fn.__name__


@dataclass(frozen=True)
class Distance:
    """How far apart two values of equal shape are.

    Attributes:
        fn: (student, teacher, *params) → axis 0 first; the mean over all entries is the value. A scalar where not `per_sample`.
        kinds: kinds it compares.
        formula: (builder, student array, teacher array, *params) → array over axis 0, or scalar.
        note: formula in words for listings.
        params: names of numeric parameters.
        per_sample: whether axis 0 of the result is that of the arguments, so that samples can be weighted.
    """

    fn: Callable[..., Tensor]
    kinds: tuple[str, ...]
    formula: Callable
    note: str
    params: tuple[str, ...] = ()
    per_sample: bool = True

    @property
    def name(self) -> str:
        return self.fn.__name__


@dataclass(frozen=True)
class Mode:
    """A weight of samples: (student logits (N,K), teacher logits (N,K), labels (N,), *params) → (N,) or scalar."""

    fn: Callable[..., Tensor]
    formula: Callable
    note: str
    params: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.fn.__name__


def transform(kinds: dict[str, str], formula: Callable, note: str = "", **more) -> Callable[[Callable], Transform]:
    """Decorator that makes a function of a user's file a transform: `@transform({"maps": "maps"}, lambda b, a: …)`; see `Transform`."""
    return lambda fn: Transform(fn, kinds, formula, note or (fn.__doc__ or "").strip().partition("\n")[0], **more)


def distance(kinds: tuple[str, ...], formula: Callable, note: str = "", **more) -> Callable[[Callable], Distance]:
    """Decorator that makes a function of a user's file a distance; see `Distance`."""
    return lambda fn: Distance(fn, kinds, formula, note or (fn.__doc__ or "").strip().partition("\n")[0], **more)


def source_of(fn: Callable) -> str:
    """The function's own lines, without decorators."""
    text = inspect.getsource(fn)
    return text[text.index("def ") :]


# --- formulas that many operators share --------------------------------------------------------------------------------------


def pointwise(pick: Callable) -> Callable:
    """Formula of an operator on single entries; `pick` takes SymPy and x."""
    return lambda b, a, *params: b.let(a.sizes, lambda *i: pick(b.sp, a[i], *params))


def over(axes, body: Callable) -> Callable:
    """Formula of an operator that reduces over some axes: `body(b, x, total, count)`, with `total(function of x)` their sum."""

    def formula(b, a):
        chosen = axes(a) if callable(axes) else axes

        def at(*i):
            return body(b, a[i], lambda pick: b.sum_axes(a, i, chosen, pick), b.size(a, chosen))

        return b.let(a.sizes, at)

    return formula


def space(a) -> tuple[int, ...]:
    """Axes of space."""
    return tuple(range(2, len(a.sizes)))


def others(a) -> tuple[int, ...]:
    """All axes but axis 1."""
    return tuple(axis for axis in range(len(a.sizes)) if axis != 1)
