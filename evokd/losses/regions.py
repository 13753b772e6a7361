"""Operators on space and axes: means, pools, tiles, attention, masks, and the ways from one kind to another.

KD-Zero (NeurIPS 2023), Table 1. Pools and tiles of maps whose sides do not divide: max-pools keep the shorter last window, tiles are
padded with zeros to the right and below, and an average pool to a grid takes PyTorch's adaptive windows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from evokd.losses.operators import CLASSES, COLUMNS, MAPS, ROWS, SPATIAL, TOKENS, Transform, space


def mean_C(f: Tensor) -> Tensor:
    """Mean over channels, (N,C,H,W) → (N,1,H,W)."""
    return f.mean(1, keepdim=True)


def mean_HW(f: Tensor) -> Tensor:
    """Mean over space, (N,C,…) → (N,C)."""
    return f.flatten(2).mean(2)


def scale_r1(f: Tensor) -> Tensor:
    """1×1 max-pool: f itself; the canonical form leaves it out."""
    return f


def scale_r2(f: Tensor) -> Tensor:
    """2×2 max-pool, stride 2."""
    return F.max_pool2d(f, 2, ceil_mode=True)


def scale_r4(f: Tensor) -> Tensor:
    """4×4 max-pool, stride 4: what KD-Zero's sibling code calls multi-scale."""
    return F.max_pool2d(f, 4, ceil_mode=True)


def multi_scale(f: Tensor) -> Tensor:
    """f beside its 2×2 and 4×4 max-pools, each spread out to full size: (N,C,H,W) → (N,C,3M).

    KD-Zero leaves it undefined. Its ancestor averages the distance over max-pools of 1, 2 and 4; a distance that is a mean over
    positions, taken of this value, is that average (exactly, where the sides divide by 4).
    """
    h, w = f.shape[2:]
    pools = [F.max_pool2d(f, r, ceil_mode=True).repeat_interleave(r, 2).repeat_interleave(r, 3) for r in (2, 4)]
    return torch.cat([f.flatten(2), *[p[:, :, :h, :w].flatten(2) for p in pools]], 2)


def pool_1(f: Tensor) -> Tensor:
    """Average pool to 1×1."""
    return F.adaptive_avg_pool2d(f, 1)


def pool_2(f: Tensor) -> Tensor:
    """Average pool to 2×2, at most the map's size (ReviewKD's HCL, CVPR 2021)."""
    return F.adaptive_avg_pool2d(f, (min(2, f.shape[2]), min(2, f.shape[3])))


def pool_4(f: Tensor) -> Tensor:
    """Average pool to 4×4, at most the map's size (ReviewKD's HCL, CVPR 2021)."""
    return F.adaptive_avg_pool2d(f, (min(4, f.shape[2]), min(4, f.shape[3])))


def local_r1(f: Tensor) -> Tensor:
    """1×1 tiles: every entry a channel of its own, (N,C,H,W) → (N,CHW,1,1)."""
    return f.flatten(1)[:, :, None, None]


def local_r2(f: Tensor) -> Tensor:
    """2×2 tiles, the tile's index joins the channels: (N,C,H,W) → (N,C·H/2·W/2,2,2)."""
    f = F.pad(f, (0, f.shape[3] % 2, 0, f.shape[2] % 2))
    return f.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).transpose(3, 4).flatten(1, 3)


def local_r4(f: Tensor) -> Tensor:
    """4×4 tiles, the tile's index joins the channels: (N,C,H,W) → (N,C·H/4·W/4,4,4)."""
    f = F.pad(f, (0, -f.shape[3] % 4, 0, -f.shape[2] % 4))
    return f.unflatten(3, (-1, 4)).unflatten(2, (-1, 4)).transpose(3, 4).flatten(1, 3)


def channel(f: Tensor) -> Tensor:
    """(N,C,H,W) → (N,C,M)."""
    return f.flatten(2)


def batch(f: Tensor) -> Tensor:
    """(N,…) → (N,D)."""
    return f.flatten(1)


def transpose(f: Tensor) -> Tensor:
    """The last two axes swapped: (N,D) → (D,N) as in DIST's intra-class relation, (N,C,M) → (N,M,C) as in CWD."""
    return f.transpose(-2, -1)


def satt(f: Tensor) -> Tensor:
    """f · √S with S = M · softmax over space of (mean_C |f|) / 0.5 (FGD's spatial attention, as DetKDS uses it).

    The root is taken in the logarithm: √softmax has an infinite slope where the softmax underflows.
    """
    a = f.abs().mean(1, keepdim=True).flatten(2)
    return f * ((a / 0.5).log_softmax(2) / 2).exp().mul(a.shape[2] ** 0.5).reshape(f.shape[0], 1, *f.shape[2:])


def natt(f: Tensor) -> Tensor:
    """N · softmax over the batch of f / 0.5."""
    return f.shape[0] * (f / 0.5).softmax(0)


def catt(f: Tensor) -> Tensor:
    """f · √A with A = C · softmax over channels of (mean_HW |f|) / 0.5 (FGD's channel attention)."""
    b = f.abs().flatten(2).mean(2)
    return f * ((b / 0.5).log_softmax(1) / 2).exp().mul(b.shape[1] ** 0.5).reshape(*f.shape[:2], *[1] * (f.dim() - 2))


def drop(f: Tensor, mask: Tensor) -> Tensor:
    """A tenth of the channels of each sample set to 0, the others divided by 0.9; student and teacher lose the same ones."""
    return f * mask / 0.9


def mask(f: Tensor, mask: Tensor) -> Tensor:
    """65 % of the positions of each sample set to 0 (MGD's share, ECCV 2022); student and teacher lose the same ones."""
    return f * mask


def _mean_C(b, a):
    n, c, *rest = a.sizes
    return b.let((n, b.sp.Integer(1), *rest), lambda i, j, *k: b.sum(c, lambda p: a[(i, p, *k)]) / c)


def _mean_HW(b, a):
    return b.let(a.sizes[:2], lambda *i: b.mean_axes(a, (*i, *[0] * (len(a.sizes) - 2)), space(a), lambda y: y))


def _max_pool(r):
    """The greatest entry of each r×r window, the last ones cut at the border."""

    def formula(b, a):
        n, c, *sides = a.sizes

        def at(i, j, *k):
            windows = [(r * q, b.sp.Min(r * q + r - 1, side - 1)) for q, side in zip(k, sides, strict=True)]
            return b.max_over(lambda *p: a[(i, j, *p)], windows)

        return b.let((n, c, *[b.sp.ceiling(side / r) for side in sides]), at)

    return formula


def _multi_scale(b, a):
    n, c, h, w = a.sizes
    two, four = _max_pool(2)(b, a), _max_pool(4)(b, a)

    def at(i, j, m):
        scale, p, q = b.unflatten(m, (b.sp.Integer(3), h, w))
        half, quarter = (two[i, j, b.sp.floor(p / 2), b.sp.floor(q / 2)], four[i, j, b.sp.floor(p / 4), b.sp.floor(q / 4)])
        return b.if_(scale < 1, a[i, j, p, q], b.if_(scale < 2, half, quarter))

    return b.let((n, c, 3 * h * w), at)


def _pool(grid):
    return lambda b, a: b.mean_pool(a, [b.sp.Min(grid, side) for side in a.sizes[2:]])


def _local(r):
    def formula(b, a):
        n, c, h, w = a.sizes
        down, right = b.sp.ceiling(h / r), b.sp.ceiling(w / r)

        def at(i, j, k, m):
            source, row, column = b.unflatten(j, (c, down, right))
            y, x = r * row + k, r * column + m
            inside = a[i, source, b.sp.Min(y, h - 1), b.sp.Min(x, w - 1)]
            return b.if_(y < h, b.if_(x < w, inside, 0), 0)

        return b.let((n, c * down * right, b.sp.Integer(r), b.sp.Integer(r)), at)

    return formula


def _flat(keep):
    """Index arithmetic of a flatten from axis `keep` on."""

    def formula(b, a):
        tail = a.sizes[keep:]
        size = b.sp.Mul(*tail)
        return b.let((*a.sizes[:keep], size), lambda *i: a[(*i[:keep], *b.unflatten(i[keep], tail))])

    return formula


def _transpose(b, a):
    *before, one, two = a.sizes
    return b.let((*before, two, one), lambda *i: a[(*i[:-2], i[-1], i[-2])])


def _satt(b, a):
    c, inside = a.sizes[1], space(a)
    mean = b.let((a.sizes[0], *a.sizes[2:]), lambda i, *k: b.sum(c, lambda p: b.sp.Abs(a[(i, p, *k)])) / c)
    inner = tuple(range(1, len(mean.sizes)))

    def at(i, j, *k):
        here = b.sp.exp(2 * mean[(i, *k)])
        return a[(i, j, *k)] * b.sp.sqrt(b.size(a, inside) * here / b.sum_axes(mean, (i, *k), inner, lambda y: b.sp.exp(2 * y)))

    return b.let(a.sizes, at)


def _natt(b, a):
    total = lambda i: b.sum_axes(a, i, (0,), lambda y: b.sp.exp(2 * y))  # noqa: E731
    return b.let(a.sizes, lambda *i: a.sizes[0] * b.sp.exp(2 * a[i]) / total(i))


def _catt(b, a):
    n, c = a.sizes[:2]
    zeros = [0] * (len(a.sizes) - 2)
    mean = b.let((n, c), lambda i, j: b.mean_axes(a, (i, j, *zeros), space(a), b.sp.Abs))

    def at(i, j, *k):
        return a[(i, j, *k)] * b.sp.sqrt(c * b.sp.exp(2 * mean[i, j]) / b.sum(c, lambda p: b.sp.exp(2 * mean[i, p])))

    return b.let(a.sizes, at)


def _drop(b, a, m):
    return b.let(a.sizes, lambda *i: a[i] * m[i[:2]] / b.number(0.9))


def _mask(b, a, m):
    return b.let(a.sizes, lambda i, j, *k: a[(i, j, *k)] * m[(i, *k)])


_MAP = {MAPS: MAPS}
_DROP = {k: k for k in (MAPS, TOKENS, ROWS, CLASSES)}

REGIONS = (
    Transform(mean_C, _MAP, _mean_C, "mean over channels"),
    Transform(mean_HW, {MAPS: ROWS, TOKENS: ROWS}, _mean_HW, "mean over space"),
    Transform(scale_r1, _MAP, lambda b, a: a, "1×1 max-pool"),
    Transform(scale_r2, _MAP, _max_pool(2), "2×2 max-pool"),
    Transform(scale_r4, _MAP, _max_pool(4), "4×4 max-pool"),
    Transform(multi_scale, {MAPS: TOKENS}, _multi_scale, "f with its 2×2 and 4×4 max-pools"),
    Transform(pool_1, _MAP, _pool(1), "average pool to 1×1"),
    Transform(pool_2, _MAP, _pool(2), "average pool to 2×2"),
    Transform(pool_4, _MAP, _pool(4), "average pool to 4×4"),
    Transform(local_r1, _MAP, _local(1), "1×1 tiles as channels"),
    Transform(local_r2, _MAP, _local(2), "2×2 tiles as channels"),
    Transform(local_r4, _MAP, _local(4), "4×4 tiles as channels"),
    Transform(channel, {MAPS: TOKENS}, _flat(2), "(N,C,H,W) → (N,C,M)"),
    Transform(batch, {MAPS: ROWS, TOKENS: ROWS}, _flat(1), "(N,…) → (N,D)"),
    Transform(transpose, {ROWS: COLUMNS, CLASSES: COLUMNS, TOKENS: TOKENS}, _transpose, "last two axes swapped"),
    Transform(satt, SPATIAL, _satt, "f·√(spatial attention)", keeps_shape=True),
    Transform(natt, _DROP, _natt, "N·softmax over the batch of 2f", keeps_shape=True),
    Transform(catt, SPATIAL, _catt, "f·√(channel attention)", keeps_shape=True),
    Transform(drop, _DROP, _drop, "a tenth of the channels to 0", keeps_shape=True, mask=(0.9, (0, 1))),
    Transform(mask, SPATIAL, _mask, "65 % of the positions to 0", keeps_shape=True, mask=(0.35, (0, 2, 3))),
)
