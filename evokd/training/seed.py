"""One student trained in full under a recipe, with any loss: the data set lies on the device as bytes and is augmented there.

Initialisation, order of the images and augmentation derive from the seed alone, epoch by epoch, so that losses are paired and a training
that goes on from its checkpoint draws what an undisturbed one draws. On a CPU (one thread) it ends with the same bits.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evokd.data import Data, Split
from evokd.evaluate.bank import Bank, fixed_views
from evokd.evaluate.distill import DivergedError
from evokd.evaluate.fitness import measure
from evokd.losses.program import DistillLoss, compile_loss
from evokd.losses.taps import Taps
from evokd.models.tapping import Tapped, TapPlan, logits_of
from evokd.models.teachers import Teacher
from evokd.models.views import augmented, centre, cropped, draw_crops, draw_views, normalised
from evokd.models.zoo import build, layout_of
from evokd.streams import derive
from evokd.training.figures import best_of, calibration_error, top
from evokd.training.recipes import Recipe
from evokd.training.state import State

CHUNK = 500  # images at once where nothing is trained
Say = Callable[[str], None]


@dataclass
class Trained:
    """A finished training.

    Attributes:
        network: what was measured: the student, or its averaged weights; in eval mode.
        figures: on test, see `FullTraining.examine`.
        epochs: one row an epoch: learning rate, mean losses (each term of several by itself), seconds of training, and where test was
            looked at top-1 and top-5.
    """

    network: nn.Module
    figures: dict[str, float]
    epochs: list[dict[str, float]] = field(default_factory=list)


class FullTraining:
    """What all seeds of one row share.

    Args:
        data: its train split is trained on, its test split told on; validation is not touched.
        student: network spec, or a callable that takes the number of classes.
        recipe: how.
        loss: tree of the distillation loss; None is plain training.
        gamma: weight of the cross-entropy.
        teacher: frozen; None only without a loss.
        plans: taps of student and teacher, where there is a loss.
        device: cpu or cuda.
        noise: key of the loss, for its own draws.
        bank: the teacher's taps on the recipe's fixed views; without one it runs live.
    """

    def __init__(
        self, data: Data, student, recipe: Recipe, *, loss: Sequence | None = None, gamma: float = 1.0, teacher: Teacher | None = None,
        plans: tuple[TapPlan, TapPlan] | None = None, device: str = "cpu", noise: str = "", bank: Bank | None = None,
    ) -> None:  # fmt: skip
        torch.set_num_threads(1)  # two change the bits
        self.data, self.student, self.recipe, self.loss, self.gamma = data, student, recipe, loss, gamma
        self.teacher, self.plans, self.device, self.noise, self.bank = teacher, plans, device, noise, bank
        self.mean, self.std = (teacher.mean, teacher.std) if teacher else (data.mean, data.std)
        self.images, self.labels = (torch.from_numpy(array).to(device) for array in (data.train.images, data.train.labels))
        self.format = layout_of(build(student, data.classes, data.shape[0], 0), recipe.channels_last, device)
        side = data.shape[1]
        self.shift = max(1, side // 8) if recipe.shift is None else recipe.shift
        self.seen = replace(data, validation=data.validation.take(slice(0, 2)))  # of a bank: the rest is asked nothing
        self.views = fixed_views(self.seen, recipe.views, self.shift).to(device) if recipe.views else None
        self.half = recipe.mixed and device != "cpu"
        self.size = max(round(0.875 * min(data.shape[1:])), 1)  # of resized crops, 224 of 256
        if teacher:
            teacher.network.to(device, memory_format=self.format)

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return len(self._starts())

    def _starts(self) -> range | list[int]:
        """Where the batches of an epoch begin; a last image by itself is left out, for batch norm needs two."""
        count, batch = len(self.labels), self.recipe.batch
        return [at for at in range(0, count, batch) if min(batch, count - at) > 1]

    def train(self, seed: int, checkpoint: Path | None = None, say: Say = lambda line: None, until: int | None = None) -> Trained:
        """One student; begun anew, or gone on with from its checkpoint.

        Args:
            seed: of initialisation, order and augmentation.
            checkpoint: written whole after every epoch, read at the start if it is there.
            say: progress line by line.
            until: epoch after which to stop early, on the schedule of the whole recipe (an early-stopped teacher).

        Raises:
            DivergedError: losses or logits that are not finite.
            EvokdError: a checkpoint that is torn or of another training.
        """
        with ExitStack() as stack:
            state = self._begin(seed, stack)
            rows = state.load(checkpoint) if checkpoint and checkpoint.exists() else []
            end = until or self.recipe.epochs
            for epoch in range(len(rows), end):
                rows.append(self._epoch(state, epoch))
                if (epoch + 1) % self.recipe.look == 0 or epoch + 1 == end:
                    rows[-1] |= self._look(state.measured)
                if checkpoint:
                    state.save(checkpoint, rows)
                row = rows[-1]
                told = f", top-1 {row['top1']:.2f} % on test" if "top1" in row else ""
                say(f"training: epoch {epoch + 1}/{self.recipe.epochs}, cross-entropy {row['ce']:.3f}{told}")
            network = state.measured
            figures = self.examine(network) | best_of(rows) | {"seconds": sum(row["seconds"] for row in rows)}
        return Trained(network.eval(), figures, rows)

    def _begin(self, seed: int, stack: ExitStack) -> State:
        network = build(self.student, self.data.classes, self.data.shape[0], derive(seed, "student"))
        network = network.to(self.device, memory_format=self.format)
        tapped = live = loss = None
        if self.loss is not None:
            tapped = stack.enter_context(Tapped(network, self.plans[0]))
            live = stack.enter_context(Tapped(self.teacher.network, self.plans[1]))
            loss = self._compiled(tapped, live, seed)
        averaged = copy.deepcopy(network) if self.recipe.ema else None
        return State(seed, self.recipe, network, averaged, loss, tapped, live)

    def _compiled(self, tapped: Tapped, live: Tapped, seed: int) -> DistillLoss:
        """The loss for the shapes that two images show."""
        images = self.view(self.images[:2])
        with torch.no_grad():
            tapped.network.eval()
            pair = tapped(images), live(images)
            tapped.network.train()
        return compile_loss(self.loss, *pair, seed=derive(seed, "connectors")).to(self.device)

    def _epoch(self, state: State, epoch: int) -> dict[str, float]:
        start = time.perf_counter()
        noise = torch.Generator(self.device).manual_seed(derive(state.seed, "noise", self.noise, epoch))
        sums = torch.zeros(2 + len(state.loss.terms if state.loss else ()), device=self.device)
        chosen = self._chosen(state.seed, epoch)
        state.network.train()
        for step, (index, images) in enumerate(self.batches(state.seed, epoch), epoch * self.steps):
            rate = self.recipe.rate(step, self.steps)
            for group in state.optimiser.param_groups:
                group["lr"] = rate
            view = None if chosen is None else chosen[index]
            sums += self._step(state, images, index, view, step / (self.recipe.epochs * self.steps), noise)
        ce, distill, *terms = (sums / self.steps).tolist()
        if not np.isfinite(ce + distill):
            raise DivergedError(f"loss {ce + distill} in epoch {epoch + 1}")
        told = {"epoch": epoch + 1, "lr": rate, "ce": ce, "distill": distill, "seconds": time.perf_counter() - start}
        return told | ({"terms": terms} if len(terms) > 1 else {})

    def _look(self, network: nn.Module) -> dict[str, float]:
        logits, labels = self.logits(network), torch.from_numpy(self.data.test.labels)
        return {f"top{k}": top(logits, labels, k) for k in (1, 5)}

    def _step(
        self, state: State, images: Tensor, index: Tensor, view: Tensor | None, progress: float, noise: torch.Generator
    ) -> Tensor:
        """One step of the optimiser; cross-entropy, distillation loss and the T terms of it (2 + T,)."""
        labels, whole = self.labels[index], torch.float32
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.half):
            taps = state.tapped(images) if state.tapped else Taps(logits_of(state.network, images))
            shown = self._taught(state, images, index, view)
        taps = taps.map(lambda tap: tap.to(whole))
        hard = hard_loss(taps.logits, labels, self.recipe.smoothing) if self.gamma else taps.logits.new_zeros(())
        soft, terms = taps.logits.new_zeros(()), []
        if state.loss is not None:
            terms = state.loss.by_term(taps, shown.map(lambda tap: tap.to(whole)), labels, progress, noise, index)
            soft = sum(terms)
        state.optimiser.zero_grad(set_to_none=True)
        (self.gamma * hard + soft).backward()
        if self.recipe.clip:
            nn.utils.clip_grad_norm_(state.weights, self.recipe.clip, foreach=True)
        state.optimiser.step()
        state.average()
        return torch.stack([value.detach() for value in (hard, soft, *terms)])

    @torch.no_grad()
    def _taught(self, state: State, images: Tensor, index: Tensor, view: Tensor | None) -> Taps | None:
        """What the teacher shows of a batch, recorded or live; None without a loss."""
        if state.live is None:
            return None
        return self.bank.teacher_taps(index, view) if self.bank else state.live(images)

    def _chosen(self, seed: int, epoch: int) -> Tensor | None:
        """(N,): in which of its fixed views an epoch shows each image."""
        if self.views is None:
            return None
        draw = np.random.Generator(np.random.PCG64(derive(seed, "full views", epoch)))
        return torch.from_numpy(draw.integers(0, self.recipe.views, len(self.labels))).to(self.device)

    def batches(self, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(indices, normalised augmented images) of one epoch, from the seed alone; every image once."""
        draw = np.random.Generator(np.random.PCG64(derive(seed, "full", epoch)))
        count, flip = len(self.labels), self.recipe.flip and self.data.flip
        order = torch.from_numpy(draw.permutation(count)).to(self.device)
        resized = self.recipe.crop == "resized"
        views = (draw_crops(draw, count, flip) if resized else draw_views(draw, count, self.shift, flip)).to(self.device)
        chosen = self._chosen(seed, epoch)
        views = views if chosen is None else self.views[chosen[order], order]
        for at in self._starts():
            index, view = (values[at : at + self.recipe.batch] for values in (order, views))
            images = cropped(self.images[index], view, self.size) if resized else augmented(self.images[index], view, self.shift)
            yield index, normalised(images, self.mean, self.std).clone(memory_format=self.format)  # also of one channel

    def view(self, images: Tensor) -> Tensor:
        """Bytes (N,C,H,W) as they are seen where nothing is drawn: normalised, and the middle alone where crops are resized."""
        images = centre(images, self.size) if self.recipe.crop == "resized" else images
        return normalised(images, self.mean, self.std).contiguous(memory_format=self.format)

    @torch.no_grad()
    def logits(self, network: nn.Module, split: Split | None = None) -> Tensor:
        """(N,K) on the CPU, of the test split or another.

        Raises:
            DivergedError: if they are not finite.
        """
        training = network.training
        network.eval()
        chunks = torch.from_numpy((split or self.data.test).images).split(CHUNK)
        found = torch.cat([logits_of(network, self.view(chunk.to(self.device))).float().cpu() for chunk in chunks])
        network.train(training)
        if not torch.isfinite(found).all():
            raise DivergedError("the network's logits are not finite")
        return found

    def told(self, network: nn.Module) -> dict[str, float]:
        """Top-1, top-5 and calibration error on test, %, of any network that takes these images."""
        return self._told(self.logits(network))

    def _told(self, logits: Tensor) -> dict[str, float]:
        labels = torch.from_numpy(self.data.test.labels)
        return {"top1": top(logits, labels, 1), "top5": top(logits, labels, 5), "ece": calibration_error(logits, labels)}

    @cached_property
    def shown(self) -> Tensor:
        """The teacher's logits (N,K) on test."""
        return self.bank.logits["test"].cpu() if self.bank else self.logits(self.teacher.network)

    def teacher_told(self) -> dict[str, float]:
        """The same figures of the teacher; nothing without one."""
        return self._told(self.shown) if self.teacher else {}

    def examine(self, network: nn.Module) -> dict[str, float]:
        """Figures on test: top1, top5, ece (%), ce (nats), and of the likeness to the teacher agreement (%), cka, sharpness_gap (nats)."""
        labels, logits = torch.from_numpy(self.data.test.labels), self.logits(network)
        figures = self._told(logits) | {"ce": F.cross_entropy(logits, labels).item()}
        if self.teacher is None:
            return figures
        alike = measure(logits, self.shown, labels)
        return figures | {name: alike[name] for name in ("agreement", "cka", "sharpness_gap")}


def hard_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy (N,K), (N,) averaged over the whole batch: unknown labels (−1) count as zero."""
    return F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum", label_smoothing=smoothing) / len(labels)
