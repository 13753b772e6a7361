"""Operators that set entries against others of an axis: norms, softmaxes, centring. KD-Zero (NeurIPS 2023), Table 1, and LSKD, PKT, RKD.

Floors bound the gradient of dead rows, which in released code reaches 1e12. A softmax or norm over space exists only where there is a
space, and keeps the shape.
"""

import torch
from torch import Tensor

from evokd.losses.operators import COLUMNS, EVERY, MAPS, RELATION, SPATIAL, TOKENS, Transform, others, over, space


def norm_C(f: Tensor) -> Tensor:
    """f / max(‖f‖₂ over axis 1, 1e-4)."""
    return f / torch.linalg.vector_norm(f, dim=1, keepdim=True).clamp_min(1e-4)


def norm_N(f: Tensor) -> Tensor:
    """f / max(‖f‖₂ over axis 0, 1e-4)."""
    return f / torch.linalg.vector_norm(f, dim=0, keepdim=True).clamp_min(1e-4)


def norm_HW(f: Tensor) -> Tensor:
    """f / max(‖f‖₂ over space, 1e-4)."""
    axes = list(range(2, f.dim()))
    return f / torch.linalg.vector_norm(f, dim=axes, keepdim=True).clamp_min(1e-4)


def norm_all(f: Tensor) -> Tensor:
    """f / max(‖f‖_F, 1e-4): a whole matrix brought to norm 1 (DisWOT, CVPR 2023)."""
    return f / torch.linalg.vector_norm(f).clamp_min(1e-4)


def sumnorm_C(f: Tensor) -> Tensor:
    """f / max(Σ|f| over axis 1, 1e-4): affinities become probabilities (PKT, ECCV 2018)."""
    return f / f.abs().sum(1, keepdim=True).clamp_min(1e-4)


def meannorm(f: Tensor) -> Tensor:
    """f / max(mean of the positive entries, 1e-4), over the whole matrix (RKD, CVPR 2019)."""
    return f / (f.relu().sum() / (f > 0).sum().clamp_min(1)).clamp_min(1e-4)


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


def centre_N(f: Tensor) -> Tensor:
    """f − mean over axis 0, as in CKA (Kornblith et al., ICML 2019)."""
    return f - f.mean(0, keepdim=True)


def zscore_C(f: Tensor) -> Tensor:
    """(f − mean) / √(var + 1e-6) over axis 1, unbiased variance (LSKD, CVPR 2024)."""
    centred = f - f.mean(1, keepdim=True)
    return centred / (centred.square().sum(1, keepdim=True) / max(f.shape[1] - 1, 1) + 1e-6).sqrt()


def margin(f: Tensor) -> Tensor:
    """max(f, m), m the mean of a channel's negative entries: the margin ReLU of OFD (ICCV 2019), from this batch."""
    axes = [axis for axis in range(f.dim()) if axis != 1]
    return torch.maximum(f, f.clamp(max=0).sum(axes, keepdim=True) / (f < 0).sum(axes, keepdim=True).clamp_min(1))


def _norm(b, x, total, n):
    return x / b.sp.Max(b.sp.sqrt(total(lambda y: y**2)), b.number(1e-4))


def _sumnorm(b, x, total, n):
    return x / b.sp.Max(total(b.sp.Abs), b.number(1e-4))


def _softmax(b, x, total, n):
    return b.sp.exp(x) / total(b.sp.exp)


def _logsoftmax(b, x, total, n):
    return x - b.sp.log(total(b.sp.exp))


def _centre(b, x, total, n):
    return x - total(lambda y: y) / n


def _zscore(eps, unbiased=False):
    def body(b, x, total, n):
        mean = total(lambda y: y) / n
        spread = total(lambda y: y**2) - n * mean**2
        return (x - mean) / b.sp.sqrt(spread / (b.sp.Max(n - 1, 1) if unbiased else n) + b.number(eps))

    return body


def _min_max(b, a):
    low, high = b.extreme(b.sp.Min, a), b.extreme(b.sp.Max, a)
    return b.let(a.sizes, lambda *i: (a[i] - low) / (high - low + b.number(1e-6)))


def _whole(b, a, pick):
    """Σ of pick(entry) over a whole array, as a scalar of its own."""
    axes = tuple(range(len(a.sizes)))
    return b.let((), lambda: b.sum_axes(a, [0] * len(axes), axes, pick))[()]


def _norm_all(b, a):
    size = b.sp.sqrt(_whole(b, a, lambda y: y**2))
    return b.let(a.sizes, lambda *i: a[i] / b.sp.Max(size, b.number(1e-4)))


def _meannorm(b, a):
    total, count = _whole(b, a, lambda y: b.sp.Max(y, 0)), _whole(b, a, lambda y: b.if_(y > 0, 1, 0))
    return b.let(a.sizes, lambda *i: a[i] / b.sp.Max(total / b.sp.Max(count, 1), b.number(1e-4)))


def _margin(b, x, total, n):
    return b.sp.Max(x, total(lambda y: b.sp.Min(y, 0)) / b.sp.Max(total(lambda y: b.if_(y < 0, 1, 0)), 1))


_MATRIX = {RELATION: RELATION, COLUMNS: COLUMNS}

NORMS = tuple(
    Transform(fn, kinds, formula, note, keeps_shape=True)
    for fn, kinds, formula, note in (
        (norm_C, EVERY, over((1,), _norm), "f/‖f‖ over axis 1"),
        (norm_N, EVERY, over((0,), _norm), "f/‖f‖ over axis 0"),
        (norm_HW, SPATIAL, over(space, _norm), "f/‖f‖ over space"),
        (norm_all, _MATRIX, _norm_all, "f/‖f‖ over all"),
        (sumnorm_C, EVERY, over((1,), _sumnorm), "f/Σ|f| over axis 1"),
        (meannorm, _MATRIX, _meannorm, "f/mean of f>0"),
        (softmax_C, EVERY, over((1,), _softmax), "softmax over axis 1"),
        (softmax_N, EVERY, over((0,), _softmax), "softmax over axis 0"),
        (softmax_HW, SPATIAL, over(space, _softmax), "softmax over space"),
        (logsoftmax_C, EVERY, over((1,), _logsoftmax), "log-softmax over axis 1"),
        (logsoftmax_N, EVERY, over((0,), _logsoftmax), "log-softmax over axis 0"),
        (logsoftmax_HW, SPATIAL, over(space, _logsoftmax), "log-softmax over space"),
        (batchnorm, EVERY, over(others, _zscore(1e-5)), "z-score per channel over the batch"),
        (min_max, EVERY, _min_max, "(f−min)/(max−min)"),
        (centre_C, EVERY, over((1,), _centre), "f − mean over axis 1"),
        (centre_N, EVERY, over((0,), _centre), "f − mean over axis 0"),
        (zscore_C, EVERY, over((1,), _zscore(1e-6, unbiased=True)), "z-score over axis 1"),
        (margin, {MAPS: MAPS, TOKENS: TOKENS}, over(others, _margin), "max(f, mean of the channel's f<0)"),
    )
)
