"""Human designs beside searched students, each trained on labels, by distillation, or along a teacher's route (RCO).

Jin et al., ICCV 2019: as the student's training goes on, the teacher is replaced by later checkpoints of its own training.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from evokd.config import Protocol
from evokd.evaluate.bank import Bank, open_bank
from evokd.evaluate.distill import Distiller, Job
from evokd.evaluate.students import Judge, Setup, StudentJob
from evokd.genome.individual import Outcome
from evokd.losses.taps import Taps
from evokd.models.mobile import build_mobile
from evokd.models.teachers import read_weights

RCO = "rco"


@dataclass(frozen=True)
class Route(Bank):
    """A bank whose teacher grows up: each checkpoint teaches an equal share of the steps.

    Attributes:
        checkpoints: banks of the same data, early teachers first; all else is the last one's.
        steps: of a training.
        taken: steps so far, in a list of one. A call for all positions, which comes before a training, starts anew.
    """

    checkpoints: tuple[Bank, ...] = ()
    steps: int = 1
    taken: list[int] = field(default_factory=lambda: [0])

    def teacher_taps(self, index: Tensor, view: Tensor, positions: Iterable[str] | None = None) -> Taps:
        if positions is None:
            self.taken[0] = 0
            return self.checkpoints[-1].teacher_taps(index, view)
        stage = min(self.taken[0] * len(self.checkpoints) // self.steps, len(self.checkpoints) - 1)
        self.taken[0] += 1
        return self.checkpoints[stage].teacher_taps(index, view, positions)


def route_of(banks: Sequence[Bank], steps: int) -> Route:
    """One bank of several, early teachers first.

    Raises:
        ValueError: a bank without the teacher's outputs, which runs live.
    """
    if any(bank.card["live"] for bank in banks):
        raise ValueError("a teacher that runs live has no route")
    return Route(**{each.name: getattr(banks[-1], each.name) for each in fields(Bank)}, checkpoints=tuple(banks), steps=steps)


class DesignJudge(Judge):
    """A judge whose networks by name are human designs, such as `mobilenet_v2x0.5`."""

    def network(self, student: tuple[str, ...] | str, classes: int) -> nn.Module:
        if isinstance(student, str):
            return build_mobile(student, classes, *self.bank.card["shape"][:2])
        return super().network(student, classes)

    def prepared(self, job: StudentJob) -> tuple[Distiller, Job]:
        distiller, work = super().prepared(job)
        distiller.student = lambda classes: self.network(job.student, classes)
        return distiller, work


class RouteJudge:
    """Evaluates jobs of the tiers train, distill (by the finished teacher) and rco; what a worker holds.

    Args:
        banks: of the teacher's checkpoints, early ones first.
        teacher: finished.
        setup: what a judge needs besides.
    """

    def __init__(self, banks: Sequence[Bank], teacher: nn.Module, setup: Setup) -> None:
        self.finished = DesignJudge(banks[-1], teacher, setup)
        self.growing = DesignJudge(route_of(banks, setup.protocol.steps), teacher, setup)

    def __call__(self, job: StudentJob) -> Outcome:
        if job.tier == RCO:
            return self.growing.train(replace(job, tier="distill"))
        return self.finished.train(job)


def open_route_judge(recipe: dict) -> RouteJudge:
    """A worker's judge from plain data: folders of the banks, file of the teacher, setup."""
    torch.set_num_threads(1)
    network, _ = read_weights(Path(recipe["teacher"]))
    setup = Setup(**recipe["setup"] | {"protocol": Protocol(**recipe["setup"]["protocol"])})
    banks = [open_bank(Path(folder), setup.device) for folder in recipe["banks"]]
    return RouteJudge(banks, network.eval().requires_grad_(False).to(setup.device), setup)
