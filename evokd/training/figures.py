"""Figures of classifiers from their logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BINS = 15  # of the calibration error


def top(logits: Tensor, labels: Tensor, k: int) -> float:
    """Per cent of rows (N,K) whose label (N,) is among the k greatest logits; all count where there are fewer classes."""
    best = logits.topk(min(k, logits.shape[1]), 1).indices
    return 100 * int((best == labels[:, None]).any(1).sum()) / len(labels)


def calibration_error(logits: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Expected calibration error, % (Guo et al., ICML 2017, eq. 3): |accuracy − confidence| in bins of equal width, weighed by size.

    Args:
        logits: (N,K).
        labels: (N,).
        bins: (0, 1/bins], …
    """
    sure, decided = logits.double().softmax(1).max(1)
    right = (decided == labels).double()
    place = (sure * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, right - sure)
    return 100 * gaps.abs().sum().item() / len(labels)


def best_of(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The epoch of the best top-1 on test, as papers report it: chosen on what it is told on, so that it flatters."""
    best = max((row for row in rows if "top1" in row), key=lambda row: row["top1"])
    return {"best_top1": best["top1"], "best_top5": best["top5"], "best_epoch": best["epoch"]}
