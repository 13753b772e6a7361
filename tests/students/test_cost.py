import math
import random

import numpy as np
import pytest
import torch
from deap import base
from torch import nn

from evokd.errors import EvokdError
from evokd.genome.grow import grow_tree, random_chooser
from evokd.genome.variation import MUTATIONS, mate
from evokd.students import conv20, nas_bench_201, nas_bench_macro
from evokd.students.cost import Latency, Limits, latency, limited, measure
from tests.students.test_space import FLAT, toy

CELLS = nas_bench_201.space()
SPACES = {"nas_bench_201": CELLS, "nas_bench_macro": nas_bench_macro.space(), "conv20": conv20.space()}
TIGHT = {  # near the least of each space
    "nas_bench_201": Limits(max_params=250_000, max_macs=30e6),
    "nas_bench_macro": Limits(max_params=900_000, max_macs=30e6),
    "conv20": Limits(max_params=250_000, max_macs=20e6),
}


def slow_on_skips(genome):
    """A latency that parameters do not tell: identities are dear, and a convolution is cheap after a pool."""
    ops = list(genome.values())
    return 1.0 + 2 * ops.count("skip_connect") + ("nor_conv_3x3" in ops and "avg_pool_3x3" not in ops) * 5


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.frozen = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.Conv2d(6, 6, 1, bias=False)
        self.frozen.requires_grad_(False)
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        return self.fc(self.frozen(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize("images", [1, 3])
def test_a_forward_without_numbers_counts_what_is_computed(images):
    network = Two().train()
    parameters, macs = measure(network, (images, 4, 8, 10))
    assert parameters == (6 * 2 * 9 + 6) + (6 * 5 + 5)
    assert macs == 4 * 5 * (6 * 2 * 9) + 4 * 5 * 36 + 30
    assert network.training
    assert next(network.parameters()).device.type == "cpu"
    assert not network.conv._forward_hooks


def fits(space, limits, tree):
    cost = space.cost(space.genome(tree), 10, 3, 32)
    return cost.parameters <= limits.max_params and cost.macs <= limits.max_macs


@pytest.mark.parametrize("name", SPACES)
def test_what_grows_within_limits_meets_them(name):
    space, limits = SPACES[name], TIGHT[name]
    held, draw = limited(space, limits, 10), random.Random(0)
    choose = held.chooser(random_chooser(draw))
    count = 500 if name != "conv20" else 20
    trees = [grow_tree(space.grammar, choose) for _ in range(count)]
    assert all(fits(space, limits, tree) for tree in trees)
    assert len({space.grammar.write(tree) for tree in trees}) > count / 10
    free = [grow_tree(space.grammar, random_chooser(draw)) for _ in range(50)]
    assert not all(fits(space, limits, tree) for tree in free)


@pytest.mark.parametrize("name", SPACES)
def test_what_is_varied_within_limits_meets_them(name):
    space, limits = SPACES[name], TIGHT[name]
    held, draw = limited(space, limits, 10), random.Random(1)
    toolbox = base.Toolbox()
    toolbox.register("mate", mate, grammar=space.grammar, stream=draw)
    toolbox.decorate("mate", held.guard(draw))
    mutations = [held.guard(draw)(mutate) for mutate in MUTATIONS.values()]
    tree = grow_tree(space.grammar, held.chooser(random_chooser(draw)))
    for i in range(500 if name != "conv20" else 20):
        other = grow_tree(space.grammar, held.chooser(random_chooser(draw)))
        (tree,) = mutations[i % len(mutations)](tree, space.grammar, draw)
        children = toolbox.mate(tree, other)
        assert all(fits(space, limits, each) and space.tree(space.genome(each)) == each for each in (tree, *children))


def test_limits_keep_every_genome_that_meets_them_and_no_other():
    limits = TIGHT["nas_bench_macro"]
    space = SPACES["nas_bench_macro"]
    held = limited(space, limits, 10)
    within = [genome for genome in space.genomes() if fits(space, limits, space.tree(genome))]
    parts = {tuple(genome.values())[:i] for genome in within for i in range(9)}
    assert 100 < len(within) < space.count() / 4
    draw = random.Random(2)
    for _ in range(2000):
        part = tuple(draw.choice(choices) for choices in list(space.slots.values())[: draw.randrange(9)])
        assert held.fits(dict(zip(space.slots, part, strict=False))) == (part in parts)


@pytest.mark.parametrize("name", SPACES)
def test_no_part_of_what_meets_the_limits_is_shut_out(name):
    """Strides of conv20 past the fifth are repaired away beside the cheapest others, yet count where earlier ones are 1."""
    space, draw = SPACES[name], random.Random(9)
    for _ in range(25 if name != "conv20" else 5):
        genome = {slot: draw.choice(choices) for slot, choices in space.slots.items()}
        cost = space.cost(genome, 10, 3, 32)
        held = limited(space, Limits(cost.parameters, cost.macs), 10)
        for _ in range(15):
            assert held.fits({slot: genome[slot] for slot in draw.sample(list(genome), draw.randrange(len(genome) + 1))})


def test_a_latency_limit_lists_what_meets_it():
    held = limited(CELLS, Limits(max_latency_ms=3, max_params=600_000, device="mine"), 10, latency_of=slow_on_skips)
    choose, seen = held.chooser(random_chooser(random.Random(3))), set()
    for _ in range(500):
        genome = CELLS.genome(grow_tree(CELLS.grammar, choose))
        assert slow_on_skips(genome) <= 3
        assert CELLS.cost(genome, 10, 3, 32).parameters <= 600_000
        seen.add(CELLS.write(genome))
    assert len(seen) > 300


def test_the_published_latencies_serve_as_limits(shared_data):
    from evokd.evaluate.tabular import read_table

    table = read_table("nas_bench_201", shared_data)
    of_pixel = lambda genome: table.latency(CELLS.write(genome), "pixel3")  # noqa: E731
    bound = float(np.quantile(table.latencies["pixel3"], 0.1))
    held, draw = limited(CELLS, Limits(max_latency_ms=bound), 10, latency_of=of_pixel), random.Random(4)
    choose = held.chooser(random_chooser(draw))
    assert all(of_pixel(CELLS.genome(grow_tree(CELLS.grammar, choose))) <= bound for _ in range(300))
    with pytest.raises(EvokdError, match=r"max_latency_ms on pixel3: expected at least 1\.055, the least in nas_bench_201"):
        limited(CELLS, Limits(max_latency_ms=0.1, device="pixel3"), 10, latency_of=of_pixel)


def test_growth_without_limits_is_growth():
    free = limited(CELLS, Limits(), 10)
    for seed in range(20):
        choose = free.chooser(random_chooser(random.Random(seed)))
        assert grow_tree(CELLS.grammar, choose) == grow_tree(CELLS.grammar, random_chooser(random.Random(seed)))


def test_repair_leaves_alone_what_fits_and_keeps_most_of_what_does_not():
    held, draw = limited(CELLS, Limits(max_params=600_000), 10), random.Random(5)
    cheap, dear = CELLS.tree(dict.fromkeys(CELLS.slots, "skip_connect")), CELLS.tree(dict.fromkeys(CELLS.slots, "nor_conv_3x3"))
    assert held.repair(cheap, draw) is cheap
    kept = [sum(op == "nor_conv_3x3" for op in CELLS.genome(held.repair(dear, draw)).values()) for _ in range(50)]
    assert set(kept) == {2}
    spared = {
        tuple(slot for slot, op in CELLS.genome(held.repair(dear, draw)).items() if op == "nor_conv_3x3") for _ in range(200)
    }
    assert len(spared) == math.comb(6, 2)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(max_params=70_000), "max_params: expected at least 73,306, the least in nas_bench_201, got 70,000"),
        (Limits(max_macs=7e6), "max_macs: expected at least 7,783,040, the least in nas_bench_201, got 7,000,000.0"),
        (Limits(max_params=1e6, max_latency_ms=0.5, device="mine"), "max_latency_ms on mine: expected at least 1, the least"),
        (Limits(max_params=0), "max_params: expected at least"),
    ],
)
def test_limits_that_nothing_meets_are_told_with_the_least(limits, said):
    with pytest.raises(EvokdError) as refused:
        limited(CELLS, limits, 10, latency_of=slow_on_skips)
    assert said in str(refused.value)


def test_the_least_is_enough():
    held = limited(CELLS, Limits(max_params=73_306, max_macs=7_783_040), 10)
    tree = grow_tree(CELLS.grammar, held.chooser(random_chooser(random.Random(6))))
    assert CELLS.cost(CELLS.genome(tree), 10, 3, 32).parameters == 73_306


def test_limits_that_only_exclude_each_other_are_told_together():
    opposed = lambda genome: 10.0 - CELLS.cost(genome, 10, 3, 32).parameters / 1e6  # noqa: E731
    with pytest.raises(EvokdError, match="max_params and max_latency_ms: expected limits that one student"):
        limited(CELLS, Limits(max_params=100_000, max_latency_ms=9), 10, latency_of=opposed)


def test_a_latency_limit_needs_latencies_and_a_space_that_can_be_listed():
    with pytest.raises(EvokdError, match="a table of latencies"):
        limited(CELLS, Limits(max_latency_ms=3), 10)
    with pytest.raises(EvokdError, match="a space of at most 100,000 students"):
        limited(conv20.space(), Limits(max_latency_ms=3), 10, latency_of=lambda genome: 1.0)


def test_ties_in_the_tightest_cost_are_broken_by_the_other():
    """A slot that parameters do not see must still be set to what computes least, or nothing would seem to fit."""
    space, limits = conv20.space(layers=3), Limits(max_params=22_000, max_macs=3e6)
    held = limited(space, limits, 10)
    assert fits(space, limits, grow_tree(space.grammar, held.chooser(random_chooser(random.Random(7)))))


def test_the_cheapest_of_a_toy_is_found():
    with pytest.raises(EvokdError, match="at least 4, the least in toy, got 3"):
        limited(toy(FLAT), Limits(max_macs=3), 10)


def test_latencies_are_ratios_to_a_reference_measured_in_turns():
    small, large = (lambda width=width: nn.Conv2d(3, width, 3, padding=1) for width in (4, 256))
    images, state, threads = torch.randn(1, 3, 32, 32), torch.get_rng_state(), torch.get_num_threads()
    found = latency({"same": small, "large": large}, small, images, rounds=15)
    assert list(found) == ["same", "large"]
    assert all(isinstance(each, Latency) and each.seconds > 0 for each in found.values())
    assert 0.2 < found["same"].ratio < 5
    assert found["large"].ratio > 2 * found["same"].ratio
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_latencies_of_cells_repeat_in_order():
    draw = random.Random(8)
    cells = [{slot: draw.choice(nas_bench_201.OPS) for slot in CELLS.slots} for _ in range(16)]
    networks = {CELLS.write(cell): lambda cell=cell: CELLS.build(CELLS.tree(cell), 10) for cell in cells}
    first, second = (latency(networks, next(iter(networks.values())), torch.randn(1, 3, 32, 32)) for _ in range(2))
    ranks = [np.argsort(np.argsort([each[name].ratio for name in networks])) for each in (first, second)]
    assert np.corrcoef(*ranks)[0, 1] > 0.9
