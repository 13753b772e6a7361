"""Distances: how far the student's value is from the teacher's. KD-Zero (NeurIPS 2023), Table 1, in corrected form.

Every function takes (student, teacher, *params) of equal shape, axis 0 first. What it returns has axis 0 first too, and its mean over all
entries is the value of the term; `program.py` takes that mean, or weighs the samples first. A distance over axis 0 itself
(`correlation`) or over the whole (`frobenius`) has no value per sample and returns a scalar; such terms take no sample weights.

Corrected against released code: cosine is 1 − cos (there minimising it pushes the student away), KL has its softmax inside, its
target is the teacher, and it is averaged over space instead of growing with it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from evokd.losses.operators import CLASSES, KINDS, MAPS, ROWS, TOKENS, Distance


def l1(s: Tensor, t: Tensor) -> Tensor:
    """Mean |s − t|."""
    return (s - t).abs()


def l2(s: Tensor, t: Tensor) -> Tensor:
    """Mean (s − t)²."""
    return (s - t).square()


def smooth_l1(s: Tensor, t: Tensor) -> Tensor:
    """Mean Huber loss with β = 1: d²/2 below 1, |d| − 1/2 above."""
    return F.smooth_l1_loss(s, t, reduction="none")


def partial_l2(s: Tensor, t: Tensor) -> Tensor:
    """Mean (s − t)², 0 where s ≤ t ≤ 0: what both networks' ReLUs hide (OFD, ICCV 2019)."""
    return (s - t).square() * ((s > t) | (t > 0))


def hinge(s: Tensor, t: Tensor) -> Tensor:
    """Mean max(1 − s, 0)² where t > 0 and max(1 + s, 0)² elsewhere: the student's sign, with margin 1 (AB, AAAI 2019)."""
    return torch.where(t > 0, 1 - s, 1 + s).relu().square()


def kl(s: Tensor, t: Tensor, tau: float) -> Tensor:
    """τ² KL(softmax(t/τ) ‖ softmax(s/τ)) over axis 1 (Hinton et al. 2015), mean over what follows."""
    log_p, log_q = (t / tau).log_softmax(1), (s / tau).log_softmax(1)
    return tau**2 * (log_p.exp() * (log_p - log_q)).sum(1)


def ce(s: Tensor, t: Tensor, tau: float) -> Tensor:
    """−Σ softmax(t/τ) log softmax(s/τ) over axis 1, without τ² (AKD, CVPR 2020), mean over what follows."""
    return -((t / tau).softmax(1) * (s / tau).log_softmax(1)).sum(1)


def divergence(s: Tensor, t: Tensor) -> Tensor:
    """Σ t ln(t/s) − t + s over axis 1 of values taken as ≥ 0: KL where rows are probabilities (PKT, ECCV 2018)."""
    s, t = s.relu(), t.relu()
    return (t * ((t + 1e-7) / (s + 1e-7)).log() - t + s).sum(1)


def hard(s: Tensor, t: Tensor) -> Tensor:
    """−log softmax(s) at argmax t: the teacher's decision as label (DeiT, ICML 2021, eq. 3)."""
    return -s.log_softmax(1).gather(1, t.argmax(1, keepdim=True)).squeeze(1)


def cosine(s: Tensor, t: Tensor) -> Tensor:
    """1 − ⟨s,t⟩ / (‖s‖‖t‖) over axis 1, norms at least 1e-6, mean over what follows."""
    return 1 - F.cosine_similarity(s, t, 1, 1e-6)


def pearson(s: Tensor, t: Tensor) -> Tensor:
    """1 − Pearson correlation along axis 1 (DIST, NeurIPS 2022), mean over what follows."""
    return 1 - F.cosine_similarity(s - s.mean(1, keepdim=True), t - t.mean(1, keepdim=True), 1, 1e-6)


def correlation(s: Tensor, t: Tensor) -> Tensor:
    """log₂ Σ_j |c_j − 1|^2.02, c_j the correlation of column j over the batch (ITRD, BMVC 2022), scalar.

    Columns are z-scored with the unbiased deviation, as published, so that c_j < 1 and the logarithm stays finite.
    """
    s, t = s - s.mean(0), t - t.mean(0)
    n = max(s.shape[0] - 1, 1)
    s, t = s / (s.square().sum(0) / n + 1e-6).sqrt(), t / (t.square().sum(0) / n + 1e-6).sqrt()
    return (((s * t).mean(0) - 1).abs() + 1e-6).pow(2.02).sum().log2()


def frobenius(s: Tensor, t: Tensor) -> Tensor:
    """‖s − t‖_F / number of entries, not squared: DisWOT's printed 1/c² ‖·‖ and 1/b² ‖·‖ (CVPR 2023), scalar."""
    return torch.linalg.vector_norm(s - t) / s.numel()


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


def _partial(sp, x, y):
    hidden = sp.And(x <= y, y <= 0)
    return sp.Piecewise((0, hidden), ((x - y) ** 2, True))


def _hinge(sp, x, y):
    return sp.Piecewise((sp.Max(1 - x, 0) ** 2, y > 0), (sp.Max(1 + x, 0) ** 2, True))


def _ce(b, s, t, tau):
    def log_softmax(a):
        return b.let(a.sizes, lambda *i: a[i] / tau - b.sp.log(b.sum_axes(a, i, (1,), lambda y: b.sp.exp(y / tau))))

    log_p, log_q = log_softmax(t), log_softmax(s)
    return _rowwise(lambda b, q, p, i: -b.sum_axes2(q, p, i, (1,), lambda x, y: b.sp.exp(y) * x))(b, log_q, log_p)


def _divergence(b, s, t, i):
    def value(x, y):
        x, y = b.sp.Max(x, 0), b.sp.Max(y, 0)
        return y * b.sp.log((y + b.number(1e-7)) / (x + b.number(1e-7))) - y + x

    return b.sum_axes2(s, t, i, (1,), value)


def _frobenius(b, s, t):
    axes = tuple(range(len(s.sizes)))
    return b.let((), lambda: b.sp.sqrt(b.sum_axes2(s, t, [0] * len(axes), axes, lambda x, y: (x - y) ** 2)) / b.size(s, axes))


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


DISTANCES: dict[str, Distance] = {
    d.name: d
    for d in (
        Distance(l1, KINDS, _elementwise(lambda sp, x, y: sp.Abs(x - y)), "mean |s−t|"),
        Distance(l2, KINDS, _elementwise(lambda sp, x, y: (x - y) ** 2), "mean (s−t)²"),
        Distance(smooth_l1, KINDS, _elementwise(_huber), "mean Huber(s−t), β=1"),
        Distance(partial_l2, (MAPS, TOKENS, ROWS), _elementwise(_partial), "mean (s−t)² unless s≤t≤0"),
        Distance(hinge, (MAPS, TOKENS, ROWS), _elementwise(_hinge), "mean margin of s at the sign of t"),
        Distance(kl, KINDS, _kl, "τ²·KL(softmax(t/τ) ‖ softmax(s/τ))", ("tau",)),
        Distance(ce, KINDS, _ce, "−Σ softmax(t/τ)·log softmax(s/τ)", ("tau",)),
        Distance(divergence, KINDS, _rowwise(_divergence), "Σ t·ln(t/s) − t + s"),
        Distance(hard, (CLASSES,), _hard, "−log softmax(s) at argmax t"),
        Distance(cosine, KINDS, _rowwise(_similarity), "1 − cos(s,t)"),
        Distance(pearson, KINDS, _pearson, "1 − corr(s,t)"),
        Distance(correlation, (ROWS, CLASSES), _correlation, "log₂ Σ_j |corr_j − 1|^2.02", per_sample=False),
        Distance(frobenius, KINDS, _frobenius, "‖s−t‖/entries", per_sample=False),
    )
}

# what KD-Zero lists in its Table 1
TABLE_1 = ("smooth_l1", "l1", "l2", "kl", "hard", "cosine", "pearson", "correlation")
