import numpy as np
import pytest
import torch

from evokd.training.figures import best_of, calibration_error, top


def test_top_k_is_a_loop_over_sorted_classes():
    draw = np.random.default_rng(0)
    logits, labels = draw.normal(size=(200, 12)), draw.integers(0, 12, 200)
    for k in (1, 5, 12, 20):
        right = sum(label in sorted(range(12), key=lambda c: -row[c])[:k] for row, label in zip(logits, labels, strict=True))
        assert top(torch.from_numpy(logits), torch.from_numpy(labels), k) == pytest.approx(100 * right / 200)


def test_the_calibration_error_is_guos_sum_over_bins():
    draw = np.random.default_rng(1)
    logits, labels = 2 * draw.normal(size=(500, 7)), draw.integers(0, 7, 500)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    sure, right = p.max(1), p.argmax(1) == labels
    total = 0.0
    for m in range(15):
        inside = (sure > m / 15) & (sure <= (m + 1) / 15)
        if inside.any():
            total += inside.sum() / 500 * abs(right[inside].mean() - sure[inside].mean())
    assert calibration_error(torch.from_numpy(logits), torch.from_numpy(labels)) == pytest.approx(100 * total, rel=1e-9)
    sharp = torch.tensor([[50.0, 0.0], [50.0, 0.0]])
    assert calibration_error(sharp, torch.tensor([0, 0])) == pytest.approx(0, abs=1e-9)
    assert calibration_error(sharp, torch.tensor([1, 1])) == pytest.approx(100)


def test_the_best_epoch_is_the_first_of_the_best_and_brings_its_own_top5():
    rows = [{"epoch": e, "top1": a, "top5": b} for e, a, b in ((1, 10, 50), (2, 30, 60), (3, 30, 90), (4, 20, 95))]
    assert best_of([*rows, {"epoch": 5}]) == {"best_top1": 30, "best_top5": 60, "best_epoch": 2}
