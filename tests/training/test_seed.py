import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from evokd.data import Split
from evokd.errors import EvokdError
from evokd.evaluate.distill import DivergedError
from evokd.losses.known import KNOWN
from evokd.losses.language import parse_loss
from evokd.models.tapping import plan_taps
from evokd.models.teachers import load_teacher
from evokd.models.views import cropped, draw_crops
from evokd.models.zoo import build
from evokd.streams import derive
from evokd.training.recipes import IMAGENET, Recipe, short
from evokd.training.seed import FullTraining, hard_loss
from evokd.training.state import State

CLOCK = "seconds"


@pytest.fixture(scope="module")
def few(digits):
    """200 training and 120 test images."""
    return replace(digits.with_transfer(200), test=digits.test.take(np.arange(120)))


@pytest.fixture(scope="module")
def taught(few, tmp_path_factory):
    return load_teacher("resnet8w8", few, tmp_path_factory.mktemp("cache"), 2)


def training(few, taught, loss="kd", recipe=None, **more):
    student = build("conv3w6", 10, 1, 0)
    plans = tuple(plan_taps(network, torch.zeros(2, 1, 8, 8)) for network in (student, taught.network))
    tree = parse_loss(KNOWN.get(loss, loss)) if loss else None
    return FullTraining(few, "conv3w6", recipe or short(3), loss=tree, teacher=taught, plans=plans, **more)


def without_clock(trained):
    return (
        {k: v for k, v in trained.figures.items() if k != CLOCK},
        [{k: v for k, v in row.items() if k != CLOCK} for row in trained.epochs],
        {k: v.tolist() for k, v in trained.network.state_dict().items()},
    )


class StoppedError(Exception):
    pass


@pytest.mark.parametrize(
    ("loss", "changes"),
    [("kd", {}), ("", {"ema": 0.9}), ("0.1*crd + l2(features[-1])", {"clip": 0.0}), ("l2(drop(logits))", {"schedule": "cosine"})],
    ids=["kd", "plain with averaged weights", "memory and connectors", "random masks"],
)
def test_a_training_that_was_cut_off_ends_like_an_undisturbed_one(few, taught, tmp_path, loss, changes):
    recipe, path = replace(short(3), **changes), tmp_path / "checkpoint.safetensors"
    whole = training(few, taught, loss, recipe).train(7)

    def die(line):
        if "epoch 2/" in line:
            raise StoppedError

    with pytest.raises(StoppedError):
        training(few, taught, loss, recipe).train(7, path, die)
    said = []
    resumed = training(few, taught, loss, recipe).train(7, path, said.append)
    assert len(said) == 1
    assert without_clock(resumed) == without_clock(whole)


def test_a_seed_alone_decides(few, taught):
    torch.rand(3)
    first, again = (training(few, taught).train(1) for _ in range(2))
    other = training(few, taught).train(2)
    assert without_clock(first) == without_clock(again)
    assert without_clock(first)[2] != without_clock(other)[2]


@pytest.mark.parametrize("breakage", ["torn", "empty", "another seed", "another student"])
def test_a_checkpoint_that_does_not_fit_is_refused(few, taught, tmp_path, breakage):
    path = tmp_path / "checkpoint.safetensors"
    training(few, taught, "", short(1)).train(1, path)
    raw = path.read_bytes()
    path.write_bytes({"torn": raw[: len(raw) // 2], "empty": b""}.get(breakage, raw))
    other = training(few, taught, "", short(1))
    other.student = "conv3w8" if breakage == "another student" else other.student
    with pytest.raises(EvokdError, match=r"checkpoint\.safetensors: expected a whole checkpoint of this training.*begins anew"):
        other.train(2 if breakage == "another seed" else 1, path)


def test_a_checkpoint_holds_what_the_optimiser_remembers(few, taught, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    training(few, taught, "l2(features[-1])", short(1)).train(1, path)
    found = load_file(path)
    weights = [k for k in found if k.startswith("student.") and k.split(".")[-1] in ("weight", "bias")]
    momenta = [k for k in found if k.startswith("optimiser.") and k.endswith("momentum_buffer")]
    connectors = [k for k in found if k.startswith("loss.connectors")]
    assert len(connectors) == 1
    assert len(momenta) == len(weights) + len(connectors)
    save_file({k: v for k, v in found.items() if not k.startswith("student.fc")}, path, {"seed": "1", "rows": "[]"})
    with pytest.raises(EvokdError, match="whole checkpoint"):
        training(few, taught, "l2(features[-1])", short(1)).train(1, path)


def test_every_image_is_seen_once_an_epoch_and_augmented_anew(few, taught):
    full = training(few, taught, "", short(2))
    epochs = [[*full.batches(3, epoch)] for epoch in range(2)]
    for batches in epochs:
        assert sorted(torch.cat([index for index, _ in batches]).tolist()) == list(range(200))
        assert [len(index) for index, _ in batches] == [64, 64, 64, 8]
    assert not torch.equal(epochs[0][0][0], epochs[1][0][0])
    index, images = epochs[0][0]
    plain = (torch.from_numpy(few.train.images)[index] / 255 - taught.mean[0]) / taught.std[0]
    nought = (0 - taught.mean[0]) / taught.std[0]
    for one, image in zip(plain, images, strict=True):
        padded = torch.nn.functional.pad(one[0], (1, 1, 1, 1), value=nought)
        windows = [padded[y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
        assert any(torch.allclose(image[0], window, atol=1e-5) for window in windows)


def test_a_last_image_by_itself_is_left_out(few, taught):
    odd = replace(few, train=few.train.take(np.arange(129)))
    assert [len(index) for index, _ in training(odd, taught, "").batches(0, 0)] == [64, 64]


def test_a_training_step_is_sgd_on_gamma_ce_plus_the_loss(few, taught):
    """One epoch of one batch against plain PyTorch, decay on matrices alone, gradients clipped to 0.5."""
    small = replace(few, train=few.train.take(np.arange(32)))
    recipe = replace(short(1), batch=32, clip=0.5, schedule="cosine", lr=0.3, momentum=0.0, nesterov=False)
    full = training(small, taught, "2*l2(logits)", recipe, gamma=0.3)
    trained = full.train(5)
    network = build("conv3w6", 10, 1, derive(5, "student")).train()
    ((index, images),) = full.batches(5, 0)
    logits = network(images)
    labels = torch.from_numpy(small.train.labels)[index]
    target = taught.network(images)
    loss = 0.3 * torch.nn.functional.cross_entropy(logits, labels) + 2 * (logits - target).square().mean()
    loss.backward()
    norm = torch.cat([w.grad.flatten() for w in network.parameters()]).norm()
    scale = min(0.5 / (norm.item() + 1e-6), 1)
    assert scale < 1
    for name, weight in network.named_parameters():
        decay = 5e-4 * weight.detach() if weight.dim() > 1 else 0
        expected = weight.detach() - 0.3 * (scale * weight.grad + decay)
        assert torch.allclose(trained.network.get_parameter(name), expected, atol=1e-6), name


@pytest.mark.parametrize(
    "changes",
    [{}, {"smoothing": 0.2}, {"decay_all": True, "weight_decay": 0.1}, {"momentum": 0.9, "nesterov": True}, {"ema": 0.5}, {"clip": 0.2},
     {"optimizer": "adamw", "weight_decay": 0.3}],
    ids=str,
)  # fmt: skip
def test_every_field_of_the_optimiser_is_obeyed(few, changes):
    """Two steps of plain training against torch's own optimisers, fed by hand."""
    small = replace(few, train=few.train.take(np.arange(32)))
    plain = {"batch": 16, "clip": 0.0, "lr": 0.05, "schedule": "cosine", "momentum": 0.0, "nesterov": False}
    recipe = replace(short(1), **plain | changes)
    full = FullTraining(small, "conv3w6", recipe)
    found = full.train(5).network
    network = build("conv3w6", 10, 1, derive(5, "student")).train()
    mean = {name: w.detach().clone() for name, w in network.named_parameters()}
    matrices = [w for w in network.parameters() if w.dim() > 1 or recipe.decay_all]
    rest = [w for w in network.parameters() if not (w.dim() > 1 or recipe.decay_all)]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    adamw = recipe.optimizer == "adamw"
    own = torch.optim.AdamW(groups) if adamw else torch.optim.SGD(groups, momentum=recipe.momentum, nesterov=recipe.nesterov)
    for step, (index, images) in enumerate(full.batches(5, 0)):
        for group in own.param_groups:
            group["lr"] = 0.05 * (1 + math.cos(math.pi * step / 2)) / 2
        own.zero_grad()
        labels = torch.from_numpy(small.train.labels)[index]
        torch.nn.functional.cross_entropy(network(images), labels, label_smoothing=recipe.smoothing).backward()
        if recipe.clip:
            norm = torch.cat([w.grad.flatten() for w in network.parameters()]).norm()
            assert norm > recipe.clip
            for w in network.parameters():
                w.grad *= recipe.clip / (norm + 1e-6)
        own.step()
        mean = {name: m + (1 - recipe.ema) * (network.get_parameter(name).detach() - m) for name, m in mean.items()}
    for name, weight in found.named_parameters():
        expected = mean[name] if recipe.ema else network.get_parameter(name)
        assert torch.allclose(weight, expected, atol=1e-5), name


def test_half_precision_is_in_the_passes_alone(few, taught, monkeypatch):
    """bfloat16 where networks run; losses and weights stay float32. Only a GPU has it by itself, so that the switch is set by hand."""
    assert not training(few, taught, "kd", replace(short(1), mixed=True)).half
    assert FullTraining(few, "conv3w6", replace(short(1), mixed=True), device="meta").half
    seen, forward = set(), torch.nn.Linear.forward
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda self, x: note(forward(self, x)))

    def note(out):
        seen.add((out.dtype, torch.is_grad_enabled()))
        return out

    full = training(few, taught, "kd", short(1))
    full.half = True
    trained = full.train(0)
    assert {(torch.bfloat16, True), (torch.bfloat16, False)} <= seen
    assert all(w.dtype == torch.float32 for w in trained.network.parameters())


def test_channels_last_is_the_format_of_students_teachers_and_images(few, taught):
    wide = replace(few, train=replace(few.train, images=np.repeat(few.train.images, 3, 1)), mean=few.mean * 3, std=few.std * 3)
    wide = replace(wide, test=replace(few.test, images=np.repeat(few.test.images, 3, 1)))
    for last in (False, True):
        full = FullTraining(wide, "conv3w8", replace(short(1), channels_last=last))
        _, images = next(full.batches(0, 0))
        assert images.is_contiguous(memory_format=torch.channels_last) == last
        assert full.train(0).network.stage2[0].weight.is_contiguous(memory_format=torch.channels_last) == last


@pytest.mark.parametrize("crop", ["shift", "resized"])
def test_the_data_set_lies_on_the_device_and_is_augmented_there(few, crop):
    """A device without data: anything that went by way of the CPU would stay there, or fail."""
    full = FullTraining(few, "conv3w6", replace(short(1), crop=crop), device="meta")
    assert (full.images.device.type, full.images.dtype) == ("meta", torch.uint8)
    for index, images in full.batches(0, 0):
        assert {index.device.type, images.device.type} == {"meta"}


def test_averaged_weights_are_an_exponential_mean():
    network = torch.nn.Linear(2, 2)
    averaged = torch.nn.Linear(2, 2)
    averaged.load_state_dict(network.state_dict())
    state = State(0, Recipe("own", 1, ema=0.75), network, averaged, None, None, None)
    start = network.weight.detach().clone()
    network.weight.data += 4.0
    state.average()
    assert torch.allclose(averaged.weight, start + 1.0)
    state.average()
    assert torch.allclose(averaged.weight, start + 1.75)
    assert state.measured is averaged


def test_a_training_that_leaves_the_finite_numbers_is_told(few, taught):
    with pytest.raises(DivergedError):
        training(few, taught, "1e38*l2(pow2(logits))", replace(short(2), clip=0.0, lr=100.0)).train(0)


def test_test_is_looked_at_as_often_as_the_recipe_says(few, taught):
    rows = training(few, taught, "", replace(short(5), look=2)).train(0).epochs
    assert [("top1" in row, "top5" in row) for row in rows] == [(False,) * 2, (True,) * 2, (False,) * 2, (True,) * 2, (True,) * 2]


def test_images_of_resized_crops_are_told_by_their_middle(few, taught):
    full = training(few, taught, "", replace(IMAGENET, epochs=1, batch=64))
    assert full.size == 7
    assert next(full.batches(0, 0))[1].shape == (64, 1, 7, 7)
    assert full.view(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape == (2, 1, 7, 7)
    assert math.isfinite(full.train(0).figures["top1"])


def test_crops_are_bilinear_and_mirrored():
    images = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(3, 1, 8, 8)
    crops = torch.tensor([[0, 0, 1, 1, 0], [0, 0, 1, 1, 1], [0.25, 0.5, 0.5, 0.5, 0]])
    found = cropped(images, crops, 8)
    assert torch.allclose(found[0, 0], images[0, 0].float(), atol=1e-4)
    assert torch.allclose(found[1, 0], images[0, 0].float().flip(1), atol=1e-4)
    assert torch.allclose(cropped(images, crops, 4)[2, 0], images[0, 0, 2:6, 4:8].float(), atol=1e-4)


def test_crops_have_the_published_areas_and_ratios():
    crops = draw_crops(np.random.Generator(np.random.PCG64(0)), 4000, True).numpy()
    top_, left, height, width, mirror = crops.T
    assert (height * width).min() > 0.06
    assert 0.45 < (height * width).mean() < 0.55
    assert (top_ + height).max() <= 1 + 1e-6
    assert (left + width).max() <= 1 + 1e-6
    free = (height < 1) & (width < 1)
    assert (width / height)[free].min() >= 3 / 4 - 1e-3
    assert (width / height)[free].max() <= 4 / 3 + 1e-3
    assert 0.4 < mirror.mean() < 0.6


def test_hidden_labels_count_as_nought_and_smoothing_mixes_in_the_uniform():
    logits, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, -1, 2, 3, -1, 1])
    log_p = logits.log_softmax(1)
    known = [i for i in range(6) if labels[i] >= 0]
    plain = -sum(log_p[i, labels[i]] for i in known) / 6
    mixed = -sum(0.9 * log_p[i, labels[i]] + 0.1 * log_p[i].mean() for i in known) / 6
    assert torch.allclose(hard_loss(logits, labels), plain)
    assert torch.allclose(hard_loss(logits, labels, 0.1), mixed)


def test_figures_are_those_of_the_test_split(few, taught):
    trained = training(few, taught).train(3)
    mean, std = taught.mean[0], taught.std[0]
    x = (torch.from_numpy(few.test.images) / 255 - mean) / std
    with torch.no_grad():
        logits, target = trained.network(x), taught.network(x)
    labels = torch.from_numpy(few.test.labels)
    assert trained.figures["top1"] == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item(), abs=0.9)
    assert trained.figures["agreement"] == pytest.approx(
        100 * (logits.argmax(1) == target.argmax(1)).float().mean().item(), abs=0.9
    )
    assert trained.figures["ce"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), abs=1e-4)
    assert trained.figures["top1"] == trained.epochs[-1]["top1"]
    sharp = [(v - v.mean(1, keepdim=True)).exp().sum(1).log().mean().item() for v in (logits, target)]
    assert trained.figures["sharpness_gap"] == pytest.approx(sharp[0] - sharp[1], abs=1e-4)


def test_a_split_without_a_teacher_has_no_likeness(few):
    figures = FullTraining(few, "conv3w6", short(1)).train(0).figures
    assert "agreement" not in figures
    assert {"top1", "top5", "ece", "ce", "best_top1", "best_epoch", "seconds"} <= set(figures)


def test_validation_is_never_read(few, taught):
    blank = Split(np.zeros_like(few.validation.images), np.zeros_like(few.validation.labels))
    first, second = (training(data, taught).train(1) for data in (few, replace(few, validation=blank)))
    assert without_clock(first) == without_clock(second)
