"""One short distillation: a fresh student, one loss, a fixed number of steps, figures on a held-out split.

Initialisation, batch order and views derive from the evaluation seed alone, so that differences between losses are paired; only a loss's
own noise also takes its key. Every evaluation runs on one intra-op thread: two threads change the bits.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evokd.config import Protocol
from evokd.evaluate.bank import Bank, open_bank
from evokd.evaluate.fitness import FITNESS, mean_of, measure
from evokd.genome.individual import Outcome, Status
from evokd.losses.language import tree_from_names
from evokd.losses.own import load_operators
from evokd.losses.program import DistillLoss, compile_loss
from evokd.losses.taps import Taps
from evokd.models.tapping import Tapped, TapPlan, logits_of
from evokd.models.zoo import build, layout_of
from evokd.streams import derive

Curve = list[tuple[float, ...]]


@dataclass(frozen=True)
class Job:
    """One evaluation as plain data.

    Attributes:
        loss: node names of the tree, or None for plain training.
        gamma: weight of the cross-entropy; None for the protocol's.
        seeds: one training each.
        split: where figures are taken, validation or test.
        key: the candidate's content key, for its own noise.
        steps: share of the protocol's; the schedule is annealed within it.
    """

    loss: tuple[str, ...] | None
    seeds: tuple[int, ...]
    gamma: float | None = None
    split: str = "validation"
    key: str = ""
    steps: float = 1.0


class DivergedError(Exception):
    """Training left the finite numbers."""


class Distiller:
    """Evaluates jobs for one pair on one bank; what a worker holds.

    Args:
        bank: recorded data and teacher.
        student: network spec, or a callable that takes the number of classes.
        plan: the student's taps.
        protocol: the short distillation.
        fitness: name of the figure to maximise.
        device: where it runs.
        teacher: the live teacher with its plan, where the bank holds no taps.
    """

    def __init__(
        self, bank: Bank, student, plan: TapPlan, protocol: Protocol, fitness: str, device: str = "cpu",
        teacher: tuple[nn.Module, TapPlan] | None = None,
    ) -> None:  # fmt: skip
        self.bank, self.student, self.plan, self.protocol = bank, student, plan, protocol
        self.fitness, self.device, self.teacher = fitness, device, teacher

    def __call__(self, job: Job) -> Outcome:
        """The outcome of a job; user-code errors and divergence become a status, never an exception."""
        start = time.perf_counter()
        try:
            distiller = self if job.steps == 1 else self.shortened(job.steps)
            runs = [distiller.train(job, seed) for seed in job.seeds]
        except DivergedError as error:
            return Outcome(Status.DIVERGED, reason=str(error), seconds=time.perf_counter() - start)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            return Outcome(Status.OUT_OF_MEMORY, reason=str(error)[:200], seconds=time.perf_counter() - start)
        except Exception as error:  # a user's student or loss may raise anything; it concerns this candidate alone
            return Outcome(Status.CRASHED, reason=f"{type(error).__name__}: {error}"[:200], seconds=time.perf_counter() - start)
        metrics = mean_of([figures for figures, _ in runs])
        score = FITNESS[self.fitness]
        metrics |= {"fitness_by_seed": [score(figures) for figures, _ in runs], "curve": runs[0][1]}
        return Outcome(Status.OK, score(metrics), metrics, seconds=time.perf_counter() - start)

    def shortened(self, share: float) -> Distiller:
        """The same with a share of the steps."""
        short = copy.copy(self)
        short.protocol = self.protocol.model_copy(update={"steps": max(round(share * self.protocol.steps), 1)})
        return short

    def smaller(self) -> Distiller:
        """The same with half the batch, for a device whose memory did not suffice."""
        half = copy.copy(self)
        half.protocol = self.protocol.model_copy(update={"batch": max(self.protocol.batch // 2, 2)})
        return half

    def train(self, job: Job, seed: int) -> tuple[dict[str, float], Curve]:
        """(figures on the job's split, curve of (step, cross-entropy, distillation loss, each of its terms if there are several)).

        Raises:
            DivergedError: if the loss or the student is not finite.
        """
        network, curve = self.fit(job, seed)
        return self.examine(network, job.split), curve

    def fit(self, job: Job, seed: int) -> tuple[nn.Module, Curve]:
        """(trained student, its curve).

        Raises:
            DivergedError: if the loss is not finite.
        """
        network = self.build(seed)
        gamma = self.protocol.gamma if job.gamma is None else job.gamma
        with ExitStack() as stack:
            tapped = stack.enter_context(Tapped(network, self.plan))
            live = stack.enter_context(Tapped(*self.teacher)) if self.teacher else None
            loss = self.compiled(job, tapped, live, seed)
            curve = self.optimise(network, tapped, live, loss, gamma, job, seed)
        return network, curve

    def build(self, seed: int) -> nn.Module:
        card = self.bank.card
        network = build(self.student, card["classes"], card["shape"][0], derive(seed, "student"))
        return network.to(self.device, memory_format=layout_of(network, self.protocol.channels_last, self.device))

    def examples(self, tapped: Tapped, live: Tapped | None, count: int = 2) -> tuple[Taps, Taps]:
        """Student's and teacher's taps of the first images, in eval mode."""
        index = torch.arange(count, device=self.device)
        view = torch.zeros(count, dtype=torch.long, device=self.device)
        images = self.bank.batch(index, view)
        training = tapped.network.training
        with torch.no_grad():
            tapped.network.eval()
            student = tapped(images)
            tapped.network.train(training)
            teacher = live(images) if live else self.bank.teacher_taps(index, view)
        return student, teacher

    def compiled(self, job: Job, tapped: Tapped, live: Tapped | None, seed: int) -> DistillLoss | None:
        if job.loss is None:
            return None
        loss = compile_loss(tree_from_names(job.loss), *self.examples(tapped, live), seed=derive(seed, "connectors"))
        return loss.to(self.device)

    def optimise(self, network, tapped, live, loss, gamma: float, job: Job, seed: int) -> Curve:
        """The inner loop; the loss is read back only at ten points of the curve."""
        p, curve = self.protocol, []
        optimiser, schedule = self.optimiser(network, loss)
        noise = torch.Generator(self.device).manual_seed(derive(seed, "noise", job.key))
        weights = [w for group in optimiser.param_groups for w in group["params"]]
        needs = {"logits", *loss.needs} if loss is not None else ()
        network.train()
        for step, (index, view) in enumerate(self.batches(seed)):
            images, labels = self.bank.batch(index, view), self.bank.labels["train"][index]
            taps = tapped(images)
            hard = cross_entropy(taps.logits, labels) if gamma else taps.logits.new_zeros(())
            soft, terms = taps.logits.new_zeros(()), []
            if loss is not None:
                with torch.no_grad():
                    shown = live(images) if live else self.bank.teacher_taps(index, view, needs)
                terms = loss.by_term(taps, shown, labels, step / p.steps, noise, index)
                soft = sum(terms)
            optimiser.zero_grad(set_to_none=True)
            (gamma * hard + soft).backward()
            nn.utils.clip_grad_norm_(weights, p.clip, foreach=True)
            optimiser.step()
            schedule.step()
            if step % max(p.steps // 10, 1) == 0 or step == p.steps - 1:
                curve.append((step, hard.item(), soft.item(), *(term.item() for term in terms if len(terms) > 1)))
                if not all(np.isfinite(curve[-1])):
                    raise DivergedError(f"loss {curve[-1][2]} at step {step}")
        return curve

    def optimiser(self, network: nn.Module, loss: DistillLoss | None):
        """Weight decay on the student's matrices only, one-cycle learning rate."""
        p = self.protocol
        decayed = [w for w in network.parameters() if w.dim() > 1]
        free = [w for w in network.parameters() if w.dim() <= 1] + (list(loss.parameters()) if loss is not None else [])
        groups = [{"params": decayed, "weight_decay": p.weight_decay}, {"params": free, "weight_decay": 0.0}]
        if p.optimizer == "sgd":
            optimiser = torch.optim.SGD(groups, p.lr, momentum=p.momentum, nesterov=p.momentum > 0, foreach=True)
        else:
            optimiser = torch.optim.Adam(groups, p.lr, foreach=True)
        return optimiser, torch.optim.lr_scheduler.OneCycleLR(optimiser, p.lr, total_steps=p.steps, cycle_momentum=False)

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(indices, views) of every step, from the evaluation seed alone: epochs without replacement, or classes equally often."""
        draw = np.random.Generator(np.random.PCG64(derive(seed, "batches")))
        labels, p = self.bank.labels["train"].cpu().numpy(), self.protocol
        size = min(p.batch, len(labels))
        if p.balanced:
            share = 1 / np.bincount(labels + 1)[labels + 1]  # hidden labels (-1) are one class of their own
            order = draw.choice(len(labels), p.steps * size, p=share / share.sum())
        else:
            epochs = -(-p.steps * size // len(labels))
            order = np.concatenate([draw.permutation(len(labels)) for _ in range(epochs)])[: p.steps * size]
        views = draw.integers(0, len(self.bank.views), p.steps * size)
        for at in range(0, p.steps * size, size):
            yield tuple(torch.from_numpy(a[at : at + size]).to(self.device) for a in (order, views))

    @torch.no_grad()
    def examine(self, network: nn.Module, split: str) -> dict[str, float]:
        network.eval()
        images = self.bank.images[split]
        logits = torch.cat([logits_of(network, self.bank.normalised(chunk)) for chunk in images.split(1000)])
        if not torch.isfinite(logits).all():
            raise DivergedError("the trained student's logits are not finite")
        figures = measure(logits, self.bank.logits[split], self.bank.labels[split])
        if not all(np.isfinite(value) for value in figures.values()):
            raise DivergedError(f"figures of the trained student are not finite: {figures}")
        return figures


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Averaged over the whole batch: unknown labels (−1) count as zero, so their number does not change the weight of the others."""
    return F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum") / len(labels)


def open_distiller(recipe: dict) -> Distiller:
    """A worker's distiller from plain data: folder of the bank, student, taps, protocol, fitness, device."""
    torch.set_num_threads(1)
    load_operators(recipe["operators"])
    bank = open_bank(Path(recipe["bank"]), recipe["device"])
    teacher = None
    if bank.card["live"]:
        from evokd.models.teachers import read_weights

        network, _ = read_weights(Path(recipe["teacher"]))
        teacher = (network.eval().requires_grad_(False).to(recipe["device"]), TapPlan(**recipe["teacher_plan"]))
    return Distiller(
        bank,
        recipe["student"],
        TapPlan(**recipe["plan"]),
        Protocol(**recipe["protocol"]),
        recipe["fitness"],
        recipe["device"],
        teacher,
    )
