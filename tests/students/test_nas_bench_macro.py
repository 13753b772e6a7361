import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from evokd.errors import EvokdError
from evokd.students import nas_bench_macro as language
from evokd.students.cost import measure

SPACE = language.space()
SMALL = language.space(channels=4)


@pytest.fixture(scope="module")
def published(shared_data):
    return dict(np.load(shared_data / "nasbench_macro" / "nb_macro_cifar10.npz"))


@pytest.fixture(scope="module")
def genomes(published):
    return [SPACE.read("".join(map(str, digits))) for digits in published["choice"].tolist()]


def build(text, seed=0, classes=5):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SMALL.build(SMALL.parse(text), classes)


def test_costs_equal_the_published_ones_of_all_networks(published, genomes):
    costs = [SPACE.cost(genome, 10, 3, 32) for genome in genomes]
    assert np.array_equal([cost.parameters for cost in costs], published["params"])
    assert np.array_equal([cost.macs for cost in costs], published["flops"])


def test_networks_of_one_key_have_one_row_of_figures(published, genomes):
    keys = [language.key_of(genome) for genome in genomes]
    figures = np.column_stack([published["test_acc"], published["params"], published["flops"]])
    pairs = set(zip(keys, map(tuple, figures.tolist()), strict=True))
    assert len(pairs) == len(set(keys)) == 3969


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.text("012", min_size=8, max_size=8))
def test_digits_are_read_back(text):
    assert language.write(language.read(text)) == text


@pytest.mark.parametrize("text", ["", "0120120", "012012012", "01201203", "0120120²", "0120120 "])
def test_other_texts_are_refused(text):
    with pytest.raises(EvokdError, match="8 digits from 0 to 2"):
        SPACE.parse(text)


@pytest.mark.parametrize("seed", range(20))
def test_closed_form_equals_what_a_forward_counts(seed):
    draw = random.Random(seed)
    space, text = language.space(draw.choice([4, 8, 32])), "".join(draw.choice("012") for _ in range(8))
    classes, channels, side = draw.choice([(10, 3, 32), (7, 1, 28), (100, 3, 16), (2, 2, 15)])
    cost = space.cost(space.read(text), classes, channels, side)
    assert measure(space.build(space.parse(text), classes, channels), (2, channels, side, side)) == (cost.parameters, cost.macs)


@pytest.mark.parametrize(("text", "depth"), [("00000000", 6), ("11111111", 27), ("20100010", 3 + 3 + 3 + 1 + 3)])
def test_depth_counts_layers_with_weights(text, depth):
    assert SPACE.cost(SPACE.read(text), 10, 3, 32).depth == depth


@pytest.mark.parametrize("text", ["00000000", "12012012"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_taps_have_the_shapes_of_the_stages(text, layout):
    taps = build(text).to(memory_format=layout)(torch.randn(3, 3, 16, 20).to(memory_format=layout))
    assert [tuple(f.shape) for f in taps.features] == [(3, 8, 8, 10), (3, 16, 4, 5), (3, 1280, 2, 3)]
    assert torch.allclose(taps.logits, nn.functional.linear(taps.embedding, *taps.head), atol=1e-5)
    assert torch.allclose(taps.embedding, taps.features[-1].mean((2, 3)), atol=1e-5)


def test_a_seed_gives_one_network():
    first, again, other = (build("12012012", seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_blocks_that_keep_their_shape_are_added_to_their_input():
    network = build("11100000").eval()
    first, second = network.stages[0]
    assert (first.residual, second.residual) == (False, True)
    x = torch.randn(2, 8, 6, 6)
    assert torch.allclose(second(x) - second.convs(x), x, atol=1e-5)
    kinds = [[m.kernel_size[0], m.groups, m.stride[0]] for m in first.modules() if isinstance(m, nn.Conv2d)]
    assert kinds == [[1, 1, 1], [3, 12, 2], [1, 1, 1]]


def test_identities_after_a_stage_s_first_layer_do_nothing():
    network = build("00000000")
    assert [len(list(layer.parameters())) for stage in network.stages for layer in stage] == [3, 0, 3, 0, 0, 3, 0, 0]


def test_gradient_reaches_every_parameter():
    network = build("12012021")
    network(torch.randn(4, 3, 16, 16)).logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_diagrams_have_a_line_for_each_stage():
    assert SPACE.diagram(SPACE.read("12012012")).splitlines()[1:-1] == [
        "  → ÷2, 64 channels: mb3_k3, mb6_k5",
        "  → ÷4, 128 channels: identity, mb3_k3, mb6_k5",
        "  → ÷8, 256 channels: identity, mb3_k3, mb6_k5",
    ]
