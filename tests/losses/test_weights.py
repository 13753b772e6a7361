import inspect
import math

import pytest
import torch
import torch.nn.functional as F

from evokd.losses.language import parse_loss
from evokd.losses.program import compile_loss
from evokd.losses.weights import MODES
from tests.losses.common import CHAINS, every_operator, learning, make_taps

LABELS = torch.tensor([0, 4, 2, 2])


def logits(seed, n=4, k=5):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_modes_are_those_of_the_table():
    assert sorted(MODES) == ["conf", "entropy", "focal", "sim"]


def test_entropy_is_the_teachers_in_units_of_the_greatest():
    z_s, z_t = logits(0), logits(1)
    expected = torch.distributions.Categorical(logits=z_t).entropy() / math.log(5)
    torch.testing.assert_close(MODES["entropy"].fn(z_s, z_t, LABELS), expected)
    assert MODES["entropy"].fn(z_s, torch.zeros(4, 5), LABELS).tolist() == pytest.approx([1] * 4)


def test_conf_is_the_teachers_greatest_probability():
    z_t = logits(1)
    expected = [max(math.exp(x) for x in row) / sum(math.exp(x) for x in row) for row in z_t.tolist()]
    assert MODES["conf"].fn(logits(0), z_t, LABELS).tolist() == pytest.approx(expected)


def test_focal_is_the_weight_of_wsld():
    z_s, z_t = logits(0), logits(1)
    ce_s, ce_t = (torch.stack([F.cross_entropy(z[i], LABELS[i]) for i in range(4)]) for z in (z_s, z_t))
    torch.testing.assert_close(MODES["focal"].fn(z_s, z_t, LABELS), 1 - torch.exp(-ce_s / ce_t), rtol=1e-5, atol=0)


def test_focal_counts_a_hidden_label_in_full_and_leaves_the_others_alone():
    z_s, z_t = logits(0), logits(1)
    hidden = torch.tensor([0, -1, 2, -1])
    seen, all_seen = (MODES["focal"].fn(z_s, z_t, y) for y in (hidden, LABELS))
    assert seen[[1, 3]].tolist() == [1, 1]
    assert torch.equal(seen[[0, 2]], all_seen[[0, 2]])
    assert (seen[[0, 2]] < 1).all()


def test_sim_is_the_shifted_mean_cosine_of_the_columns():
    z_s, z_t = logits(0), logits(1)
    expected = (1 + sum(F.cosine_similarity(z_s[:, k], z_t[:, k], 0) for k in range(5)) / 5) / 2
    torch.testing.assert_close(MODES["sim"].fn(z_s, z_t, LABELS), expected)
    assert MODES["sim"].fn(z_s, z_s, LABELS).item() == pytest.approx(1)
    assert MODES["sim"].fn(z_s, -z_s, LABELS).item() == pytest.approx(0, abs=1e-9)


EXTREMES = {
    "zeros": lambda k: torch.zeros(3, k),
    "large": lambda k: torch.randn(3, k, generator=torch.Generator().manual_seed(k)) * 1e4,
    "tiny": lambda k: torch.full((3, k), 1e-8),
    "batch of one": lambda k: torch.ones(1, k),
}


@pytest.mark.parametrize("classes", [1, 2, 5])
@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("mode", MODES)
def test_weights_lie_between_zero_and_one(mode, extreme, classes):
    z = EXTREMES[extreme](classes)
    for labels in (torch.zeros(len(z), dtype=torch.long), torch.full((len(z),), -1)):
        weight = MODES[mode].fn(z, z.flip(0), labels)
        assert weight.shape == (() if mode == "sim" else (len(z),))
        assert weight.isfinite().all()
        assert (weight >= -1e-6).all()
        assert (weight <= 1 + 1e-6).all()


@pytest.mark.parametrize("mode", MODES)
def test_a_term_is_weighed_sample_by_sample(mode):
    s, t = make_taps(1), make_taps(2)
    value = compile_loss(parse_loss(f"3*{mode}*l2(embedding)"), s, t)(s, t, LABELS)
    weight = MODES[mode].fn(s.logits, t.logits, LABELS)
    distance = (s.embedding - t.embedding).square().mean(1)
    torch.testing.assert_close(value, 3 * (weight * distance).mean())
    assert value < 3 * distance.mean()


@pytest.mark.parametrize("mode", MODES)
def test_no_gradient_flows_through_a_weight(mode):
    s, t = learning(make_taps(1)), learning(make_taps(2))
    compile_loss(parse_loss(f"{mode}*l2(embedding)"), s, t)(s, t, LABELS).backward()
    assert s.logits.grad is None
    assert t.logits.grad is None
    weight = MODES[mode].fn(s.logits, t.logits, LABELS).detach()
    expected = 2 * (s.embedding - t.embedding).detach() / s.embedding.numel()
    torch.testing.assert_close(s.embedding.grad, (weight * expected.T).T)


@pytest.mark.parametrize("mode", MODES)
def test_hidden_labels_are_not_read(mode):
    # All hidden, none given, and any values under hidden labels mean the same.
    s, t = make_taps(1), make_taps(2)
    for kind, chain in CHAINS.items():
        if kind != "columns":
            loss = compile_loss(parse_loss(f"{mode}*l1({chain})"), s, t)
            assert loss(s, t, torch.full((4,), -1)) == loss(s, t)


def test_only_focal_reads_labels():
    s, t = make_taps(1), make_taps(2)
    for text in [*every_operator(), *(f"{mode}*l2(logits)" for mode in MODES)]:
        loss = compile_loss(parse_loss(text), s, t)
        alike = loss(s, t, LABELS) == loss(s, t, LABELS.flip(0)) == loss(s, t, None)
        assert alike == (not text.startswith("focal")), text


def test_a_hidden_label_is_worth_the_same_whatever_the_logits_say_about_it():
    s, t = make_taps(1), make_taps(2)
    loss = compile_loss(parse_loss("focal*l2(embedding)"), s, t)
    plain = compile_loss(parse_loss("l2(embedding)"), s, t)
    assert loss(s, t) == plain(s, t)


def test_modes_take_logits_and_labels_alone():
    for mode in MODES.values():
        assert list(inspect.signature(mode.fn).parameters) == ["z_s", "z_t", "labels"]
