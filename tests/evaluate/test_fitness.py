import math
from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evokd.evaluate.fitness import FITNESS, biased_cka, cka, mean_of, measure, sharpness


def noise(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def hsic(k: np.ndarray, m: np.ndarray) -> float:
    """The unbiased estimator of Song et al. 2012 as the plain sum over distinct i, j, q, r of their U-statistic (n small)."""
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


# --- KD-Zero's equation (2), as printed and corrected ------------------------------------------------------------------------------


def lse(z: np.ndarray) -> float:
    """Mean log Σ exp over rows."""
    top = z.max(1, keepdims=True)
    return float((top[:, 0] + np.log(np.exp(z - top).sum(1))).mean())


def cross_entropy(z: np.ndarray, labels: np.ndarray) -> float:
    return lse(z) - float(z[np.arange(len(z)), labels].mean())


def printed(student, teacher, labels) -> float:
    """CE + (log Σ exp f_S − log Σ exp f_T) − HSIC₀ ratio with linear kernels and H = I − 11ᵀ/n, from its definition."""
    s, t = (v.numpy().astype(float) for v in (student, teacher))
    h = np.eye(len(s)) - 1 / len(s)
    k, m = s @ s.T, t @ t.T
    hsic0 = {name: np.trace(a @ h @ b @ h) for name, a, b in (("st", k, m), ("ss", k, k), ("tt", m, m))}
    return cross_entropy(s, labels.numpy()) + lse(s) - lse(t) - hsic0["st"] / math.sqrt(hsic0["ss"] * hsic0["tt"])


def corrected(student, teacher, labels) -> float:
    """CE + |gap of log Σ exp of centred rows| − the ratio of U-centred kernels (Székely and Rizzo's form of the unbiased HSIC)."""
    s, t = (v.numpy().astype(float) for v in (student, teacher))
    a, b = (u_centred(v @ v.T) for v in (s, t))
    centred_s, centred_t = (v - v.mean(1, keepdims=True) for v in (s, t))
    ratio = (a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum())
    return cross_entropy(s, labels.numpy()) + abs(lse(centred_s) - lse(centred_t)) - ratio


def u_centred(k: np.ndarray) -> np.ndarray:
    n = len(k)
    k = k * (1 - np.eye(n))
    rows = k.sum(0)
    return (k - rows[:, None] / (n - 2) - rows[None] / (n - 2) + k.sum() / ((n - 1) * (n - 2))) * (1 - np.eye(n))


def figures_of(student, teacher, labels) -> tuple[float, float]:
    """(gap as printed, gap corrected), both checked against the formulas above."""
    figures = measure(student, teacher, labels)
    assert figures["gap_printed"] == pytest.approx(printed(student, teacher, labels), rel=1e-4, abs=1e-4)
    assert figures["gap"] == pytest.approx(corrected(student, teacher, labels), rel=1e-4, abs=1e-4)
    return figures["gap_printed"], figures["gap"]


LABELS = torch.arange(200) % 10


def sure(margin: float) -> torch.Tensor:
    """A teacher that is always right, the surer the greater the margin."""
    return 0.3 * noise(200, 10, 5) + margin * torch.nn.functional.one_hot(LABELS, 10)


@pytest.fixture
def pair():
    teacher = noise(200, 10, 5) + 4 * torch.nn.functional.one_hot(LABELS, 10)
    return teacher + 0.3 * noise(200, 10, 6), teacher, LABELS


@given(st.integers(0, 999), st.integers(4, 30), st.integers(2, 12), st.floats(0.1, 20), st.floats(-30, 30))
def test_both_gaps_are_their_formulas(seed, n, k, scale, shift):
    labels = torch.arange(n) % k
    figures_of(scale * noise(n, k, seed) + shift, noise(n, k, seed + 1000), labels)


def test_a_shift_wins_the_printed_gap_one_to_one_and_nothing_of_ours(pair):
    student, teacher, labels = pair
    honest = figures_of(student, teacher, labels)
    for shift in (50, 1000):
        shifted = figures_of(student - shift, teacher, labels)
        assert honest[0] - shifted[0] == pytest.approx(shift, abs=1e-3)
        assert honest[1] - shifted[1] == pytest.approx(0, abs=1e-3)
    assert measure(student - 50, teacher, labels)["accuracy"] == measure(student, teacher, labels)["accuracy"]


def test_hiding_confidence_wins_the_printed_gap_the_more_the_surer_the_teacher_is():
    """No end to it: the margin of the winnings grows with the teacher's, and a student that knows nothing beats its perfect copy."""
    winnings = []
    for margin in (10.0, 20.0, 40.0, 80.0):
        teacher = sure(margin)
        copy, timid = (figures_of(a * teacher, teacher, LABELS) for a in (1, 0.1))
        ignorant = figures_of(1e-3 * noise(200, 10, 7), teacher, LABELS)
        assert ignorant[0] < copy[0]
        assert ignorant[1] > timid[1] > copy[1] + 4
        winnings.append(copy[0] - timid[0])
    assert winnings[0] > 4
    assert all(later > 1.8 * earlier for earlier, later in pairwise(winnings))


def test_showing_off_wins_neither():
    for a in (2, 4, 8):
        for found, copy in zip(*(figures_of(b * sure(10), sure(10), LABELS) for b in (a, 1)), strict=True):
            assert found > copy + 1


def test_the_printed_gap_is_best_short_of_the_teacher_and_ours_at_it():
    scales = [0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0]
    teacher = sure(12)
    by_printed, ours = zip(*(figures_of(a * teacher, teacher, LABELS) for a in scales), strict=True)
    assert scales[int(np.argmin(by_printed))] < 0.5
    assert scales[int(np.argmin(ours))] == 1


def test_noise_in_small_samples_looks_alike_to_the_biased_estimate_alone():
    """0.43 and 0.66 of independent draws, as n falls behind the width: more than half a nat of the printed gap, for nothing."""
    for n, d, expected in ((128, 100, 0.43), (128, 256, 0.66)):
        draws = [(noise(n, d, 2 * seed), noise(n, d, 2 * seed + 1)) for seed in range(4)]
        assert np.mean([biased_cka(x, y).item() for x, y in draws]) == pytest.approx(expected, abs=0.02)
        assert abs(np.mean([cka(x, y).item() for x, y in draws])) < 0.02
    student, teacher = noise(32, 100, 0), noise(32, 100, 1)
    figures = measure(student, teacher, torch.arange(32))
    rest = figures["ce"] + (student.logsumexp(1).mean() - teacher.logsumexp(1).mean()).item()
    assert rest - figures["gap_printed"] > 0.6
    assert abs(figures["cka"]) < 0.1


@given(st.integers(0, 999), st.floats(0.01, 30), st.floats(-100, 100), st.floats(0, 30))
def test_nobody_wins_more_than_one_nat_over_cross_entropy_of_ours(seed, scale, shift, margin):
    """CKA may be trained for directly (1 − CKA is a loss of the space): that wins at most its 1, and nothing else wins at all."""
    student = scale * noise(40, 10, seed) + shift
    figures = measure(student, sure(margin)[:40], LABELS[:40])
    assert figures["gap"] >= figures["ce"] - 1 - 1e-6


def test_swapped_classes_keep_cka_and_only_cross_entropy_objects():
    """A limit of both forms: CKA does not see rotations, sharpness no order."""
    teacher = sure(10)
    figures = measure(teacher.roll(1, 1), teacher, LABELS)
    assert figures["accuracy"] == 0
    assert figures["gap"] == pytest.approx(figures["ce"] - 1, abs=1e-4)
    assert figures["gap_printed"] == pytest.approx(figures["ce"] - 1, abs=1e-4)


def test_biased_cka_sees_no_scale_and_a_constant_student_has_none():
    x, y = noise(30, 6, 0), noise(30, 4, 1)
    assert biased_cka(x, x @ torch.linalg.qr(noise(6, 6, 2)).Q + 5).item() == pytest.approx(1, abs=1e-6)
    assert biased_cka(1e-20 * x, 1e20 * y).item() == pytest.approx(biased_cka(x, y).item(), rel=1e-5)
    assert biased_cka(torch.ones(30, 6), y).item() == 0


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_figures_are_finite_plain_floats_whatever_the_logits(scale):
    for student in (scale * noise(50, 10, 0), torch.full((50, 10), scale)):
        figures = measure(student, noise(50, 10, 1), LABELS[:50])
        assert all(type(value) is float and math.isfinite(value) for value in figures.values()), figures


def test_figures_by_hand():
    student = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 4.0], [1.0, 0.0]])
    teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    figures = measure(student, teacher, torch.tensor([0, 1, 1, 1, 0]))
    assert figures["accuracy"] == pytest.approx(80)
    assert figures["agreement"] == pytest.approx(60)
    assert figures["ce"] == pytest.approx(np.mean(np.log(1 + np.exp([-2.0, -1.0, 3.0, -4.0, -1.0]))))


def test_a_perfect_copy_has_the_best_gap(pair):
    student, teacher, labels = pair
    assert measure(teacher, teacher, labels)["gap"] < measure(student, teacher, labels)["gap"]
    assert FITNESS["gap"](measure(teacher, teacher, labels)) > FITNESS["gap"](measure(student, teacher, labels))


def test_means_are_taken_figure_by_figure():
    assert mean_of([{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 2.0}]) == {"a": 2.0, "b": 2.0}


@pytest.mark.parametrize("fitness", FITNESS)
def test_the_fitness_of_the_mean_is_the_mean_of_the_fitness_by_seed(fitness, pair):
    """Also where one seed's student is too sure and another's not enough: their gaps do not cancel."""
    _, teacher, labels = pair
    rows = [measure(a * teacher, teacher, labels) for a in (0.5, 1.4)]
    assert rows[0]["sharpness_gap"] < -1 < 1 < rows[1]["sharpness_gap"]
    assert FITNESS[fitness](mean_of(rows)) == pytest.approx(np.mean([FITNESS[fitness](row) for row in rows]))


def test_greater_fitness_is_better(pair):
    student, teacher, labels = pair
    figures = measure(student, teacher, labels)
    by_hand = {
        "accuracy": figures["accuracy"],
        "ce": -figures["ce"],
        "gap": -figures["gap"],
        "gap_printed": -figures["gap_printed"],
    }
    assert {name: score(figures) for name, score in FITNESS.items()} == by_hand
