import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from evokd.config import Protocol
from evokd.errors import EvokdError
from evokd.evaluate.bank import assemble, bank_key, open_bank, write_bank
from evokd.models.resnet import ResNet
from evokd.models.tapping import TapPlan
from evokd.models.teachers import Teacher

PLAN = TapPlan(("layer1", "layer2", "layer3"), "fc")
POSITIONS = ["logits", "embedding", "features[-1]", "features[-3]"]
PROTOCOL = Protocol(views=3, shift=2)


@pytest.fixture(scope="module")
def data(digits):
    return digits.with_transfer(40)


@pytest.fixture(scope="module")
def teacher(data):
    torch.manual_seed(0)
    network = ResNet(8, 4, 10, 1).eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return Teacher(network, "t", "k", 0.0, data.mean, data.std)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, data, teacher) -> Path:
    path = tmp_path_factory.mktemp("banks") / "bank"
    write_bank(path, data, teacher, PLAN, PROTOCOL, POSITIONS, 1.0)
    return path


def seen(image: np.ndarray, view: np.ndarray, data) -> np.ndarray:
    """(C,H,W) as the network sees it: shifted pixel by pixel and scaled; 0 where nothing is left. Digits are never mirrored."""
    down, right, _ = (int(v) for v in view)
    out = np.zeros(image.shape)
    _, h, w = image.shape
    for y in range(h):
        for x in range(w):
            a, b = y + down - PROTOCOL.shift, x + right - PROTOCOL.shift
            if 0 <= a < h and 0 <= b < w:
                out[:, y, x] = image[:, a, b]
    return (out / 255 - np.array(data.mean)[:, None, None]) / np.array(data.std)[:, None, None]


def test_recorded_taps_are_a_live_teachers_on_the_same_views(folder, data, teacher):
    bank, net = open_bank(folder, check=True), teacher.network
    index, view = torch.tensor([0, 7, 39, 7]), torch.tensor([2, 0, 1, 1])
    x = np.stack([seen(data.train.images[i], bank.views[v, i].numpy(), data) for i, v in zip(index, view, strict=True)])
    x = torch.from_numpy(x).float()
    assert torch.allclose(bank.batch(index, view), x, atol=1e-5)
    taps = bank.teacher_taps(index, view)
    first = net.layer1(torch.relu(net.bn1(net.conv1(x))))
    last = net.layer3(net.layer2(first))
    assert torch.allclose(taps.at("features[-3]"), first, atol=1e-4)
    assert torch.allclose(taps.at("features[-1]"), last, atol=1e-4)
    assert torch.allclose(taps.embedding, last.mean((2, 3)), atol=1e-4)
    assert torch.allclose(taps.logits, net(x), atol=1e-4)


def test_views_differ_and_stay_in_their_range(folder):
    views = open_bank(folder).views
    assert views.shape == (3, 40, 3)
    assert views[..., :2].min() == 0
    assert views[..., :2].max() == 4
    assert views[..., 2].max() == 0, "digits have no mirror images"
    assert not torch.equal(views[0], views[1])


def test_held_out_logits_are_of_the_plain_images(folder, data, teacher):
    bank = open_bank(folder)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (data.mean, data.std))
    x = (torch.from_numpy(data.test.images[:20]) / 255 - mean) / std
    assert torch.allclose(bank.logits["test"][:20], teacher.network(x), atol=1e-4)
    assert torch.equal(bank.labels["validation"], torch.from_numpy(data.validation.labels))


def test_only_positions_in_use_are_recorded(folder):
    assert {p.stem for p in folder.glob("taps_*")} == {"taps_logits", "taps_embedding", "taps_features_1", "taps_features_3"}
    assert open_bank(folder).teacher_taps(torch.tensor([0]), torch.tensor([0])).positions() == [
        "logits",
        "embedding",
        "features[-1]",
        "features[-2]",
        "features[-3]",
        "teacher_head",
    ]


def test_above_the_cap_nothing_is_recorded_and_the_teacher_runs_live(tmp_path, data, teacher):
    write_bank(tmp_path / "bank", data, teacher, PLAN, PROTOCOL, POSITIONS, 1e-9)
    bank = open_bank(tmp_path / "bank", check=True)
    assert bank.taps == {}
    assert bank.card["live"]
    assert set(bank.logits) == {"validation", "test"}


@pytest.mark.parametrize("victim", ["taps_logits.npy", "train_images.npy", "test_labels.npy"])
def test_one_flipped_bit_is_refused(folder, tmp_path, victim):
    copy = tmp_path / "bank"
    shutil.copytree(folder, copy)
    raw = bytearray((copy / victim).read_bytes())
    raw[-3] ^= 1
    (copy / victim).write_bytes(raw)
    with pytest.raises(EvokdError, match="delete the folder"):
        open_bank(copy, check=True)


@pytest.mark.parametrize("card", ["", "{", "[]", "{}"])
def test_a_broken_card_is_refused(folder, tmp_path, card):
    copy = tmp_path / "bank"
    shutil.copytree(folder, copy)
    (copy / "card.json").write_text(card)
    with pytest.raises(EvokdError, match="delete the folder"):
        open_bank(copy, check=True)


def test_a_death_while_recording_leaves_no_bank_and_the_next_try_makes_it(tmp_path, data, teacher):
    calls = []

    def dies(line):
        calls.append(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_bank(tmp_path / "bank", data, teacher, PLAN, PROTOCOL, POSITIONS, 1.0, dies)
    assert calls
    assert not (tmp_path / "bank").exists()
    write_bank(tmp_path / "bank", data, teacher, PLAN, PROTOCOL, POSITIONS, 1.0)
    assert open_bank(tmp_path / "bank", check=True).taps
    assert [p.name for p in tmp_path.iterdir()] == ["bank"]


def test_a_folder_without_its_card_is_made_again(folder, tmp_path, data, teacher):
    copy = tmp_path / "bank"
    shutil.copytree(folder, copy)
    (copy / "card.json").unlink()
    write_bank(copy, data, teacher, PLAN, PROTOCOL, POSITIONS, 1.0)
    assert open_bank(copy, check=True).taps


def test_a_whole_bank_is_not_written_again(folder, data, teacher):
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    write_bank(folder, data, teacher, PLAN, PROTOCOL, POSITIONS, 1.0, lambda line: pytest.fail("recorded again"))
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before


def test_the_key_tells_everything_apart_that_changes_a_bank(data, digits, teacher):
    one = bank_key(data, teacher, PLAN, PROTOCOL, POSITIONS)
    assert one == bank_key(data, teacher, PLAN, Protocol(views=3, shift=2, steps=7, lr=1), POSITIONS[::-1])
    others = [
        bank_key(digits.with_transfer(41), teacher, PLAN, PROTOCOL, POSITIONS),
        bank_key(data.with_labels(10), teacher, PLAN, PROTOCOL, POSITIONS),
        bank_key(data, Teacher(teacher.network, "t", "k2", 0.0, data.mean, data.std), PLAN, PROTOCOL, POSITIONS),
        bank_key(data, teacher, TapPlan(("layer2", "layer3"), "fc"), PROTOCOL, POSITIONS),
        bank_key(data, teacher, PLAN, Protocol(views=2, shift=2), POSITIONS),
        bank_key(data, teacher, PLAN, Protocol(views=3, shift=1), POSITIONS),
        bank_key(data, teacher, PLAN, PROTOCOL, POSITIONS[:2]),
    ]
    assert len({one, *others}) == 8


def test_stages_come_in_order_with_gaps_left_empty():
    a, b = torch.ones(1, 2, 2, 2), torch.ones(1, 1, 4, 4)
    taps = assemble({"features[-1]": a, "logits": torch.ones(1, 3), "features[-3]": b})
    assert taps.at("features[-1]") is a
    assert taps.at("features[-3]") is b
    assert taps.at("features[-2]").numel() == 0
    assert taps.embedding is None
