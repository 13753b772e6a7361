"""Weight modes: how much each sample counts in a term. KD-Zero (NeurIPS 2023), Table 1, names five and defines none.

The decisions here, with their sources: `focal` is WSLD's weight (ICLR 2021, eq. 12); `conf` and `entropy` are the two orientations of
how sure the teacher is; `sim` is the agreement of the two logit matrices, the reading of KD-Zero's sibling code, shifted to [0,1] so that
it cannot turn a term around. All are detached: an undetached weight can be driven down instead of the distance.
"""

import math

import torch.nn.functional as F
from torch import Tensor

from evokd.losses.operators import Mode


def entropy(z_s: Tensor, z_t: Tensor, labels: Tensor) -> Tensor:
    """H(softmax z_t) / ln K: samples of which the teacher is unsure count more."""
    log_p = z_t.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1) / math.log(max(z_t.shape[1], 2))


def conf(z_s: Tensor, z_t: Tensor, labels: Tensor) -> Tensor:
    """max_k softmax(z_t): samples of which the teacher is sure count more."""
    return z_t.softmax(1).amax(1)


def focal(z_s: Tensor, z_t: Tensor, labels: Tensor) -> Tensor:
    """1 − exp(−CE(s,y) / CE(t,y)); 1 where the label is unknown (−1)."""
    known = labels >= 0
    y = labels.clamp_min(0)
    ratio = F.cross_entropy(z_s, y, reduction="none") / (F.cross_entropy(z_t, y, reduction="none") + 1e-6)
    return (1 - (-ratio).exp()) * known + ~known


def sim(z_s: Tensor, z_t: Tensor, labels: Tensor) -> Tensor:
    """(1 + mean_k cos(z_s[:,k], z_t[:,k])) / 2, one number for the batch."""
    norms = (z_s.square().sum(0) + 1e-12).sqrt() * (z_t.square().sum(0) + 1e-12).sqrt()
    return (1 + ((z_s * z_t).sum(0) / norms).mean()) / 2


def power_sum(z_s: Tensor, z_t: Tensor, labels: Tensor, tau: float) -> Tensor:
    """Σ_k softmax(z_t)_k^(1/τ): WTTM's weight, with its γ = 1/τ (ICLR 2024, eq. 22); samples of a flat teacher count more."""
    return (z_t.log_softmax(1) / tau).exp().sum(1)


def _log_softmax(b, z):
    return b.let(z.sizes, lambda i, k: z[i, k] - b.sp.log(b.sum_axes(z, (i, k), (1,), b.sp.exp)))


def _entropy(b, s, t, y):
    log_p = _log_softmax(b, t)
    classes = b.sp.Max(t.sizes[1], 2)
    return b.let(t.sizes[:1], lambda i: -b.sum_axes(log_p, (i, 0), (1,), lambda x: b.sp.exp(x) * x) / b.sp.log(classes))


def _conf(b, s, t, y):
    log_p = _log_softmax(b, t)
    return b.let(t.sizes[:1], lambda i: b.sp.exp(b.row_max(log_p, i)))


def _focal(b, s, t, y):
    log_q, log_p = _log_softmax(b, s), _log_softmax(b, t)

    def at(i):
        ratio = log_q[i, y[i]] / (log_p[i, y[i]] - b.number(1e-6))
        return b.if_(y[i] >= 0, 1 - b.sp.exp(-ratio), 1)

    return b.let(t.sizes[:1], at)


def _sim(b, s, t, y):
    k = t.sizes[1]

    def norm(a, j):
        return b.sp.sqrt(b.sum_axes(a, (0, j), (0,), lambda x: x**2) + b.number(1e-12))

    cos = b.let((k,), lambda j: b.sum_axes2(s, t, (0, j), (0,), lambda x, w: x * w) / (norm(s, j) * norm(t, j)))
    return b.let((), lambda: (1 + b.sum(k, lambda j: cos[j]) / k) / 2)


def _power_sum(b, s, t, y, tau):
    log_p = _log_softmax(b, t)
    return b.let(t.sizes[:1], lambda i: b.sum_axes(log_p, (i, 0), (1,), lambda x: b.sp.exp(x / tau)))


MODES: dict[str, Mode] = {
    m.name: m
    for m in (
        Mode(entropy, _entropy, "H(p_t)/ln K"),
        Mode(conf, _conf, "max p_t"),
        Mode(focal, _focal, "1 − exp(−CE_s/CE_t)"),
        Mode(sim, _sim, "(1 + mean_k cos(z_s, z_t))/2"),
        Mode(power_sum, _power_sum, "Σ_k p_t^(1/τ)", ("tau",)),
    )
}

# what KD-Zero lists in its Table 1; `no` weighs every sample 1
TABLE_1 = ("entropy", "focal", "sim", "conf", "no")
