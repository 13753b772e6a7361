"""Data sets as plain arrays: a three-way split, a content key, and labels that may be hidden.

Train is what students see, validation is what the search selects on, test is touched once, at the end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from evokd.errors import EvokdError, closest

UNKNOWN = -1


@dataclass(frozen=True)
class Split:
    """images: (N,C,H,W) uint8; labels: (N,) int64, −1 where hidden."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: np.ndarray) -> Split:
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Data:
    """A data set in three parts. mean, std: per channel, of images scaled to 0…1. flip: whether mirror images are natural."""

    name: str
    classes: int
    train: Split
    validation: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C,H,W)."""
        return self.train.images.shape[1:]

    @property
    def key(self) -> str:
        """Content hash of everything a result may depend on."""
        digest = hashlib.sha256(json.dumps([self.classes, self.mean, self.std, self.flip]).encode())
        for split in (self.train, self.validation, self.test):
            digest.update(np.ascontiguousarray(split.images).tobytes())
            digest.update(np.ascontiguousarray(split.labels).tobytes())
        return digest.hexdigest()[:16]

    def with_transfer(self, count: int) -> Data:
        """Only `count` training images, equally many of each class: the transfer set of a distillation."""
        return self if not count else replace(self, train=self.train.take(_stratified(self.train.labels, count, "transfer")))

    def with_rare(self, classes: tuple[int, ...], count: int) -> Data:
        """Only the first `count` training images of the named classes: a long-tailed transfer set, validation and test as before.

        Raises:
            EvokdError: a class that the data does not have, or none of its images left.
        """
        for label in classes:
            if not 0 <= label < self.classes:
                raise EvokdError("protocol.rare_classes", f"classes 0 to {self.classes - 1}", str(label))
        if classes and count < 1:
            raise EvokdError("protocol.rare_images", "at least 1", str(count))
        labels = self.train.labels
        dropped = [np.flatnonzero(labels == label)[count:] for label in classes]
        return replace(
            self, train=self.train.take(np.setdiff1d(np.arange(len(labels)), np.concatenate([[], *dropped]).astype(int)))
        )

    def with_labels(self, count: int | None) -> Data:
        """Labels on only `count` training images, equally many of each class; the others become −1.

        Raises:
            EvokdError: if there are fewer training images.
        """
        if count is None or count == len(self.train):
            return self
        labels = np.full_like(self.train.labels, UNKNOWN)
        if count:
            kept = _stratified(self.train.labels, count, "labels")
            labels[kept] = self.train.labels[kept]
        return replace(self, train=Split(self.train.images, labels))


def _stratified(labels: np.ndarray, count: int, what: str) -> np.ndarray:
    """The first `count` indices taken class by class in turn: deterministic, balanced, nested for growing counts."""
    if not 0 < count <= len(labels):
        raise EvokdError(f"--{what}", f"1 to {len(labels)}", str(count))
    order = np.argsort(labels, kind="stable")
    _, starts = np.unique(labels[order], return_index=True)
    rank = np.arange(len(labels)) - np.repeat(starts, np.diff([*starts, len(labels)]))
    return np.sort(order[np.argsort(rank, kind="stable")][:count])


def read_data(spec: str, download: bool = False, root: str = "data") -> Data:
    """A data set by name, or by path to an npz file, an image folder, or a folder of class atlases.

    Args:
        spec: one of `NAMES`, or a path.
        download: allow torchvision to fetch a named data set.
        root: where torchvision keeps its data sets.

    Raises:
        EvokdError: unknown name, unreadable file, no images, or one class only.
    """
    if spec in NAMES:
        return NAMES[spec](download, root)
    if Path(spec).exists():
        return _from_path(Path(spec))
    raise EvokdError("--data", "a data set's name or an existing path", repr(spec), closest(spec, NAMES))


def _check(name: str, train: Split, test: Split) -> None:
    for side, split in (("train", train), ("test", test)):
        if len(split) < 2:
            raise EvokdError(f"data {name}", f"images in the {side} split", str(len(split)))
        if split.labels.min() < 0:
            raise EvokdError(f"data {name}", "labels from 0", f"{split.labels.min()} in {side}")
    if train.images.shape[1:] != test.images.shape[1:]:
        raise EvokdError(
            f"data {name}", f"test images of shape {train.images.shape[1:]}, as in train", str(test.images.shape[1:])
        )
    if train.labels.max() < 1:
        raise EvokdError(f"data {name}", "at least two classes", "one")


def _assemble(name: str, train: Split, test: Split, flip: bool, validation: int | None = None) -> Data:
    """Hold a stratified part of train out for the search, a tenth or 500 images; statistics come from what remains."""
    _check(name, train, test)
    held = _stratified(train.labels, validation or max(len(train) // 10, min(500, len(train) // 2)), "validation")
    rest = np.setdiff1d(np.arange(len(train)), held)
    kept = train.take(rest)
    pixels = kept.images[:5000].astype(np.float64) / 255
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    return Data(name, classes, kept, train.take(held), test, _rounded(mean), _rounded(np.maximum(std, 0.01)), flip)


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(v), 4) for v in values)


def _digits(download: bool, root: str) -> Data:
    """scikit-learn's digits (Alpaydin & Kaynak 1998): 1,797 real 8×8 images. 600 test, 400 validation, 797 train."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    everything = Split((images.reshape(-1, 1, 8, 8) * 255 / 16).round().astype(np.uint8), labels.astype(np.int64))
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(everything))
    everything = everything.take(order)
    test = _stratified(everything.labels, 600, "test")
    rest = everything.take(np.setdiff1d(np.arange(len(order)), test))
    return _assemble("digits", rest, everything.take(test), flip=False, validation=400)


def _torchvision(name: str, flip: bool) -> Callable[[bool, str], Data]:
    def read(download: bool, root: str) -> Data:
        from torchvision import datasets

        def part(train: bool) -> Split:
            found = getattr(datasets, name)(root, train=train, download=download)
            images = np.asarray(found.data)
            images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
            return Split(np.ascontiguousarray(images), np.asarray(found.targets, dtype=np.int64))

        try:
            return _assemble(name.lower(), part(True), part(False), flip)
        except RuntimeError as error:
            raise EvokdError("--data", f"{name} under {root!r}", str(error)[:80], "add --download, or name its folder") from None

    return read


NAMES: dict[str, Callable[[bool, str], Data]] = {
    "digits": _digits,
    "cifar10": _torchvision("CIFAR10", flip=True),
    "cifar100": _torchvision("CIFAR100", flip=True),
    "fashion_mnist": _torchvision("FashionMNIST", flip=True),
    "mnist": _torchvision("MNIST", flip=False),
}


def _from_path(path: Path) -> Data:
    if path.is_file():
        return _from_npz(path)
    return _from_atlases(path) if (path / "index.json").exists() else _from_folder(path)


def _from_npz(path: Path) -> Data:
    """Arrays train_x (N,H,W), (N,H,W,C) or (N,C,H,W), train_y (N,), test_x, test_y."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            parts = {name: arrays[name] for name in ("train_x", "train_y", "test_x", "test_y")}
    except (KeyError, ValueError, OSError, EOFError, TypeError, AttributeError, BadZipFile) as error:
        raise EvokdError(str(path), "an npz with train_x, train_y, test_x and test_y", str(error)[:80]) from None
    train, test = (_split(parts[f"{side}_x"], parts[f"{side}_y"], path) for side in ("train", "test"))
    return _assemble(path.stem, train, test, flip=train.images.shape[1] == 3)


def _split(images: np.ndarray, labels: np.ndarray, path: Path) -> Split:
    fits = images.dtype == np.uint8 and images.ndim in (3, 4) and labels.shape == images.shape[:1] and labels.dtype.kind in "iu"
    if not fits:
        got = f"{images.dtype} {images.shape} and {labels.dtype} {labels.shape}"
        raise EvokdError(str(path), "uint8 images and as many whole numbers as labels", got)
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    return Split(np.ascontiguousarray(images), labels.astype(np.int64))


def _from_atlases(path: Path) -> Data:
    """A folder with `index.json` and one lossless atlas of square tiles a class and split."""
    from PIL import Image

    try:
        index = json.loads((path / "index.json").read_text())
        parts: dict[str, list[Split]] = {"train": [], "test": []}
        for name, entry in index["files"].items():
            picture = np.asarray(Image.open(path / name).convert("RGB"))
            tile = index["tile"]
            tiles = picture.reshape(-1, tile, picture.shape[1] // tile, tile, 3).swapaxes(1, 2).reshape(-1, tile, tile, 3)
            label = int(Path(name).name.split("_")[0])
            images = np.ascontiguousarray(tiles[: entry["n"]].transpose(0, 3, 1, 2))
            parts[name.split("/")[0]].append(Split(images, np.full(entry["n"], label, dtype=np.int64)))
        train, test = (_joined(parts[side]) for side in ("train", "test"))
    except (KeyError, ValueError, OSError, IndexError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise EvokdError(str(path), "a folder of class atlases", f"{type(error).__name__}: {error}"[:80]) from None
    return _assemble(index.get("name", path.name), train, test, flip=True)


def _joined(splits: list[Split]) -> Split:
    return Split(np.concatenate([s.images for s in splits]), np.concatenate([s.labels for s in splits]))


def _from_folder(path: Path) -> Data:
    """An image folder, `train/CLASS/*` and `test/CLASS/*` (or `val/CLASS/*`), all images of one size."""
    from torchvision.datasets import ImageFolder

    held = next((name for name in ("test", "val") if (path / name).is_dir()), None)
    if not (path / "train").is_dir() or held is None:
        raise EvokdError(str(path), "folders train/ and test/ (or val/) with one folder a class", "something else")

    classes = [sorted(p.name for p in (path / name).iterdir() if p.is_dir()) for name in ("train", held)]
    if classes[0] != classes[1]:
        odd = sorted(set(classes[0]) ^ set(classes[1]))
        raise EvokdError(str(path), f"the same classes in train and {held}", f"{', '.join(odd[:3])} in one of them only")

    def part(name: str) -> Split:
        try:
            found = ImageFolder(str(path / name))
            images = [np.asarray(found.loader(file)) for file, _ in found.samples]
        except (FileNotFoundError, OSError) as error:
            raise EvokdError(str(path / name), "readable images", str(error)[:80]) from None
        sizes = {image.shape for image in images}
        if len(sizes) > 1:
            raise EvokdError(
                str(path / name), "images of one size", " and ".join(map(str, sorted(sizes)[:2])), "resize them first"
            )
        return Split(np.stack(images).transpose(0, 3, 1, 2), np.asarray(found.targets, dtype=np.int64))

    return _assemble(path.name, part("train"), part(held), flip=True)
