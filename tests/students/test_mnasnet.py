import re

import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torchvision.models import mobilenet_v2

from evokd.students.mnasnet import (
    FIELDS,
    LARGE,
    MOBILENET,
    MobileLayer,
    Options,
    SqueezeExcite,
    arch_def,
    beyond_timm,
    round8,
    space,
    unroll,
)
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
    measured,
    options,
)

SPACE = space()
TINY = space(strides=[1, 1, 1, 2, 1, 1, 2, 1], width=0.25, head=32)  # for 8×8: the last maps are 2×2
MOBILENETV2 = "sep_k3_se0_identity_x1_0 " + " ".join(["mb6_k3_se0_identity_x1_0"] * 6)


def uniform(word: str):
    return SPACE.read(" ".join([word] * 7))


def decode(word: str) -> dict:
    """A block string as timm's decoder reads it: a kind, then words with numbers, `skip` or `noskip`; any other word is read over."""
    kind, *words = word.split("_")
    pairs = dict(re.fullmatch(r"([a-z]+)([\d.]+)", w).groups() for w in words if re.search(r"\d", w))
    skip = {"cn": "skip" in words}.get(kind, "noskip" not in words)
    return {"kind": kind, "skip": skip} | {name: float(number) for name, number in pairs.items()}


def timm_parameters(blocks: list[list[str]], classes: int, channels: int, stem: int, head: int) -> int:
    """Parameters of timm's EfficientNet with these blocks, from its layers' definitions; a batch norm counts 2 a channel."""
    total, width = 9 * channels * stem + 2 * stem, stem
    for word in (word for stack in blocks for word in stack):
        block = decode(word)
        outputs, area = int(block["c"]), int(block["k"]) ** 2
        for _ in range(int(block["r"])):
            inner = width * int(block.get("e", 1))
            if block["kind"] == "cn":
                total += area * width * outputs + 2 * outputs
            else:
                total += (width * inner + 2 * inner) * (block["kind"] == "ir")
                total += area * inner + 2 * inner + inner * outputs + 2 * outputs
                reduced = round(width * block.get("se", 0))
                total += 2 * inner * reduced + inner + reduced if reduced else 0
            width = outputs
    return total + width * head + 2 * head + (head + 1) * classes


def test_there_are_432_designs_a_block():
    assert SPACE.count() == SPACE.grammar.count() == 432**7 == 2_807_929_681_968_365_568
    assert len(SPACE.slots) == 42
    assert list(SPACE.slots)[:7] == [*(f"block1.{field}" for field in FIELDS), "block2.op"]


def test_the_shipped_file_is_the_default():
    given = space(**options("mnasnet"))
    genome = draw(SPACE, 1)[0]
    assert given.slots == SPACE.slots
    assert given.cost(genome, 10, 3, 32) == SPACE.cost(genome, 10, 3, 32)


def test_mobilenet_v2_is_a_genome():
    """Parameters and multiply–accumulates at 224×224 are those of torchvision's network."""
    large = space(strides=LARGE)
    with torch.device("meta"):
        published = measured(mobilenet_v2(), 3, 224)
    cost = large.cost(large.read(MOBILENETV2), 1000, 3, 224)
    assert (cost.parameters, cost.macs) == published == (3_504_872, 300_774_272)
    assert cost.depth == 53


@pytest.mark.parametrize(("given", "channels", "side"), [(SPACE, 3, 32), (TINY, 1, 8), (space(strides=LARGE), 3, 97)])
def test_the_closed_form_cost_is_the_measured_one(given, channels, side):
    for i, genome in enumerate(draw(given, 6, seed=side)):
        check_cost(given, genome, classes=2 + i, channels=channels, side=side)


def test_filters_are_multiples_of_eight_near_what_was_asked():
    table = [[round8(filters * factor) for factor in (0.75, 1, 1.25)] for filters, _ in MOBILENET]
    assert table == [[16, 16, 24], [24, 24, 32], [24, 32, 40], [48, 64, 80], [72, 96, 120], [120, 160, 200], [240, 320, 400]]
    assert round8(1) == 8


@settings(max_examples=60, deadline=None)
@given(genomes(SPACE))
def test_text_and_tree_are_the_same_genome(genome):
    check_text(SPACE, genome)


@settings(max_examples=60, deadline=None)
@given(genomes(SPACE))
def test_the_export_says_what_is_built(genome):
    blocks, words = unroll(genome), [word for stack in arch_def(genome) for word in stack]
    assert len(blocks) == len(words) == 7
    for i, (block, word) in enumerate(zip(blocks, words, strict=True), 1):
        read, first = decode(word), block[0]
        assert read["kind"] == {"conv": "cn", "sep": "ds", "mb3": "ir", "mb6": "ir"}[first.op]
        assert read.get("e") == {"mb3": 3, "mb6": 6}.get(first.op)
        assert (read["r"], read["k"], read["s"], read["c"]) == (len(block), first.kernel, first.stride, first.outputs)
        assert read.get("se", 0) == float(genome[f"block{i}.se"])
        assert read["skip"] == any(layer.skip == "identity" for layer in block)
        assert ("_pool" in word) == any(layer.skip == "pool" for layer in block)


@settings(max_examples=60, deadline=None)
@given(genomes(SPACE))
def test_timm_would_build_as_many_parameters(genome):
    lost = [line for line in beyond_timm(genome) if "excitation" in line]
    if not lost:
        assert timm_parameters(arch_def(genome), 10, 3, 32, 1280) == SPACE.cost(genome, 10, 3, 32).parameters


def test_the_notation_of_known_networks():
    assert arch_def(SPACE.read(MOBILENETV2), Options(LARGE)) == [
        ["ds_r1_k3_s1_c16_noskip"],
        ["ir_r2_k3_s2_e6_c24"],
        ["ir_r3_k3_s2_e6_c32"],
        ["ir_r4_k3_s2_e6_c64"],
        ["ir_r3_k3_s1_e6_c96"],
        ["ir_r3_k3_s2_e6_c160"],
        ["ir_r1_k3_s1_e6_c320_noskip"],
    ]
    assert arch_def(uniform("mb3_k5_se0.25_none_x1_+1"), Options(LARGE))[1] == ["ir_r3_k5_s2_e3_c24_se0.25_noskip"]
    assert arch_def(uniform("conv_k5_se0_identity_x1_0"))[2] == ["cn_r3_k5_s2_c32_skip"]
    assert arch_def(uniform("conv_k5_se0_none_x1_0"))[2] == ["cn_r3_k5_s2_c32"]


def test_what_timm_cannot_say_is_told():
    assert beyond_timm(SPACE.read(MOBILENETV2)) == []
    lost = beyond_timm(uniform("conv_k3_se0.25_pool_x1_-1"))
    assert lost[0] == "block 1: squeeze-and-excitation"  # 32 → 16 channels leave no room for the pooled skip
    assert lost[1:3] == ["block 2: skip by pooling", "block 2: squeeze-and-excitation"]


def test_genomes_of_one_network_have_one_key():
    """Seven blocks in which nothing can be left out or skipped differ in text only."""
    pairs = [
        ("block1.layers", "-1", "0"),
        ("block7.layers", "-1", "0"),
        ("block1.filters", "0.75", "1"),
        ("block2.filters", "0.75", "1"),
        ("block1.skip", "pool", "none"),
        ("block7.skip", "identity", "none"),
    ]
    base = SPACE.read(MOBILENETV2)
    for slot, one, other in pairs:
        first, second = base | {slot: one}, base | {slot: other}
        assert SPACE.key_of(first) == SPACE.key_of(second)
        assert SPACE.write(first) != SPACE.write(second)
    for slot, one, other in [("block2.skip", "pool", "none"), ("block3.filters", "0.75", "1"), ("block3.layers", "-1", "0")]:
        assert SPACE.key_of(base | {slot: one}) != SPACE.key_of(base | {slot: other})


@settings(max_examples=80, deadline=None)
@given(genomes(TINY), genomes(TINY))
def test_keys_part_what_networks_part(first, second):
    small = Options((1, 1, 1, 2, 1, 1, 2, 1), 0.25, 32)
    for slot in first:  # walk from one genome to the other, so that near ones are compared
        near = first | {slot: second[slot]}
        assert (TINY.key_of(first) == TINY.key_of(near)) == (unroll(first, small) == unroll(near, small))


@pytest.mark.parametrize("op", FIELDS["op"])
@pytest.mark.parametrize("skip", FIELDS["skip"])
def test_a_layer_is_its_formula(op, skip):
    block = unroll(uniform(f"{op}_k5_se0.25_{skip}_x1_0"), Options())[2]
    x = torch.randn(2, 24, 7, 7)
    for layer in block[:2]:  # stride 2 from 24 to 32 channels, then 32 to 32
        module = MobileLayer(layer).eval()
        y = module(x)
        expected = module.body(x)
        if skip == "identity" and layer.stride == 1:
            expected = expected + x
        if skip == "pool":
            ones = torch.ones_like(x)
            near = nn.functional.avg_pool2d(x, 3, layer.stride, 1) / nn.functional.avg_pool2d(ones, 3, layer.stride, 1)
            expected = expected + torch.cat([near, torch.zeros(2, 32 - x.shape[1], *near.shape[2:])], 1)
        assert torch.allclose(y, expected, atol=1e-5)
        assert sum(isinstance(m, SqueezeExcite) for m in module.modules()) == 1
        x = y.detach()


def test_excitation_scales_channels_between_zero_and_one():
    layer = unroll(uniform("mb3_k3_se0.25_none_x1_0"))[1][0]
    excite = SqueezeExcite(layer.excitation())
    x = torch.rand(2, 48, 4, 4) + 0.1
    scale = excite(x) / x
    assert torch.allclose(scale, scale[:, :, :1, :1].expand_as(scale), atol=1e-5)
    assert ((scale > 0) & (scale < 1)).all()
    assert excite.reduce.out_channels == 16 // 4


@pytest.mark.parametrize(("given", "channels", "sides"), [(SPACE, 3, [32, 16, 8, 4]), (TINY, 1, [8, 4, 2])])
def test_stages_are_tapped_at_their_last_block(given, channels, sides):
    for genome in draw(given, 2, seed=channels):
        network = given.network(genome, 10, channels)
        taps = check_taps(network, channels, sides[0])
        ends = [genome[f"block{end + 1}.op"] for end in network.ends]
        assert [f.shape[-1] for f in taps.features] == sides
        assert taps.pre_relu == ()
        assert all((f < 0).any() for f, op in zip(taps.features, ends, strict=False) if op != "conv")  # linear bottlenecks
        assert (taps.features[-1] >= 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_every_parameter_learns(seed):
    """With excitations that start awake: of two hidden units both may well be zero for all images."""
    genome = draw(TINY, 4, seed=5)[seed]
    torch.manual_seed(seed)
    network = TINY.network(genome, 10, 1)
    for module in network.modules():
        if isinstance(module, SqueezeExcite):
            nn.init.ones_(module.reduce.bias)
    assert check_gradients(network, 1, 8) == TINY.cost(genome, 10, 1, 8).live_parameters


def test_a_seed_fixes_the_weights():
    check_seed(TINY, draw(TINY, 1)[0])


def test_variation_stays_in_the_space():
    check_variation(SPACE, rounds=4, side=32)


def test_diagram():
    lines = SPACE.diagram(SPACE.read(MOBILENETV2)).splitlines()
    assert lines[:3] == ["÷1     32  □ 3×3", "÷1     16  ■ sep 3×3", "÷1     24  ■■ mb6 3×3 identity"]
    assert lines[-2:] == ["÷8   1280  □ 1×1", "mean over space, linear"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["7 words", "0 words"]),
        ("mb6_k3_se0_identity_x1_0", ["7 words", "1 words"]),
        (MOBILENETV2.replace("sep", "mb4"), ["block 1, op", "conv, sep, mb3, mb6", "'mb4'"]),
        (MOBILENETV2.replace("k3", "k7"), ["block 1, kernel"]),
        (MOBILENETV2.replace("x1", "x2"), ["block 1, filters"]),
        (MOBILENETV2.replace("_0", "_1"), ["block 1, layers", "-1, 0, +1"]),
        (MOBILENETV2.replace("_k3", "-k3"), ["block 1", "OP_kKERNEL"]),
    ],
)
def test_texts_outside_the_space_are_refused(text, words):
    check_refused(lambda: SPACE.parse(text), *words)


def test_trees_outside_the_space_are_refused():
    genome = draw(SPACE, 1)[0]
    check_refused(lambda: SPACE.tree(genome | {"block4.se": "0.5"}), "block4.se", "0, 0.25")


@pytest.mark.parametrize(
    "wrong",
    [{"strides": [1, 2]}, {"strides": [1] * 7 + [3]}, {"strides": 2}, {"width": 0}, {"width": "1"}, {"width": True}, {"head": 0}],
)
def test_options_out_of_range_are_refused(wrong):
    check_refused(lambda: space(**wrong), f"mnasnet, {next(iter(wrong))}")
