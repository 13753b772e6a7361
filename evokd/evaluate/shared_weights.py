"""Cells ranked by one supernet that all of them share: RSPS's evaluator (Li & Talwalkar, UAI 2019), on NAS-Bench-201.

The supernet is trained once with random paths; a cell then costs one pass over the validation images, with batch statistics. The released
baseline judges each cell on a single batch; here all images of the split are seen.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from evokd.data import Data
from evokd.genome.individual import Outcome, Status, content_key
from evokd.models.teachers import write_weights
from evokd.models.views import normalised
from evokd.students.oneshot import Recipe, Supernet, path, search, supernet
from evokd.students.space import StudentSpace

if TYPE_CHECKING:
    from evokd.evaluate.bank import Bank
    from evokd.evaluate.students import StudentJob

CHUNK = 500  # images whose statistics the norms use
Splits = Mapping[str, tuple[Tensor, Tensor]]  # name → images (N,C,H,W) uint8, labels (N,)


class SharedWeights:
    """Judges student jobs of the tier `shared`; seeds and steps of a job play no part, for one supernet serves all.

    Args:
        network: trained.
        space: what the jobs' node names are of.
        splits: the images that jobs name.
        mean: of the images, per channel; `std` likewise.
    """

    def __init__(
        self, network: Supernet, space: StudentSpace, splits: Splits, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        self.network, self.space, self.splits, self.scale = network.eval(), space, splits, (mean, std)

    def __call__(self, job: StudentJob) -> Outcome:
        """The accuracy (%) of a cell with the shared weights; a cell that gives no finite logits is refused."""
        start = time.perf_counter()
        images, labels = self.splits[job.split]
        logits = self.logits(self.space.genome(self.space.tree_from_names(job.student)), images)
        seconds = time.perf_counter() - start
        if not logits.isfinite().all():
            return Outcome(Status.DIVERGED, reason="logits with shared weights are not finite", seconds=seconds)
        accuracy = 100 * int((logits.argmax(1) == labels).sum()) / len(labels)
        metrics = {"accuracy": accuracy, "ce": F.cross_entropy(logits, labels).item(), "fitness_by_seed": [accuracy]}
        return Outcome(Status.OK, accuracy, metrics, seconds=seconds)

    @torch.no_grad()
    def logits(self, genome: dict[str, str], images: Tensor) -> Tensor:
        """(N,K) of (N,C,H,W) uint8 images; chunks are as equal as can be, for a batch of one has no statistics."""
        gates, chunks = path(genome), images.tensor_split(-(-len(images) // CHUNK))
        return torch.cat([self.network(normalised(chunk, *self.scale), gates).logits for chunk in chunks])


def judge_on(network: Supernet, space: StudentSpace, data: Data, device: str = "cpu") -> SharedWeights:
    """The judge on a data set's validation and test images."""
    parts = {"validation": data.validation, "test": data.test}
    splits = {name: tuple(torch.from_numpy(a).to(device) for a in (s.images, s.labels)) for name, s in parts.items()}
    return SharedWeights(network, space, splits, data.mean, data.std)


def open_shared(file: Path, space: StudentSpace, bank: Bank, device: str) -> SharedWeights:
    """A worker's judge: the supernet from its file, the images from the bank."""
    from safetensors.torch import load_file

    network = supernet(space, bank.card["classes"], bank.card["shape"][0], 0)
    network.load_state_dict(load_file(file))
    splits = {name: (bank.images[name], bank.labels[name]) for name in ("validation", "test")}
    return SharedWeights(network.to(device), space, splits, bank.card["mean"], bank.card["std"])


def shared_weights(
    folder: Path, space: StudentSpace, data: Data, recipe: Recipe, seed: int, device: str, say: Callable[[str], None]
) -> Path:
    """The file of the supernet trained with random paths; one of the same contents in the folder is not trained again.

    Raises:
        EvokdError: whatever `search` refuses.
    """
    network = supernet(space, data.classes, data.shape[0], seed)  # refuses a space that cannot share
    size = [*space.network.args, sum(p.numel() for p in network.parameters())]
    file = folder / f"{content_key(json.dumps([size, data.key, asdict(recipe), seed]))}.safetensors"
    if not file.is_file():
        write_weights(file, search("rsps", space, data, recipe, seed, device, say).network.cpu(), {"method": "rsps"})
    return file
