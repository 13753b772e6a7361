"""Operators on single entries: activations, powers and scales. KD-Zero (NeurIPS 2023), Table 1.

Where the released code of its relatives is not finite or not monotone, the protected form here is stated at its line.
"""

import torch.nn.functional as F
from torch import Tensor

from evokd.losses.operators import EVERY, Transform, pointwise


def no(f: Tensor) -> Tensor:
    """f itself; the canonical form leaves it out."""
    return f


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


def _root(sp, x):
    return sp.sign(x) * (sp.sqrt(sp.Abs(x) + sp.Rational(1, 10_000)) - sp.Rational(1, 100))


POINTWISE = tuple(
    Transform(fn, EVERY, pointwise(pick), note, params, keeps_shape=True)
    for fn, pick, note, params in (
        (no, lambda sp, x: x, "f", ()),
        (temper, lambda sp, x, tau: x / tau, "f/τ", ("tau",)),
        (scale, lambda sp, x: (x + 1) / 2, "(f+1)/2", ()),
        (exp, lambda sp, x: sp.exp(sp.Min(x, 20)), "e^min(f,20)", ()),
        (mish, lambda sp, x: x * sp.tanh(sp.log(1 + sp.exp(x))), "f·tanh(ln(1+e^f))", ()),
        (leaky, lambda sp, x: sp.Max(x, x / 100), "max(f, f/100)", ()),
        (relu, lambda sp, x: sp.Max(x, 0), "max(f, 0)", ()),
        (tanh, lambda sp, x: sp.tanh(x), "tanh f", ()),
        (sigmoid, lambda sp, x: 1 / (1 + sp.exp(-x)), "1/(1+e^−f)", ()),
        (pow2, lambda sp, x: x**2, "f²", ()),
        (pow4, lambda sp, x: x**4, "f⁴", ()),
        (log, lambda sp, x: sp.sign(x) * sp.log(1 + sp.Abs(x)), "sign(f)·ln(1+|f|)", ()),
        (sqrt, _root, "sign(f)·(√(|f|+10⁻⁴)−10⁻²)", ()),
    )
)
