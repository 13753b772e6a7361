import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evokd.losses.transforms import TRANSFORMS
from tests.losses.common import make_taps

SHAPES = {"maps": (4, 3, 5, 6), "stack": (4, 3, 7), "rows": (4, 6), "columns": (6, 4), "relation": (4, 4)}
AXES = {"maps": 4, "stack": 3, "rows": 2, "columns": 2, "relation": 2}
CASES = [(t, k) for t in TRANSFORMS.values() for k in t.kinds]
IDS = [f"{t.name}-{k}" for t, k in CASES]


def draw(shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def params(operator):
    return (3.0,) * len(operator.params)


def uniform(shape, size):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1) * size


EXTREMES = {
    "zeros": torch.zeros,
    "ones": torch.ones,
    "constant rows": lambda shape: torch.arange(1.0, shape[0] + 1).view(-1, *[1] * (len(shape) - 1)).expand(shape).clone(),
    "large": lambda shape: uniform(shape, 1e4),
    "tiny": lambda shape: uniform(shape, 1e-8),
    "dead channel": lambda shape: uniform(shape, 1.0).index_fill(1, torch.tensor([0]), 0.0),
}
NARROW = {
    "batch of one": {"maps": (1, 3, 5, 6), "stack": (1, 3, 7), "rows": (1, 6), "columns": (6, 1), "relation": (1, 1)},
    "single channel": {"maps": (4, 1, 5, 6), "stack": (4, 1, 7), "rows": (4, 1), "columns": (1, 4), "relation": (4, 4)},
    "1x1 maps": {"maps": (4, 3, 1, 1), "stack": (4, 3, 1), "rows": (4, 1), "columns": (1, 4), "relation": (4, 4)},
}


def assert_contract(t, kind, f):
    f.requires_grad_()
    out = t.fn(f, *params(t))
    assert out.dim() == AXES[t.kinds[kind]]
    assert out.dtype == f.dtype
    assert out.isfinite().all(), "value"
    (out * draw(out.shape, 5, out.dtype)).sum().backward()
    assert f.grad.isfinite().all(), "gradient"


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize(("t", "kind"), CASES, ids=IDS)
def test_extreme_values_give_finite_values_and_gradients(t, kind, extreme):
    assert_contract(t, kind, EXTREMES[extreme](SHAPES[kind]))


@pytest.mark.parametrize("shapes", NARROW)
@pytest.mark.parametrize(("t", "kind"), CASES, ids=IDS)
def test_narrow_shapes_give_finite_values_and_gradients(t, kind, shapes):
    assert_contract(t, kind, uniform(NARROW[shapes][kind], 1.0))


@pytest.mark.parametrize(("t", "kind"), CASES, ids=IDS)
def test_ordinary_values_pass_a_gradient(t, kind):
    f = draw(SHAPES[kind]).requires_grad_()
    out = t.fn(f, *params(t))
    (out * draw(out.shape, 5)).sum().backward()
    assert f.grad.abs().sum() > 1e-6


@pytest.mark.parametrize(("t", "kind"), CASES, ids=IDS)
def test_gradients_are_those_of_the_value(t, kind):
    shape = {"maps": (2, 2, 3, 2), "stack": (2, 3, 2), "rows": (3, 4), "columns": (4, 3), "relation": (3, 3)}[kind]
    assert torch.autograd.gradcheck(lambda f: t.fn(f, *params(t)), draw(shape, 3).requires_grad_())


@pytest.mark.parametrize(("t", "kind"), [c for c in CASES if c[1] in ("maps", "columns")])
def test_memory_layout_does_not_matter(t, kind):
    f = draw(SHAPES[kind])
    other = f.contiguous(memory_format=torch.channels_last) if kind == "maps" else f.t().contiguous().t()
    assert not other.is_contiguous()
    torch.testing.assert_close(t.fn(other, *params(t)), t.fn(f, *params(t)))


@pytest.mark.parametrize("t", [t for t in TRANSFORMS.values() if {"maps", "stack"} <= set(t.kinds)], ids=lambda t: t.name)
def test_maps_and_their_stacks_are_treated_alike(t):
    f = draw(SHAPES["maps"])
    maps, stack = t.fn(f, *params(t)), t.fn(f.flatten(2), *params(t))
    torch.testing.assert_close(maps.flatten(2) if maps.dim() == 4 else maps, stack)


def elementwise(formula):
    def expected(f):
        return torch.tensor([formula(x) for x in f.flatten().tolist()], dtype=f.dtype).view(f.shape)

    return expected


def log1p_signed(x):
    return math.copysign(math.log(1 + abs(x)), x)


def sqrt_signed(x):
    return math.copysign(math.sqrt(abs(x) + 1e-4) - 0.01, x)


def unit(axis):
    return lambda f: F.normalize(f, dim=axis)


def over_space(fn):
    return lambda f: fn(f.reshape(*f.shape[:2], -1)).reshape(f.shape)


def fresh_batchnorm(f):
    layer = {4: nn.BatchNorm2d, 3: nn.BatchNorm1d, 2: nn.BatchNorm1d}[f.dim()](f.shape[1], affine=False, dtype=f.dtype)
    return layer.train()(f)


def gram_of_samples(f):
    return torch.stack([torch.stack([(a * b).sum() for b in f]) for a in f])


def gram_of_channels(f):
    space = f[0, 0].numel()
    return torch.stack([torch.stack([torch.stack([(a * b).sum() / space for b in one]) for a in one]) for one in f])


def spatial_attention(f):
    n, c, *space = f.shape
    out = torch.empty_like(f)
    for i in range(n):
        a = sum(f[i, j].abs() for j in range(c)) / c
        weight = a.numel() * torch.softmax(a.flatten() / 0.5, 0).view(space)
        for j in range(c):
            out[i, j] = f[i, j] * weight.sqrt()
    return out


def channel_attention(f):
    n, c = f.shape[:2]
    out = torch.empty_like(f)
    for i in range(n):
        b = torch.stack([f[i, j].abs().mean() for j in range(c)])
        weight = c * torch.softmax(b / 0.5, 0)
        for j in range(c):
            out[i, j] = f[i, j] * weight[j].sqrt()
    return out


# Written with the library or with loops, from the published table.
EXPECTED = {
    "temper": elementwise(lambda x: x / 3),
    "scale": elementwise(lambda x: (x + 1) / 2),
    "exp": elementwise(math.exp),
    "mish": elementwise(lambda x: x * math.tanh(math.log(1 + math.exp(x)))),
    "leaky": elementwise(lambda x: x if x > 0 else 0.01 * x),
    "relu": elementwise(lambda x: max(x, 0.0)),
    "tanh": elementwise(math.tanh),
    "sigmoid": elementwise(lambda x: 1 / (1 + math.exp(-x))),
    "pow2": elementwise(lambda x: x * x),
    "pow4": elementwise(lambda x: x**4),
    "log": elementwise(log1p_signed),
    "sqrt": elementwise(sqrt_signed),
    "norm_C": unit(1),
    "norm_N": unit(0),
    "norm_HW": over_space(unit(2)),
    "softmax_C": lambda f: torch.softmax(f, 1),
    "softmax_N": lambda f: torch.softmax(f, 0),
    "softmax_HW": over_space(lambda f: torch.softmax(f, 2)),
    "logsoftmax_C": lambda f: torch.softmax(f, 1).log(),
    "logsoftmax_N": lambda f: torch.softmax(f, 0).log(),
    "logsoftmax_HW": over_space(lambda f: torch.softmax(f, 2).log()),
    "batchnorm": fresh_batchnorm,
    "min_max": lambda f: (f - min(f.flatten().tolist())) / (max(f.flatten().tolist()) - min(f.flatten().tolist())),
    "centre_C": lambda f: torch.stack([one - sum(one) / len(one) for one in f]),
    "zscore_C": lambda f: torch.stack([(one - one.mean(0)) / (one.var(0) + 1e-6).sqrt() for one in f]),
    "mean_C": lambda f: torch.stack([sum(one)[None] / len(one) for one in f]),
    "mean_HW": lambda f: torch.stack([torch.stack([channel.mean() for channel in one]) for one in f]),
    "scale_r2": lambda f: F.max_pool2d(F.pad(f, (0, f.shape[3] % 2, 0, f.shape[2] % 2), value=-math.inf), 2),
    "channel": lambda f: torch.stack([torch.stack([channel.reshape(-1) for channel in one]) for one in f]),
    "batch": lambda f: torch.stack([torch.cat([channel.reshape(-1) for channel in one]) for one in f]),
    "transpose": lambda f: torch.stack(list(f), 1),
    "mm": gram_of_samples,
    "bmm": gram_of_channels,
    "satt": spatial_attention,
    "natt": lambda f: len(f) * torch.softmax(f / 0.5, 0),
    "catt": channel_attention,
}


def test_every_transform_has_an_expected_formula():
    assert set(EXPECTED) == set(TRANSFORMS)


@pytest.mark.parametrize(("t", "kind"), CASES, ids=IDS)
def test_values_are_those_of_the_library_or_of_a_loop(t, kind):
    f = draw(SHAPES[kind], 2)
    out = t.fn(f, *params(t))
    expected = EXPECTED[t.name](f)
    assert out.shape == expected.shape
    torch.testing.assert_close(out, expected, rtol=2e-5, atol=2e-5)


def test_exp_is_bounded_at_twenty():
    out = TRANSFORMS["exp"].fn(torch.tensor([[19.0, 20.0, 21.0, 1e9]], dtype=torch.float64))
    torch.testing.assert_close(out, torch.tensor([[math.exp(19), *[math.exp(20)] * 3]], dtype=torch.float64))


@pytest.mark.parametrize("name", ["log", "sqrt"])
def test_signed_log_and_root_rise_everywhere_and_vanish_at_zero(name):
    x = torch.linspace(-2, 2, 401, dtype=torch.float64)
    y = TRANSFORMS[name].fn(x)
    assert (y.diff() > 0).all()
    assert y[200].abs() < 1e-12
    torch.testing.assert_close(y, -y.flip(0))


@pytest.mark.parametrize("name", ["norm_C", "norm_N", "norm_HW"])
def test_the_gradient_at_a_dead_row_is_bounded_by_the_floor(name):
    f = torch.zeros(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    TRANSFORMS[name].fn(f).sum().backward()
    assert f.grad.abs().max() <= 1.001e4


def test_scale_r2_keeps_the_last_row_and_column_of_odd_maps():
    f = torch.arange(9.0).view(1, 1, 3, 3)
    assert TRANSFORMS["scale_r2"].fn(f).flatten().tolist() == [4, 5, 7, 8]


def test_batch_statistics_are_taken_afresh_at_every_call():
    fn = TRANSFORMS["batchnorm"].fn
    first = fn(draw((4, 3)))
    fn(draw((4, 3), 9) * 100)
    assert torch.equal(fn(draw((4, 3))), first)


def test_one_tap_is_not_changed_in_place():
    for t, kind in CASES:
        f = draw(SHAPES[kind])
        t.fn(f, *params(t))
        assert torch.equal(f, draw(SHAPES[kind])), t.name


def test_the_kinds_cover_the_taps_of_a_network():
    taps = make_taps(0)
    assert taps.logits.dim() == AXES["rows"]
    assert taps.features[-1].dim() == AXES["maps"]
