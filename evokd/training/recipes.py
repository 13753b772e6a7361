"""Recipes of full training as plain values, and the teacher–student pairs that the literature compares on.

A recipe says how long and how fast a student is trained and what it sees, never which loss it has: every row of a comparison has the same.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from math import cos, pi
from typing import Any

from evokd.errors import EvokdError, closest, unknown

SCHEDULES = ("steps", "cosine", "one-cycle")
RISE, START, END = 0.3, 25.0, 1e4  # of the one-cycle schedule: share that rises, lr / first rate, first rate / last rate


@dataclass(frozen=True)
class Recipe:
    """One way of training.

    Attributes:
        name: as called on the command line.
        epochs: passes over the training images.
        batch: images a step.
        lr: greatest learning rate.
        schedule: steps, cosine or one-cycle.
        milestones: epochs after which `steps` multiplies the rate.
        factor: by which it does.
        floor: share of the rate at which `cosine` ends.
        warmup: epochs of a linear start.
        optimizer: sgd or adamw.
        momentum: of SGD.
        nesterov: whether its momentum looks ahead.
        weight_decay: of the student; connectors of a loss have none.
        decay_all: also on biases and batch norm.
        clip: greatest norm of the gradient; 0 is none.
        crop: shift (zeros at the edge) or resized (random resized crops).
        shift: greatest shift in pixels; None is an eighth of the side.
        flip: mirror images where the data set says that this is natural.
        views: fixed views of each image, on which the teacher is recorded once and replayed; 0 draws them anew and runs it live.
        smoothing: of labels, in the cross-entropy.
        ema: decay of averaged weights, which are then what is measured; 0 is none.
        mixed: bfloat16 where the device is a GPU.
        channels_last: memory format.
        look: epochs between two looks at test; the last is always looked at.
    """

    name: str
    epochs: int
    batch: int = 64
    lr: float = 0.05
    schedule: str = "steps"
    milestones: tuple[int, ...] = ()
    factor: float = 0.1
    floor: float = 0.0
    warmup: int = 0
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    decay_all: bool = True
    clip: float = 0.0
    crop: str = "shift"
    shift: int | None = None
    flip: bool = True
    views: int = 0
    smoothing: float = 0.0
    ema: float = 0.0
    mixed: bool = False
    channels_last: bool = False
    look: int = 1

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step, counted from 0, where an epoch has `steps`."""
        epoch, total = step // steps, self.epochs * steps
        slow = min((step + 1) / (self.warmup * steps), 1.0) if self.warmup else 1.0
        if self.schedule == "steps":
            return slow * self.lr * self.factor ** sum(epoch >= m for m in self.milestones)
        if self.schedule == "cosine":
            return slow * _between(self.lr, self.floor * self.lr, step / total)
        return slow * self._one_cycle(step, total)

    def _one_cycle(self, step: int, total: int) -> float:
        """Smith & Topin (2019) as PyTorch's `OneCycleLR` has it: a cosine up, a cosine down."""
        peak, last = RISE * total - 1, total - 1
        first = self.lr / START
        if step <= peak:
            return _between(first, self.lr, step / peak)
        return _between(self.lr, first / END, (step - peak) / (last - peak) if last > peak else 1.0)


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + cos(pi * share)) / 2


# CRD's benchmark (Tian et al., ICLR 2020, appendix): SGD without Nesterov's momentum, batch 64, decay on all weights, crops of 32 out of
# 40×40 and flips; 0.01 for the networks below, whose gradients explode at 0.05.
CRD = Recipe("crd-240", 240, milestones=(150, 180, 210))
SLOW = ("MobileNetV2", "ShuffleNetV1", "ShuffleNetV2")
# ImageNet as torchvision trains ResNets and CRD, DKD and DIST distil them; all images must fit into memory, resized to one size.
IMAGENET = Recipe(
    "imagenet-100ep", 100, batch=256, lr=0.1, milestones=(30, 60, 90), weight_decay=1e-4, crop="resized", mixed=True,
    channels_last=True,
)  # fmt: skip
# Transformers on CIFAR-100 as Li et al. (ECCV 2022) train DeiT-Ti and T2T-ViT-7, without their drop path and strong augmentation.
TRANSFORMER = Recipe(
    "vit-300", 300, batch=128, lr=5e-4, schedule="cosine", floor=0.01, warmup=20, optimizer="adamw", weight_decay=0.05, decay_all=False
)  # fmt: skip
FIXED = {recipe.name: recipe for recipe in (CRD, IMAGENET, TRANSFORMER)}
_SHORT = re.compile(r"short-(\d{1,4})")
NAMES = (*FIXED, "short-N")


def short(epochs: int) -> Recipe:
    """Annealed within a small budget: the optimiser of evokd's short distillations (one cycle, Nesterov, clipped) over whole epochs."""
    return Recipe(
        f"short-{epochs}", epochs, lr=0.1, schedule="one-cycle", nesterov=True, decay_all=False, clip=5.0
    )  # fmt: skip


def read_recipe(name: str, student: str = "", overrides: Iterable[str] = ()) -> Recipe:
    """A recipe by name, for a student, with fields changed.

    Args:
        name: crd-240, imagenet-100ep, vit-300, or short-N of N epochs.
        student: network spec; crd-240 is slower for some.
        overrides: `key=value`, such as `lr=0.02`.

    Raises:
        EvokdError: an unknown name or field, or a value out of range.
    """
    found = _SHORT.fullmatch(name)
    if found and int(found[1]):
        recipe = short(int(found[1]))
    elif name in FIXED:
        recipe = replace(CRD, lr=0.01) if name == CRD.name and student in SLOW else FIXED[name]
    else:
        raise unknown("--recipe", "a recipe", name, NAMES)
    changes = dict(_read(text) for text in overrides)
    return recipe_of({f.name: getattr(recipe, f.name) for f in fields(recipe)} | changes, "-s")


def _read(text: str) -> tuple[str, Any]:
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise EvokdError("-s", "key=value", repr(text), "for example -s lr=0.02")
    try:
        return key, tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return key, value


_LIMITS: dict[str, tuple[float, float]] = {
    "epochs": (1, 10_000), "batch": (2, 1 << 16), "lr": (1e-8, 100), "factor": (0, 1), "floor": (0, 1), "warmup": (0, 10_000),
    "momentum": (0, 0.9999), "weight_decay": (0, 10), "clip": (0, 1e9), "shift": (0, 1000), "views": (0, 1000), "smoothing": (0, 0.99),
    "ema": (0, 0.99999), "look": (1, 10_000),
}  # fmt: skip
_CALLED = {
    "tuple[int, ...]": "whole numbers, such as [150, 180]", "int": "a whole number", "float": "a number", "bool": "true or false",
    "str": "a word", "int | None": "a whole number",
}  # fmt: skip
_WORDS = {"schedule": SCHEDULES, "crop": ("shift", "resized"), "optimizer": ("sgd", "adamw")}


def recipe_of(values: dict[str, Any], where: str) -> Recipe:
    """Values checked one by one.

    Raises:
        EvokdError: the first that is no field, of the wrong kind, or out of range.
    """
    kinds = {f.name: str(f.type) for f in fields(Recipe)}
    for name, value in values.items():
        if name not in kinds:
            raise EvokdError(where, "a field of the recipe", repr(name)[:40], closest(name, kinds))
        _check(name, kinds[name], value, where)
    missing = [name for name in ("name", "epochs") if name not in values]
    if missing:
        raise EvokdError(where, "a recipe's name and epochs", f"none of {missing[0]}")
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    recipe = Recipe(**values)
    if recipe.nesterov and not recipe.momentum:
        raise EvokdError(f"{where} nesterov", "momentum above 0", "0", "-s nesterov=false")
    if recipe.views and recipe.crop != "shift":
        raise EvokdError(f"{where} views", f"0 with crop={recipe.crop}, for fixed views are shifts", str(recipe.views))
    return recipe


def _check(name: str, kind: str, value: Any, where: str) -> None:
    wanted = {"bool": bool, "str": str, "int": int, "float": (int, float), "int | None": (int, type(None))}.get(
        kind, (tuple, list)
    )
    right = isinstance(value, wanted) and (kind == "bool") == isinstance(value, bool)
    if not right or (kind.startswith("tuple") and not all(type(v) is int for v in value)):
        raise EvokdError(f"{where} {name}", _CALLED.get(kind, kind), repr(value)[:40])
    if name in _WORDS and value not in _WORDS[name]:
        raise unknown(f"{where} {name}", "a word", value, _WORDS[name])
    low, high = _LIMITS.get(name, (0, 0))
    if name in _LIMITS and value is not None and not low <= value <= high:
        raise EvokdError(f"{where} {name}", f"{low:g} to {high:g}", f"{value:g}")


@dataclass(frozen=True)
class Pair:
    """A teacher and a student by their names in the zoo."""

    teacher: str
    student: str


# KD-Zero's ten pairs on CIFAR-100 (NeurIPS 2023, tables 1 to 3); the two transformers learn from ResNet-56 in the setting of Li et al.
# (ECCV 2022). Then the three on ImageNet, whose networks are torchvision's.
PAIRS: dict[str, Pair] = {
    f"{teacher}-{student}": Pair(teacher, student)
    for teacher, student in (
        ("wrn_40_2", "wrn_16_2"),
        ("resnet110", "resnet20"),
        ("resnet110", "resnet32"),
        ("resnet32x4", "resnet8x4"),
        ("vgg13", "vgg8"),
        ("vgg13", "MobileNetV2"),
        ("resnet32x4", "ShuffleNetV2"),
        ("wrn_40_2", "ShuffleNetV1"),
        ("resnet56", "t2t_vit_7"),
    )
}
PAIRS |= {
    "resnet56-deit_tiny": Pair("resnet56", "timm:deit_tiny@32p4"),
    "ResNet34-ResNet18": Pair("torchvision:resnet34", "torchvision:resnet18"),
    "ResNet50-MobileNetV1": Pair("torchvision:resnet50", "MobileNetV1"),
    "ResNet50-ResNet18": Pair("torchvision:resnet50", "torchvision:resnet18"),
}


def read_pair(name: str) -> Pair:
    """Raises EvokdError for an unknown name."""
    if name not in PAIRS:
        raise unknown("--pair", "a pair", name, PAIRS)
    return PAIRS[name]


# Weight of the cross-entropy that goes with a published loss in its authors' CIFAR-100 setting; 1 for the others.
GAMMAS = {
    "kd": 0.1,  # CRD's benchmark: 0.1·CE + 0.9·KD
    "akd": 0.1,  # 1 − α
    "lskd": 0.1,  # Sun et al.'s configuration of KD + z-score
}
