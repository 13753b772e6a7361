"""The networks of CRD's benchmark: counts, stages, and blocks against their formulas."""

import pytest
import torch
import torch.nn.functional as F

from evokd.errors import EvokdError
from evokd.models.from_timm import build_timm
from evokd.models.mobilenet_v2 import InvertedResidual
from evokd.models.shufflenet import BlockV1, BlockV2, DownV2, shuffled
from evokd.models.tapping import Tapped, plan_taps
from evokd.models.wide_resnet import Block
from evokd.models.zoo import NAMED, build, parameters

IMAGES = torch.randn(2, 3, 32, 32)

# Millions of parameters for 100 classes. Every layer was compared with CRD's own code (HobbitLong/RepDistiller: models/resnet, resnetv2,
# wrn, vgg, mobilenetv2, ShuffleNetv1 and ShuffleNetv2), which prints no counts.
PUBLISHED = {
    "resnet8": 0.08, "resnet14": 0.18, "resnet20": 0.28, "resnet32": 0.47, "resnet44": 0.67, "resnet56": 0.86, "resnet110": 1.74,
    "resnet8x4": 1.23, "resnet32x4": 7.43, "wrn_16_1": 0.18, "wrn_16_2": 0.70, "wrn_40_1": 0.57, "wrn_40_2": 2.26, "vgg8": 3.97,
    "vgg13": 9.46, "MobileNetV2": 0.81, "ShuffleNetV1": 0.95, "ShuffleNetV2": 1.36, "ResNet50": 23.71,
}  # fmt: skip

# Counts that others print of these networks: osmr/imgclsmob's table for CIFAR-100, and users of CRD's, AugMix's and weiaicunzai's code.
PRINTED = {
    "resnet20": 278_324, "resnet56": 861_620, "resnet110": 1_736_564, "resnet32x4": 7_433_860, "wrn_16_2": 703_284,
    "wrn_40_2": 2_255_156, "ResNet50": 23_705_252,
}  # fmt: skip


def conv(inputs, outputs, kernel=3, groups=1, bias=0):
    """A convolution and its batch norm."""
    return kernel * kernel * inputs // groups * outputs + bias * outputs + 2 * outputs


def cifar_resnet(depth, stem, width):
    total, i = conv(3, stem), stem
    for o in (width, 2 * width, 4 * width):
        total += conv(i, o) + conv(o, o) + (conv(i, o, 1) if i != o else 0) + ((depth - 2) // 6 - 1) * 2 * conv(o, o)
        i = o
    return total + i * 100 + 100


def wide(depth, k):
    """Batch norms stand before convolutions, so they are as wide as what goes in."""
    total, i = 27 * 16, 16
    for o in (16 * k, 32 * k, 64 * k):
        total += 2 * i + 9 * i * o + 2 * o + 9 * o * o + (i * o if i != o else 0)
        total += ((depth - 4) // 6 - 1) * 2 * (2 * o + 9 * o * o)
        i = o
    return total + 2 * i + i * 100 + 100


def vgg(counts):
    total, i = 0, 3
    for o, count in zip((64, 128, 256, 512, 512), counts, strict=True):
        total += conv(i, o, bias=1) + (count - 1) * conv(o, o, bias=1)
        i = o
    return total + 512 * 100 + 100


def mobile():
    """Table 2 of the paper at half width, 1280 channels at the end."""
    total, i = conv(3, 16), 16
    for t, c, n in ((1, 8, 1), (6, 12, 2), (6, 16, 3), (6, 32, 4), (6, 48, 3), (6, 80, 3), (6, 160, 1)):
        for _ in range(n):
            total += conv(i, t * i, 1) + conv(t * i, t * i, 3, t * i) + conv(t * i, c, 1)
            i = c
    return total + conv(160, 1280, 1) + 1280 * 100 + 100


def shuffle_v1():
    total, i = conv(3, 24, 1), 24
    for o, n in ((240, 4), (480, 8), (960, 4)):
        for j in range(n):
            made = o - i if j == 0 else o
            m = made // 4
            total += conv(i, m, 1, 1 if i == 24 else 3) + conv(m, m, 3, m) + conv(m, made, 1, 3)
            i = o
    return total + 960 * 100 + 100


def shuffle_v2():
    total, i = conv(3, 24, 1), 24
    for o, n in ((116, 3), (232, 7), (464, 3)):
        h = o // 2
        total += conv(i, i, 3, i) + conv(i, h, 1) + conv(i, h, 1) + conv(h, h, 3, h) + conv(h, h, 1)
        total += n * (2 * conv(h, h, 1) + conv(h, h, 3, h))
        i = o
    return total + conv(464, 1024, 1) + 1024 * 100 + 100


def bottlenecks():
    total, i = conv(3, 64), 64
    for w, n in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for j in range(n):
            total += conv(i, w, 1) + conv(w, w) + conv(w, 4 * w, 1) + (conv(i, 4 * w, 1) if j == 0 else 0)
            i = 4 * w
    return total + 2048 * 100 + 100


COUNTED = {f"resnet{d}": cifar_resnet(d, 16, 16) for d in (8, 14, 20, 32, 44, 56, 110)}
COUNTED |= {f"resnet{d}x4": cifar_resnet(d, 32, 64) for d in (8, 32)}
COUNTED |= {f"wrn_{d}_{k}": wide(d, k) for d in (16, 40) for k in (1, 2)}
COUNTED |= {"vgg8": vgg((1,) * 5), "vgg13": vgg((2,) * 5), "MobileNetV2": mobile()}
COUNTED |= {"ShuffleNetV1": shuffle_v1(), "ShuffleNetV2": shuffle_v2(), "ResNet50": bottlenecks()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name):
    found = parameters(build(name, 100, 3, 0))
    assert found == COUNTED[name]
    assert round(found / 1e6, 2) == PUBLISHED[name]
    assert PRINTED.get(name, found) == found


STAGES = {
    "resnet8x4": [(64, 32, 32), (128, 16, 16), (256, 8, 8)],
    "wrn_16_2": [(32, 32, 32), (64, 16, 16), (128, 8, 8)],
    "vgg8": [(128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4)],
    "MobileNetV2": [(12, 16, 16), (16, 8, 8), (48, 4, 4), (160, 2, 2)],
    "ShuffleNetV1": [(240, 16, 16), (480, 8, 8), (960, 4, 4)],
    "ShuffleNetV2": [(116, 16, 16), (232, 8, 8), (464, 4, 4)],
    "ResNet18": [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)],
    "ResNet50": [(256, 32, 32), (512, 16, 16), (1024, 8, 8), (2048, 4, 4)],
}


@pytest.mark.parametrize("name", STAGES)
def test_stages_are_those_of_the_benchmark(name):
    network = build(name, 100, 3, 0).eval()
    with Tapped(network, plan_taps(network, IMAGES)) as tapped, torch.no_grad():
        taps = tapped(IMAGES)
    assert [tuple(f.shape[1:]) for f in taps.features] == STAGES[name]
    assert taps.logits.shape == (2, 100)
    assert torch.allclose(F.linear(taps.embedding, *taps.head), taps.logits, atol=1e-4)
    if name in (
        "resnet8x4",
        "wrn_16_2",
        "vgg8",
        "ShuffleNetV1",
        "ResNet50",
    ):  # the others have a wide layer behind the last stage
        assert torch.allclose(taps.features[-1].mean((2, 3)), taps.embedding, atol=1e-4)
    for before, after in zip(taps.pre_relu, taps.features, strict=False):
        assert torch.equal(before.relu(), after)


@pytest.mark.parametrize("name", NAMED)
def test_every_network_takes_small_grey_images(name):
    network = build(name, 7, 1, 0).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 7)


def test_a_users_stages_come_before_those_a_network_names():
    assert plan_taps(build("wrn_16_1", 10, 3, 0), IMAGES, ("block2",)).features == ("block2",)


def test_a_module_called_stage_paths_is_no_choice_of_stages():
    network = build("resnet8", 10, 3, 0)
    network.stage_paths = torch.nn.Sequential()
    assert plan_taps(network, IMAGES).features == ("layer1", "layer2", "layer3")


def bn(x, norm):
    shape = (1, -1, 1, 1)
    scaled = (x - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + norm.eps).sqrt()
    return scaled * norm.weight.view(shape) + norm.bias.view(shape)


def stirred(block):
    """Batch norms with statistics of their own, so that their order matters."""
    draw = torch.Generator().manual_seed(1)
    for module in block.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for value in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                value.copy_(torch.rand(value.shape, generator=draw) + 0.5)
    return block.eval()


def test_a_wide_block_is_its_formula():
    x = torch.randn(2, 4, 8, 8)
    same, wider = stirred(Block(4, 4, 1)), stirred(Block(4, 6, 2))
    y = bn(x, same.bn1).relu()
    y = F.conv2d(bn(F.conv2d(y, same.conv1.weight, padding=1), same.bn2).relu(), same.conv2.weight, padding=1)
    assert torch.allclose(same(x), x + y, atol=1e-5)
    y = bn(x, wider.bn1).relu()
    side = F.conv2d(y, wider.convShortcut.weight, stride=2)
    y = F.conv2d(bn(F.conv2d(y, wider.conv1.weight, stride=2, padding=1), wider.bn2).relu(), wider.conv2.weight, padding=1)
    assert torch.allclose(wider(x), side + y, atol=1e-5)


def test_channels_are_dealt_out_like_cards():
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert shuffled(x, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]
    assert shuffled(x, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]


def test_shuffle_blocks_are_their_formulas():
    x = torch.randn(2, 240, 4, 4)
    block = stirred(BlockV1(240, 240, 1))
    y = bn(F.conv2d(x, block.conv1.weight, groups=3), block.bn1).relu()
    y = y.view(2, 3, 20, 4, 4).permute(0, 2, 1, 3, 4).reshape(2, 60, 4, 4)
    y = bn(F.conv2d(y, block.conv2.weight, padding=1, groups=60), block.bn2).relu()
    y = bn(F.conv2d(y, block.conv3.weight, groups=3), block.bn3)
    assert torch.allclose(block(x), (x + y).relu(), atol=1e-4)
    down = BlockV1(24, 240, 2)
    z = torch.randn(2, 24, 8, 8)
    assert torch.equal(down(z)[:, 216:], F.avg_pool2d(z, 3, 2, 1).relu())
    half = stirred(BlockV2(8))
    z = torch.randn(2, 8, 4, 4)
    y = bn(F.conv2d(z[:, 4:], half.conv1.weight), half.bn1).relu()
    y = bn(F.conv2d(y, half.conv2.weight, padding=1, groups=4), half.bn2)
    y = bn(F.conv2d(y, half.conv3.weight), half.bn3).relu()
    assert torch.allclose(half(z)[:, ::2], z[:, :4], atol=1e-6)
    assert torch.allclose(half(z)[:, 1::2], y, atol=1e-5)
    two = stirred(DownV2(4, 8))
    left = bn(F.conv2d(z[:, :4], two.conv1.weight, stride=2, padding=1, groups=4), two.bn1)
    left = bn(F.conv2d(left, two.conv2.weight), two.bn2).relu()
    assert torch.allclose(two(z[:, :4])[:, ::2], left, atol=1e-5)


def test_an_inverted_residual_narrows_without_an_activation():
    block, x = stirred(InvertedResidual(4, 4, 1, 6)), torch.randn(2, 4, 6, 6)
    c = block.conv
    y = bn(F.conv2d(x, c[0].weight), c[1]).relu()
    y = bn(F.conv2d(y, c[3].weight, padding=1, groups=24), c[4]).relu()
    assert torch.allclose(block(x), x + bn(F.conv2d(y, c[6].weight), c[7]), atol=1e-5)
    assert not InvertedResidual(4, 4, 2, 6).shortcut
    assert not InvertedResidual(4, 6, 1, 6).shortcut


def test_the_two_resnets_of_fifty_layers_are_told_apart():
    assert parameters(build("resnet50", 100, 3, 0)) == cifar_resnet(50, 16, 16)
    with pytest.raises(EvokdError, match="did you mean 'MobileNetV2'"):
        build("MobilenetV2", 10, 3, 0)


def test_without_timm_one_line_tells_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(EvokdError, match=r'--student: expected the package timm, .*pip install "evokd\[timm\]"'):
        build("timm:deit_tiny_patch16_224", 10, 3, 0)
    with pytest.raises(EvokdError, match="SIDEpPATCH"):
        build("timm:deit tiny", 10, 3, 0)


def test_timms_transformers_show_tokens_and_maps():
    pytest.importorskip("timm", reason="timm is an extra: pip install evokd[timm]")
    network = build("timm:deit_tiny_patch16_224@32p4", 7, 3, 0).eval()
    with torch.no_grad():
        taps = network(IMAGES)
    assert [tuple(f.shape) for f in taps.features] == [(2, 192, 8, 8)] * 3
    assert taps.tokens.shape == (2, 64, 192)
    assert torch.allclose(F.linear(taps.embedding, *taps.head), taps.logits, atol=1e-5)
    assert torch.allclose(taps.logits, network.network(IMAGES), atol=1e-5)
    blocks = network.network.patch_embed(IMAGES)
    blocks = network.network._pos_embed(blocks)
    for block in network.network.blocks[:4]:
        blocks = block(blocks)
    assert torch.allclose(taps.features[0].flatten(2).transpose(1, 2), blocks[:, 1:], atol=1e-4)
    with pytest.raises(EvokdError, match="a network of timm"):
        build_timm("no_such_network", 7, 3)


def test_timms_attention_is_what_its_softmax_is_given():
    """Scores of the last block, without class tokens, from which its output follows."""
    pytest.importorskip("timm", reason="timm is an extra: pip install evokd[timm]")
    network = build("timm:deit_tiny@32p8", 7, 3, 0).eval()
    attention, seen = network.network.blocks[-1].attn, []
    attention.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    with torch.no_grad():
        taps = network(IMAGES)
        (x, out), *_ = seen
        q, k, v = attention.qkv(x).view(2, 17, 3, 3, 64).permute(2, 0, 3, 1, 4)
        scores = q @ k.mT / 8
        assert torch.allclose(out, attention.proj((scores.softmax(3) @ v).transpose(1, 2).reshape(2, 17, 192)), atol=1e-5)
    assert taps.attention.shape == (2, 3, 16, 16)
    assert torch.allclose(taps.attention, scores[:, :, 1:, 1:], atol=1e-5)
    assert not attention._forward_pre_hooks
    assert parameters(build("timm:deit_tiny", 1000, 3, 0)) == 5_717_416  # 5.7 M, Touvron et al., ICML 2021, as timm counts them
