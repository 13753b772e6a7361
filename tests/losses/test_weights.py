import inspect
import math

import pytest
import torch
import torch.nn.functional as F

from evokd.losses.language import parse_loss
from evokd.losses.program import compile_loss
from evokd.losses.transforms import TRANSFORMS
from evokd.losses.weights import MODES, TABLE_1
from tests.losses.common import CHAINS, call, every_operator, learning, make_taps, weight_mode

LABELS = torch.tensor([0, 4, 2, 2])


def logits(seed, n=4, k=5):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weigh(mode, z_s, z_t, labels, tau=3.0):
    return MODES[mode].fn(z_s, z_t, labels, *(tau,) * len(MODES[mode].params))


def test_the_modes_are_those_of_the_table_and_the_power_sum():
    assert sorted(MODES) == ["conf", "entropy", "focal", "power_sum", "sim"]
    assert set(TABLE_1) == {*MODES, "no"} - {"power_sum"}


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


def test_power_sum_is_the_weight_of_wttm():
    z_s, z_t = logits(0), logits(1)
    p = torch.softmax(z_t, 1)
    expected = [sum(x ** (1 / 3) for x in row) for row in p.tolist()]
    assert weigh("power_sum", z_s, z_t, LABELS).tolist() == pytest.approx(expected)
    torch.testing.assert_close(weigh("power_sum", z_s, z_t, LABELS, tau=1.0), torch.ones(4, dtype=torch.float64))
    assert weigh("power_sum", z_s, torch.zeros(4, 5), LABELS).tolist() == pytest.approx([5 ** (1 - 1 / 3)] * 4)


def test_the_weight_of_wttm_makes_a_divergence_of_a_tempered_teacher_their_loss():
    # p^(1/τ) over its sum is the softmax of z/τ.
    s, t = make_taps(1), make_taps(2)
    value = compile_loss(parse_loss("power_sum(tau=5)*kl(teacher.temper(logits, tau=5), tau=1)"), s, t)(s, t)
    powers = torch.softmax(t.logits, 1) ** 0.2
    target = powers / powers.sum(1, keepdim=True)
    divergence = (target * (target.log() - s.logits.log_softmax(1))).sum(1)
    torch.testing.assert_close(value, (powers.sum(1) * divergence).mean())


EXTREMES = {
    "zeros": lambda k: torch.zeros(3, k),
    "ones": lambda k: torch.ones(3, k),
    "constant rows": lambda k: torch.arange(1.0, 4.0)[:, None].expand(3, k),
    "large": lambda k: torch.randn(3, k, generator=torch.Generator().manual_seed(k)) * 1e4,
    "tiny": lambda k: torch.full((3, k), 1e-8),
    "batch of one": lambda k: torch.ones(1, k),
}


@pytest.mark.parametrize("classes", [1, 2, 5])
@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("mode", MODES)
def test_weights_lie_between_zero_and_one_and_sums_of_powers_below_the_number_of_classes(mode, extreme, classes):
    z = EXTREMES[extreme](classes)
    for dtype in (torch.float32, torch.bfloat16):
        for labels in (torch.zeros(len(z), dtype=torch.long), torch.full((len(z),), -1)):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                weight = weigh(mode, z.to(dtype), z.flip(0).to(dtype), labels)
            assert weight.shape == (() if mode == "sim" else (len(z),))
            assert weight.isfinite().all()
            assert (weight >= -1e-2).all() if dtype == torch.bfloat16 else (weight >= -1e-6).all()
            assert (weight <= (classes if mode == "power_sum" else 1) * (1.01 if dtype == torch.bfloat16 else 1 + 1e-6)).all()


@pytest.mark.parametrize("mode", MODES)
def test_a_term_is_weighed_sample_by_sample(mode):
    s, t = make_taps(1), make_taps(2)
    value = compile_loss(parse_loss(f"3*{weight_mode(mode)}*l2(embedding)"), s, t)(s, t, LABELS)
    weight = weigh(mode, s.logits, t.logits, LABELS)
    distance = (s.embedding - t.embedding).square().mean(1)
    torch.testing.assert_close(value, 3 * (weight * distance).mean())
    assert value < 3 * distance.mean() or mode == "power_sum"


@pytest.mark.parametrize(("chain", "space"), [("features[-2]", 4 * 4), ("tokens", 3)])
@pytest.mark.parametrize("distance", ["l1", "cosine"])
def test_what_a_distance_did_not_sum_is_averaged_before_it_is_weighed(distance, chain, space):
    s, t = make_taps(1), make_taps(2)
    value = compile_loss(parse_loss(f"conf*{distance}({chain})"), s, t)(s, t)
    total = 0.0
    f, g = (taps.tokens.transpose(1, 2) if chain == "tokens" else taps.features[-2].flatten(2) for taps in (s, t))
    for i, weight in enumerate(weigh("conf", s.logits, t.logits, LABELS)):
        for p in range(space):
            x, y = f[i, :, p], g[i, :, p]
            total += weight * (F.l1_loss(x, y) if distance == "l1" else 1 - F.cosine_similarity(x, y, 0)) / space / 4
    torch.testing.assert_close(value, total)


@pytest.mark.parametrize("mode", MODES)
def test_no_gradient_flows_through_a_weight(mode):
    s, t = learning(make_taps(1)), learning(make_taps(2))
    compile_loss(parse_loss(f"{weight_mode(mode)}*l2(embedding)"), s, t)(s, t, LABELS).backward()
    assert s.logits.grad is None
    assert t.logits.grad is None
    weight = weigh(mode, s.logits, t.logits, LABELS).detach()
    expected = 2 * (s.embedding - t.embedding).detach() / s.embedding.numel()
    torch.testing.assert_close(s.embedding.grad, (weight * expected.T).T)


@pytest.mark.parametrize("mode", MODES)
def test_labels_that_are_all_hidden_are_like_none(mode):
    s, t = make_taps(1), make_taps(2)
    for kind, chain in CHAINS.items():
        if kind != "columns" and "," not in kind:
            loss = compile_loss(parse_loss(f"{weight_mode(mode)}*l1({chain})"), s, t)
            assert loss(s, t, torch.full((4,), -1)) == loss(s, t)


READERS = ["focal", "gt_drop", "gt_binary", "class_gradient"]
HIDDEN = torch.tensor([0, -1, -1, 2])


@pytest.mark.parametrize("text", [*every_operator(), *(f"{weight_mode(mode)}*l2(logits)" for mode in MODES)])
def test_labels_are_read_by_focal_and_by_the_operators_that_take_them_and_by_no_other(text):
    s, t = make_taps(1), make_taps(2)
    loss = compile_loss(parse_loss(text), s, t)
    values = {loss(s, t, y, generator=torch.Generator().manual_seed(0)).item() for y in (LABELS, LABELS.flip(0), None)}
    assert (len(values) > 1) == any(name in text for name in READERS)


@pytest.mark.parametrize("text", [*(call(t.name, CHAINS[k]) for t in TRANSFORMS.values() if t.labels for k in t.kinds), "logits"])
def test_changing_places_among_samples_without_labels_changes_nothing(text):
    s, t = make_taps(1), make_taps(2)
    loss = compile_loss(parse_loss(f"l2({text}) + {'' if 'class_gradient' in text else 'focal*'}l1({text})"), s, t)
    order = torch.tensor([0, 2, 1, 3])
    swapped = [taps.map(lambda tap: tap[order] if len(tap) == 4 else tap) for taps in (s, t)]
    torch.testing.assert_close(loss(*swapped, HIDDEN), loss(s, t, HIDDEN))


def test_a_hidden_label_is_worth_the_same_whatever_the_logits_say_about_it():
    s, t = make_taps(1), make_taps(2)
    loss = compile_loss(parse_loss("focal*l2(embedding)"), s, t)
    plain = compile_loss(parse_loss("l2(embedding)"), s, t)
    assert loss(s, t) == plain(s, t)


def test_modes_take_logits_labels_and_their_numbers_alone():
    for mode in MODES.values():
        assert list(inspect.signature(mode.fn).parameters) == ["z_s", "z_t", "labels", *mode.params]


@pytest.mark.parametrize("mode", MODES)
def test_a_weight_depends_on_its_arguments_alone_and_leaves_them_as_they_are(mode):
    given = logits(0), logits(1), LABELS.clone()
    before = torch.get_rng_state()
    first = weigh(mode, *given)
    weigh(mode, given[0] * 9, given[1] * 9, LABELS.flip(0))
    assert torch.equal(weigh(mode, *given), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(f, again) for f, again in zip(given, (logits(0), logits(1), LABELS), strict=True))
