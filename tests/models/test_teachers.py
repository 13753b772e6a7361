import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from evokd.errors import EvokdError
from evokd.models.resnet import ResNet
from evokd.models.teachers import accuracy, load_teacher, read_weights, write_weights


@pytest.fixture(scope="module")
def cache(tmp_path_factory, digits):
    folder = tmp_path_factory.mktemp("cache")
    load_teacher("resnet8w4", digits, folder, 2)
    return folder


@pytest.fixture
def untrained(monkeypatch):
    """Training again fails the test."""
    monkeypatch.setattr("evokd.models.teachers.train_teacher", lambda *args: pytest.fail("trained"))


def test_a_cached_teacher_is_bit_for_bit_the_one_that_was_trained(cache, digits, tmp_path, untrained):
    first, again = (load_teacher("resnet8w4", digits, cache, 2) for _ in range(2))
    assert first.key == again.key
    (path,) = (cache / "teachers").glob("*.safetensors")
    state = load_file(path)
    assert all(torch.equal(v, state[k]) for k, v in again.network.state_dict().items())


def test_training_twice_gives_the_same_bits(cache, digits, tmp_path):
    torch.rand(3)
    fresh = load_teacher("resnet8w4", digits, tmp_path, 2)
    assert fresh.key == load_teacher("resnet8w4", digits, cache, 2).key
    assert fresh.accuracy > 20


def test_what_changes_a_teacher_is_trained_anew(cache, digits, untrained):
    for spec, data, epochs in (("resnet8w8", digits, 2), ("resnet8w4", digits.with_transfer(300), 2), ("resnet8w4", digits, 3)):
        with pytest.raises(pytest.fail.Exception, match="trained"):
            load_teacher(spec, data, cache, epochs)


def test_a_teacher_is_frozen_and_told_by_its_validation_accuracy(cache, digits):
    teacher = load_teacher("resnet8w4", digits, cache, 2)
    assert not teacher.network.training
    assert not any(w.requires_grad for w in teacher.network.parameters())
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (digits.mean, digits.std))
    x = (torch.from_numpy(digits.validation.images) / 255 - mean) / std
    right = (teacher.network(x).argmax(1) == torch.from_numpy(digits.validation.labels)).float().mean()
    assert teacher.accuracy == pytest.approx(100 * right.item(), abs=0.3)
    assert teacher.accuracy == accuracy(teacher.network, digits.validation, digits.mean, digits.std)


@pytest.mark.parametrize("breakage", ["torn", "text", "empty", "another network"])
def test_a_corrupt_cache_is_refused_and_named(cache, digits, tmp_path, untrained, breakage):
    (path,) = (cache / "teachers").glob("*.safetensors")
    raw = path.read_bytes()
    target = tmp_path / "teachers" / path.name
    target.parent.mkdir()
    target.write_bytes({"torn": raw[: len(raw) // 2], "text": b"no weights", "empty": b""}.get(breakage, raw))
    if breakage == "another network":
        save_file(ResNet(8, 8, 10, 1).state_dict(), target)
    with pytest.raises(EvokdError, match="delete it"):
        load_teacher("resnet8w4", digits, tmp_path, 2)


def test_a_death_while_writing_leaves_no_cache(digits, tmp_path, monkeypatch):
    def dies(tensors, path, metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", dies)
    with pytest.raises(KeyboardInterrupt):
        write_weights(tmp_path / "teachers" / "x.safetensors", ResNet(8, 4, 10, 1), {})
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(("depth", "width", "shortcut", "channels"), [(8, 4, "B", 1), (14, 6, "A", 3), (20, 16, "B", 3)])
def test_weights_tell_their_own_architecture(tmp_path, depth, width, shortcut, channels):
    network = ResNet(depth, width, 10, channels, shortcut).eval()
    write_weights(tmp_path / "w.safetensors", network, {"mean": "0.5", "std": "0.25"})
    found, card = read_weights(tmp_path / "w.safetensors")
    x = torch.randn(2, channels, 16, 16)
    assert torch.equal(found.eval()(x), network(x))
    assert card["mean"] == "0.5"


def test_a_file_of_weights_brings_its_own_normalisation(digits, tmp_path):
    write_weights(tmp_path / "w.safetensors", ResNet(8, 4, 10, 1), {"mean": "0.5", "std": "0.25"})
    teacher = load_teacher(str(tmp_path / "w.safetensors"), digits, tmp_path, 1)
    assert (teacher.name, teacher.mean, teacher.std) == ("w", (0.5,), (0.25,))


FOREIGN = {
    "other network": lambda: {"encoder.weight": torch.zeros(3)},
    "no stem": lambda: {k: v for k, v in ResNet(8, 4, 10, 1).state_dict().items() if k != "conv1.weight"},
    "no head": lambda: {k: v for k, v in ResNet(8, 4, 10, 1).state_dict().items() if not k.startswith("fc")},
    "one key missing": lambda: {k: v for k, v in ResNet(8, 4, 10, 1).state_dict().items() if k != "layer2.0.bn1.weight"},
    "one key more": lambda: ResNet(8, 4, 10, 1).state_dict() | {"extra": torch.zeros(1)},
    "one shape": lambda: ResNet(8, 4, 10, 1).state_dict() | {"layer3.0.bn2.bias": torch.zeros(3)},
    "flat stem": lambda: ResNet(8, 4, 10, 1).state_dict() | {"conv1.weight": torch.zeros(4)},
    "empty": dict,
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_weights_are_refused(case, tmp_path):
    save_file(FOREIGN[case](), tmp_path / "w.safetensors")
    with pytest.raises(EvokdError, match=r"w\.safetensors"):
        read_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize("card", [{"mean": "a,b"}, {"mean": "0.5,0.5", "std": "0.2"}, {"mean": "0.5", "std": "0"}])
def test_a_wrong_card_is_refused(card, digits, tmp_path):
    write_weights(tmp_path / "w.safetensors", ResNet(8, 4, 10, 1), card)
    with pytest.raises(EvokdError):
        load_teacher(str(tmp_path / "w.safetensors"), digits, tmp_path, 1)


def test_a_teacher_of_other_classes_is_refused(digits, tmp_path):
    with pytest.raises(EvokdError, match=r"--teacher: expected 10 classes, as digits has, got \(7,\)"):
        load_teacher(ResNet(8, 4, 7, 1), digits, tmp_path, 1)


def test_a_teacher_of_other_images_is_refused(digits, tmp_path):
    with pytest.raises(EvokdError, match="a network for images of shape"):
        load_teacher(ResNet(8, 4, 10, 3), digits, tmp_path, 1)


def test_a_teacher_of_colour_images_is_refused_for_grey_ones(digits, shared_data, tmp_path):
    """Ten classes as well, but three means: broadcasting would make colour images of grey ones."""
    with pytest.raises(EvokdError, match="--teacher"):
        load_teacher(str(shared_data / "teachers" / "cifar10_resnet20.safetensors"), digits, tmp_path, 1)


def test_a_users_module_is_taken_as_it_is(digits, tmp_path):
    class Mine(nn.Sequential):
        pass

    network = Mine(nn.Flatten(), nn.Linear(64, 10))
    teacher = load_teacher(network, digits, tmp_path, 1)
    assert teacher.network is not network
    assert network[1].weight.requires_grad
    assert not teacher.network[1].weight.requires_grad
    assert (teacher.name, teacher.mean) == ("Mine", digits.mean)
    assert load_teacher(Mine(nn.Flatten(), nn.Linear(64, 10)), digits, tmp_path, 1).key != teacher.key
