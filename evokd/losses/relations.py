"""Operators that relate: samples, channels, positions, layers, and samples to their labels.

KD-Zero's `mm` and `bmm` (Table 1; `mm` acts on rows too, where its siblings' code returns them unchanged), and what SP, ICKD, NST,
SKD, FSP, RKD, DKD and DisWOT need. Labels are those of the batch; an unknown label (−1) is never used.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from evokd.losses.operators import CLASSES, COLUMNS, MAPS, RELATION, ROWS, TOKENS, Transform, space


def mm(f: Tensor) -> Tensor:
    """X Xᵀ with X = (axis 0, all else): similarity of samples (N,N), or of features (D,D)."""
    x = f.flatten(1)
    return x @ x.t()


def gram_C(f: Tensor) -> Tensor:
    """Xᵀ X: similarity of the entries of axis 1, (D,D)."""
    return f.t() @ f


def bmm(f: Tensor) -> Tensor:
    """F Fᵀ / M with F = (C,M): Gram matrix of channels, (N,C,C). The mean over space keeps its size comparable."""
    x = f.flatten(2)
    return x @ x.transpose(1, 2) / x.shape[2]


def gram_HW(f: Tensor) -> Tensor:
    """Fᵀ F / C with F = (C,M): Gram matrix of positions, (N,M,M); the mean over channels admits students of any width."""
    x = f.flatten(2)
    return x.transpose(1, 2) @ x / x.shape[1]


def affinity(f: Tensor) -> Tensor:
    """Cosine of every pair of positions, (N,M,M) (SKD, CVPR 2019); norms at least 1e-4."""
    x = f.flatten(2)
    x = x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-4)
    return x.transpose(1, 2) @ x


def cross(f: Tensor, g: Tensor) -> Tensor:
    """F Gᵀ / M of two layers, (N,C,C'): FSP matrix (Yim et al., CVPR 2017). The larger map is max-pooled to the smaller."""
    size = min(f.shape[2], g.shape[2]), min(f.shape[3], g.shape[3])
    f, g = (x if x.shape[2:] == size else F.adaptive_max_pool2d(x, size) for x in (f, g))
    return f.flatten(2) @ g.flatten(2).transpose(1, 2) / (size[0] * size[1])


def pdist(f: Tensor) -> Tensor:
    """Euclidean distances of samples, (N,N) (RKD, CVPR 2019)."""
    x = f.flatten(1)
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")


def angle(f: Tensor) -> Tensor:
    """cos of the angle that samples j and k make at sample i, (N,N²) (RKD, CVPR 2019); lengths at least 1e-4."""
    x = f[None] - f[:, None]
    x = x / torch.linalg.vector_norm(x, dim=2, keepdim=True).clamp_min(1e-4)
    return (x @ x.transpose(1, 2)).flatten(1)


def gt_drop(f: Tensor, labels: Tensor) -> Tensor:
    """The true class's logit lowered by 1000, so that it leaves the softmax (DKD, CVPR 2022)."""
    true = torch.arange(f.shape[1], device=f.device) == labels[:, None]
    return f - 1000 * true


def gt_binary(f: Tensor, labels: Tensor) -> Tensor:
    """(logit of the true class, logsumexp of the others), (N,2): its softmax is (p_y, 1 − p_y) (DKD, CVPR 2022); (0,0) if unknown."""
    true = torch.arange(f.shape[1], device=f.device) == labels[:, None]
    others = f.masked_fill(true, torch.finfo(f.dtype).min)
    pair = torch.stack([(f * true).sum(1), others.logsumexp(1)], 1)
    return pair * (labels >= 0)[:, None]


def class_gradient(z: Tensor, e: Tensor, labels: Tensor) -> Tensor:
    """(P − Y)ᵀ e / N, (K,D): the gradient of the cross-entropy for the classifier's weights (DisWOT, CVPR 2023); known labels only."""
    true = torch.arange(z.shape[1], device=z.device) == labels[:, None]
    gap = (z.softmax(1) - true.to(z.dtype)) * (labels >= 0)[:, None]
    return gap.t() @ e / z.shape[0]


def _mm(b, a):
    rest = tuple(range(1, len(a.sizes)))
    n = a.sizes[0]
    return b.let((n, n), lambda i, j: b.dot(a, (i, *[0] * len(rest)), (j, *[0] * len(rest)), rest))


def _gram_C(b, a):
    d = a.sizes[1]
    return b.let((d, d), lambda i, j: b.dot(a, (0, i), (0, j), (0,)))


def _bmm(b, a):
    inside, zeros = space(a), [0] * (len(a.sizes) - 2)
    n, c = a.sizes[:2]
    return b.let((n, c, c), lambda i, j, k: b.dot(a, (i, j, *zeros), (i, k, *zeros), inside) / b.size(a, inside))


def _between_positions(b, a, value):
    """(N,M,M) of value(index of one position, index of the other)."""
    m = b.size(a, space(a))

    def at(i, j, k):
        left, right = (b.unflatten(index, a.sizes[2:]) for index in (j, k))
        return value((i, 0, *left), (i, 0, *right))

    return b.let((a.sizes[0], m, m), at)


def _gram_HW(b, a):
    return _between_positions(b, a, lambda left, right: b.dot(a, left, right, (1,)) / a.sizes[1])


def _affinity(b, a):
    length = b.let((a.sizes[0], *a.sizes[2:]), lambda i, *k: b.sp.sqrt(b.sum_axes(a, (i, 0, *k), (1,), lambda y: y**2)))

    def cosine(left, right):
        norms = [b.sp.Max(length[(at[0], *at[2:])], b.number(1e-4)) for at in (left, right)]
        return b.dot(a, left, right, (1,)) / (norms[0] * norms[1])

    return _between_positions(b, a, cosine)


def _cross(b, f, g):
    sides = [b.sp.Min(p, q) for p, q in zip(f.sizes[2:], g.sizes[2:], strict=True)]
    f, g = (a if list(a.sizes[2:]) == sides else b.max_pool(a, sides) for a in (f, g))
    size = sides[0] * sides[1]

    def at(i, j, k):
        p, q = b.dummy(), b.dummy()
        return b.sp.Sum(f[i, j, p, q] * g[i, k, p, q], (p, 0, sides[0] - 1), (q, 0, sides[1] - 1)) / size

    return b.let((f.sizes[0], f.sizes[1], g.sizes[1]), at)


def _square_gap(b, a, i, j):
    rest = tuple(range(1, len(a.sizes)))
    return b.dot(a, (i, *[0] * len(rest)), (j, *[0] * len(rest)), rest, lambda x, y: (x - y) ** 2)


def _pdist(b, a):
    n = a.sizes[0]
    return b.let((n, n), lambda i, j: b.sp.sqrt(_square_gap(b, a, i, j)))


def _angle(b, a):
    n, d = a.sizes
    length = b.let((n, n), lambda i, j: b.sp.Max(b.sp.sqrt(_square_gap(b, a, i, j)), b.number(1e-4)))

    def at(i, m):
        j, k = b.unflatten(m, (n, n))
        return b.sum(d, lambda p: (a[j, p] - a[i, p]) * (a[k, p] - a[i, p])) / (length[i, j] * length[i, k])

    return b.let((n, n**2), at)


def _gt_drop(b, a, y):
    return b.let(a.sizes, lambda i, j: a[i, j] - b.if_(b.sp.Eq(j, y[i]), 1000, 0))


def _gt_binary(b, a, y):
    n, k = a.sizes
    rest = b.let((n,), lambda i: b.sp.log(b.sum(k, lambda p: b.if_(b.sp.Eq(p, y[i]), 0, b.sp.exp(a[i, p])))))
    return b.let((n, b.sp.Integer(2)), lambda i, j: b.if_(y[i] < 0, 0, b.if_(j < 1, a[i, y[i]], rest[i])))


def _class_gradient(b, z, e, y):
    n, k = z.sizes
    p = b.let((n, k), lambda i, j: b.sp.exp(z[i, j]) / b.sum_axes(z, (i, j), (1,), b.sp.exp))
    gap = b.let((n, k), lambda i, j: b.if_(y[i] < 0, 0, p[i, j] - b.if_(b.sp.Eq(j, y[i]), 1, 0)))
    return b.let((k, e.sizes[1]), lambda i, j: b.sum(n, lambda q: gap[q, i] * e[q, j]) / n)


RELATIONS = (
    Transform(mm, {k: RELATION for k in (MAPS, TOKENS, ROWS, CLASSES)} | {COLUMNS: COLUMNS}, _mm, "X·Xᵀ over axis 0"),
    Transform(gram_C, {COLUMNS: COLUMNS}, _gram_C, "Xᵀ·X over axis 1"),
    Transform(bmm, {MAPS: TOKENS, TOKENS: TOKENS}, _bmm, "F·Fᵀ/M over channels"),
    Transform(gram_HW, {MAPS: TOKENS, TOKENS: TOKENS}, _gram_HW, "Fᵀ·F/C over positions"),
    Transform(affinity, {MAPS: TOKENS, TOKENS: TOKENS}, _affinity, "cos of positions"),
    Transform(cross, {f"{MAPS},{MAPS}": TOKENS}, _cross, "F·Gᵀ/M of two layers"),
    Transform(pdist, {k: RELATION for k in (MAPS, TOKENS, ROWS, CLASSES)}, _pdist, "‖xᵢ−xⱼ‖ over samples"),
    Transform(angle, {ROWS: RELATION, CLASSES: RELATION}, _angle, "angles of triples of samples"),
    Transform(gt_drop, {CLASSES: CLASSES}, _gt_drop, "f without the true class", keeps_shape=True, labels=True),
    Transform(gt_binary, {CLASSES: ROWS}, _gt_binary, "true class against the others", labels=True),
    Transform(class_gradient, {f"{CLASSES},{ROWS}": COLUMNS}, _class_gradient, "(P−Y)ᵀ·e/N", labels=True),
)
