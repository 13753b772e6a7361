"""Checkpoints of a teacher's own training, early ones first: the route along which a student is led.

Jin et al., "Knowledge Distillation via Route Constrained Optimization", ICCV 2019: early teachers are easier to follow than finished ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from evokd.data import Data
from evokd.errors import EvokdError
from evokd.models.resnet import ResNet
from evokd.models.teachers import RECIPE, train_teacher, write_weights
from evokd.models.zoo import build
from evokd.streams import derive


def train_route(
    spec: str,
    data: Data,
    cache: Path,
    epochs: int,
    count: int,
    progress: Callable[[str], None] = lambda line: None,
    device: str = "cpu",
) -> list[Path]:
    """Files of a named teacher's weights at equal parts of its training, the last one finished; trained unless the cache has them.

    Training is that of `load_teacher`, so that the last file holds the very teacher of that name.

    Args:
        spec: `resnetD` or `resnetDwW`.
        data: as for `load_teacher`; so are `cache`, `epochs`, `progress` and `device`.
        cache: folder.
        epochs: of the whole training.
        count: checkpoints, at most 20.
        progress: line by line.
        device: where it trains.

    Raises:
        EvokdError: another network than a ResNet by name.
    """
    network = (
        None
        if spec.endswith(".safetensors") or ".py:" in spec
        else build(spec, data.classes, data.shape[0], derive(0, "teacher", spec))
    )
    if not isinstance(network, ResNet):
        raise EvokdError(
            "--teacher", "a ResNet by name, whose training can be repeated", repr(spec), "or name its checkpoints by --route"
        )
    key = hashlib.sha256(json.dumps([spec, data.key, epochs, RECIPE, "route", count]).encode()).hexdigest()[:12]
    paths = [cache / "teachers" / f"{spec}-{data.name}-{key}-{i}of{count}.safetensors" for i in range(1, count + 1)]
    if not all(path.exists() for path in paths):
        states = _states(network, data, epochs, progress, device)
        card = {"arch": spec, "data": data.name, "mean": ",".join(map(str, data.mean)), "std": ",".join(map(str, data.std))}
        for i, path in enumerate(paths, 1):
            network.load_state_dict(states[round(i * (len(states) - 1) / count)])
            write_weights(path, network, card)
    return paths


def _states(network: ResNet, data: Data, epochs: int, progress: Callable[[str], None], device: str) -> list[dict]:
    """Weights at each of the some twenty points of training at which it tells its progress, the first and last step among them."""
    states: list[dict] = []

    def keep(line: str) -> None:
        states.append({name: value.detach().cpu().clone() for name, value in network.state_dict().items()})
        progress(line)

    train_teacher(network, data, epochs, keep, device)
    return states
