"""Transforms: what happens to a tap before it is compared. KD-Zero (NeurIPS 2023), Table 1, and what published losses need.

Axis letters: N batch, C channels, H W space, M = H·W, K classes, D embedding. Kinds of value, and the axes they have:

    maps (N,C,H,W)   stack (N,C,M)   rows (N,D)   columns (D,N)   relation (N,N)

A transform acts on the student's and on the teacher's value alike. Functions use torch alone, so that the exporter can copy
them as they stand. Each has a twin in index notation (`formula`), written by hand through the builder of `formula.py` and tested
against it. Where the released code of KD-Zero's relatives is wrong or undefined, the protected form here is stated at its line.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MAPS, STACK, ROWS, COLUMNS, RELATION = "maps", "stack", "rows", "columns", "relation"
EVERY = {k: k for k in (MAPS, STACK, ROWS, COLUMNS, RELATION)}


@dataclass(frozen=True)
class Transform:
    """One operator: its function, the kinds it maps to kinds, and its formula.

    Attributes:
        fn: (value, *params) → value.
        kinds: kind of the argument → kind of the result; nothing else can be built.
        formula: (builder, array, *params) → array, the same in index notation.
        params: names of numeric parameters.
        note: formula in words for listings.
    """

    fn: Callable[..., Tensor]
    kinds: dict[str, str]
    formula: Callable
    note: str
    params: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.fn.__name__


def temper(f: Tensor, tau: float) -> Tensor:
    """f / τ."""
    return f / tau


def scale(f: Tensor) -> Tensor:
    """(f + 1) / 2."""
    return (f + 1) / 2


def exp(f: Tensor) -> Tensor:
    """e^min(f, 20): the bound keeps value and gradient finite."""
    return f.clamp(max=20).exp()


def mish(f: Tensor) -> Tensor:
    """f · tanh(ln(1 + e^f))."""
    return F.mish(f)


def leaky(f: Tensor) -> Tensor:
    """max(f, 0.01 f)."""
    return F.leaky_relu(f, 0.01)


def relu(f: Tensor) -> Tensor:
    """max(f, 0)."""
    return f.relu()


def tanh(f: Tensor) -> Tensor:
    """tanh f."""
    return f.tanh()


def sigmoid(f: Tensor) -> Tensor:
    """1 / (1 + e^−f)."""
    return f.sigmoid()


def pow2(f: Tensor) -> Tensor:
    """f²."""
    return f.square()


def pow4(f: Tensor) -> Tensor:
    """f⁴."""
    return f.square().square()


def log(f: Tensor) -> Tensor:
    """sign(f) ln(1 + |f|); the released sign(f) ln(|f| + 1e-9) jumps from −20.7 to 20.7 at 0 and is not monotone."""
    return f.sign() * f.abs().log1p()


def sqrt(f: Tensor) -> Tensor:
    """sign(f) (√(|f| + 1e-4) − 0.01); the plain root is NaN below 0 and infinitely steep at 0, where ReLU features live."""
    return f.sign() * ((f.abs() + 1e-4).sqrt() - 1e-2)


def norm_C(f: Tensor) -> Tensor:
    """f / max(‖f‖₂ over axis 1, 1e-4): the floor bounds the gradient of a dead row."""
    return f / torch.linalg.vector_norm(f, dim=1, keepdim=True).clamp_min(1e-4)


def norm_N(f: Tensor) -> Tensor:
    """f / max(‖f‖₂ over axis 0, 1e-4)."""
    return f / torch.linalg.vector_norm(f, dim=0, keepdim=True).clamp_min(1e-4)


def norm_HW(f: Tensor) -> Tensor:
    """f / max(‖f‖₂ over space, 1e-4)."""
    axes = list(range(2, f.dim()))
    return f / torch.linalg.vector_norm(f, dim=axes, keepdim=True).clamp_min(1e-4)


def softmax_C(f: Tensor) -> Tensor:
    """Softmax over axis 1."""
    return f.softmax(1)


def softmax_N(f: Tensor) -> Tensor:
    """Softmax over axis 0."""
    return f.softmax(0)


def softmax_HW(f: Tensor) -> Tensor:
    """Softmax over space."""
    return f.flatten(2).softmax(2).view_as(f)


def logsoftmax_C(f: Tensor) -> Tensor:
    """Log-softmax over axis 1."""
    return f.log_softmax(1)


def logsoftmax_N(f: Tensor) -> Tensor:
    """Log-softmax over axis 0."""
    return f.log_softmax(0)


def logsoftmax_HW(f: Tensor) -> Tensor:
    """Log-softmax over space."""
    return f.flatten(2).log_softmax(2).view_as(f)


def batchnorm(f: Tensor) -> Tensor:
    """(f − μ) / √(σ² + 1e-5), μ and σ² per index of axis 1 over all other axes of this batch; nothing learned."""
    axes = [axis for axis in range(f.dim()) if axis != 1]
    centred = f - f.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True) + 1e-5).sqrt()


def min_max(f: Tensor) -> Tensor:
    """(f − min f) / (max f − min f + 1e-6), extremes over the whole batch."""
    low, high = f.amin(), f.amax()
    return (f - low) / (high - low + 1e-6)


def centre_C(f: Tensor) -> Tensor:
    """f − mean over axis 1."""
    return f - f.mean(1, keepdim=True)


def zscore_C(f: Tensor) -> Tensor:
    """(f − mean) / √(var + 1e-6) over axis 1, unbiased variance (LSKD, CVPR 2024, eq. 9)."""
    centred = f - f.mean(1, keepdim=True)
    return centred / (centred.square().sum(1, keepdim=True) / max(f.shape[1] - 1, 1) + 1e-6).sqrt()


def mean_C(f: Tensor) -> Tensor:
    """Mean over channels, (N,C,H,W) → (N,1,H,W)."""
    return f.mean(1, keepdim=True)


def mean_HW(f: Tensor) -> Tensor:
    """Mean over space, (N,C,…) → (N,C)."""
    return f.flatten(2).mean(2)


def scale_r2(f: Tensor) -> Tensor:
    """2×2 max-pool, stride 2; maps of odd or single size keep their last row and column (ceil mode)."""
    return F.max_pool2d(f, 2, ceil_mode=True)


def channel(f: Tensor) -> Tensor:
    """(N,C,H,W) → (N,C,M)."""
    return f.flatten(2)


def batch(f: Tensor) -> Tensor:
    """(N,…) → (N,D)."""
    return f.flatten(1)


def transpose(f: Tensor) -> Tensor:
    """(N,D) → (D,N): rows become columns, as in DIST's intra-class relation."""
    return f.t()


def mm(f: Tensor) -> Tensor:
    """X Xᵀ with X = (N, all else): similarity of samples, (N,N)."""
    x = f.flatten(1)
    return x @ x.t()


def bmm(f: Tensor) -> Tensor:
    """F Fᵀ / M with F = (C,M): Gram matrix of channels, (N,C,C). The mean over space keeps its size comparable."""
    x = f.flatten(2)
    return x @ x.transpose(1, 2) / x.shape[2]


def satt(f: Tensor) -> Tensor:
    """f · √S with S = M · softmax over space of (mean_C |f|) / 0.5 (FGD's spatial attention, as DetKDS uses it).

    The root is taken in the logarithm: √softmax has an infinite slope where the softmax underflows.
    """
    a = f.abs().mean(1, keepdim=True).flatten(2)
    return f * ((a / 0.5).log_softmax(2) / 2).exp().mul(a.shape[2] ** 0.5).view(f.shape[0], 1, *f.shape[2:])


def natt(f: Tensor) -> Tensor:
    """N · softmax over the batch of f / 0.5."""
    return f.shape[0] * (f / 0.5).softmax(0)


def catt(f: Tensor) -> Tensor:
    """f · √A with A = C · softmax over channels of (mean_HW |f|) / 0.5 (FGD's channel attention)."""
    b = f.abs().flatten(2).mean(2)
    return f * ((b / 0.5).log_softmax(1) / 2).exp().mul(b.shape[1] ** 0.5).view(*f.shape[:2], *[1] * (f.dim() - 2))


def _each(pick):
    """Formula of a pointwise operator; `pick` takes SymPy and x."""
    return lambda b, a, *params: b.let(a.sizes, lambda *i: pick(b.sp, a[i], *params))


def _over(axes, body):
    """Formula of an operator that reduces over some axes: `body(b, a, i, reduce)` with `reduce(function of x)` their sum."""

    def formula(b, a):
        chosen = axes(a) if callable(axes) else axes

        def at(*i):
            def total(pick):
                return b.sum_axes(a, i, chosen, pick)

            return body(b, a[i], total, b.size(a, chosen))

        return b.let(a.sizes, at)

    return formula


def _space(a):
    return tuple(range(2, len(a.sizes)))


def _others(a):
    return tuple(axis for axis in range(len(a.sizes)) if axis != 1)


def _norm(b, x, total, n):
    return x / b.sp.Max(b.sp.sqrt(total(lambda y: y**2)), b.number(1e-4))


def _softmax(b, x, total, n):
    return b.sp.exp(x) / total(b.sp.exp)


def _logsoftmax(b, x, total, n):
    return x - b.sp.log(total(b.sp.exp))


def _zscore(eps, unbiased=False):
    def body(b, x, total, n):
        mean = total(lambda y: y) / n
        spread = total(lambda y: y**2) - n * mean**2
        return (x - mean) / b.sp.sqrt(spread / (b.sp.Max(n - 1, 1) if unbiased else n) + b.number(eps))

    return body


def _min_max(b, a):
    low, high = b.extreme(b.sp.Min, a), b.extreme(b.sp.Max, a)
    return b.let(a.sizes, lambda *i: (a[i] - low) / (high - low + b.number(1e-6)))


def _mean_C(b, a):
    n, c, *space = a.sizes
    return b.let((n, b.sp.Integer(1), *space), lambda i, j, *k: b.sum(c, lambda p: a[(i, p, *k)]) / c)


def _mean_HW(b, a):
    return b.let(a.sizes[:2], lambda *i: b.mean_axes(a, (*i, *[0] * (len(a.sizes) - 2)), _space(a), lambda y: y))


def _scale_r2(b, a):
    n, c, h, w = a.sizes
    sizes = (n, c, b.sp.ceiling(h / 2), b.sp.ceiling(w / 2))

    def at(i, j, k, m):
        rows, cols = (2 * k, b.sp.Min(2 * k + 1, h - 1)), (2 * m, b.sp.Min(2 * m + 1, w - 1))
        return b.sp.Max(*[a[i, j, p, q] for p in rows for q in cols], evaluate=False)

    return b.let(sizes, at)


def _flat(keep):
    """Index arithmetic of a flatten from axis `keep` on."""

    def formula(b, a):
        tail = a.sizes[keep:]
        size = b.sp.Mul(*tail)
        return b.let((*a.sizes[:keep], size), lambda *i: a[(*i[:keep], *b.unflatten(i[keep], tail))])

    return formula


def _mm(b, a):
    rest = tuple(range(1, len(a.sizes)))
    n = a.sizes[0]
    return b.let((n, n), lambda i, j: b.dot(a, (i, *[0] * len(rest)), (j, *[0] * len(rest)), rest))


def _bmm(b, a):
    space, zeros = _space(a), [0] * (len(a.sizes) - 2)
    n, c = a.sizes[:2]
    return b.let((n, c, c), lambda i, j, k: b.dot(a, (i, j, *zeros), (i, k, *zeros), space) / b.size(a, space))


def _satt(b, a):
    c, space = a.sizes[1], _space(a)
    mean = b.let((a.sizes[0], *a.sizes[2:]), lambda i, *k: b.sum(c, lambda p: b.sp.Abs(a[(i, p, *k)])) / c)
    inner = tuple(range(1, len(mean.sizes)))

    def at(i, j, *k):
        here = b.sp.exp(2 * mean[(i, *k)])
        return a[(i, j, *k)] * b.sp.sqrt(b.size(a, space) * here / b.sum_axes(mean, (i, *k), inner, lambda y: b.sp.exp(2 * y)))

    return b.let(a.sizes, at)


def _catt(b, a):
    n, c = a.sizes[:2]
    zeros = [0] * (len(a.sizes) - 2)
    mean = b.let((n, c), lambda i, j: b.mean_axes(a, (i, j, *zeros), _space(a), b.sp.Abs))

    def at(i, j, *k):
        return a[(i, j, *k)] * b.sp.sqrt(c * b.sp.exp(2 * mean[i, j]) / b.sum(c, lambda p: b.sp.exp(2 * mean[i, p])))

    return b.let(a.sizes, at)


_SPATIAL = {MAPS: MAPS, STACK: STACK}

TRANSFORMS: dict[str, Transform] = {
    t.name: t
    for t in (
        Transform(temper, EVERY, _each(lambda sp, x, tau: x / tau), "f/τ", ("tau",)),
        Transform(scale, EVERY, _each(lambda sp, x: (x + 1) / 2), "(f+1)/2"),
        Transform(exp, EVERY, _each(lambda sp, x: sp.exp(sp.Min(x, 20))), "e^min(f,20)"),
        Transform(mish, EVERY, _each(lambda sp, x: x * sp.tanh(sp.log(1 + sp.exp(x)))), "f·tanh(ln(1+e^f))"),
        Transform(leaky, EVERY, _each(lambda sp, x: sp.Max(x, x / 100)), "max(f, f/100)"),
        Transform(relu, EVERY, _each(lambda sp, x: sp.Max(x, 0)), "max(f, 0)"),
        Transform(tanh, EVERY, _each(lambda sp, x: sp.tanh(x)), "tanh f"),
        Transform(sigmoid, EVERY, _each(lambda sp, x: 1 / (1 + sp.exp(-x))), "1/(1+e^−f)"),
        Transform(pow2, EVERY, _each(lambda sp, x: x**2), "f²"),
        Transform(pow4, EVERY, _each(lambda sp, x: x**4), "f⁴"),
        Transform(log, EVERY, _each(lambda sp, x: sp.sign(x) * sp.log(1 + sp.Abs(x))), "sign(f)·ln(1+|f|)"),
        Transform(
            sqrt,
            EVERY,
            _each(lambda sp, x: sp.sign(x) * (sp.sqrt(sp.Abs(x) + sp.Rational(1, 10_000)) - sp.Rational(1, 100))),
            "sign(f)·(√(|f|+10⁻⁴)−10⁻²)",
        ),
        Transform(norm_C, EVERY, _over((1,), _norm), "f/‖f‖ over axis 1"),
        Transform(norm_N, EVERY, _over((0,), _norm), "f/‖f‖ over axis 0"),
        Transform(norm_HW, _SPATIAL, _over(_space, _norm), "f/‖f‖ over space"),
        Transform(softmax_C, EVERY, _over((1,), _softmax), "softmax over axis 1"),
        Transform(softmax_N, EVERY, _over((0,), _softmax), "softmax over axis 0"),
        Transform(softmax_HW, _SPATIAL, _over(_space, _softmax), "softmax over space"),
        Transform(logsoftmax_C, EVERY, _over((1,), _logsoftmax), "log-softmax over axis 1"),
        Transform(logsoftmax_N, EVERY, _over((0,), _logsoftmax), "log-softmax over axis 0"),
        Transform(logsoftmax_HW, _SPATIAL, _over(_space, _logsoftmax), "log-softmax over space"),
        Transform(batchnorm, EVERY, _over(_others, _zscore(1e-5)), "z-score per channel over the batch"),
        Transform(min_max, EVERY, _min_max, "(f−min)/(max−min)"),
        Transform(centre_C, EVERY, _over((1,), lambda b, x, total, n: x - total(lambda y: y) / n), "f − mean over axis 1"),
        Transform(zscore_C, EVERY, _over((1,), _zscore(1e-6, unbiased=True)), "z-score over axis 1"),
        Transform(mean_C, {MAPS: MAPS}, _mean_C, "mean over channels"),
        Transform(mean_HW, {MAPS: ROWS, STACK: ROWS}, _mean_HW, "mean over space"),
        Transform(scale_r2, {MAPS: MAPS}, _scale_r2, "2×2 max-pool"),
        Transform(channel, {MAPS: STACK}, _flat(2), "(N,C,H,W) → (N,C,M)"),
        Transform(batch, {MAPS: ROWS, STACK: ROWS}, _flat(1), "(N,…) → (N,D)"),
        Transform(transpose, {ROWS: COLUMNS}, lambda b, a: b.let(a.sizes[::-1], lambda i, j: a[j, i]), "(N,D) → (D,N)"),
        Transform(mm, {MAPS: RELATION, STACK: RELATION, ROWS: RELATION}, _mm, "X·Xᵀ over samples"),
        Transform(bmm, {MAPS: STACK, STACK: STACK}, _bmm, "F·Fᵀ/M over channels"),
        Transform(satt, _SPATIAL, _satt, "f·√(spatial attention)"),
        Transform(
            natt,
            {MAPS: MAPS, STACK: STACK, ROWS: ROWS},
            lambda b, a: b.let(
                a.sizes, lambda *i: a.sizes[0] * b.sp.exp(2 * a[i]) / b.sum_axes(a, i, (0,), lambda y: b.sp.exp(2 * y))
            ),
            "N·softmax over the batch of 2f",
        ),
        Transform(catt, _SPATIAL, _catt, "f·√(channel attention)"),
    )
}
