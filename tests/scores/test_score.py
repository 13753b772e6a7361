import math

import pytest
import torch
from torch import nn

from evokd.errors import EvokdError
from evokd.losses.taps import Taps
from evokd.models.resnet import ResNet
from evokd.scores import SCORES, Score, score_all, view_teacher
from evokd.students import nas_bench_201, resnet_s0
from tests.scores.networks import Bare, Tiny, batch, generator, value

TRIVIAL = ("params", "live_params", "macs", "flops", "depth")
ONE_PASS = [name for name, s in SCORES.items() if s.needs_teacher] + [
    *("nwot", "swap", "reg_swap", "az_expressivity", "az_progressivity", "map_cosine", "embedding_cosine", "logit_spread"),
]


def state(network):
    """All that a score might disturb."""
    return {
        "values": {k: v.clone() for k, v in network.state_dict().items()},
        "tensors": {k: id(v) for k, v in [*network.named_parameters(), *network.named_buffers()]},
        "modes": [m.training for m in network.modules()],
        "wishes": [p.requires_grad for p in network.parameters()],
        "gradients": [p.grad for p in network.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in network.modules()],
        "strides": [p.stride() for p in network.parameters()],
    }


def assert_same(before, after):
    for key, was in before.pop("values").items():
        assert torch.equal(was, after["values"][key]), key
    after.pop("values")
    assert before == after


@pytest.fixture(scope="module")
def everything():
    """All scores of one student at once."""
    return score_all(list(SCORES), Tiny(), Tiny(seed=1), *batch(), generator(3))


def test_the_contract():
    for name, score in SCORES.items():
        assert isinstance(score, Score), name
        assert score.source, name
        assert score.worst == (-math.inf if score.higher_is_better else math.inf)


@pytest.mark.parametrize("name", SCORES)
def test_a_score_gives_a_finite_number_and_the_same_alone_as_among_others(name, everything):
    alone = value(name, Tiny(), Tiny(seed=1), seed=3)
    assert type(alone) is float
    assert math.isfinite(alone)
    assert alone == everything[name]


@pytest.mark.parametrize("name", SCORES)
def test_a_score_leaves_both_networks_and_the_global_generator_as_they_were(name):
    student, teacher = Tiny(dropout=0.5), Tiny(seed=1)
    student.stages[0].eval()
    student.fc.weight.requires_grad_(False)
    teacher.eval().requires_grad_(False)
    images, labels = batch()
    before, other, given = state(student), state(teacher), images.clone()
    drawn = torch.random.get_rng_state()
    first = SCORES[name].fn(student, teacher, images, labels, generator())
    assert_same(before, state(student))
    assert_same(other, state(teacher))
    assert torch.equal(drawn, torch.random.get_rng_state())
    assert torch.equal(images, given)
    assert not images.requires_grad
    assert SCORES[name].fn(student, teacher, images, labels, generator()) == first  # dropout included


def test_what_fails_midway_leaves_the_network_as_it_was():
    class Breaks(Tiny):
        def forward(self, x):
            super().forward(x)
            raise RuntimeError("midway")

    student = Breaks().eval()
    before = state(student)
    for name in ("nwot", "grad_norm", "az_trainability", "zen"):
        with pytest.raises(RuntimeError, match="midway"):
            value(name, student)
    assert_same(before, state(student))


def test_scores_of_activations_and_distances_share_one_forward():
    student, (images, labels) = Tiny(), batch()
    view = view_teacher(Tiny(seed=1), images, labels)
    score_all(ONE_PASS, student, view, images, labels, generator())
    assert student.calls == 1


def test_scores_of_one_gradient_share_one_backward():
    student = Tiny()
    score_all(["grad_norm", "snip", "fisher"], student, None, *batch(), generator())
    assert student.calls == 2  # one to see whether it is alive


def test_a_view_serves_many_students_and_keeps_its_statistics():
    images, labels = batch()
    teacher = Tiny(seed=1)
    view = view_teacher(teacher, images, labels)
    for seed in (2, 3):
        by_view = score_all(["diswot", "diswot_paper", "kd"], Tiny(seed=seed), view, images, labels)
        assert by_view == score_all(["diswot", "diswot_paper", "kd"], Tiny(seed=seed), teacher, images, labels)
    assert teacher.calls == 3  # once for the view
    asked = []

    def statistic(taps, y):
        asked.append(taps)
        return len(y)

    assert [view.once(statistic), view.once(statistic), len(asked)] == [len(labels), len(labels), 1]


class Spread(nn.Module):
    """Logits of a given shape of trouble."""

    def __init__(self, kind):
        super().__init__()
        self.body, self.kind = Tiny(), kind

    def forward(self, x):
        taps = self.body(x)
        if self.kind == "constant features":
            flat = taps.features[-1] * 0
            return Taps(self.body.fc(flat.mean((2, 3))), flat.mean((2, 3)), (*taps.features[:-1], flat), head=taps.head)
        factor = {"constant logits": 0.0, "not a number": math.nan, "infinite": math.inf}[self.kind]
        return Taps(taps.logits * factor, taps.embedding, taps.features, head=taps.head)


@pytest.mark.parametrize("kind", ["constant features", "constant logits", "not a number", "infinite"])
def test_dead_networks_get_the_worst_value(kind):
    values = score_all(list(SCORES), Spread(kind), Tiny(seed=1), *batch(), generator())
    assert all(values[name] == SCORES[name].worst for name in SCORES if name not in TRIVIAL)
    assert all(math.isfinite(values[name]) for name in TRIVIAL)


def test_a_cell_without_a_path_is_dead():
    space = nas_bench_201.space(channels=4, cells=1)
    dead = space.build(space.parse("|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|nor_conv_3x3~2|"), 5)
    images, labels = batch(channels=3)
    names = [n for n in SCORES if n not in TRIVIAL and not SCORES[n].needs_teacher]
    values = score_all(names, dead, None, images.float(), labels)
    assert values == {name: SCORES[name].worst for name in names}


@pytest.mark.parametrize("space", [resnet_s0.space(), nas_bench_201.space(channels=4, cells=1)], ids=lambda s: s.name)
def test_every_score_runs_on_our_students(space):
    text = {"resnet_s0": "111"}.get(
        space.name, "|nor_conv_3x3~0|+|avg_pool_3x3~0|nor_conv_1x1~1|+|skip_connect~0|nor_conv_3x3~1|none~2|"
    )
    student = space.build(space.parse(text), 5)
    images, labels = batch(side=16)
    values = score_all(list(SCORES), student, ResNet(8, 4, 5), images.float(), labels, generator())
    assert all(math.isfinite(v) for v in values.values()), values


def test_networks_that_give_logits_alone_are_tapped():
    images, labels = batch()
    names = [n for n in ONE_PASS if not n.startswith(("diswot_relation", "sp", "nst", "at", "rkd"))]
    given = score_all(names, Tiny(), Tiny(seed=1), images, labels, generator())
    found = score_all(names, Bare(), Bare(seed=1), images, labels, generator())
    assert found == pytest.approx(given)


def test_mistakes_are_said():
    images, labels = batch()
    with pytest.raises(EvokdError, match="nwot"):
        score_all(["nwott"], Tiny(), None, images, labels)
    with pytest.raises(EvokdError, match="teacher"):
        score_all(["kd"], Tiny(), None, images, labels)
    with pytest.raises(EvokdError, match="this batch"):
        score_all(["kd"], Tiny(), view_teacher(Tiny(), *batch(4)), images, labels)
    with pytest.raises(EvokdError, match="classes"):
        score_all(["diswot"], Tiny(), Tiny(classes=7), images, labels)
    with pytest.raises(EvokdError, match="known label"):
        score_all(["snip"], Tiny(), None, images, torch.full_like(labels, -1))
