from math import comb, prod
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from evokd.students.conv20 import repair, space
from evokd.students.layers import Conv, chain_cost, integers
from tests.students.contract import (
    check_cost,
    check_gradients,
    check_refused,
    check_seed,
    check_taps,
    check_text,
    check_variation,
    draw,
    genomes,
    on_meta,
    options,
)

SPACE = space()


def strides(genome) -> list[int]:
    return [int(genome[f"layer{i + 1}.stride"]) for i in range(len(genome) // 3)]


def with_strides(twos: set[int], layers: int = 20):
    return {s: "2" if s.endswith("stride") and int(s[5:-7]) in twos else c[0] for s, c in space(layers=layers).slots.items()}


def test_there_are_24_to_the_20_genomes():
    assert SPACE.count() == SPACE.grammar.count() == 24**20 == 4_019_988_717_840_603_673_710_821_376
    assert list(SPACE.slots)[:4] == ["layer1.filters", "layer1.size", "layer1.stride", "layer2.filters"]
    assert SPACE.slots["layer20.filters"] == ("24", "36", "48", "64")


def test_the_shipped_file_is_the_default():
    assert space(**options("conv20")).slots == SPACE.slots


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 32), (3, 28), (2, 7)])
def test_the_closed_form_cost_is_the_measured_one(channels, side):
    for i, genome in enumerate(draw(SPACE, 8, seed=side)):
        check_cost(SPACE, genome, classes=2 + 7 * i, channels=channels, side=side)


@pytest.mark.parametrize("conv", [Conv(6, 8, 3), Conv(6, 9, 5, 2, 3), Conv(4, 4, 1, norm=False), Conv(4, 4, 7, 2, 4)])
def test_a_convolution_is_what_it_says(conv):
    module = conv.module()
    out = module(torch.randn(2, conv.inputs, 11, 11))
    weight = next(m.weight for m in module.modules() if isinstance(m, nn.Conv2d))
    assert out.shape == (2, conv.outputs, conv.shrink(11), conv.shrink(11))
    assert conv.parameters == sum(p.numel() for p in module.parameters())
    assert conv.macs(11) == out[0].numel() * weight[0].numel()
    assert chain_cost([conv, Conv(conv.outputs, 2, 1)], 11)[2] == out.shape[-1]


@settings(max_examples=60, deadline=None)
@given(genomes(SPACE))
def test_text_and_tree_are_the_same_genome(genome):
    check_text(SPACE, genome)


@settings(max_examples=200, deadline=None)
@given(genomes(SPACE), st.sampled_from([1, 2, 7, 8, 28, 32, 224]))
def test_repair_keeps_the_first_strides_that_an_image_bears(genome, side):
    before, fixed = strides(genome), repair(genome, side)
    assert strides(fixed) == [stride if prod(before[: i + 1]) <= side else 1 for i, stride in enumerate(before)]
    assert prod(strides(fixed)) == min(prod(before), 2 ** (side.bit_length() - 1))
    assert {slot for slot in genome if fixed[slot] != genome[slot]} <= {f"layer{i}.stride" for i in range(1, 21)}
    assert repair(fixed, side) == fixed


def test_the_share_of_genomes_that_need_no_repair():
    """What the reference tells of uniform draws: 2.07 % at 32×32, 13.2 % at 224×224."""
    assert sum(comb(20, k) for k in range(6)) / 2**20 == pytest.approx(0.0207, abs=5e-5)
    assert sum(comb(20, k) for k in range(8)) / 2**20 == pytest.approx(0.1316, abs=5e-5)
    stream = Random(0)
    drawn = [with_strides({i for i in range(1, 21) if stream.random() < 0.5}) for _ in range(3000)]
    assert sum(repair(g, 32) == g for g in drawn) / 3000 == pytest.approx(0.0207, abs=0.008)


def test_genomes_of_one_network_have_one_key():
    five, six = with_strides({1, 3, 5, 7, 9}), with_strides({1, 3, 5, 7, 9, 20})
    assert SPACE.key_of(five) == SPACE.key_of(six) == SPACE.write(five)
    assert SPACE.write(five) != SPACE.write(six)
    assert str(on_meta(SPACE, five)) == str(on_meta(SPACE, six))
    assert space(side=64).key_of(five) != space(side=64).key_of(six)


@settings(max_examples=25, deadline=None)
@given(genomes(space(layers=4, side=4)), genomes(space(layers=4, side=4)))
def test_keys_part_what_networks_part(first, second):
    small = space(layers=4, side=4)
    same = str(on_meta(small, first)) == str(on_meta(small, second))
    assert (small.key_of(first) == small.key_of(second)) == same


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 32)])
def test_a_stage_is_a_run_of_one_resolution(channels, side):
    small = space(layers=8, side=side)
    for genome in draw(small, 4, seed=side):
        taps = check_taps(small.network(genome, 10, channels), channels, side)
        built = strides(repair(genome, side))
        assert len(taps.features) == built[1:].count(2) + 1
        assert taps.features[-1].shape[-1] == side // 2 ** built.count(2)
        assert taps.features[-1].shape[1] == int(genome["layer8.filters"])


def test_the_whole_chain_runs_and_learns():
    genome = with_strides({2, 6, 10})
    network = SPACE.network(genome, 10, 1)
    assert [tuple(f.shape[1:]) for f in check_taps(network, 1, 8).features] == [(24, 8, 8), (24, 4, 4), (24, 2, 2), (24, 1, 1)]
    assert check_gradients(network, 1, 8) == SPACE.cost(genome, 10, 1, 8).live_parameters
    check_seed(SPACE, genome)


def test_more_strides_than_pixels_still_run():
    """A space made for 32×32 meets 8×8: maps stay at one pixel."""
    assert SPACE.network(with_strides(set(range(1, 21))), 10, 1).eval()(torch.zeros(2, 1, 8, 8)).features[-1].shape == (
        2,
        24,
        1,
        1,
    )


def test_variation_stays_in_the_space():
    check_variation(SPACE, rounds=6, side=32)


def test_diagram():
    genome = space(layers=3).read("24k3s1 36k5s2 48k7s1")
    assert space(layers=3).diagram(genome) == "÷1   24k3\n÷2   36k5 48k7\nmean over space, linear"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("24k3s1", ["conv20", "20 words", "1 words"]),
        ("24k3s1 " * 19 + "25k3s1", ["layer 20", "'25k3s1'", "24,36,48,64"]),
        ("24k4s1 " * 20, ["layer 1", "3,5,7"]),
        ("24k3s3 " * 20, ["layer 1"]),
        ("24k3s1\nx " * 10, ["layer 2"]),
        ("", ["0 words"]),
    ],
)
def test_texts_outside_the_space_are_refused(text, words):
    check_refused(lambda: SPACE.parse(text), *words)


def test_trees_outside_the_space_are_refused():
    genome = draw(SPACE, 1)[0]
    check_refused(lambda: SPACE.tree(genome | {"layer3.size": "9"}), "layer3.size", "3, 5, 7")
    check_refused(lambda: SPACE.tree({}), "layer1.filters")


@pytest.mark.parametrize(
    "wrong",
    [
        {"layers": 0},
        {"layers": 99},
        {"layers": True},
        {"filters": []},
        {"filters": [24.0]},
        {"filters": 3},
        {"sizes": [4]},
        {"side": 0},
    ],
)
def test_options_out_of_range_are_refused(wrong):
    check_refused(lambda: space(**wrong), f"conv20, {next(iter(wrong))}")


def test_integers_are_distinct_and_in_order():
    assert integers("x", [3, 1, 3], 1, 4) == (3, 1)
