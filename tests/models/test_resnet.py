import pytest
import torch
import torch.nn.functional as F

from evokd.data import read_data
from evokd.models.resnet import Block, ResNet
from evokd.models.teachers import accuracy, read_weights
from evokd.models.zoo import parameters


def by_hand(blocks: int, w: int, classes: int, channels: int = 3) -> int:
    """Parameters counted from He et al.'s table 6, option B: 3×3 convolutions, two figures a channel for batch norm, one linear layer."""
    total = 9 * channels * w + 2 * w
    for i, o in ((w, w), (w, 2 * w), (2 * w, 4 * w)):
        total += 9 * i * o + 9 * o * o + 4 * o + (blocks - 1) * (18 * o * o + 4 * o)
        total += i * o + 2 * o if i != o else 0
    return total + 4 * w * classes + classes


@pytest.mark.parametrize(("depth", "classes", "published"), [(20, 100, 278_324), (56, 100, 861_620), (20, 10, 272_474)])
def test_parameter_counts_are_the_published_ones(depth, classes, published):
    """As osmr/imgclsmob prints them: on CIFAR-100 278,324 and 861,620, on CIFAR-10 272,474."""
    network = ResNet(depth, 16, classes)
    assert parameters(network) == by_hand((depth - 2) // 6, 16, classes) == published


def test_option_a_has_no_parameters_in_its_shortcuts():
    """He et al.'s own count of ResNet-20 is 0.27 M; akamaster's with option A is 269,722."""
    assert parameters(ResNet(20, 16, 10, shortcut="A")) == 269_722


def test_the_shortcut_of_option_a_is_every_second_pixel_with_padded_channels():
    block, x = Block(2, 4, 2, "A"), torch.randn(3, 2, 6, 6)
    shortcut = block.shortcut(x)
    assert shortcut.shape == (3, 4, 3, 3)
    assert torch.equal(shortcut[:, 1:3], x[:, :, ::2, ::2])
    assert not shortcut[:, [0, 3]].any()


def test_a_block_is_its_formula():
    block, x = Block(4, 8, 2, "B").eval(), torch.randn(2, 4, 8, 8)
    y = block.bn1(F.conv2d(x, block.conv1.weight, stride=2, padding=1)).clamp_min(0)
    y = block.bn2(F.conv2d(y, block.conv2.weight, padding=1))
    side = block.downsample[1](F.conv2d(x, block.downsample[0].weight, stride=2))
    assert torch.allclose(block(x), (y + side).clamp_min(0), atol=1e-6)


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), (32, 3), (33, 3)])
def test_images_of_any_size_give_logits(size, channels):
    assert ResNet(8, 4, 7, channels)(torch.zeros(2, channels, size, size)).shape == (2, 7)


def test_the_published_teacher_is_right_about_its_training_images(shared_data):
    """99.90 % of all; here the first two tiles of each class, decoded by hand."""
    import json

    import numpy as np
    from PIL import Image

    network, card = read_weights(shared_data / "teachers" / "cifar100_resnet56.safetensors")
    assert parameters(network) == 861_620
    index = json.loads((shared_data / "cifar100" / "index.json").read_text())
    names = sorted(n for n in index["files"] if n.startswith("train/"))
    pictures = [np.asarray(Image.open(shared_data / "cifar100" / n).convert("RGB"))[:32, :64] for n in names]
    x = np.stack([p[:, at : at + 32] for p in pictures for at in (0, 32)]).transpose(0, 3, 1, 2) / 255
    mean, std = (np.array([float(v) for v in card[k].split(",")]).reshape(3, 1, 1) for k in ("mean", "std"))
    labels = torch.arange(100).repeat_interleave(2)
    with torch.no_grad():
        found = network.eval()(torch.from_numpy((x - mean) / std).float()).argmax(1)
    assert (found == labels).float().mean() > 0.98


@pytest.mark.slow
def test_the_published_teachers_reach_their_published_accuracy(shared_data):
    from evokd.models.teachers import _numbers

    data = read_data(str(shared_data / "cifar100"))
    network, card = read_weights(shared_data / "teachers" / "cifar100_resnet56.safetensors")
    assert accuracy(network, data.test, _numbers(card["mean"]), _numbers(card["std"])) == pytest.approx(72.63, abs=0.011)
