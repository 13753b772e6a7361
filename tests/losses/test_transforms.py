import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evokd.losses.language import POSITIONS
from evokd.losses.operators import KINDS
from evokd.losses.program import read_tap
from evokd.losses.transforms import TRANSFORMS
from tests.losses.common import make_taps

SHAPES = {"maps": (4, 3, 5, 6), "tokens": (4, 3, 7), "rows": (4, 6), "classes": (4, 5), "relation": (4, 4), "columns": (6, 4)}
SECOND = {"maps": (4, 2, 3, 7)}  # the other map of a pair, lower and wider
AXES = {kind: len(shape) for kind, shape in SHAPES.items()}
CASES = [(t, k) for t in TRANSFORMS.values() for k in t.kinds]
IDS = [f"{t.name}-{k}" for t, k in CASES]
LABELS = torch.tensor([0, -1, 2, 1])


def draw(shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def uniform(shape, size):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1) * size


def arguments(kinds, make=draw, shapes=SHAPES, second=SECOND):
    """A value of every kind that the operator is given."""
    first, *rest = kinds.split(",")
    return [make(shapes[first]), *(make(second.get(kind, shapes[kind])) for kind in rest)]


def extra(t, f):
    """The mask or the labels, where the operator takes them."""
    if t.mask:
        _, axes = t.mask
        sizes = [size if axis in axes else 1 for axis, size in enumerate(f.shape)]
        return [(draw(sizes, 7) > 0).to(f.dtype)]
    return [LABELS[: f.shape[0]].clamp_max(f.shape[1] - 1)] if t.labels else []


def apply(t, *values):
    return t.fn(*values, *extra(t, values[0]), *(3.0,) * len(t.params))


def in_parts(size, parts):
    return -(-size // parts)


def tile(r):
    return lambda n, c, h, w: (n, c * in_parts(h, r) * in_parts(w, r), r, r)


# The result's shape by the operator's name; all others keep that of the argument.
RESULT = {
    "mean_C": lambda n, c, h, w: (n, 1, h, w),
    "mean_HW": lambda n, c, *space: (n, c),
    "scale_r2": lambda n, c, h, w: (n, c, in_parts(h, 2), in_parts(w, 2)),
    "scale_r4": lambda n, c, h, w: (n, c, in_parts(h, 4), in_parts(w, 4)),
    "multi_scale": lambda n, c, h, w: (n, c, 3 * h * w),
    "pool_1": lambda n, c, h, w: (n, c, 1, 1),
    "pool_2": lambda n, c, h, w: (n, c, min(h, 2), min(w, 2)),
    "pool_4": lambda n, c, h, w: (n, c, min(h, 4), min(w, 4)),
    "local_r1": tile(1),
    "local_r2": tile(2),
    "local_r4": tile(4),
    "channel": lambda n, c, h, w: (n, c, h * w),
    "batch": lambda n, *rest: (n, math.prod(rest)),
    "transpose": lambda *sizes: (*sizes[:-2], sizes[-1], sizes[-2]),
    "mm": lambda n, *rest: (n, n),
    "gram_C": lambda k, d: (d, d),
    "bmm": lambda n, c, *space: (n, c, c),
    "gram_HW": lambda n, c, *space: (n, math.prod(space), math.prod(space)),
    "affinity": lambda n, c, *space: (n, math.prod(space), math.prod(space)),
    "pdist": lambda n, *rest: (n, n),
    "angle": lambda n, d: (n, n * n),
    "gt_binary": lambda n, k: (n, 2),
}
RESULT_OF_TWO = {
    "cross": lambda f, g: (f[0], f[1], g[1]),
    "class_gradient": lambda z, e: (z[1], e[1]),
}


def result_shape(t, values):
    shapes = [tuple(f.shape) for f in values]
    return RESULT_OF_TWO[t.name](*shapes) if len(shapes) > 1 else RESULT.get(t.name, lambda *sizes: sizes)(*shapes[0])


EXTREMES = {
    "zeros": torch.zeros,
    "ones": torch.ones,
    "constant rows": lambda shape: torch.arange(1.0, shape[0] + 1).view(-1, *[1] * (len(shape) - 1)).expand(shape).clone(),
    "large": lambda shape: uniform(shape, 1e4),
    "tiny": lambda shape: uniform(shape, 1e-8),
    "negative": lambda shape: -uniform(shape, 1.0).abs(),
    "dead channel": lambda shape: uniform(shape, 1.0).index_fill(1, torch.tensor([0]), 0.0),
}
NARROW = {
    "batch of one": {
        "maps": (1, 3, 5, 6),
        "tokens": (1, 3, 7),
        "rows": (1, 6),
        "classes": (1, 5),
        "relation": (1, 1),
        "columns": (6, 1),
    },
    "single channel": {
        "maps": (4, 1, 5, 6),
        "tokens": (4, 1, 7),
        "rows": (4, 1),
        "classes": (4, 1),
        "relation": (4, 4),
        "columns": (1, 4),
    },
    "1x1 maps": {
        "maps": (4, 3, 1, 1),
        "tokens": (4, 3, 1),
        "rows": (4, 3),
        "classes": (4, 2),
        "relation": (4, 4),
        "columns": (3, 4),
    },
}


def assert_contract(t, kinds, values):
    for f in values:
        f.requires_grad_()
    out = apply(t, *values)
    assert out.shape == result_shape(t, values)
    assert out.dim() == AXES[t.kinds[kinds]]
    assert out.dtype == values[0].dtype
    assert out.isfinite().all(), "value"
    (out * draw(out.shape, 5, torch.float32)).sum().backward()
    assert all(f.grad.isfinite().all() for f in values), "gradient"


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize(("t", "kinds"), CASES, ids=IDS)
def test_extreme_values_give_finite_values_and_gradients(t, kinds, extreme):
    assert_contract(t, kinds, arguments(kinds, EXTREMES[extreme]))


@pytest.mark.parametrize("shapes", NARROW)
@pytest.mark.parametrize(("t", "kinds"), CASES, ids=IDS)
def test_narrow_shapes_give_finite_values_and_gradients(t, kinds, shapes):
    for make in (torch.zeros, lambda shape: uniform(shape, 1.0)):
        assert_contract(t, kinds, arguments(kinds, make, NARROW[shapes], {}))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16], ids=str
)  # what autocast leaves alone in a network, and the rest
@pytest.mark.parametrize(("t", "kinds"), CASES, ids=IDS)
def test_autocast_gives_finite_values_and_gradients(t, kinds, dtype):
    for extreme, make in EXTREMES.items():
        values = [f.to(dtype).requires_grad_() for f in arguments(kinds, make)]
        with torch.autocast("cpu", torch.bfloat16):
            out = apply(t, *values)
        assert out.shape == result_shape(t, values)
        assert out.isfinite().all(), extreme
        (out * draw(out.shape, 5, torch.float32)).sum().backward()
        assert all(f.grad.isfinite().all() for f in values), extreme


@pytest.mark.parametrize(("t", "kinds"), CASES, ids=IDS)
def test_autocast_changes_a_value_by_little(t, kinds):
    values = [f.float() for f in arguments(kinds)]
    with torch.autocast("cpu", torch.bfloat16):
        out = apply(t, *values)
    expected = apply(t, *values)
    assert (out - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize(("t", "kinds"), CASES, ids=IDS)
def test_ordinary_values_pass_a_gradient(t, kinds):
    values = [f.requires_grad_() for f in arguments(kinds)]
    out = apply(t, *values)
    (out * draw(out.shape, 5)).sum().backward()
    assert all(f.grad.abs().sum() > 1e-3 for f in values)


@pytest.mark.parametrize(("t", "kinds"), CASES, ids=IDS)
def test_what_is_not_a_number_is_not_hidden(t, kinds):
    for place in range(len(kinds.split(","))):
        values = arguments(kinds)
        values[place].view(-1)[0] = math.nan
        assert apply(t, *values).isnan().any()


SMALL = {"maps": (2, 2, 3, 2), "tokens": (2, 3, 2), "rows": (3, 4), "classes": (3, 4), "relation": (3, 3), "columns": (4, 3)}


@pytest.mark.parametrize(("t", "kinds"), CASES, ids=IDS)
def test_gradients_are_those_of_the_value(t, kinds):
    shapes = SMALL | ({"rows": (3, 2)} if "," in kinds else {})
    values = [f.requires_grad_() for f in arguments(kinds, lambda shape: draw(shape, 3), shapes, {"maps": (2, 3, 2, 3)})]
    assert torch.autograd.gradcheck(lambda *taps: apply(t, *taps), values)


@pytest.mark.parametrize(("t", "kinds"), CASES, ids=IDS)
def test_memory_layout_does_not_matter(t, kinds):
    values = arguments(kinds)
    others = [f.transpose(1, -1).contiguous().transpose(1, -1) if f.dim() > 2 else f.t().contiguous().t() for f in values]
    assert not any(f.is_contiguous() for f in others)
    torch.testing.assert_close(apply(t, *others), apply(t, *values))


@pytest.mark.parametrize("t", [t for t in TRANSFORMS.values() if {"maps", "tokens"} <= set(t.kinds)], ids=lambda t: t.name)
def test_maps_and_their_tokens_are_treated_alike(t):
    f = draw(SHAPES["maps"])
    masks = extra(t, f)
    maps, tokens = (
        t.fn(f, *masks, *(3.0,) * len(t.params)),
        t.fn(f.flatten(2), *(m.flatten(2) for m in masks), *(3.0,) * len(t.params)),
    )
    torch.testing.assert_close(maps.flatten(2) if maps.dim() == 4 else maps, tokens)


@pytest.mark.parametrize("t", [t for t in TRANSFORMS.values() if {"rows", "classes"} <= set(t.kinds)], ids=lambda t: t.name)
def test_rows_and_classes_are_treated_alike(t):
    assert t.kinds["rows"] == t.kinds["classes"].replace("classes", "rows")


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


def channelwise(fn):
    """`fn` applied to all values of a channel, of every sample and position."""
    return lambda f: torch.stack([fn(channel) for channel in f.unbind(1)], 1)


def above_the_mean_of_the_negative(f):
    return f.clamp_min(f[f < 0].mean())


def gram_of_samples(f):
    return torch.stack([torch.stack([(a * b).sum() for b in f]) for a in f])


def gram_of_channels(f):
    space = f[0, 0].numel()
    return torch.stack([torch.stack([torch.stack([(a * b).sum() / space for b in one]) for a in one]) for one in f])


def of_positions(value):
    """Every pair of the positions of every sample, in rows."""

    def expected(f):
        positions = [one.reshape(one.shape[0], -1).T for one in f]
        return torch.stack([torch.stack([torch.stack([value(a, b) for b in one]) for a in one]) for one in positions])

    return expected


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


def windows(size, step):
    """Borders of windows of one length, the last one cut."""
    return [(at, min(at + step, size)) for at in range(0, size, step)]


def adaptive_windows(size, parts):
    """Borders of so many overlapping windows, as PyTorch defines them."""
    return [(math.floor(i * size / parts), math.ceil((i + 1) * size / parts)) for i in range(parts)]


def pooled(f, rows, columns, pick):
    return torch.stack([torch.stack([pick(f[:, :, a:b, c:d].flatten(2)) for c, d in columns], 2) for a, b in rows], 2)


def greatest(f):
    return f.amax(2)


def max_pool(step):
    return lambda f: pooled(f, windows(f.shape[2], step), windows(f.shape[3], step), greatest)


def average_pool(grid):
    def expected(f):
        rows, columns = (adaptive_windows(size, min(size, grid)) for size in f.shape[2:])
        return pooled(f, rows, columns, lambda window: window.mean(2))

    return expected


def three_scales(f):
    spread = []
    for step in (1, 2, 4):
        pool = max_pool(step)(f)
        spread += [pool[:, :, y // step, x // step] for y in range(f.shape[2]) for x in range(f.shape[3])]
    return torch.stack(spread, 2)


def tiles(r):
    def expected(f):
        n, c, h, w = f.shape
        down, right = in_parts(h, r), in_parts(w, r)
        out = torch.zeros(n, c * down * right, r, r, dtype=f.dtype)
        for j in range(c):
            for y in range(h):
                for x in range(w):
                    out[:, (j * down + y // r) * right + x // r, y % r, x % r] = f[:, j, y, x]
        return out

    return expected


def flow(f, g):
    size = [min(p, q) for p, q in zip(f.shape[2:], g.shape[2:], strict=True)]
    f, g = (pooled(x, *map(adaptive_windows, x.shape[2:], size), greatest) for x in (f, g))
    return torch.stack(
        [torch.stack([(f[:, i] * g[:, j]).mean((1, 2)) for j in range(g.shape[1])], 1) for i in range(f.shape[1])], 1
    )


def distances_of_samples(f):
    rows = [one.flatten().tolist() for one in f]
    return torch.tensor([[math.dist(a, b) for b in rows] for a in rows], dtype=f.dtype)


def angles_of_samples(f):
    n, rows = len(f), f.tolist()
    out = torch.zeros(n, n, n, dtype=f.dtype)
    for i, vertex in enumerate(rows):
        for j, one in enumerate(rows):
            for k, two in enumerate(rows):
                if i not in (j, k):
                    dot = sum((a - v) * (b - v) for a, b, v in zip(one, two, vertex, strict=True))
                    out[i, j, k] = dot / math.dist(one, vertex) / math.dist(two, vertex)
    return out.flatten(1)


def without_the_true_class(f, labels):
    out = f.clone()
    for row, y in zip(out, labels.tolist(), strict=True):
        if y >= 0:
            row[y] -= 1000
    return out


def true_class_and_others(f, labels):
    pairs = []
    for row, y in zip(f.tolist(), labels.tolist(), strict=True):
        others = [x for k, x in enumerate(row) if k != y]
        pairs.append((row[y], math.log(sum(map(math.exp, others)))) if y >= 0 else (0, 0))
    return torch.tensor(pairs, dtype=f.dtype)


def gradient_of_the_classifier(z, e, labels):
    weight = torch.zeros(z.shape[1], e.shape[1], dtype=z.dtype, requires_grad=True)
    loss = F.cross_entropy(z + e @ weight.T, labels, ignore_index=-1, reduction="sum") / len(z)
    return torch.autograd.grad(loss, weight)[0]


# Written with the library or with loops, from the published table.
EXPECTED = {
    "no": lambda f: f,
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
    "norm_all": lambda f: f / math.sqrt(sum(x * x for x in f.flatten().tolist())),
    "sumnorm_C": lambda f: F.normalize(f, p=1, dim=1),
    "meannorm": lambda f: f / f[f > 0].mean(),
    "softmax_C": lambda f: torch.softmax(f, 1),
    "softmax_N": lambda f: torch.softmax(f, 0),
    "softmax_HW": over_space(lambda f: torch.softmax(f, 2)),
    "logsoftmax_C": lambda f: torch.softmax(f, 1).log(),
    "logsoftmax_N": lambda f: torch.softmax(f, 0).log(),
    "logsoftmax_HW": over_space(lambda f: torch.softmax(f, 2).log()),
    "batchnorm": fresh_batchnorm,
    "min_max": lambda f: (f - min(f.flatten().tolist())) / (max(f.flatten().tolist()) - min(f.flatten().tolist())),
    "centre_C": lambda f: torch.stack([one - sum(one) / len(one) for one in f]),
    "centre_N": lambda f: f - sum(f) / len(f),
    "zscore_C": lambda f: torch.stack([(one - one.mean(0)) / (one.var(0) + 1e-6).sqrt() for one in f]),
    "margin": channelwise(above_the_mean_of_the_negative),
    "mean_C": lambda f: torch.stack([sum(one)[None] / len(one) for one in f]),
    "mean_HW": lambda f: torch.stack([torch.stack([channel.mean() for channel in one]) for one in f]),
    "scale_r1": lambda f: F.max_pool2d(f, 1),
    "scale_r2": max_pool(2),
    "scale_r4": max_pool(4),
    "multi_scale": three_scales,
    "pool_1": average_pool(1),
    "pool_2": average_pool(2),
    "pool_4": average_pool(4),
    "local_r1": tiles(1),
    "local_r2": tiles(2),
    "local_r4": tiles(4),
    "channel": lambda f: torch.stack([torch.stack([channel.reshape(-1) for channel in one]) for one in f]),
    "batch": lambda f: torch.stack([torch.cat([channel.reshape(-1) for channel in one]) for one in f]),
    "transpose": lambda f: torch.stack(f.unbind(-2), -1),
    "satt": spatial_attention,
    "natt": lambda f: len(f) * torch.softmax(f / 0.5, 0),
    "catt": channel_attention,
    "drop": lambda f, mask: torch.where(mask.expand_as(f) > 0, f / 0.9, 0),
    "mask": lambda f, mask: torch.where(mask.expand_as(f) > 0, f, 0),
    "mm": gram_of_samples,
    "gram_C": lambda f: torch.einsum("kc,kd->cd", f, f),
    "bmm": gram_of_channels,
    "gram_HW": of_positions(lambda a, b: (a * b).mean()),
    "affinity": of_positions(lambda a, b: F.cosine_similarity(a, b, 0)),
    "cross": flow,
    "pdist": distances_of_samples,
    "angle": angles_of_samples,
    "gt_drop": without_the_true_class,
    "gt_binary": true_class_and_others,
    "class_gradient": gradient_of_the_classifier,
}


def test_every_transform_has_an_expected_formula():
    assert set(EXPECTED) == set(TRANSFORMS)


@pytest.mark.parametrize(("t", "kinds"), CASES, ids=IDS)
def test_values_are_those_of_the_library_or_of_a_loop(t, kinds):
    values = arguments(kinds, lambda shape: draw(shape, len(shape)))
    out = apply(t, *values)
    expected = EXPECTED[t.name](*values, *extra(t, values[0]))
    assert out.shape == expected.shape
    torch.testing.assert_close(out, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("shape", [(2, 3, 4, 8), (2, 3, 1, 9), (2, 1, 3, 2)])
@pytest.mark.parametrize("name", [name for name in EXPECTED if name.startswith(("scale_r", "multi_scale", "pool", "local"))])
def test_pools_and_tiles_of_other_sizes_are_those_of_a_loop(name, shape):
    f = draw(shape)
    torch.testing.assert_close(TRANSFORMS[name].fn(f), EXPECTED[name](f))


def test_keeping_the_shape_is_what_operators_do_that_say_so():
    changes = set()
    for t, kinds in CASES:
        for shapes in (SHAPES, *NARROW.values()):
            values = arguments(kinds, draw, shapes)
            if t.keeps_shape:
                assert apply(t, *values).shape == values[0].shape, t.name
                assert t.kinds[kinds] == kinds, t.name
            elif apply(t, *values).shape != values[0].shape:
                changes.add(t.name)
    assert changes == {t.name for t in TRANSFORMS.values() if not t.keeps_shape} - {"scale_r1"}  # which is 1 of the scales


@pytest.mark.parametrize(("t", "kinds"), CASES, ids=IDS)
def test_a_function_depends_on_its_arguments_alone_and_leaves_them_as_they_are(t, kinds):
    values = arguments(kinds)
    given = [*values, *extra(t, values[0])]
    copies = [f.clone() for f in given]
    before = torch.get_rng_state()
    out = t.fn(*given, *(3.0,) * len(t.params)).clone()
    t.fn(*[f * 100 if f.is_floating_point() else f for f in given], *(3.0,) * len(t.params))
    assert torch.equal(t.fn(*given, *(3.0,) * len(t.params)), out)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(f, copy) for f, copy in zip(given, copies, strict=True))


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


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *((name, (4, 3, 2, 2)) for name in ("norm_C", "norm_N", "norm_HW", "sumnorm_C", "affinity")),
        *((name, (4, 4)) for name in ("norm_all", "meannorm")),
    ],
)
def test_the_gradient_at_a_dead_row_is_bounded_by_the_floor(name, shape):
    f = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    TRANSFORMS[name].fn(f).sum().backward()
    assert f.grad.abs().max() <= 1.001e4


def test_the_gradient_of_an_angle_at_equal_samples_is_bounded_by_the_floor():
    f = draw((4, 3))
    f[1] = f[0]
    out = TRANSFORMS["angle"].fn(f.requires_grad_())
    out.sum().backward()
    assert f.grad.abs().max() < 1e6


def test_the_smallest_distance_of_samples_has_no_infinite_slope():
    f = draw((4, 3))
    f[1] = f[0]
    out = TRANSFORMS["pdist"].fn(f.requires_grad_())
    out.sum().backward()
    assert out.diagonal().eq(0).all()
    assert out[0, 1] == 0
    assert f.grad.abs().max() <= 2 * 4


def test_max_pools_keep_the_last_row_and_column_of_odd_maps():
    f = torch.arange(9.0).view(1, 1, 3, 3)
    assert TRANSFORMS["scale_r2"].fn(f).flatten().tolist() == [4, 5, 7, 8]
    assert TRANSFORMS["scale_r4"].fn(f).flatten().tolist() == [8]


@pytest.mark.parametrize(("size", "gap"), [((4, 4), 0), ((8, 4), 0), ((8, 12), 0), ((6, 4), 1e-3), ((5, 7), 1e-3)])
@pytest.mark.parametrize("distance", [F.l1_loss, F.mse_loss])
def test_a_mean_over_multi_scale_is_the_mean_over_three_max_pools_where_sides_divide_by_four(distance, size, gap):
    s, t = draw((2, 3, *size), 1), draw((2, 3, *size), 2)
    ancestor = sum(distance(F.max_pool2d(s, r, ceil_mode=True), F.max_pool2d(t, r, ceil_mode=True)) for r in (1, 2, 4)) / 3
    value = distance(TRANSFORMS["multi_scale"].fn(s), TRANSFORMS["multi_scale"].fn(t))
    assert (value - ancestor).abs() < 1e-12 if gap == 0 else (value - ancestor).abs() > gap


@pytest.mark.parametrize("r", [1, 2, 4])
def test_tiles_hold_every_entry_once_and_zeros_elsewhere(r):
    f = draw((2, 3, 5, 6))
    out = TRANSFORMS[f"local_r{r}"].fn(f)
    assert sorted(out[out != 0].tolist()) == sorted(f.flatten().tolist())


def test_cross_of_a_layer_with_itself_is_its_gram_matrix():
    f = draw((4, 3, 5, 6))
    torch.testing.assert_close(TRANSFORMS["cross"].fn(f, f), TRANSFORMS["bmm"].fn(f))


def test_affinity_of_a_position_with_itself_is_one():
    out = TRANSFORMS["affinity"].fn(draw((4, 3, 7)))
    torch.testing.assert_close(out.diagonal(dim1=1, dim2=2), torch.ones(4, 7, dtype=out.dtype))


def test_meannorm_of_distances_has_mean_one_off_the_diagonal():
    out = TRANSFORMS["meannorm"].fn(TRANSFORMS["pdist"].fn(draw((5, 3))))
    assert out.sum().item() == pytest.approx(5 * 4)


def test_margin_leaves_the_positive_and_bounds_the_negative():
    f = draw((4, 3, 5, 6))
    out = TRANSFORMS["margin"].fn(f)
    assert torch.equal(out[f > 0], f[f > 0])
    assert (out < 0).any()
    assert len(out[out < 0].unique()) > 3  # one bound a channel, and what lies above it
    assert (out >= f).all()


def test_margin_of_a_channel_without_negative_entries_changes_nothing():
    f = draw((4, 3, 5, 6)).abs()
    assert torch.equal(TRANSFORMS["margin"].fn(f), f)


def test_the_softmax_without_the_true_class_is_that_of_the_others():
    f = draw((4, 5))
    p = torch.softmax(TRANSFORMS["gt_drop"].fn(f, LABELS), 1)
    for row, probabilities, y in zip(f, p, LABELS.tolist(), strict=True):
        others = [k for k in range(5) if k != y]
        torch.testing.assert_close(probabilities[others], torch.softmax(row[others], 0))
    assert p[0, 0] == p[2, 2] == p[3, 1] == 0


def test_the_softmax_of_the_binary_logits_is_the_true_classs_probability_and_its_complement():
    f = draw((4, 5))
    pair = torch.softmax(TRANSFORMS["gt_binary"].fn(f, LABELS), 1)
    p = torch.softmax(f, 1)
    for i, y in ((0, 0), (2, 2), (3, 1)):
        torch.testing.assert_close(pair[i], torch.stack([p[i, y], 1 - p[i, y]]))
    assert pair[1].tolist() == [0.5, 0.5]


def test_the_class_gradient_is_that_of_the_cross_entropy_for_the_classifiers_weight():
    e, weight, bias = draw((4, 6), 1), draw((5, 6), 2).requires_grad_(), draw((5,), 3)
    z = e @ weight.T + bias
    labels = torch.tensor([4, 0, 2, 2])
    (expected,) = torch.autograd.grad(F.cross_entropy(z, labels), weight, retain_graph=True)
    torch.testing.assert_close(TRANSFORMS["class_gradient"].fn(z, e, labels), expected)


WITH_LABELS = [c for c in CASES if c[0].labels]


@pytest.mark.parametrize(("t", "kinds"), WITH_LABELS, ids=lambda x: getattr(x, "name", x))
def test_a_sample_without_a_label_is_not_told_from_another_one(t, kinds):
    values = [f.requires_grad_() for f in arguments(kinds)]
    unknown = torch.full((4,), -1)
    out = t.fn(*values, unknown)
    out.square().sum().backward()
    if t.name == "gt_drop":
        assert torch.equal(out, values[0])
    else:
        assert out.eq(0).all()
        assert all(f.grad.eq(0).all() for f in values)
    some = t.fn(*values, LABELS)
    order = torch.tensor([0, 1, 3, 2])
    if t.name == "class_gradient":
        torch.testing.assert_close(t.fn(*(f[order] for f in values), LABELS[order]), some)
    else:
        assert torch.equal(some[1], out[1])
        assert torch.equal(t.fn(values[0][order], LABELS[order]), some[order])


@pytest.mark.parametrize(("t", "kinds"), WITH_LABELS, ids=lambda x: getattr(x, "name", x))
def test_swapping_samples_without_labels_swaps_their_values_alone(t, kinds):
    labels = torch.tensor([0, -1, 2, -1])
    order = torch.tensor([0, 3, 2, 1])
    values = arguments(kinds)
    out, swapped = t.fn(*values, labels), t.fn(*(f[order] for f in values), labels)
    torch.testing.assert_close(swapped, out if t.name == "class_gradient" else out[order])


@pytest.mark.parametrize("name", ["drop", "mask"])
def test_masks_act_alike_on_student_and_teacher_and_pass_no_gradient_where_they_hide(name):
    f = draw((4, 3, 5, 6)).requires_grad_()
    (mask,) = extra(TRANSFORMS[name], f)
    out = TRANSFORMS[name].fn(f, mask)
    out.sum().backward()
    hidden = mask.expand_as(f) == 0
    assert out[hidden].eq(0).all()
    assert f.grad[hidden].eq(0).all()
    assert f.grad[~hidden].gt(0).all()


def test_only_drop_and_mask_are_random_and_only_three_read_labels():
    masks = {t.name: t.mask for t in TRANSFORMS.values() if t.mask}
    assert masks == {"drop": (0.9, (0, 1)), "mask": (0.35, (0, 2, 3))}
    assert {t.name for t in TRANSFORMS.values() if t.labels} == {"gt_drop", "gt_binary", "class_gradient"}


def test_the_kinds_are_known_and_those_of_the_taps_of_a_network():
    assert set(SHAPES) == set(KINDS)
    for t in TRANSFORMS.values():
        assert {kind for kinds in t.kinds for kind in kinds.split(",")} | set(t.kinds.values()) <= set(KINDS), t.name
    taps = make_taps(0)
    for position in taps.positions():
        if position != "teacher_head":
            assert read_tap(taps, position).dim() == AXES[POSITIONS[position]], position
