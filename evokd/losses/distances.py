"""Distances: how far the student's value is from the teacher's. KD-Zero (NeurIPS 2023), Table 1, in corrected form.

Every function takes (student, teacher, *params) of equal shape, axis 0 first, and returns one value per index of axis 0: (N,).
The mean over axis 0 is taken once, in `program.py`, after the weights. A distance over axis 0 itself (`correlation`) has no value
per sample and returns a scalar; such terms take no sample weights.

Corrected against released code: cosine is 1 − cos (there minimising it pushes the student away), KL has its softmax inside, its
target is the teacher, and it is averaged over space instead of growing with it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from evokd.losses.transforms import COLUMNS, MAPS, RELATION, ROWS, STACK


@dataclass(frozen=True)
class Distance:
    """One operator; `formula`: (builder, student array, teacher array, *params) → array over axis 0, or scalar."""

    fn: Callable[..., Tensor]
    kinds: tuple[str, ...]
    formula: Callable
    note: str
    params: tuple[str, ...] = ()
    per_sample: bool = True

    @property
    def name(self) -> str:
        return self.fn.__name__


def l1(s: Tensor, t: Tensor) -> Tensor:
    """Mean |s − t|."""
    return (s - t).abs().flatten(1).mean(1)


def l2(s: Tensor, t: Tensor) -> Tensor:
    """Mean (s − t)²."""
    return (s - t).square().flatten(1).mean(1)


def smooth_l1(s: Tensor, t: Tensor) -> Tensor:
    """Mean Huber loss with β = 1: d²/2 below 1, |d| − 1/2 above."""
    low = (s - t).abs().clamp(max=1)
    return (low * ((s - t).abs() - low / 2)).flatten(1).mean(1)


def kl(s: Tensor, t: Tensor, tau: float) -> Tensor:
    """τ² KL(softmax(t/τ) ‖ softmax(s/τ)) over axis 1 (Hinton et al. 2015), mean over what follows."""
    log_p, log_q = (t / tau).log_softmax(1), (s / tau).log_softmax(1)
    return tau**2 * (log_p.exp() * (log_p - log_q)).sum(1).reshape(s.shape[0], -1).mean(1)


def hard(s: Tensor, t: Tensor) -> Tensor:
    """−log softmax(s) at argmax t: the teacher's decision as label (DeiT, ICML 2021, eq. 3)."""
    return -s.log_softmax(1).gather(1, t.argmax(1, keepdim=True)).squeeze(1)


def cosine(s: Tensor, t: Tensor) -> Tensor:
    """1 − ⟨s,t⟩ / (‖s‖‖t‖) over axis 1, norms at least 1e-6, mean over what follows."""
    return (1 - F.cosine_similarity(s, t, 1, 1e-6)).reshape(s.shape[0], -1).mean(1)


def pearson(s: Tensor, t: Tensor) -> Tensor:
    """1 − Pearson correlation along axis 1 (DIST, NeurIPS 2022, eq. 6), mean over what follows."""
    similarity = F.cosine_similarity(s - s.mean(1, keepdim=True), t - t.mean(1, keepdim=True), 1, 1e-6)
    return (1 - similarity).reshape(s.shape[0], -1).mean(1)


def correlation(s: Tensor, t: Tensor) -> Tensor:
    """log₂ Σ_j |c_j − 1|^2.02, c_j the correlation of column j over the batch (ITRD, BMVC 2022, eq. 4), scalar.

    Columns are z-scored with the unbiased deviation, as published, so that c_j < 1 and the logarithm stays finite.
    """
    s, t = s - s.mean(0), t - t.mean(0)
    n = max(s.shape[0] - 1, 1)
    s, t = s / (s.square().sum(0) / n + 1e-6).sqrt(), t / (t.square().sum(0) / n + 1e-6).sqrt()
    return (((s * t).mean(0) - 1).abs() + 1e-6).pow(2.02).sum().log2()


def _elementwise(pick):
    def formula(b, s, t):
        inner = tuple(range(1, len(s.sizes)))

        def at(i):
            zeros = (i, *[0] * len(inner))
            return b.sum_axes2(s, t, zeros, inner, lambda x, y: pick(b.sp, x, y)) / b.size(s, inner)

        return b.let(s.sizes[:1], at)

    return formula


def _rowwise(value):
    """Reduce axis 1 by `value(b, s, t, i)`, then the mean over the axes that follow."""

    def formula(b, s, t, *params):
        rest = s.sizes[2:]
        inner = b.let((s.sizes[0], *rest), lambda i, *k: value(b, s, t, (i, 0, *k), *params))
        if not rest:
            return inner
        axes = tuple(range(1, len(inner.sizes)))
        return b.let(s.sizes[:1], lambda i: b.mean_axes(inner, (i, *[0] * len(rest)), axes, lambda y: y))

    return formula


def _huber(sp, x, y):
    d = sp.Abs(x - y)
    return sp.Min(d, 1) * (d - sp.Min(d, 1) / 2)


def _kl(b, s, t, tau):
    def log_softmax(a):
        return b.let(a.sizes, lambda *i: a[i] / tau - b.sp.log(b.sum_axes(a, i, (1,), lambda y: b.sp.exp(y / tau))))

    log_p, log_q = log_softmax(t), log_softmax(s)
    return _rowwise(
        lambda b, q, p, i: tau**2 * b.sum_axes2(q, p, i, (1,), lambda x, y: b.sp.exp(y) * (y - x)),
    )(b, log_q, log_p)


def _hard(b, s, t):
    label = b.argmax(t)
    return b.let(s.sizes[:1], lambda i: b.sp.log(b.sum_axes(s, (i, 0), (1,), b.sp.exp)) - s[i, label[i]])


def _similarity(b, s, t, i):
    def norm(a):
        return b.sp.Max(b.sp.sqrt(b.sum_axes(a, i, (1,), lambda y: y**2)), b.number(1e-6))

    return 1 - b.sum_axes2(s, t, i, (1,), lambda x, y: x * y) / (norm(s) * norm(t))


def _pearson(b, s, t):
    def centre(a):
        return b.let(a.sizes, lambda *i: a[i] - b.mean_axes(a, i, (1,), lambda y: y))

    return _rowwise(_similarity)(b, centre(s), centre(t))


def _correlation(b, s, t):
    def zscore(a):
        n = a.sizes[0]
        centred = b.let(a.sizes, lambda i, j: a[i, j] - b.mean_axes(a, (i, j), (0,), lambda y: y))

        def at(i, j):
            variance = b.sum_axes(centred, (i, j), (0,), lambda y: y**2) / b.sp.Max(n - 1, 1)
            return centred[i, j] / b.sp.sqrt(variance + b.number(1e-6))

        return b.let(a.sizes, at)

    s, t = zscore(s), zscore(t)
    n, d = s.sizes
    gap = b.let((d,), lambda j: b.sp.Abs(b.sum_axes2(s, t, (0, j), (0,), lambda x, y: x * y) / n - 1) + b.number(1e-6))
    return b.let((), lambda: b.sp.log(b.sum(d, lambda j: gap[j] ** b.sp.Rational(101, 50))) / b.sp.log(2))


_ANY = (MAPS, STACK, ROWS, COLUMNS, RELATION)

DISTANCES: dict[str, Distance] = {
    d.name: d
    for d in (
        Distance(l1, _ANY, _elementwise(lambda sp, x, y: sp.Abs(x - y)), "mean |s−t|"),
        Distance(l2, _ANY, _elementwise(lambda sp, x, y: (x - y) ** 2), "mean (s−t)²"),
        Distance(smooth_l1, _ANY, _elementwise(_huber), "mean Huber(s−t), β=1"),
        Distance(kl, _ANY, _kl, "τ²·KL(softmax(t/τ) ‖ softmax(s/τ))", ("tau",)),
        Distance(hard, (ROWS,), _hard, "−log softmax(s) at argmax t"),
        Distance(cosine, _ANY, _rowwise(_similarity), "1 − cos(s,t)"),
        Distance(pearson, _ANY, _pearson, "1 − corr(s,t)"),
        Distance(correlation, (ROWS,), _correlation, "log₂ Σ_j |corr_j − 1|^2.02", per_sample=False),
    )
}
