"""The supernet against stand-alone networks, gates against their formulas, searches against a planted optimum."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evokd.data import Data, Split
from evokd.errors import EvokdError
from evokd.students import nas_bench_201, read_student_space
from evokd.students.nas_bench_201 import EDGES, OPS
from evokd.students.oneshot import (
    METHODS,
    MixedCell,
    Recipe,
    batches,
    mixed,
    optimise,
    path,
    random_path,
    read_choices,
    search,
    single_path,
    split_in,
    supernet,
)

SPACE = nas_bench_201.space(channels=4, cells=2)
CELLS = [
    "|nor_conv_3x3~0|+|nor_conv_1x1~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|none~2|",
    "|none~0|+|skip_connect~0|nor_conv_3x3~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|",
    "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|",
]
QUICK = Recipe(steps=3, batch=8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def toy_data(count=40, side=8, seed=0):
    draw = np.random.default_rng(seed)
    split = lambda n: Split(draw.integers(0, 256, (n, 3, side, side), dtype=np.uint8), draw.integers(0, 5, n))  # noqa: E731
    return Data("toy", 5, split(count), split(20), split(20), (0.5,) * 3, (0.25,) * 3, True)


def alone(network, text):
    """The stand-alone network of a cell with the supernet's weights."""
    genome = SPACE.read(text)
    student, shared = SPACE.build(SPACE.tree(genome), 5), network.state_dict()
    for name, value in student.state_dict().items():
        slot = next((slot for slot in EDGES if f"edges.{slot}." in name), None)
        theirs = name.replace(f"edges.{slot}.", f"edges.{slot}.{genome[slot]}.") if slot else name
        if theirs in shared:
            value.copy_(shared[theirs])
        else:
            assert (
                "running" in name or "tracked" in name or (slot and name.rsplit(".", 2)[1] == "2")
            )  # norms of edges keep 1 and 0
    return student


@pytest.mark.parametrize("text", CELLS)
def test_a_path_equals_the_stand_alone_network_of_the_same_weights(text):
    network = supernet(SPACE, 5, 3, 0)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=generator(1)))
        images = torch.randn(6, 3, 9, 9, generator=generator(2))
        student = alone(network, text).train()
        expected, found = student(images), network.eval()(images, path(SPACE.read(text)))
    for a, b in zip([expected.logits, *expected.features], [found.logits, *found.features], strict=True):
        assert torch.equal(a, b)
    assert found.logits.std(0).max() > 0 or text == CELLS[2]


def test_a_mixed_cell_adds_up_weighted_operators():
    cell, x = MixedCell(3), torch.randn(4, 3, 5, 5, generator=generator())
    weights = {slot: {op: 0.1 * (i + j + 1) for j, op in enumerate(OPS[1:])} for i, slot in enumerate(EDGES)}

    def edge(slot, node):
        conv = {
            op: F.conv2d(F.relu(node), cell.edges[slot][op][1].weight, padding=k // 2) for op, k in nas_bench_201.KERNELS.items()
        }
        norm = {op: F.batch_norm(y, None, None, training=True) for op, y in conv.items()}
        pooled = F.avg_pool2d(node, 3, 1, 1, count_include_pad=False)
        made = {"skip_connect": node, "avg_pool_3x3": pooled, **norm}
        return sum(weights[slot][op] * made[op] for op in OPS[1:])

    one = edge("0<1", x)
    two = edge("0<2", x) + edge("1<2", one)
    three = edge("0<3", x) + edge("1<3", one) + edge("2<3", two)
    cell.gates = weights
    assert torch.allclose(cell(x), three, atol=1e-5)


def test_the_supernet_is_the_seeds_own_and_only_of_this_language():
    before = torch.random.get_rng_state()
    first, again, other = (supernet(SPACE, 5, 3, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["stem.0.weight"], other["stem.0.weight"])
    with pytest.raises(EvokdError, match="nas_bench_201"):
        supernet(read_student_space("digits"), 10, 1, 0)


def test_darts_weighs_by_softmax():
    choices = torch.randn(6, 5, generator=generator())
    gates = mixed(choices, 0.5, Recipe(), generator())
    for row, slot in zip(choices.tolist(), EDGES, strict=True):
        total = sum(np.exp(v) for v in row)
        assert [float(gates[slot][op]) for op in OPS[1:]] == pytest.approx([np.exp(v) / total for v in row[1:]], rel=1e-5)
        assert "none" not in gates[slot]


def picked(gates):
    return [next(iter(gates[slot]), "none") for slot in EDGES]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_gdas_draws_operators_with_their_probabilities_at_any_temperature(share):
    row = torch.tensor([0.4, 0.1, 0.1, 0.15, 0.25])
    choices, draw = row.log().expand(6, 5) + 3.0, generator()
    drawn = [op for _ in range(700) for op in picked(single_path(choices, share, Recipe(), draw))]
    assert [drawn.count(op) / len(drawn) for op in OPS] == pytest.approx(row.tolist(), abs=0.03)


@pytest.mark.parametrize(("share", "heat"), [(0.0, 10.0), (0.5, 5.05), (1.0, 0.1)])
def test_gdas_has_the_gradient_of_the_gumbel_softmax(share, heat):
    choices = torch.randn(6, 5, generator=generator(), dtype=torch.float64).requires_grad_()
    gates = single_path(choices, share, Recipe(), generator(4))
    noise = -torch.empty(6, 5).exponential_(generator=generator(4)).log()
    soft = ((choices.detach() + noise) / heat).softmax(1)
    weights = [next(iter(gates[slot].values()), None) for slot in EDGES]
    assert all(w is None or float(w.detach()) == pytest.approx(1) for w in weights)
    sum(w for w in weights if w is not None).backward()
    expected = torch.zeros(6, 5, dtype=torch.float64)
    for i, (w, op) in enumerate(zip(weights, picked(gates), strict=True)):
        k = OPS.index(op)
        if w is not None:
            expected[i] = soft[i, k] * (F.one_hot(torch.tensor(k), 5) - soft[i]) / heat
    assert torch.allclose(choices.grad, expected, rtol=1e-4, atol=1e-12)


def test_random_paths_are_uniform():
    draw, choices = generator(), torch.zeros(6, 5)
    drawn = np.array([picked(random_path(choices, 0.0, Recipe(), draw)) for _ in range(1500)])
    for edge in drawn.T:
        assert [(edge == op).mean() for op in OPS] == pytest.approx([0.2] * 5, abs=0.05)


class Planted(nn.Module):
    """Only 3×3 convolutions hand on the number that tells the class; the others give as much noise."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, gates):
        made = [weight * (x[:, 0] if op == "nor_conv_3x3" else x[:, 1]) for row in gates.values() for op, weight in row.items()]
        score = sum(made, torch.zeros(len(x))) * self.scale
        return SimpleNamespace(logits=torch.stack([-score, score], 1))


def signal(seed, told=True):
    """Batches ((B,2), (B,)): a first number whose sign is the class, where it is told, and a second that is noise."""
    draw = generator(seed)
    while True:
        x = torch.randn(32, 2, generator=draw)
        yield x, (x[:, 0] > 0).long() if told else torch.randint(2, (32,), generator=draw)


def planted(method, streams, steps=150, lr=0.01):
    choices, draw = torch.zeros(6, 5).requires_grad_(), generator(5)
    recipe = Recipe(choice_lr=0.05, lr=lr, last_lr=lr)
    gates = lambda share: METHODS[method](choices, share, recipe, draw)  # noqa: E731
    optimise(Planted(), choices, gates, streams, recipe, steps, lambda line: None)
    return read_choices(choices)


@pytest.mark.parametrize("method", ["gdas", "darts"])
def test_a_planted_operator_is_found_on_every_edge(method):
    genome, probabilities = planted(method, [signal(0), signal(1)])
    assert set(genome.values()) == {"nor_conv_3x3"}
    assert all(row["nor_conv_3x3"] > 0.5 for row in probabilities.values())
    assert all(sum(row.values()) == pytest.approx(1) for row in probabilities.values())


@pytest.mark.parametrize("method", ["gdas", "darts"])
def test_choices_learn_from_the_second_stream_alone(method):
    told = planted(method, [signal(0, told=False), signal(1)], lr=1e-9)[1]
    hidden = planted(method, [signal(0), signal(1, told=False)], lr=1e-9)[1]
    gain = [np.mean([row["nor_conv_3x3"] for row in found.values()]) for found in (told, hidden)]
    assert gain[0] > 0.4
    assert gain[1] < 0.3


def test_the_training_halves_are_disjoint_labelled_and_all_there_is():
    labels = np.arange(21) % 3
    labels[5] = -1
    split = Split(np.arange(21, dtype=np.uint8).reshape(21, 1, 1, 1), labels)
    parts = split_in(split, 2, 3)
    seen = [set(part.images.ravel().tolist()) for part in parts]
    assert seen[0] | seen[1] == set(range(21)) - {5}
    assert not seen[0] & seen[1]
    assert {len(part) for part in parts} == {10}
    assert seen[0] != set(split_in(split, 2, 4)[0].images.ravel().tolist())
    with pytest.raises(EvokdError, match="at least 4 labelled"):
        split_in(split.take(np.arange(3, 6)), 1, 0)


def test_batches_are_epochs_without_replacement_normalised():
    data = replace(toy_data(count=12), flip=False)
    data.train.images[:] = np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1) * 20 + 10
    stream = batches(data, data.train, 4, 0, "cpu")
    for _ in range(2):
        drawn = [next(stream) for _ in range(3)]
        values = [x[:, 0, 4, 4] * 0.25 + 0.5 for x, _ in drawn]
        found = (torch.cat(values) * 255 - 10).div(20).round().long()
        assert sorted(found.tolist()) == list(range(12))
        assert torch.cat([y for _, y in drawn]).tolist() == data.train.labels[found.numpy()].tolist()


@pytest.mark.parametrize("method", METHODS)
def test_a_search_repeats_under_its_seed_whatever_was_drawn_before(method):
    data = toy_data()
    first = search(method, SPACE, data, QUICK, 7)
    torch.rand(3)
    again, other = (search(method, SPACE, data, QUICK, seed) for seed in (7, 8))
    assert (first.genome, first.probabilities, first.curve) == (again.genome, again.probabilities, again.curve)
    assert all(torch.equal(v, again.network.state_dict()[k]) for k, v in first.network.state_dict().items())
    assert first.curve != other.curve
    assert [step for step, _ in first.curve] == [0, 1, 2]
    assert (first.genome is None) == (method == "rsps")
    if first.genome:
        SPACE.tree(first.genome)


def test_epochs_are_of_the_half_that_trains_weights():
    assert Recipe(epochs=3, batch=8).total(20) == 6
    assert Recipe(epochs=3, batch=64).total(20) == 3
    assert Recipe(epochs=3, steps=5).total(20) == 5


def test_a_loss_that_leaves_the_finite_numbers_is_said():
    with pytest.raises(EvokdError, match="finite loss"):
        search("rsps", SPACE, toy_data(), replace(QUICK, lr=1e30, steps=12, clip=1e30), 0)
