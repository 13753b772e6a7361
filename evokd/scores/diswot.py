"""DisWOT (Dong et al., CVPR 2023): how unlike an untrained student is to its teacher, in the code's reading and in the slides'.

What the released code calls semantic similarity is the gradient of the cross-entropy for the classifier, A = (P − Y)ᵀ f / N of shape
(K,C): for every class k the C×C matrix a_k a_kᵀ with its rows divided by their norms, at least ε. Row i is then q_i · sign(a_i) a/‖a‖ with
q_i = |a_i|‖a‖ / max(|a_i|‖a‖, ε), so that no matrix need be formed and no backward pass run.

Where student and teacher differ in C, matrices over channels are replaced by matrices over samples, N×N.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evokd.errors import EvokdError
from evokd.losses.relations import class_gradient
from evokd.losses.taps import Taps
from evokd.scores.score import Case, Score, shared

EPS = 1e-12  # the code's floor of norms; with logits of deviation 14 it hides about half of the rows


def rown(m: Tensor, eps: float = EPS) -> Tensor:
    """(…,R,C) with every row divided by max(its norm, ε)."""
    return m / torch.linalg.vector_norm(m, dim=-1, keepdim=True).clamp_min(eps)


def semantic_distance(a: Tensor, b: Tensor, eps: float = EPS) -> Tensor:
    """(1/KC) Σ_k ‖rown(a_k a_kᵀ) − rown(b_k b_kᵀ)‖² of a, b (K,C), in closed form: Σ over k and i of q_i² + r_i² − 2 ⟨row i, row i⟩."""
    a, b = a.double(), b.double()
    a_size, b_size = (x.abs() * torch.linalg.vector_norm(x, dim=1, keepdim=True) for x in (a, b))
    a_floor, b_floor = a_size.clamp_min(eps), b_size.clamp_min(eps)
    together = a * b * (a * b).sum(1, keepdim=True) / (a_floor * b_floor)
    return ((a_size / a_floor).square() + (b_size / b_floor).square() - 2 * together).mean()


def gradient_rows(taps: Taps, labels: Tensor) -> Tensor:
    """A = (P − Y)ᵀ f / N, (K,C)."""
    return class_gradient(taps.logits, taps.at("embedding"), labels)


def gradient_grams(taps: Taps, labels: Tensor) -> Tensor:
    """For every class the row-normalised N×N products of the samples' parts of a_k, (K,N,N): what stays comparable across widths."""
    true = torch.arange(taps.logits.shape[1], device=labels.device) == labels[:, None]
    gap = (taps.logits.softmax(1) - true.to(taps.logits.dtype)) * (labels >= 0)[:, None] / len(labels)
    gram = taps.at("embedding") @ taps.at("embedding").t()
    return rown(gap.t()[:, :, None] * gram * gap.t()[:, None, :])


def sample_gram(taps: Taps, labels: Tensor) -> Tensor:
    """Row-normalised F Fᵀ of the last maps as (N, CHW): (N,N)."""
    f = taps.at("features[-1]").flatten(1)
    return rown(f @ f.t())


def first_image_gram(taps: Taps, labels: Tensor) -> Tensor:
    """Row-normalised channel products of image 0 alone, (C,C)."""
    f = taps.at("features[-1]")[0].flatten(1)
    return rown(f @ f.t())


def semantic(case: Case) -> Tensor:
    a, b = gradient_rows(case.taps, case.labels), _teacher(case, gradient_rows)
    if len(a) != len(b):
        raise EvokdError("teacher", f"{len(a)} classes, as the student has", str(len(b)))
    if a.shape == b.shape:
        return -semantic_distance(a, b)
    grams, others = gradient_grams(case.taps, case.labels), _teacher(case, gradient_grams)
    return -(grams - others).square().sum((1, 2)).mean() / grams.shape[1]


def relation(case: Case) -> Tensor:
    return -(sample_gram(case.taps, case.labels) - _teacher(case, sample_gram)).square().mean()


def relation_released(case: Case) -> Tensor:
    gram, other = first_image_gram(case.taps, case.labels), _teacher(case, first_image_gram)
    return -(gram - other).square().mean() if gram.shape == other.shape else relation(case)


def released(case: Case) -> Tensor:
    return semantic(case) + relation(case)


def unit(m: Tensor) -> Tensor:
    """m / ‖m‖_F."""
    return m / torch.linalg.vector_norm(m).clamp_min(EPS)


def activation_maps(taps: Taps, labels: Tensor) -> Tensor:
    """Grad-CAM's maps before their sum over channels, (N,C,H,W): the weight of the label's class times the features.

    An unknown label stands for the class of the greatest logit.
    """
    if taps.head is None:
        raise EvokdError("diswot_paper", "a network that shows its classifier", "taps without head")
    classes = torch.where(labels >= 0, labels, taps.logits.argmax(1))
    return taps.head[0][classes][:, :, None, None] * taps.at("features[-1]")


def channel_correlation(taps: Taps, labels: Tensor) -> Tensor:
    """G Gᵀ / ‖G Gᵀ‖_F of the maps as (C, NHW): (C,C)."""
    g = activation_maps(taps, labels).transpose(0, 1).flatten(1)
    return unit(g @ g.t())


def sample_correlation(taps: Taps, labels: Tensor) -> Tensor:
    """G Gᵀ / ‖G Gᵀ‖_F of the maps as (N, CHW): (N,N)."""
    g = activation_maps(taps, labels).flatten(1)
    return unit(g @ g.t())


def sample_relation(taps: Taps, labels: Tensor) -> Tensor:
    """F Fᵀ / ‖F Fᵀ‖_F of the last maps as (N, CHW): (N,N)."""
    f = taps.at("features[-1]").flatten(1)
    return unit(f @ f.t())


def paper_semantic(case: Case) -> Tensor:
    alike = case.taps.at("features[-1]").shape[1] == case.teacher.taps.at("features[-1]").shape[1]
    statistic = channel_correlation if alike else sample_correlation
    return -torch.linalg.vector_norm(statistic(case.taps, case.labels) - _teacher(case, statistic))


def paper_relation(case: Case) -> Tensor:
    return -torch.linalg.vector_norm(sample_relation(case.taps, case.labels) - _teacher(case, sample_relation))


def paper(case: Case) -> Tensor:
    return paper_semantic(case) + paper_relation(case)


def _teacher(case: Case, statistic) -> Tensor:
    return case.teacher.once(statistic)


DISWOT: dict[str, Score] = {
    "diswot": shared(released, "DisWOT (CVPR 2023), released code: semantic + relation", teacher=True),
    "diswot_semantic": shared(
        semantic, "DisWOT, released code: −(1/KC) Σ_k ‖rown(a_k a_kᵀ) − …‖², a_k = row of dCE/dW", teacher=True
    ),
    "diswot_relation": shared(relation, "DisWOT, README: −‖rown(F Fᵀ) − …‖²/N², F = last maps as (N, CHW)", teacher=True),
    "diswot_relation_released": shared(
        relation_released, "DisWOT, released scripts: the relation of image 0's channels, −‖rown(F₀ F₀ᵀ) − …‖²/C²", teacher=True
    ),
    "diswot_paper": shared(
        paper, "DisWOT, as presented: Frobenius norms of normalised Grad-CAM and sample Gram matrices", teacher=True
    ),
    "diswot_paper_semantic": shared(paper_semantic, "DisWOT, as presented: its semantic part", teacher=True),
    "diswot_paper_relation": shared(paper_relation, "DisWOT, as presented: its relation part", teacher=True),
}
