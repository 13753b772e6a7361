import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evokd.errors import EvokdError
from evokd.losses.known import KNOWN
from evokd.models.zoo import NAMED, build, parameters
from evokd.training.recipes import CRD, GAMMAS, IMAGENET, PAIRS, SLOW, Recipe, read_pair, read_recipe, short


def rates(recipe: Recipe, steps: int) -> list[float]:
    return [recipe.rate(step, steps) for step in range(recipe.epochs * steps)]


def test_crd_is_the_published_recipe():
    """RepDistiller's options: 240 epochs, batch 64, SGD 0.05 with momentum 0.9 and decay 5e-4, times 0.1 after epochs 150, 180, 210."""
    assert (CRD.epochs, CRD.batch, CRD.momentum, CRD.weight_decay, CRD.nesterov, CRD.decay_all) == (
        240,
        64,
        0.9,
        5e-4,
        False,
        True,
    )
    assert (CRD.clip, CRD.smoothing, CRD.ema, CRD.crop, CRD.flip) == (0, 0, 0, "shift", True)
    for epoch in range(1, 241):  # theirs counts from 1 and decays where epoch > milestone
        published = 0.05 * 0.1 ** sum(epoch > m for m in (150, 180, 210))
        for step in (0, 6):
            assert CRD.rate((epoch - 1) * 7 + step, 7) == pytest.approx(published, rel=1e-12)


def test_crd_is_slower_for_the_networks_that_need_it():
    assert {s: read_recipe("crd-240", s).lr for s in (*SLOW, "resnet20")} == {
        "MobileNetV2": 0.01, "ShuffleNetV1": 0.01, "ShuffleNetV2": 0.01, "resnet20": 0.05,
    }  # fmt: skip
    assert set(SLOW) <= set(NAMED)


def test_imagenet_is_torchvisions_reference():
    assert (IMAGENET.epochs, IMAGENET.batch, IMAGENET.weight_decay, IMAGENET.crop) == (100, 256, 1e-4, "resized")
    assert [IMAGENET.rate(e * 3, 3) for e in (0, 29, 30, 60, 90, 99)] == pytest.approx([0.1, 0.1, 1e-2, 1e-3, 1e-4, 1e-4])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.integers(2, 20))
def test_short_is_pytorchs_one_cycle(epochs, steps):
    recipe, weight = short(epochs), torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.SGD([weight], recipe.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.lr, total_steps=epochs * steps, cycle_momentum=False)
    published = []
    for _ in range(epochs * steps):
        published.append(schedule.get_last_lr()[0])
        optimiser.step()
        if len(published) < epochs * steps:
            schedule.step()
    assert rates(recipe, steps) == pytest.approx(published, rel=1e-9)


def test_transformers_are_trained_as_by_li_et_al():
    """tiny-transformers' settings: AdamW, 5e-4 to 5e-6 by a cosine over 300 epochs, 20 of them a linear start, batch 128, decay 0.05."""
    vit = read_recipe("vit-300", "t2t_vit_7")
    assert (vit.epochs, vit.batch, vit.optimizer, vit.weight_decay, vit.decay_all) == (300, 128, "adamw", 0.05, False)
    found = rates(vit, 1)
    assert found[0] < 5e-4 / 19
    assert max(found) < 5e-4
    assert vit.rate(300 * 1000 - 1, 1000) == pytest.approx(5e-6, rel=1e-3)


def test_cosine_falls_from_the_rate_to_nought_behind_a_linear_start():
    recipe = Recipe("own", 10, lr=2.0, schedule="cosine", warmup=2)
    found = rates(recipe, 5)
    for step, rate in enumerate(found):
        assert rate == pytest.approx(2.0 * min((step + 1) / 10, 1) * 0.5 * (1 + math.cos(math.pi * step / 50)))
    assert found[-1] < 0.01


def test_label_smoothing_and_averaging_are_off_unless_they_are_asked_for():
    for recipe in (CRD, IMAGENET, short(5)):
        assert (recipe.smoothing, recipe.ema) == (0, 0)


def test_fields_may_be_changed():
    recipe = read_recipe(
        "short-12", "", ["lr=0.02", "milestones = [3, 5]", "schedule=cosine", "ema=0.99", "shift=2", "mixed=true"]
    )
    assert recipe == replace(short(12), lr=0.02, milestones=(3, 5), schedule="cosine", ema=0.99, shift=2, mixed=True)


@pytest.mark.parametrize(
    ("name", "override", "told"),
    [
        ("crd-24", "", "--recipe: expected a recipe, got 'crd-24'; did you mean 'crd-240'"),
        ("short-0", "", "--recipe"),
        ("short-", "", "--recipe"),
        ("short-5", "lr", "-s: expected key=value"),
        ("short-5", "lrr=1", "a field of the recipe, got 'lrr'; did you mean 'lr'"),
        ("short-5", "lr=fast", "-s lr: expected a number, got 'fast'"),
        ("short-5", "lr=0", "-s lr: expected 1e-08 to 100, got 0"),
        ("short-5", "lr=nan", "-s lr"),
        ("short-5", "epochs=1.5", "-s epochs: expected a whole number"),
        ("short-5", "epochs=true", "-s epochs: expected a whole number"),
        ("short-5", "mixed=1", "-s mixed: expected true or false"),
        ("short-5", "milestones=3", "-s milestones: expected whole numbers"),
        ("short-5", "milestones=['a']", "-s milestones: expected whole numbers"),
        ("short-5", "schedule=linear", "-s schedule"),
        ("short-5", "crop=random", "-s crop"),
        ("short-5", "batch=1", "-s batch: expected 2 to"),
        ("short-5", "momentum=0", "-s nesterov"),
        ("short-5", "optimizer=lion", "-s optimizer"),
        ("imagenet-100ep", "views=4", "-s views: expected 0 with crop=resized"),
    ],
)
def test_what_is_no_recipe_is_refused(name, override, told):
    with pytest.raises(EvokdError) as caught:
        read_recipe(name, "", [override] if override else [])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_pairs_are_kd_zeros_by_names_of_the_zoo():
    cifar = {name: pair for name, pair in PAIRS.items() if not name.startswith("ResNet")}
    assert len(cifar) == 10
    others = {"resnet20", "resnet32", "resnet56", "resnet110", "timm:deit_tiny@32p4", "t2t_vit_7"}
    for pair in cifar.values():
        assert {pair.teacher, pair.student} <= set(NAMED) | others
    assert read_pair("resnet32x4-resnet8x4").student == "resnet8x4"
    with pytest.raises(EvokdError, match="--pair"):
        read_pair("resnet8x4")


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("ResNet34-ResNet18", (21_797_672, 11_689_512)),
        ("ResNet50-MobileNetV1", (25_557_032, 4_231_976)),
        ("ResNet50-ResNet18", (25_557_032, 11_689_512)),
    ],
)
def test_the_pairs_of_imagenet_have_torchvisions_counts(name, counts):
    """As torchvision's table of weights prints them; MobileNetV1 as its paper, 4.2 M."""
    pair = read_pair(name)
    with torch.device("meta"):
        assert tuple(parameters(build(spec, 1000, 3, 0)) for spec in (pair.teacher, pair.student)) == counts


def test_published_weights_of_the_cross_entropy_are_for_published_losses():
    assert set(GAMMAS) <= set(KNOWN)
