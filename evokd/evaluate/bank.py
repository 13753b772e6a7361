"""The bank: all that a short distillation needs, recorded once and read by every worker, memory-mapped.

Images stay uint8; the fixed views of the training images are small integers; the teacher's taps for every view are recorded as float32
for the positions that the space can use. Above a cap the taps are left out and the teacher runs live. Only raw taps are recorded:
operators that couple a batch are always computed in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evokd.config import Protocol
from evokd.data import Data
from evokd.errors import EvokdError
from evokd.losses.program import module_name
from evokd.losses.taps import Taps, split_position
from evokd.models.tapping import Tapped, TapPlan
from evokd.models.teachers import Teacher
from evokd.models.views import augmented, draw_views, normalised, plain_strides
from evokd.streams import derive

VERSION = 2
CHUNK = 250
READY_BYTES = 128 * 2**20  # up to this size all augmented views are kept ready


@dataclass(frozen=True)
class Bank:
    """Tensors on one device.

    Attributes:
        images: split → (N,C,H,W) uint8.
        labels: split → (N,) int64, −1 where hidden.
        views: (V,N,3), see `models.views`.
        taps: position → (V,N,…) float32, the teacher's on the training views; empty when the teacher runs live.
        logits: split → (N,K), the teacher's on the plain images of validation and test.
        head: (weight (K,D), bias (K,)) of the teacher's classifier, where it shows one.
        card: classes, mean, std, shift, positions, whether the teacher runs live.
        ready: (V,N,C,H,W) float32, all views applied and normalised, where that is small; None otherwise.
    """

    images: dict[str, Tensor]
    labels: dict[str, Tensor]
    views: Tensor
    taps: dict[str, Tensor]
    logits: dict[str, Tensor]
    card: dict
    head: tuple[Tensor, Tensor] | None = None
    ready: Tensor | None = None

    def batch(self, index: Tensor, view: Tensor) -> Tensor:
        """(B,C,H,W) normalised training images in the given views."""
        if self.ready is not None:
            return self.ready[view, index]
        shown = augmented(self.images["train"][index], self.views[view, index], self.card["shift"])
        return self.normalised(plain_strides(shown))

    def normalised(self, images: Tensor) -> Tensor:
        return normalised(images, self.card["mean"], self.card["std"])

    def teacher_taps(self, index: Tensor, view: Tensor, positions: Iterable[str] | None = None) -> Taps:
        """The recorded taps of a batch, at some positions or at all."""
        wanted = self.taps if positions is None else [p for p in positions if p in self.taps]
        return assemble({p: self.taps[p][view, index] for p in wanted}, self.head)


def assemble(taps: dict[str, Tensor], head: tuple[Tensor, Tensor] | None = None) -> Taps:
    """Taps from position → tensor; stages that were not recorded are empty."""

    def stages(name: str) -> tuple[Tensor, ...]:
        deepest = max((-index for of, index in map(split_position, taps) if of == name), default=0)
        return tuple(taps.get(f"{name}[{-i}]", torch.empty(0)) for i in range(deepest, 0, -1))

    single = [taps.get(name) for name in ("embedding", "tokens", "attention")]
    return Taps(taps["logits"], single[0], stages("features"), *single[1:], stages("pre_relu"), head)


def bank_key(data: Data, teacher: Teacher, plan: TapPlan, protocol: Protocol, positions: Sequence[str]) -> str:
    """Content hash of a bank."""
    parts = [
        VERSION,
        data.key,
        teacher.key,
        teacher.mean,
        teacher.std,
        plan.features,
        plan.pre_relu,
        protocol.views,
        protocol.shift,
        sorted(positions),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def fixed_views(data: Data, count: int, shift: int) -> Tensor:
    """(V,N,3): `count` views of every training image, the same whoever asks."""
    draw = np.random.Generator(np.random.PCG64(derive(0, "views", data.key, count, shift)))
    return draw_views(draw, count * len(data.train), shift, data.flip).view(count, len(data.train), 3)


def write_bank(
    folder: Path,
    data: Data,
    teacher: Teacher,
    plan: TapPlan,
    protocol: Protocol,
    positions: Sequence[str],
    cap_gib: float,
    progress: Callable[[str], None] = lambda line: None,
) -> None:
    """Record a bank, whole or not at all; nothing is done if it is there."""
    if (folder / "card.json").exists():
        return
    part = folder.with_suffix(f".{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)  # without a card it was never whole
    part.mkdir(parents=True)
    for name in ("train", "validation", "test"):
        split = getattr(data, name)
        np.save(part / f"{name}_images.npy", split.images)
        np.save(part / f"{name}_labels.npy", split.labels)
    views = fixed_views(data, protocol.views, protocol.shift)
    np.save(part / "views.npy", views.numpy())
    positions = [p for p in positions if p != "teacher_head"]  # the embedding through the head, which is kept whole
    with Tapped(teacher.network, plan) as tapped:
        live = not _record(part, tapped, data, teacher, views, protocol.shift, positions, cap_gib, progress)
    card = {
        "classes": data.classes, "mean": teacher.mean, "std": teacher.std, "shift": protocol.shift, "live": live,
        "positions": list(positions), "shape": data.shape, "sha256": _digest(part),
    }  # fmt: skip
    (part / "card.json").write_text(json.dumps(card, indent=1))
    part.replace(folder)


@torch.no_grad()
def _record(part, tapped, data, teacher, views, shift, positions, cap_gib, progress) -> bool:
    """Write the teacher's taps; False if they would exceed the cap."""
    for name in ("validation", "test"):
        images = torch.from_numpy(getattr(data, name).images)
        chunks = [tapped(normalised(c, teacher.mean, teacher.std)).logits for c in images.split(CHUNK)]
        np.save(part / f"{name}_logits.npy", torch.cat(chunks).numpy())
    images = torch.from_numpy(data.train.images)
    example = tapped(normalised(images[:2], teacher.mean, teacher.std))
    for name, values in zip(("weight", "bias"), example.head or (), strict=False):
        np.save(part / f"head_{name}.npy", values.numpy())
    shapes = {p: (len(views), len(images), *example.at(p).shape[1:]) for p in positions}
    if sum(4 * int(np.prod(shape)) for shape in shapes.values()) > cap_gib * 2**30:
        return False
    files = {
        p: np.lib.format.open_memmap(part / f"taps_{module_name(p)}.npy", "w+", np.float32, shape) for p, shape in shapes.items()
    }
    for v in range(len(views)):
        for at in range(0, len(images), CHUNK):
            batch = augmented(images[at : at + CHUNK], views[v, at : at + CHUNK], shift)
            taps = tapped(normalised(batch, teacher.mean, teacher.std))
            for p, file in files.items():
                file[v, at : at + CHUNK] = taps.at(p).numpy()
        progress(f"teacher's taps: view {v + 1}/{len(views)}")
    for file in files.values():
        file.flush()
    return True


def open_bank(folder: Path, device: str = "cpu", check: bool = False) -> Bank:
    """A bank from its folder; taps stay on disk on CPU and are copied to a GPU.

    Raises:
        EvokdError: if it is corrupt.
    """
    try:
        card = json.loads((folder / "card.json").read_text())
        if check and card["sha256"] != _digest(folder):
            raise ValueError("checksum differs")
        arrays = {path.stem: np.load(path, mmap_mode="c", allow_pickle=False) for path in sorted(folder.glob("*.npy"))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvokdError(
            str(folder), "a whole cache entry", str(error)[:80], "delete the folder; it will be made again"
        ) from None
    tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    splits = ("train", "validation", "test")
    bank = Bank(
        {s: tensors[f"{s}_images"] for s in splits},
        {s: tensors[f"{s}_labels"] for s in splits},
        tensors["views"],
        {p: tensors[f"taps_{module_name(p)}"] for p in card["positions"] if f"taps_{module_name(p)}" in tensors},
        {s: tensors[f"{s}_logits"] for s in splits[1:]},
        card,
        (tensors["head_weight"], tensors["head_bias"]) if "head_weight" in tensors else None,
    )
    return replace(bank, ready=_ready(bank))


def _ready(bank: Bank) -> Tensor | None:
    images, views = bank.images["train"], bank.views
    if 4 * images.numel() * len(views) > READY_BYTES:
        return None
    return torch.stack([bank.normalised(augmented(images, view, bank.card["shift"])) for view in views])


def _digest(folder: Path) -> str:
    """SHA-256 over all arrays of a bank."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.npy")):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()
