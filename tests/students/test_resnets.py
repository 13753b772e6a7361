import json

import pytest
import torch
from hypothesis import given, settings
from scipy.stats import kendalltau, pearsonr, spearmanr

from evokd.models.resnet import ResNet
from evokd.students import resnet, resnet_s0
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

S0, SPACE = resnet_s0.space(), resnet.space()
DIGITS = resnet.space(**options("digits"))


def test_exact_counts():
    assert S0.count() == S0.grammar.count() == len(list(S0.genomes())) == 64
    assert SPACE.count() == 6**3 * 5 * 3 == 3240
    assert DIGITS.count() == DIGITS.grammar.count() == 3**3 * 5 * 3 == 405


def test_the_shipped_files_are_the_defaults():
    assert options("resnet_s0") == {}
    assert resnet.space(**options("resnet")).slots == SPACE.slots


def test_students_of_s0_cost_what_is_measured():
    for genome in list(S0.genomes())[::4]:
        check_cost(S0, genome, classes=100, channels=3, side=32)


@pytest.mark.parametrize(("space", "channels", "side"), [(SPACE, 3, 32), (DIGITS, 3, 33), (DIGITS, 1, 8)])
def test_the_closed_form_cost_is_the_measured_one(space, channels, side):
    for i, genome in enumerate(draw(space, 6, seed=side)):
        check_cost(space, genome, classes=2 + i, channels=channels, side=side)


def test_s0_has_the_published_range():
    """0.084 to 0.667 M parameters and 12.5 to 97.4 M MACs: projections (option B), whose lack would leave 0.081 M and 12.2 M."""
    costs = [S0.cost(genome, 100, 3, 32) for genome in S0.genomes()]
    parameters = [cost.parameters for cost in costs]
    conv_macs = [cost.macs - 6400 for cost in costs]  # without the classifier
    assert (min(parameters), max(parameters)) == (83_892, 667_188)
    assert (min(conv_macs), max(conv_macs)) == (12_500_992, 97_435_648)
    assert [S0.cost(S0.read(f"{n}{n}{n}"), 100, 3, 32).depth for n in (1, 3, 5, 7)] == [8, 20, 32, 44]


@pytest.fixture(scope="module")
def published(shared_data) -> list[tuple[dict, float]]:
    """(genome, distilled accuracy in %) of the 64 students."""
    rows = json.loads((shared_data / "diswot_s0" / "s0.json").read_text())["students"]
    return [(S0.read("".join(map(str, row["depths"]))), row["kd"]) for row in rows]


def correlations(published, figure) -> list[float]:
    """Kendall, Spearman and Pearson with the distilled accuracies."""
    figures, accuracies = [figure(genome) for genome, _ in published], [accuracy for _, accuracy in published]
    return [float(measure(figures, accuracies)[0]) for measure in (kendalltau, spearmanr, pearsonr)]


def test_the_published_table_covers_the_space(published):
    assert sorted(S0.write(genome) for genome, _ in published) == sorted(map(S0.write, S0.genomes()))


def test_the_flops_row_of_the_published_table_comes_out(published):
    """Printed on the slides: 51.61, 72.92 and 76.40."""
    assert correlations(published, resnet_s0.flops) == pytest.approx([0.5161, 0.7292, 0.7640], abs=2e-4)


def test_parameters_correlate_as_measured_before(published):
    found = correlations(published, lambda genome: S0.cost(genome, 100, 3, 32).parameters)
    assert found == pytest.approx([0.873, 0.968, 0.886], abs=5e-4)


def test_flops_are_counted_operation_by_operation():
    """The smallest network of the space by hand, on one channel of 8×8 and two classes."""
    convs = 9 * 16 * 64 + 2 * 9 * 256 * 64 + (9 * 512 + 9 * 1024 + 512) * 16 + (9 * 2048 + 9 * 4096 + 2048) * 4
    maps = (2 + 5) * 16 * 64 + (5 + 1) * 32 * 16 + (5 + 1) * 64 * 4
    assert resnet_s0.flops(S0.read("111"), classes=2, channels=1, side=8) == convs + maps + 64 * 4 + 64 * 2


def test_three_blocks_a_stage_are_resnet20_weight_by_weight():
    torch.manual_seed(0)
    student = S0.network(S0.read("333"), 10, 3)
    torch.manual_seed(0)
    known, images = ResNet(20, 16, 10), torch.randn(4, 3, 32, 32)
    assert student.state_dict().keys() == known.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), known.parameters(), strict=True))
    assert torch.equal(student(images).logits, known(images))


def test_s0_is_part_of_the_larger_space():
    genome = S0.read("713")
    full = SPACE.read("basic16-7-1-3")
    assert str(on_meta(S0, genome)) == str(on_meta(SPACE, full))
    assert S0.cost(genome, 100, 3, 32) == SPACE.cost(full, 100, 3, 32)


def test_digits_are_small():
    sizes = [DIGITS.cost(genome, 10, 1, 8).parameters for genome in DIGITS.genomes()]
    assert min(sizes) < 1_500
    assert sorted(sizes)[len(sizes) // 2] < 20_000
    assert max(sizes) == 272_186  # ResNet-20 for one channel


@pytest.mark.parametrize("block", resnet.BODIES)
@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 32)])
def test_stages_are_tapped_on_both_sides_of_their_relu(block, channels, side):
    genome = DIGITS.read(f"{block}6-2-1-3")
    taps = check_taps(DIGITS.network(genome, 10, channels), channels, side)
    assert [tuple(f.shape[1:]) for f in taps.features] == [(6 * 2**i, side // 2**i, side // 2**i) for i in range(3)]
    assert len(taps.pre_relu) == 3


@pytest.mark.parametrize("text", ["basic4-1-2-3", "bottleneck4-1-2-3", "bottleneck16-3-1-1", "mobile4-3-3-3"])
def test_every_parameter_learns(text):
    genome = DIGITS.read(text)
    torch.manual_seed(0)
    assert check_gradients(DIGITS.network(genome, 10, 1), 1, 8) == DIGITS.cost(genome, 10, 1, 8).live_parameters


def test_blocks_are_what_their_names_say():
    assert [c[2:5] for c in resnet.mobile(4, 8, 2)] == [(3, 2, 4), (1, 1, 1), (3, 1, 8), (1, 1, 1)]
    assert [c[:4] for c in resnet.bottleneck(32, 64, 2)] == [(32, 16, 1, 1), (16, 16, 3, 2), (16, 64, 1, 1)]
    assert resnet.bottleneck(4, 8, 1)[0].outputs == 4
    block, x = resnet.Residual(resnet.mobile(4, 4, 1), []).eval(), torch.randn(2, 4, 5, 5)
    assert torch.equal(block(x), (block.body(x) + x).relu())


@settings(max_examples=40, deadline=None)
@given(genomes(SPACE))
def test_text_and_tree_are_the_same_genome(genome):
    check_text(SPACE, genome)
    assert SPACE.key_of(genome) == SPACE.write(genome)


def test_text_and_tree_are_the_same_genome_in_s0():
    for genome in S0.genomes():
        check_text(S0, genome)
    assert len({S0.key_of(genome) for genome in S0.genomes()}) == 64


@pytest.mark.parametrize("space", [S0, SPACE, DIGITS], ids=["s0", "resnet", "digits"])
def test_variation_stays_in_the_space(space):
    check_variation(space, rounds=5, side=8)


@pytest.mark.parametrize(("space", "text"), [(S0, "131"), (DIGITS, "mobile8-1-1-2"), (DIGITS, "bottleneck8-1-1-2")])
def test_a_seed_fixes_the_weights(space, text):
    check_seed(space, space.read(text))


def test_diagram():
    assert S0.diagram(S0.read("131")).splitlines() == [
        "÷1   16  □ 3×3",
        "÷1   16  ■ basic",
        "÷2   32  ■■■ basic",
        "÷4   64  ■ basic",
        "mean over space, linear",
    ]


@pytest.mark.parametrize("text", ["", "71", "7133", "712", "７13", "1 1 1", "7\n3"])
def test_texts_outside_s0_are_refused(text):
    check_refused(lambda: S0.parse(text), "resnet_s0", "713")


@pytest.mark.parametrize(
    "text", ["", "basic16-3-3", "basic17-3-3-3", "dense16-3-3-3", "basic16-3-3-4", "basic16-3-3-3\n", "16-3-3-3"]
)
def test_texts_outside_the_space_are_refused(text):
    check_refused(lambda: SPACE.parse(text), "resnet", "BLOCKWIDTH", "basic, bottleneck, mobile")


def test_trees_outside_the_space_are_refused():
    check_refused(lambda: S0.tree({"blocks1": "1", "blocks2": "2", "blocks3": "1"}), "blocks2", "1, 3, 5, 7")
    check_refused(lambda: SPACE.tree({}), "block")


@pytest.mark.parametrize(
    "wrong",
    [
        {"blocks": [0]},
        {"blocks": "12"},
        {"widths": []},
        {"widths": [True]},
        {"kinds": ["basc"]},
        {"kinds": "basic"},
        {"kinds": [[1]]},
    ],
)
def test_options_out_of_range_are_refused(wrong):
    check_refused(lambda: resnet.space(**wrong), f"resnet, {next(iter(wrong))}")
