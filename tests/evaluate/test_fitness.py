import numpy as np
import pytest
import torch

from evokd.evaluate.fitness import FITNESS, cka, gap, mean_of, measure, sharpness


def noise(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def hsic(k: np.ndarray, m: np.ndarray) -> float:
    """The unbiased estimator of Song et al. 2012 as the plain sum over distinct i, j, q, r of their U-statistic (n small)."""
    from itertools import permutations

    n, total = len(k), 0.0
    for i, j, q, r in permutations(range(n), 4):
        total += k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
    return total / (n * (n - 1) * (n - 2) * (n - 3))


def test_cka_is_the_u_statistic():
    x, y = noise(7, 3, 0), noise(7, 4, 1)
    y[:, 0] += x[:, 0]
    k, m = (np.asarray((v - v.mean(0)).double() @ (v - v.mean(0)).double().T) for v in (x, y))
    expected = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
    assert cka(x, y).item() == pytest.approx(expected, rel=1e-6)


def test_cka_is_one_for_itself_whatever_its_scale_shift_and_rotation():
    x = noise(200, 10, 0)
    turned = torch.linalg.qr(noise(10, 10, 1)).Q
    for other in (x, 5 * x, x + 3, x @ turned):
        assert cka(x, other).item() == pytest.approx(1, abs=1e-5)


def test_cka_of_independent_noise_is_near_nought():
    """Also with more columns than rows, where the biased estimator tells 0.8 and more."""
    values = [cka(noise(50, 100, 2 * s), noise(50, 100, 2 * s + 1)).item() for s in range(20)]
    assert abs(np.mean(values)) < 0.02
    assert max(map(abs, values)) < 0.1


def test_sharpness_ignores_shifts_and_grows_with_confidence():
    logits = noise(40, 10, 3)
    assert sharpness(logits + noise(40, 1, 4) * 100).item() == pytest.approx(sharpness(logits).item(), abs=1e-3)
    assert sharpness(3 * logits) > sharpness(logits) > sharpness(torch.zeros(4, 10))
    assert sharpness(torch.zeros(4, 10)).item() == pytest.approx(np.log(10))


def printed(student, teacher, labels) -> float:
    """KD-Zero's equation (2) as printed: CE + signed gap of raw log Σ exp − CKA."""
    figures = measure(student, teacher, labels)
    return figures["ce"] + (student.logsumexp(1).mean() - teacher.logsumexp(1).mean()).item() - figures["cka"]


@pytest.fixture
def pair():
    labels = torch.arange(200) % 10
    teacher = noise(200, 10, 5) + 4 * torch.nn.functional.one_hot(labels, 10)
    return teacher + 0.3 * noise(200, 10, 6), teacher, labels


def test_shifting_logits_wins_the_printed_gap_and_not_ours(pair):
    student, teacher, labels = pair
    assert printed(student - 1000, teacher, labels) < printed(student, teacher, labels) - 900
    shifted, honest = (gap(measure(s, teacher, labels)) for s in (student - 1000, student))
    assert shifted == pytest.approx(honest, abs=1e-2)


def test_hiding_confidence_wins_the_printed_gap_and_not_ours(pair):
    student, teacher, labels = pair
    timid = 0.5 * student
    assert printed(timid, teacher, labels) < printed(student, teacher, labels)
    assert gap(measure(timid, teacher, labels)) > gap(measure(student, teacher, labels))


def test_figures_by_hand():
    student = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 4.0], [1.0, 0.0]])
    teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    figures = measure(student, teacher, torch.tensor([0, 1, 1, 1, 0]))
    assert figures["accuracy"] == pytest.approx(80)
    assert figures["agreement"] == pytest.approx(60)
    assert figures["ce"] == pytest.approx(np.mean(np.log(1 + np.exp([-2.0, -1.0, 3.0, -4.0, -1.0]))))


def test_a_perfect_copy_has_the_best_gap(pair):
    student, teacher, labels = pair
    assert gap(measure(teacher, teacher, labels)) < gap(measure(student, teacher, labels))
    assert FITNESS["gap"](measure(teacher, teacher, labels)) > FITNESS["gap"](measure(student, teacher, labels))


def test_means_are_taken_figure_by_figure():
    assert mean_of([{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 2.0}]) == {"a": 2.0, "b": 2.0}
