import math
from itertools import combinations

import numpy as np
import pytest
import torch

from evokd.evaluate.fingerprint import SAME, SIZE, Copies, Fingerprint, cosine, fingerprint, halves
from evokd.losses import KNOWN, Taps, compile_loss, parse_loss
from evokd.losses.modules import MODULES
from tests.losses.common import make_taps, random_trees


@pytest.fixture(scope="module")
def examples():
    teacher = make_taps(2, 12, width=9, maps=((5, 6, 5), (6, 4, 4), (8, 3, 4)), dtype=torch.float32)
    return make_taps(1, 12, dtype=torch.float32), teacher, torch.arange(12) % 5


@pytest.fixture(scope="module")
def batches(examples):
    return halves(*examples)


def of(text, batches):
    return fingerprint(parse_loss(text), batches)


def plain(tree, batches, times=(1.0,)):
    """The whole gradient by plain autograd, one vector over times, batches and positions."""
    loss, parts = compile_loss(tree, *batches[0][:2]).double(), []
    for time in times:
        for student, teacher, labels in batches:
            taps = [student.at(p) for p in sorted(student.positions()) if p != "teacher_head"]
            found = torch.autograd.grad(loss(student, teacher, labels, time), taps, allow_unused=True, materialize_grads=True)
            parts += [g.flatten() for g in found]
    return torch.cat(parts).numpy()


def test_halves_are_the_examples_and_a_student_that_has_come_further(examples):
    student, teacher, labels = examples
    (s1, t1, y1), (s2, t2, y2) = halves(*examples)
    assert s1.logits.dtype == torch.float64
    assert torch.equal(torch.cat((y1, y2)), labels)
    assert torch.equal(s1.logits, student.logits[:6].double())
    assert torch.equal(torch.cat((t1.features[0], t2.features[0])), teacher.features[0].double())
    assert torch.equal(s2.embedding, 3 * student.embedding[6:].double())
    assert torch.allclose(s2.logits - t2.logits, (student.logits - teacher.logits)[6:].double() / 8)
    assert s1.head[0].shape == student.head[0].shape
    assert all(t.is_leaf and t.requires_grad for t in (s1.logits, s2.logits, s2.features[0]))


def test_sketched_cosines_are_those_of_plain_gradients(batches):
    trees = random_trees("compact", range(24)) + [parse_loss(f"{w}*kl(logits, tau=4)") for w in (3, 30)]
    trees = [t for t in trees if np.isfinite(g := plain(t, batches)).all() and g.any()]
    whole, prints = [plain(t, batches) for t in trees], [fingerprint(t, batches) for t in trees]
    assert len(trees) > 15
    found = []
    for (g, a), (h, b) in combinations(zip(whole, prints, strict=True), 2):
        true = g @ h / math.sqrt((g @ g) * (h @ h))
        assert (true >= 1 - SAME) == (cosine(a, b) >= 1 - SAME)
        found.append(abs(cosine(a, b) - true))
    assert np.mean(found) < 0.045  # one over the root of 512 entries
    assert max(found) < 0.25  # five standard deviations of a sketch of 512 entries
    for g, a in zip(whole, prints, strict=True):
        assert a.size == pytest.approx(math.sqrt(3) * np.linalg.norm(g), rel=1e-9)  # the same at three times
        assert np.linalg.norm(a.direction) == pytest.approx(1)


def test_positions_are_told_apart(batches):
    a, b = of("l2(embedding)", batches), of("l2(features[-2])", batches)
    both = of("l2(embedding) + l2(features[-2])", batches)
    assert abs(cosine(a, b)) < 0.2
    assert both.size == pytest.approx(math.hypot(a.size, b.size))


def test_multiples_share_a_direction(batches):
    small, large, negative = (of(f"{w}*kl(logits, tau=4)", batches) for w in (3, 30, -3))
    assert cosine(small, large) == pytest.approx(1, abs=1e-9)
    assert large.size / small.size == pytest.approx(10)
    assert cosine(small, negative) == pytest.approx(-1, abs=1e-9)


# each pair with its proof: what multiplies the gradient of the first to give that of the second
TWINS = [
    ("ce(logits, tau=1)", "kl(logits, tau=1)", 1),  # they differ by the teacher's entropy
    ("l2(logits)", "l2(scale(logits))", 1 / 4),  # (f+1)/2 halves every difference
    ("l1(logits)", "l1(scale(logits))", 1 / 2),
    ("cosine(logits)", "l2(norm_C(logits))", 2 / 5),  # |a/|a| − b/|b||² = 2 − 2 cos, a mean over K = 5 classes
    ("l2(features[-2])", "l2(local_r2(features[-2]))", 1),  # tiles only move entries
    ("cosine(centre_C(logits))", "pearson(logits)", 1),
    ("kl(logits, tau=2)", "kl(temper(logits, tau=2), tau=1)", 1 / 4),
    ("l2(embedding)", "0.5*l2(embedding) + 0.5*l2(embedding)", 1),
]


@pytest.mark.parametrize(("first", "second", "factor"), TWINS)
def test_algebraic_twins_are_known(batches, first, second, factor):
    a, b = of(first, batches), of(second, batches)
    assert cosine(a, b) >= 1 - SAME
    assert b.size / a.size == pytest.approx(factor, rel=1e-4)
    remembered = Copies(batches, within=math.inf)
    remembered.remember(parse_loss(first), first)
    assert remembered.copy_of(parse_loss(second)).endswith(first)


def test_near_twins_are_told_apart(batches):
    for first, second in (
        ("smooth_l1(norm_C(logits))", "l2(norm_C(logits))"),  # alike below 1
        ("kl(logits, tau=4)", "kl(logits, tau=4.1)"),
        ("focal*kl(logits, tau=4)", "kl(logits, tau=4)"),
        ("smooth_l1(embedding)", "l2(embedding)"),
    ):
        assert cosine(of(first, batches), of(second, batches)) < 1 - SAME


def test_no_two_published_losses_are_confused(batches):
    prints = {n: fingerprint(parse_loss(KNOWN.get(n, n)), batches) for n in [*KNOWN, *MODULES]}
    assert {n for n, found in prints.items() if found is None} == {"crd", "mgd"}  # they draw
    kept = {n: found for n, found in prints.items() if found}
    alike = [pair for pair in combinations(kept, 2) if cosine(*(kept[n] for n in pair)) >= 1 - SAME]
    assert alike == [("logits", "irg_vertex")]  # the same text


def test_a_confident_teacher_does_not_hide_a_weight_mode():
    student, teacher, labels = make_taps(1, 12), make_taps(2, 12), torch.arange(12) % 5
    sure = Taps(10 * torch.nn.functional.one_hot(labels, 5).double() + teacher.logits)
    found = [of(text, halves(student, sure, labels)) for text in ("focal*kl(logits, tau=4)", "kl(logits, tau=4)")]
    assert cosine(*found) < 1 - SAME


def test_schedules_are_told_from_constants_and_from_each_other(batches):
    texts = ["3", "1.5", "0.9", "ramp(0, 3)", "cosine(0, 3)", "step(0, 3)", "ramp(3, 0)", "anneal(0.1, 3)"]
    prints = [of(f"{w}*kl(logits, tau=4)", batches) for w in texts]
    constant, moving = prints[:3], prints[3:]
    assert all(cosine(a, b) >= 1 - SAME for a, b in combinations(constant, 2))
    assert all(cosine(a, b) < 1 - SAME for a, b in combinations([constant[0], *moving], 2))
    still = of("ramp(2, 2)*kl(logits, tau=4)", batches)
    assert cosine(still, constant[0]) == pytest.approx(1, abs=1e-9)
    assert still.size / constant[0].size == pytest.approx(2 / 3)
    cooling = of("kl(logits, tau=anneal(8, 2))", batches)
    assert cosine(cooling, of("kl(logits, tau=2)", batches)) < 1 - SAME
    want = np.linalg.norm(plain(parse_loss("kl(logits, tau=anneal(8, 2))"), batches, (0.0, 0.3, 1.0)))
    assert cooling.size == pytest.approx(want)


@pytest.mark.parametrize(
    "text",
    [
        "l2(drop(logits))", "kl(logits, tau=4) + l2(mask(features[-1]))", "crd", "mgd", "l2(logits) + crd",
        "0*l2(logits)", "kl(mean_C(features[-1]), tau=1)", "1e308*l2(pow4(pow4(pow4(logits))))", "l2(features[-9])",
    ],
)  # fmt: skip
def test_what_draws_or_has_no_gradient_has_no_fingerprint(batches, text):
    assert of(text, batches) is None
    copies = Copies(batches)
    copies.remember(parse_loss(text), text)
    assert copies.copy_of(parse_loss(text)) == ""


def test_a_fingerprint_is_the_same_every_time(batches, examples):
    for text in ("fitnet", "simkd"):
        tree = parse_loss(KNOWN.get(text, text))
        a, b = fingerprint(tree, batches), fingerprint(tree, halves(*examples))
        assert np.array_equal(a.direction, b.direction)
        assert a.size == b.size


# --- copies ------------------------------------------------------------------------------------------------------------------


def test_a_copy_is_told_with_its_original(batches):
    copies = Copies(batches)
    assert copies.copy_of(parse_loss("3*kl(logits, tau=4)")) == ""
    copies.remember(parse_loss("3*kl(logits, tau=4)"), "3*kl(logits, tau=4)")
    copies.remember(parse_loss("l2(logits)"), "mse")
    assert copies.copy_of(parse_loss("12*kl(temper(logits, tau=2), tau=2)")) == "copy: same gradient as 3*kl(logits, tau=4)"
    assert copies.copy_of(parse_loss("1.1*l2(logits)")) == "copy: 1.1 × the gradient of mse"
    assert copies.copy_of(parse_loss("-1*l2(logits)")) == ""
    assert copies.copy_of(parse_loss("l1(logits)")) == ""


def test_a_multiple_is_a_copy_only_within_the_factor(batches):
    weights = (0.1, 0.79, 0.81, 1, 1.24, 1.26, 10)
    refused = {}
    for within in (1.25, math.inf):
        copies = Copies(batches, within)
        copies.remember(parse_loss("l2(logits)"), "mse")
        refused[within] = [w for w in weights if copies.copy_of(parse_loss(f"{w}*l2(logits)"))]
    assert refused == {1.25: [0.81, 1, 1.24], math.inf: list(weights)}


def test_the_nearest_multiple_is_named(batches):
    copies = Copies(batches, within=math.inf)
    for weight in (1, 100, 8):
        copies.remember(parse_loss(f"{weight}*l2(logits)"), f"{weight}")
    assert copies.copy_of(parse_loss("10*l2(logits)")) == "copy: 1.25 × the gradient of 8"


def test_many_are_remembered(batches):
    copies = Copies(batches)
    for i in range(150):
        copies.remember(parse_loss(f"kl(logits, tau={1 + i / 10:g})"), f"loss {i}")
    for i in (0, 63, 64, 127, 128, 149):
        assert copies.copy_of(parse_loss(f"kl(logits, tau={1 + i / 10:g})")) == f"copy: same gradient as loss {i}"
    assert copies.copy_of(parse_loss("kl(logits, tau=50)")) == ""


class Recalled(Copies):
    """Of made-up fingerprints."""

    def fingerprint(self, tree):
        return tree


@pytest.mark.parametrize("apart", [0.0, 0.5, 0.99, 1.01, 2.0])
@pytest.mark.parametrize("zeros", [0, 6])
def test_a_copy_is_found_among_many_as_the_dot_product_finds_it(apart, zeros):
    draw = np.random.default_rng(int(100 * apart) + zeros)
    many = draw.standard_normal((300, SIZE))
    many[:, :zeros] = 0  # on the edges of cells
    many /= np.linalg.norm(many, axis=1, keepdims=True)
    copies = Recalled((), math.inf)
    for number, direction in enumerate(many):
        copies.remember(Fingerprint(direction, 1.0), f"loss {number}")
    for number in (0, 17, 299):
        away = draw.standard_normal(SIZE)
        away -= (away @ many[number]) * many[number]
        away /= np.linalg.norm(away)
        cosine = 1 - apart * SAME
        asked = cosine * many[number] + math.sqrt(1 - cosine**2) * away
        found = copies.copy_of(Fingerprint(asked, 1.0))
        assert found == (f"copy: same gradient as loss {number}" if apart < 1 else "")
