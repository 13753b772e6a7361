"""A teacher's checkpoints: its very training, in parts."""

import pytest
import torch

from evokd.errors import EvokdError
from evokd.models.route import train_route
from evokd.models.teachers import accuracy, load_teacher, read_weights, weights_key


@pytest.fixture(scope="module")
def route(digits, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return train_route("resnet8w4", digits, cache, 2, 3, lambda line: None), cache


def test_the_last_checkpoint_is_the_teacher_of_that_name(route, digits, tmp_path):
    teacher = load_teacher("resnet8w4", digits, tmp_path, 2)
    assert weights_key(read_weights(route[0][-1])[0]) == teacher.key
    assert load_teacher(str(route[0][-1]), digits, tmp_path, 2).mean == teacher.mean


def test_checkpoints_are_apart_and_grow_up(route, digits):
    networks = [read_weights(path)[0] for path in route[0]]
    assert len({weights_key(network) for network in networks}) == 3
    found = [accuracy(network, digits.validation, digits.mean, digits.std) for network in networks]
    assert found[0] < found[-1]


def test_what_the_cache_has_is_not_trained_again(route, digits):
    def never(line):
        raise AssertionError(line)

    assert train_route("resnet8w4", digits, route[1], 2, 3, never) == route[0]


@pytest.mark.parametrize("spec", ["conv3w8", "teacher.safetensors", "file.py:teacher", "torchvision:resnet18"])
def test_only_a_resnet_by_name_has_a_route(spec, digits, tmp_path):
    with pytest.raises(EvokdError, match="--route"):
        train_route(spec, digits, tmp_path, 1, 2)


def test_the_global_generator_stays_as_it_was(digits, tmp_path):
    before = torch.random.get_rng_state()
    train_route("resnet8w4", digits, tmp_path, 1, 2)
    assert torch.equal(before, torch.random.get_rng_state())
