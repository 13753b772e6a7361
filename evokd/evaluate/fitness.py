"""What is measured on a trained student, and which of it a search maximises."""

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
        accuracy (%), ce (nats), agreement with the teacher's decision (%), sharpness_gap (nats, of centred logits), cka (unbiased, linear).
    """
    s, t = student.float(), teacher.float()
    return {
        "accuracy": _share(s.argmax(1) == labels),
        "ce": F.cross_entropy(s, labels).item(),
        "agreement": _share(s.argmax(1) == t.argmax(1)),
        "sharpness_gap": (sharpness(s) - sharpness(t)).item(),
        "cka": cka(s, t).item(),
    }


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


def gap(figures: dict[str, float]) -> float:
    """KD-Zero's equation (2), corrected: CE + |sharpness gap| − CKA, of centred logits and unbiased; smaller is better.

    As printed the sharpness gap is signed and of raw logits, so that under-confident or shifted students win without bound.
    """
    return figures["ce"] + abs(figures["sharpness_gap"]) - figures["cka"]


FITNESS = {
    "accuracy": lambda figures: figures["accuracy"],
    "ce": lambda figures: -figures["ce"],
    "gap": lambda figures: -gap(figures),
}


def mean_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """Figure by figure mean over repeats."""
    return {name: float(torch.tensor([row[name] for row in rows], dtype=torch.float64).mean()) for name in rows[0]}
