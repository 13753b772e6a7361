"""Scores of what activations look like: NWOT, SWAP, MeCo, Zen, the forward parts of AZ-NAS, and two that DisWOT's teacher can be measured
against because they need none.

ReLU scores see every ReLU that the network applies, as a module or as a function; released code sees modules only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log

import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from evokd.scores.passes import Event, watched
from evokd.scores.score import Case, Score, shared
from evokd.scores.trivial import parameters

SWAP_SAMPLES = 16  # as in SWAP's code: among many more images each unit has a pattern of its own, and what is counted is units


def sign_kernel(event: Event) -> Tensor | None:
    """For each ReLU the number of units that treat samples i and j alike, (N,N): X Xᵀ + (1 − X)(1 − X)ᵀ with X = 1[output > 0]."""
    if event.module is not None:
        return None
    x = (event.output > 0).flatten(1).float()
    on = x.sum(1)
    return (2 * (x @ x.t()) - on[:, None] - on + x.shape[1]).double()


def nwot(case: Case) -> Tensor:
    return torch.linalg.slogdet(sum(case.seen(sign_kernel))).logabsdet


def patterns(event: Event) -> Tensor | None:
    """For each ReLU the signs of its units over every 16 samples, as integers: (⌊N/16⌋ but at least 1, units)."""
    if event.module is not None:
        return None
    x = (event.output > 0).flatten(1).long()
    groups = max(len(x) // SWAP_SAMPLES, 1)
    x = x[: groups * SWAP_SAMPLES].unflatten(0, (groups, -1))
    return (x << torch.arange(x.shape[1], device=x.device)[:, None]).sum(1)


def swap(case: Case) -> float:
    words = torch.cat(case.seen(patterns), 1)
    return sum(len(row.unique()) for row in words) / len(words)


def regularised_swap(mu: float, sigma: float) -> Score:
    """SWAP · exp(−(p − μ)²/σ), p thousands of parameters: it prefers students of about μ. Both are tuned per space in the paper."""

    def measure(case: Case) -> float:
        size = parameters(case.student) / 1000
        return swap(case) * float(torch.tensor(-((size - mu) ** 2) / sigma).exp())

    return shared(measure, f"reg-SWAP (Peng et al., ICLR 2024), μ = {mu:g}, σ = {sigma:g}", watch=patterns)


def least_eigenvalue(event: Event) -> Tensor | None:
    """λ_min of the correlations of the channels of the first image, undefined entries taken as 0."""
    if event.module is None or event.output.dim() < 3 or event.output.shape[1] < 2:
        return None
    corr = correlations(event.output[0].flatten(1).double())
    return torch.linalg.eigvalsh(corr.nan_to_num(0, 0, 0))[0]


def correlations(rows: Tensor) -> Tensor:
    """(R,D) → Pearson correlations (R,R), NaN for rows that are constant."""
    centred = rows - rows.mean(1, keepdim=True)
    norm = torch.linalg.vector_norm(centred, dim=1)
    return centred @ centred.t() / (norm[:, None] * norm)


def meco(case: Case, side: int = 64) -> Tensor:
    """Of one image of noise, as published, and not of the batch."""
    noise = torch.randn(1, case.images.shape[1], side, side, generator=case.draw("meco")).to(case.images)
    _, seen = watched(case.student, noise, (least_eigenvalue,))
    return torch.stack(seen[least_eigenvalue]).sum()


def log_deviation(event: Event) -> Tensor | None:
    """log √ of what a batch norm divides by: the variance of its input over batch and space, mean over channels."""
    if not isinstance(event.module, nn.BatchNorm2d):
        return None
    return event.input.double().var((0, 2, 3), correction=0).mean().log() / 2


def zen(case: Case, step: float = 0.01) -> Tensor:
    """On noise. Variances are those of the batch, which the running ones of released code approach with repeats."""
    draw = case.draw("zen")
    noise, shift = (torch.randn(case.images.shape, generator=draw).to(case.images) for _ in range(2))
    taps, seen = watched(case.student, noise, (log_deviation,))
    moved, _ = watched(case.student, noise + step * shift, ())
    gap = (taps.at("features[-1]") - moved.at("features[-1]")).abs().flatten(1).sum(1).mean()
    return gap.double().log() + sum(seen[log_deviation])


def block_entropy(event: Event) -> Tensor | None:
    """Entropy of the normalised eigenvalues of the channels' covariance after a block."""
    if not event.block or event.output.dim() != 4:
        return None
    x = event.output.transpose(0, 1).flatten(1)
    x = x - x.mean(1, keepdim=True)
    values = torch.linalg.eigvalsh((x @ x.t()).double() / x.shape[1]).clamp_min(0)
    p = values / values.sum()
    return -(p * (p + 1e-8).log()).sum()


def expressivity(case: Case) -> Tensor:
    return torch.stack(case.seen(block_entropy)).sum()


def progressivity(case: Case) -> Tensor:
    entropies = torch.stack(case.seen(block_entropy))
    return entropies.diff().min() if len(entropies) > 1 else entropies[0]


AZ_NAS = ("az_expressivity", "az_progressivity", "az_trainability", "macs")


def az_nas(columns: Mapping[str, Sequence[float]]) -> list[float]:
    """AZ-NAS's ranking of a population: Σ over its four scores of log(rank / population), the best rank being the population.

    Args:
        columns: score → its values, higher being better; published with those of `AZ_NAS`.
    """
    ranks = [rankdata(values) / len(values) for values in columns.values()]
    return [sum(log(rank) for rank in row) for row in zip(*ranks, strict=True)]


def mean_cosine(x: Tensor) -> Tensor:
    """Mean cosine of all pairs of different rows of (N,D)."""
    x = x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-12)
    n = len(x)
    return ((x @ x.t()).sum() - n) / (n * (n - 1))


def map_cosine(case: Case) -> Tensor:
    return mean_cosine(case.taps.at("features[-1]").flatten(1).double())


def embedding_cosine(case: Case) -> Tensor:
    return mean_cosine(case.taps.at("embedding").double())


def logit_spread(case: Case) -> Tensor:
    return case.taps.logits.std()


ACTIVATIONS: dict[str, Score] = {
    "nwot": shared(nwot, "NWOT (Mellor et al., ICML 2021): log|det Σ_ReLU (X Xᵀ + (1−X)(1−X)ᵀ)|", watch=sign_kernel),
    "swap": shared(
        swap,
        "SWAP (Peng et al., ICLR 2024): distinct columns of the sign matrix of all ReLU units over 16 images",
        watch=patterns,
    ),
    "reg_swap": regularised_swap(1000.0, 1e6),
    "meco": shared(
        meco, "MeCo (Jiang et al., NeurIPS 2023): Σ over modules of λ_min of the channels' correlations, one 64×64 noise image"
    ),
    "zen": shared(
        zen, "Zen (Lin et al., ICCV 2021): log mean ‖φ(x) − φ(x + 0.01 e)‖₁ + Σ_BN log √variance; meant for Gaussian weights"
    ),
    "az_expressivity": shared(
        expressivity, "AZ-NAS (Lee & Ham, CVPR 2024): Σ over blocks of the features' PCA entropy", watch=block_entropy
    ),
    "az_progressivity": shared(progressivity, "AZ-NAS: least growth of that entropy from block to block", watch=block_entropy),
    "map_cosine": shared(map_cosine, "mean cosine of the batch's last maps; no teacher, and DisWOT's figure on its own space"),
    "embedding_cosine": shared(embedding_cosine, "mean cosine of the batch's embeddings; no teacher"),
    "logit_spread": shared(logit_spread, "standard deviation of the logits; no teacher"),
}
