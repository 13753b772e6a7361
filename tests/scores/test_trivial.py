import pytest

from evokd.models.resnet import ResNet
from evokd.students import nas_bench_201, resnet_s0
from tests.scores.networks import Tiny, batch, value

CELLS = [
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|",
    "|nor_conv_3x3~0|+|nor_conv_1x1~0|none~1|+|skip_connect~0|none~1|nor_conv_3x3~2|",  # the first edge leads nowhere
    "|skip_connect~0|+|none~0|nor_conv_1x1~1|+|none~0|avg_pool_3x3~1|nor_conv_3x3~2|",
]


def of(name, student, side=16):
    images, labels = batch(side=side)
    return value(name, student, None, images.float(), labels)


@pytest.mark.parametrize("text", ["111", "313"])
def test_costs_of_residual_students_are_the_spaces(text):
    space = resnet_s0.space()
    genome = space.read(text)
    cost = space.cost(genome, 5, 3, 16)
    student = space.network(genome, 5, 3)
    assert [of(n, student) for n in ("params", "live_params", "macs", "depth")] == [
        *(cost.parameters, cost.parameters, cost.macs, cost.depth),
    ]


@pytest.mark.parametrize("text", CELLS)
def test_costs_of_cells_are_the_spaces(text):
    space = nas_bench_201.space(channels=4, cells=2)
    genome = space.read(text)
    cost = space.cost(genome, 5, 3, 16)
    student = space.network(genome, 5, 3)
    assert [of(n, student) for n in ("params", "macs", "depth")] == [cost.parameters, cost.macs, cost.depth]


def test_a_network_may_tell_its_live_parameters():
    class Told(Tiny):
        def live_parameters(self):
            return 42

    assert value("live_params", Told()) == 42
    assert value("live_params", Tiny()) == value("params", Tiny())


def test_flops_count_what_is_done_to_each_number_too():
    student = Tiny()  # batch norm and ReLU of the stem, then per block a batch norm and two ReLUs, on maps of 4 channels
    made = 4 * (2 * 8 * 8 + 3 * 8 * 8 + 2 * 3 * 4 * 4)
    assert value("flops", student) == value("macs", student) + made


def test_depth_of_a_resnet_is_its_name():
    assert of("depth", ResNet(20, 4, 5)) == 20
    assert of("depth", ResNet(8, 4, 5, shortcut="A")) == 8
