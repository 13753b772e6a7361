"""Teachers: a name trained once and cached by content, weights in a safetensors file, or a user's own module."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from evokd.data import Data, Split
from evokd.errors import EvokdError
from evokd.models.resnet import ResNet
from evokd.models.tapping import logits_of
from evokd.models.views import augmented, draw_views, normalised, plain_strides
from evokd.models.zoo import build, is_narrow
from evokd.streams import derive

RECIPE = 1  # raise it when the training below changes, so that cached teachers are trained anew


@dataclass(frozen=True)
class Teacher:
    """A trained network with its card.

    Attributes:
        network: in eval mode, without gradients.
        name: as the user called it.
        key: content hash of weights.
        accuracy: on validation, %.
        mean: of the images it expects.
        std: likewise.
        path: of its weights, if they lie in a file.
    """

    network: nn.Module
    name: str
    key: str
    accuracy: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    path: Path | None = None


def load_teacher(
    spec: str | nn.Module,
    data: Data,
    cache: Path,
    epochs: int,
    progress: Callable[[str], None] = lambda line: None,
    device: str = "cpu",
) -> Teacher:
    """The teacher, trained if it is a name that the cache does not hold.

    Raises:
        EvokdError: missing or corrupt file, weights of another shape, other classes than the data's.
    """
    mean, std, path = data.mean, data.std, None
    if isinstance(spec, nn.Module):
        network, name = copy.deepcopy(spec), type(spec).__name__  # the user's own stays as it is
    elif spec.endswith(".safetensors"):
        path = Path(spec)
        network, card = read_weights(path)
        name, mean, std = Path(spec).stem, _numbers(card, "mean", spec) or mean, _numbers(card, "std", spec) or std
        if not len(mean) == len(std) == data.shape[0]:
            wanted = f"mean and std of {data.shape[0]} channels, as {data.name} has"
            raise EvokdError(f"--teacher {spec}", wanted, f"{len(mean)} and {len(std)}")
    elif ".py:" in spec:
        network, name = build(spec, data.classes, data.shape[0], 0, "--teacher"), spec
    else:
        (network, path), name = _cached(spec, data, cache, epochs, progress, device), spec
    _check_classes(network, data, mean, std)
    network.eval().requires_grad_(False)
    return Teacher(network, name, weights_key(network), accuracy(network, data.validation, mean, std), mean, std, path)


def _cached(
    spec: str, data: Data, cache: Path, epochs: int, progress: Callable[[str], None], device: str
) -> tuple[nn.Module, Path]:
    network = build(spec, data.classes, data.shape[0], derive(0, "teacher", spec), "--teacher")
    key = hashlib.sha256(json.dumps([spec, data.key, epochs, RECIPE]).encode()).hexdigest()[:12]
    path = cache / "teachers" / f"{spec}-{data.name}-{key}.safetensors"
    if path.exists():
        state, card = _read_state(path)
        told = "classes" in card  # what was cached before does not tell its sizes
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            got = str(error).splitlines()[-1].strip()[:80]
            raise EvokdError(str(path), f"weights of {spec}", got, "delete it; it will be made again") from None
    else:
        train_teacher(network, data, epochs, progress, device)
        write_weights(path, network, card_of(network, spec, data, data.mean, data.std))
        told = True
    return network, path if told or isinstance(network, ResNet) else None  # what `read_weights` can open again


def card_of(
    network: nn.Module, arch: str, data: Data, mean: Sequence[float], std: Sequence[float], **more: object
) -> dict[str, str]:
    """The card of weights: what they are, what they were trained on, how images are normalised, and a hash.

    Args:
        network: whose weights they are.
        arch: name by which `zoo.build` makes it.
        data: that it was trained on.
        mean: per channel, of images scaled to 0…1.
        std: likewise.
        **more: such as accuracy.
    """
    sizes = {"classes": str(data.classes), "channels": str(data.shape[0])}
    numbers = {"mean": _text(mean), "std": _text(std), "weights": weights_key(network)}
    return {"arch": arch, "data": data.name, **sizes, **numbers, **{name: str(value) for name, value in more.items()}}


def train_teacher(network: nn.Module, data: Data, epochs: int, progress: Callable[[str], None], device: str = "cpu") -> None:
    """Plain training on the train split: SGD with Nesterov momentum, one-cycle, batch 64, shifts and (where natural) flips."""
    batch, train = 64, data.train
    steps = epochs * max(len(train) // batch, 1)
    network.to(device).train()
    optimiser = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, total_steps=steps)
    draw = np.random.Generator(np.random.PCG64(derive(0, "teacher batches", data.key)))
    pad, narrow = max(1, data.shape[1] // 8), is_narrow(network)
    images, labels = torch.from_numpy(train.images), torch.from_numpy(train.labels)
    for step in range(steps):
        index = torch.from_numpy(draw.integers(0, len(train), batch))
        views = draw_views(draw, batch, pad, data.flip)
        x = normalised(augmented(images[index], views, pad), data.mean, data.std).to(device)
        x = plain_strides(x) if narrow else x  # wide teachers keep the kernels, and bits, that published figures rest on
        loss = F.cross_entropy(logits_of(network, x), labels[index].to(device))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % max(steps // 20, 1) == 0 or step == steps - 1:
            progress(f"teacher: step {step + 1}/{steps}, cross-entropy {loss.item():.3f}")
    network.to("cpu")


@torch.no_grad()
def accuracy(network: nn.Module, split: Split, mean: tuple[float, ...], std: tuple[float, ...]) -> float:
    """Top-1 on a split, %."""
    network.eval()
    right = 0
    for at in range(0, len(split), 500):
        x = normalised(torch.from_numpy(split.images[at : at + 500]), mean, std)
        right += int((logits_of(network, x).argmax(1) == torch.from_numpy(split.labels[at : at + 500])).sum())
    return 100 * right / len(split)


def read_weights(path: Path) -> tuple[nn.Module, dict[str, str]]:
    """A network from a safetensors file: what its card names, or a CIFAR ResNet whose sizes are read off the tensors.

    A card names networks of the zoo, of torchvision or of timm; it never has a Python file run.

    Raises:
        EvokdError: missing, truncated or foreign file; the first differing keys are listed; or not the weights that the card has the
            hash of.
    """
    state, card = _read_state(path)
    named = "classes" in card and ".py:" not in card.get("arch", "") and not card.get("arch", "").startswith(("cifar-", "resnet"))
    network, name = _network_of(card, path) if named and "arch" in card else _resnet_of(state, path)
    wanted = network.state_dict()
    odd = sorted(set(wanted) ^ set(state)) or [k for k in wanted if wanted[k].shape != state[k].shape]
    if odd:
        raise EvokdError(str(path), f"weights of {name}", "other keys or shapes: " + ", ".join(odd[:3]))
    network.load_state_dict(state)
    if card.get("weights", weights_key(network)) != weights_key(network):
        raise EvokdError(str(path), f"the weights {card['weights'][:16]} that its card names", weights_key(network))
    return network, card


def _network_of(card: dict[str, str], path: Path) -> tuple[nn.Module, str]:
    """The empty network that a card names."""
    try:
        classes, channels = int(card["classes"]), int(card.get("channels", "3"))
    except ValueError:
        raise EvokdError(
            f"{path}, classes and channels", "whole numbers", f"{card['classes']} and {card.get('channels')}"
        ) from None
    return build(card["arch"], classes, channels, 0, str(path)), card["arch"]


def _resnet_of(state: dict[str, torch.Tensor], path: Path) -> tuple[ResNet, str]:
    """The empty CIFAR ResNet that tensors tell of."""
    try:
        depth = 6 * len({k.split(".")[1] for k in state if k.startswith("layer1.")}) + 2
        stem, channels = state["conv1.weight"].shape[:2]
        classes = state["fc.weight"].shape[0]
        width = state["layer1.0.conv1.weight"].shape[0] if "layer1.0.conv1.weight" in state else stem
    except KeyError as error:
        raise EvokdError(str(path), "the weights of a CIFAR ResNet", f"a file without {error.args[0]}") from None
    except ValueError:
        raise EvokdError(str(path), "conv1.weight of four axes", str(tuple(state["conv1.weight"].shape))) from None
    shortcut = "B" if any("downsample" in k for k in state) else "A"
    return ResNet(depth, width, classes, channels, shortcut, stem), f"resnet{depth}w{width}"


def _read_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise EvokdError("--teacher", "an existing file", repr(str(path)))
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise EvokdError(str(path), "a whole safetensors file", str(error)[:80], "delete it if it is evokd's own cache") from None


def write_weights(path: Path, network: nn.Module, card: dict[str, str]) -> None:
    """Weights with their card, written whole or not at all."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, part, metadata=card)
    part.replace(path)


def _check_classes(network: nn.Module, data: Data, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    try:
        with torch.no_grad():
            out = logits_of(network.eval(), normalised(torch.from_numpy(data.train.images[:2]), mean, std))
    except RuntimeError as error:
        raise EvokdError("--teacher", f"a network for images of shape {data.shape}", str(error).splitlines()[0][:80]) from None
    if out.ndim != 2 or out.shape[1] != data.classes:
        raise EvokdError(
            "--teacher",
            f"{data.classes} classes, as {data.name} has",
            str(tuple(out.shape[1:])),
            "take a teacher of this data",
        )


def weights_key(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _numbers(card: dict[str, str], name: str, where: str) -> tuple[float, ...]:
    """Comma-separated numbers of a card; none if it says nothing."""
    text = card.get(name)
    try:
        values = tuple(float(v) for v in text.split(",")) if text else ()
    except ValueError:
        raise EvokdError(f"{where}, {name}", "numbers with commas", repr(text)[:40]) from None
    if name == "std" and not all(v > 0 for v in values):
        raise EvokdError(f"{where}, std", "positive numbers", repr(text)[:40])
    if not all(0 <= v <= 1 for v in values):
        raise EvokdError(
            f"{where}, {name}", "numbers for images scaled to 0…1", repr(text)[:40], "divide by 255 if they are of bytes"
        )
    return values


def _text(values: Sequence[float]) -> str:
    return ",".join(map(str, values))
