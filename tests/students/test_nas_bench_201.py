import random
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import nn

from evokd.errors import EvokdError
from evokd.students import nas_bench_201 as language
from evokd.students.cost import measure

SPACE = language.space()
SMALL = language.space(channels=4, cells=1)
SAME_CELL = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|"
DANGLING = "|nor_conv_3x3~0|+|nor_conv_1x1~0|none~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"  # 0<1 leads nowhere
FROM_NOTHING = "|none~0|+|nor_conv_1x1~0|nor_conv_3x3~1|+|none~0|nor_conv_1x1~1|skip_connect~2|"  # nothing reaches node 1
DEAD = "|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|nor_conv_3x3~2|"


@pytest.fixture(scope="module")
def published(shared_data):
    return dict(np.load(shared_data / "nasbench201" / "nb201.npz"))


@pytest.fixture(scope="module")
def cells():
    """All genomes in the order of the benchmark's tables."""
    return sorted(SPACE.genomes(), key=language.index_of)


def drawn(count, seed=0):
    draw = random.Random(seed)
    return [{slot: draw.choice(language.OPS) for slot in language.EDGES} for _ in range(count)]


def build(text, seed=0, space=SMALL, classes=5):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return space.build(space.parse(text), classes)


def test_operators_and_edges_come_in_the_order_of_the_benchmark(published):
    assert tuple(published["op_names"]) == language.OPS
    assert [tuple(ends) for ends in published["edges"]] == list(language.EDGES.values())


def test_rows_are_those_of_the_published_tables(published, cells):
    rows = [[language.OPS.index(op) for op in genome.values()] for genome in cells]
    assert np.array_equal(rows, published["ops"])
    assert language.write(cells[123]) == "|avg_pool_3x3~0|+|avg_pool_3x3~0|nor_conv_1x1~1|+|none~0|avg_pool_3x3~1|nor_conv_3x3~2|"


@pytest.mark.parametrize("classes", [10, 100])
def test_costs_equal_the_published_ones_of_all_cells(published, cells, classes):
    costs = [SPACE.cost(genome, classes, 3, 32) for genome in cells]
    assert np.array_equal([cost.parameters for cost in costs], published[f"params_cifar{classes}"])
    flops = np.array([cost.macs + classes for cost in costs])  # the benchmark counts the classifier's bias
    assert np.array_equal(flops.astype(np.float32), published[f"flops_cifar{classes}"])


def test_live_parameters_rank_cells_better_than_all_parameters_do(published, cells):
    costs = [SPACE.cost(genome, 100, 3, 32) for genome in cells]
    ranks = {name: spearmanr([getattr(c, name) for c in costs], published["test200_cifar100"])[0] for name in vars(costs[0])}
    assert ranks["live_parameters"] == pytest.approx(0.797, abs=5e-4)
    assert ranks["parameters"] == pytest.approx(0.728, abs=5e-4)


def test_keys_part_the_cells_into_the_6466_published_classes(published, cells):
    keys = [language.key_of(genome) for genome in cells]
    pairs = set(zip(keys, published["iso_rep"].tolist(), strict=True))
    assert len(pairs) == len(set(keys)) == len(set(published["iso_rep"])) == 6466


def test_341_cells_are_dead(cells):
    assert sum(map(language.is_dead, cells)) == 341


def test_live_edges_are_those_on_a_path():
    for genome in drawn(300):
        inner = [(0, *middle, 3) for middle in ([], [1], [2], [1, 2])]
        paths = [[f"{a}<{b}" for a, b in pairwise(path)] for path in inner]
        on_path = {slot for path in paths if all(genome[slot] != "none" for slot in path) for slot in path}
        assert set(language.live_edges(genome)) == on_path


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.tuples(*[st.sampled_from(language.OPS)] * 6))
def test_architecture_strings_are_read_back(ops):
    genome = dict(zip(language.EDGES, ops, strict=True))
    assert language.read(language.write(genome)) == genome


@pytest.mark.parametrize(
    "text", ["", SAME_CELL[:-1], SAME_CELL + "|", SAME_CELL.replace("~2", "~1"), SAME_CELL.replace("skip", "skop"), "|" * 10_000]
)
def test_other_strings_are_refused(text):
    with pytest.raises(EvokdError, match="architecture"):
        SPACE.parse(text)


@pytest.mark.parametrize("seed", range(24))
def test_closed_form_equals_what_a_forward_counts(seed):
    draw = random.Random(seed)
    space = language.space(draw.choice([3, 8, 16]), draw.choice([1, 2, 5]))
    classes, channels, side = draw.choice([(10, 3, 32), (7, 1, 28), (100, 3, 16), (2, 2, 15)])
    (genome,) = drawn(1, seed)
    cost = space.cost(genome, classes, channels, side)
    network = space.build(space.tree(genome), classes, channels)
    assert measure(network, (2, channels, side, side)) == (cost.parameters, cost.macs)


def test_depth_is_that_of_the_longest_path():
    three, dead = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|none~1|nor_conv_3x3~2|", DEAD
    skip = three.replace("nor_conv_1x1", "avg_pool_3x3")
    depths = [SPACE.cost(SPACE.read(text), 10, 3, 32).depth for text in (three, skip, dead)]
    assert depths == [6 + 15 * 3, 6 + 15 * 2, 6]


@pytest.mark.parametrize("text", [SAME_CELL, DANGLING, FROM_NOTHING, DEAD])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_taps_have_the_shapes_of_three_stages(text, layout):
    images = torch.randn(3, 3, 15, 17).to(memory_format=layout)
    network = build(text).to(memory_format=layout)
    taps = network(images)
    assert taps.logits.shape == (3, 5)
    assert [tuple(f.shape) for f in taps.features] == [(3, 4, 15, 17), (3, 8, 8, 9), (3, 16, 4, 5)]
    assert torch.allclose(taps.embedding, taps.features[-1].mean((2, 3)), atol=1e-6)
    assert torch.allclose(taps.logits, nn.functional.linear(taps.embedding, *taps.head), atol=1e-6)
    assert (taps.features[-1] >= 0).all()


def test_layouts_give_the_same_numbers():
    images = torch.randn(4, 3, 16, 16)
    plain, last = build(SAME_CELL), build(SAME_CELL).to(memory_format=torch.channels_last)
    assert torch.allclose(plain(images).logits, last(images.to(memory_format=torch.channels_last)).logits, atol=1e-4)


def test_a_seed_gives_one_network():
    first, again, other = (build(SAME_CELL, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


@pytest.mark.parametrize("text", [SAME_CELL, DANGLING, FROM_NOTHING, DEAD, *map(language.write, drawn(12, seed=5))])
def test_gradient_reaches_the_weights_of_live_edges_alone(text):
    genome = SMALL.read(text)
    network = build(text)
    network(torch.randn(4, 3, 16, 16)).logits.square().sum().backward()
    live = language.live_edges(genome)
    for cell in (module for module in network.modules() if isinstance(module, language.Cell)):
        for slot, edge in cell.edges.items():
            for conv in (module for module in edge.modules() if isinstance(module, nn.Conv2d)):
                moved = conv.weight.grad is not None and bool(conv.weight.grad.any())
                assert moved == (slot in live), slot


def reference_cell(genome, edges, x):
    """The cell as a sum over all paths' operators, node by node, with zeros where the benchmark has zeros."""
    nodes = [x]
    for target in (1, 2, 3):
        total = torch.zeros_like(x)
        for source in range(target):
            op, slot = genome[f"{source}<{target}"], f"{source}<{target}"
            if op == "skip_connect":
                total = total + nodes[source]
            elif op == "avg_pool_3x3":
                ones = torch.ones_like(x)
                total = total + sum_of_windows(nodes[source]) / sum_of_windows(ones)
            elif op != "none":
                _, conv, norm = edges[slot]
                z = nn.functional.conv2d(nodes[source].clamp(min=0), conv.weight, padding=conv.kernel_size[0] // 2)
                mean, var = z.mean((0, 2, 3), keepdim=True), z.var((0, 2, 3), keepdim=True, unbiased=False)
                total = total + (z - mean) / (var + norm.eps).sqrt()
        nodes.append(total)
    return nodes[3]


def sum_of_windows(x):
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    return sum(padded[:, :, i : i + x.shape[2], j : j + x.shape[3]] for i, j in product(range(3), repeat=2))


@pytest.mark.parametrize("seed", range(8))
def test_cells_compute_what_the_benchmark_defines(seed):
    (genome,) = drawn(1, seed)
    cell, x = language.Cell(genome, 4), torch.randn(5, 4, 7, 7)
    assert torch.allclose(cell(x), reference_cell(genome, cell.edges, x), atol=1e-4)


def test_reductions_add_a_pooled_projection_to_two_convolutions():
    block, x = language.Reduction(4).eval(), torch.randn(2, 4, 8, 8)
    pooled = x.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    shortcut = torch.einsum("nchw,kc->nkhw", pooled, block.shortcut[1].weight[:, :, 0, 0])
    assert torch.allclose(block(x), shortcut + block.conv2(block.conv1(x)), atol=1e-5)
    assert block.conv1[1].stride == (2, 2)
    assert block(x).shape == (2, 8, 4, 4)


def test_cells_of_one_key_compute_the_same_from_the_same_weights():
    """The convolution after an identity may as well start at the input."""
    first = SMALL.read("|skip_connect~0|+|nor_conv_1x1~0|none~1|+|none~0|nor_conv_3x3~1|avg_pool_3x3~2|")
    second = first | {"0<3": "nor_conv_3x3", "1<3": "none"}
    assert language.key_of(first) == language.key_of(second)
    cell, twin = language.Cell(first, 4), language.Cell(second, 4)
    twin.edges["0<3"], twin.edges["0<2"] = cell.edges["1<3"], cell.edges["0<2"]
    x = torch.randn(3, 4, 6, 6)
    assert torch.allclose(cell(x), twin(x), atol=1e-5)


def test_diagrams_bracket_what_is_on_no_path():
    assert SMALL.diagram(SMALL.read(DANGLING)).splitlines()[1:] == [
        "  node 1 = [nor_conv_3x3(0)]",
        "  node 2 = nor_conv_1x1(0)",
        "  node 3 = skip_connect(0) + nor_conv_3x3(2)",
    ]
