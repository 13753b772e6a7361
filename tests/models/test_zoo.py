import pytest
import torch

from evokd.errors import EvokdError
from evokd.models.zoo import build, layout_of, parameters


@pytest.mark.parametrize(
    ("spec", "stages"),
    [("resnet8w4", [4, 8, 16]), ("resnet14w32", [32, 64, 128]), ("resnet20", [16, 32, 64]), ("conv3w6", [6, 12, 24])],
)
def test_names_tell_depth_and_width(spec, stages):
    network = build(spec, 7, 1, 0)
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 7)
    assert network.fc.in_features == stages[-1]
    if spec.startswith("resnet"):
        depth = int(spec[6:].split("w")[0])
        convolutions = [m for n, m in network.named_modules() if isinstance(m, torch.nn.Conv2d) and "downsample" not in n]
        assert len(convolutions) + 1 == depth


def test_a_seed_gives_one_network_and_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, again, other = (build("resnet8w4", 10, 1, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    assert torch.equal(torch.get_rng_state(), state)


def test_torchvision_models_are_built_by_name():
    assert parameters(build("torchvision:resnet18", 1000, 3, 0)) == 11_689_512


@pytest.fixture
def nets(tmp_path):
    (tmp_path / "nets.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from torch import nn\n"
        "@dataclass\n"
        "class Size:\n"
        "    width: int = 3\n"
        "def tiny(classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(Size().width, classes))\n"
        "def number(classes):\n"
        "    return classes\n"
        "word = 'no callable'\n"
    )
    return tmp_path / "nets.py"


def test_a_users_file_is_called_with_the_number_of_classes(nets):
    first, again = (build(f"{nets}:tiny", 5, 1, 4) for _ in range(2))
    assert first(torch.zeros(2, 3)).shape == (2, 5)
    assert torch.equal(first[1].weight, again[1].weight)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("{}:number", "return an nn.Module, got int"),
        ("{}:word", "a callable 'word'"),
        ("{}:none", "it has"),
        ("none.py:tiny", "an existing Python file"),
    ],
)
def test_a_users_file_that_does_not_fit_is_refused(nets, spec, told):
    with pytest.raises(EvokdError, match=told):
        build(spec.format(nets), 5, 1, 0, "--teacher")


@pytest.mark.parametrize(
    "spec",
    [
        "resnet9",
        "resnet2",
        "resnet1208",
        "resnet8w",
        "resnet8w0",
        "conv3w0",
        "conv3",
        "Resnet8",
        "",
        "torchvision:resnet19",
        "torchvision:",
        "vgg",
    ],
)
def test_unknown_networks_are_refused_with_the_option(spec):
    with pytest.raises(EvokdError) as caught:
        build(spec, 10, 1, 0, "--teacher")
    assert caught.value.where == "--teacher"


@pytest.mark.parametrize(
    ("spec", "device", "wanted", "expected"),
    [
        ("resnet8w8", "cpu", True, torch.channels_last),
        ("resnet8w8", "cpu", False, torch.contiguous_format),
        ("resnet8w4", "cpu", True, torch.contiguous_format),
        ("resnet8w4", "cuda", True, torch.channels_last),
        ("MobileNetV2", "cpu", True, torch.contiguous_format),
    ],
)
def test_narrow_convolutions_are_not_trained_channels_last_on_a_cpu(spec, device, wanted, expected):
    assert layout_of(build(spec, 10, 3, 0), wanted, device) is expected
