"""What is measured on a trained student, and which of it a search maximises.

A fitness is a figure of one training, with its sign turned where less is better. So the fitness of averaged figures is the average of
the fitness by seed: a sharpness gap of +1 with one seed and −1 with another counts as 1, not as nought.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

CKA_SAMPLES = 2000  # the estimate is unbiased at any number; its cost is quadratic


def measure(student: Tensor, teacher: Tensor, labels: Tensor) -> dict[str, float]:
    """Figures of one trained student.

    Args:
        student: logits (N,K).
        teacher: logits (N,K) for the same images.
        labels: (N,), all known.

    Returns:
        accuracy (%), ce (nats), agreement with the teacher's decision (%), sharpness_gap (nats, of centred logits), cka (unbiased, linear),
        and KD-Zero's equation (2) twice, smaller is better: gap (corrected) and gap_printed (as printed).
    """
    s, t = student.float(), teacher.float()
    figures = {
        "accuracy": _share(s.argmax(1) == labels),
        "ce": F.cross_entropy(s, labels).item(),
        "agreement": _share(s.argmax(1) == t.argmax(1)),
        "sharpness_gap": (sharpness(s) - sharpness(t)).item(),
        "cka": cka(s, t).item(),
    }
    return figures | {"gap": gap(figures), "gap_printed": gap_printed(s, t, figures["ce"])}


def _share(hits: Tensor) -> float:
    """Per cent of true entries."""
    return 100 * int(hits.sum()) / len(hits)


def sharpness(logits: Tensor) -> Tensor:
    """Mean log Σ exp of row-centred logits: uncentred, adding a constant to all logits would move it and nothing else."""
    return (logits - logits.mean(1, keepdim=True)).logsumexp(1).mean()


def cka(x: Tensor, y: Tensor) -> Tensor:
    """Linear CKA of (N,D) and (N,E) with the unbiased HSIC of Song et al. (JMLR 2012, eq. 5); the biased one is far above 0 for noise."""
    x, y = x[:CKA_SAMPLES], y[:CKA_SAMPLES]
    return _hsic(x, y) / (_hsic(x, x) * _hsic(y, y)).clamp_min(1e-12).sqrt()


def _hsic(x: Tensor, y: Tensor) -> Tensor:
    n = len(x)
    k, m = (_gram(v) for v in (x, y))
    cross = (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k.sum(0) @ m.sum(1)) / (n - 2)
    return cross / (n * (n - 3))


def _gram(x: Tensor) -> Tensor:
    x = (x - x.mean(0)).double()
    return (x @ x.t()).fill_diagonal_(0)


def gap(figures: Mapping[str, float]) -> float:
    """KD-Zero's equation (2), corrected: CE + |sharpness gap| − CKA, of centred logits and unbiased; smaller is better."""
    return figures["ce"] + abs(figures["sharpness_gap"]) - figures["cka"]


def gap_printed(student: Tensor, teacher: Tensor, ce: float) -> float:
    """KD-Zero's equation (2) as printed, log exp read as log Σ exp over classes: CE + (log exp f_S − log exp f_T) − CKA; smaller is better.

    Kept to be compared with, not to be trusted: logits are raw, so that a shift by −50 wins 50; the difference has a sign, so that the
    less confident student wins, the more the surer the teacher is; HSIC is biased, so that noise in small samples looks alike.

    Args:
        student: logits (N,K).
        teacher: logits (N,K) for the same images.
        ce: the student's cross-entropy, nats.
    """
    s, t = student.double(), teacher.double()
    return ce + (s.logsumexp(1).mean() - t.logsumexp(1).mean() - biased_cka(s, t)).item()


def biased_cka(x: Tensor, y: Tensor) -> Tensor:
    """‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖) of centred (N,D) and (N,E): linear CKA with HSIC₀ = tr(KHLH)/(n−1)²; 0 where one side is constant."""
    x, y = (v.double() - v.double().mean(0) for v in (x, y))
    return (x.t() @ y).square().sum() / ((x.t() @ x).norm() * (y.t() @ y).norm()).clamp_min(1e-300)


FITNESS: dict[str, Callable[[Mapping[str, float]], float]] = {
    "accuracy": lambda figures: figures["accuracy"],
    "ce": lambda figures: -figures["ce"],
    "gap": lambda figures: -figures["gap"],
    "gap_printed": lambda figures: -figures["gap_printed"],
}


def mean_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """Figure by figure mean over repeats."""
    return {name: float(torch.tensor([row[name] for row in rows], dtype=torch.float64).mean()) for name in rows[0]}
