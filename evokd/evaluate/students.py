"""Students judged: by a training-free score, by a short distillation, or by the same training on labels alone."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from evokd.config import Protocol
from evokd.evaluate.bank import Bank, open_bank
from evokd.evaluate.distill import Distiller, Job
from evokd.evaluate.fitness import mean_of
from evokd.evaluate.shared_weights import open_shared
from evokd.genome.individual import Outcome, Status
from evokd.models.tapping import plan_taps
from evokd.models.teachers import read_weights
from evokd.models.zoo import build
from evokd.scores import SCORES, Score, TeacherView, initialise, score_all, score_of_loss, view_teacher
from evokd.streams import derive
from evokd.students import read_student_space

BATCH = 64  # images that a score sees
PARTS = {  # of sums, told beside them; higher is better in all
    "diswot": ("diswot_semantic", "diswot_relation"),
    "diswot_paper": ("diswot_paper_semantic", "diswot_paper_relation"),
}
LOSS = "loss:"  # what follows is the text of a loss, which is then the score


@dataclass(frozen=True)
class StudentJob:
    """One evaluation as plain data.

    Attributes:
        student: node names of a genome, or the name of a network of the zoo.
        tier: score, distill, train or shared.
        seeds: of initialisation and training, one repeat each.
        split: where accuracies are taken.
        key: the student's content key.
        steps: share of the protocol's.
    """

    student: tuple[str, ...] | str
    tier: str
    seeds: tuple[int, ...]
    split: str = "validation"
    key: str = ""
    steps: float = 1.0


@dataclass(frozen=True)
class Setup:
    """What a judge needs besides data and teacher: names and numbers alone.

    Attributes:
        space: name or file of the student space.
        loss: node names of the loss that distils.
        score: name of the training-free score, or `loss:` and a loss.
        init: initialisation that scores see.
        protocol: the short distillation.
        fitness: name of the figure to maximise.
        device: where it trains.
    """

    space: str
    loss: tuple[str, ...]
    score: str
    init: str
    protocol: Protocol
    fitness: str
    device: str


class Judge:
    """Evaluates student jobs on one bank; what a worker holds."""

    def __init__(self, bank: Bank, teacher: nn.Module, setup: Setup, supernet: Path | None = None) -> None:
        self.bank, self.teacher, self.setup = bank, teacher, setup
        self.space, self.yardstick = read_student_space(setup.space), find_score(setup.score)
        self._view: TeacherView | None = None
        self._shared = open_shared(supernet, self.space, bank, setup.device) if supernet else None

    def __call__(self, job: StudentJob) -> Outcome:
        if job.tier == "shared":
            return self._shared(job)
        return self.score(job) if job.tier == "score" else self.train(job)

    def network(self, student: tuple[str, ...] | str, classes: int) -> nn.Module:
        channels = self.bank.card["shape"][0]
        if isinstance(student, str):
            return build(student, classes, channels, 0)
        return self.space.build(self.space.tree_from_names(student), classes, channels)

    def train(self, job: StudentJob) -> Outcome:
        """A short training with the protocol, distilled or on labels alone."""
        distiller, work = self.prepared(job)
        return distiller(work)

    def prepared(self, job: StudentJob) -> tuple[Distiller, Job]:
        """What trains a job's student, and the work as it takes it: with the recipe of distillation, or on labels alone."""
        setup = self.setup
        spec = job.student if isinstance(job.student, str) else lambda classes: self.network(job.student, classes)
        example = self.bank.normalised(self.bank.images["train"][:2])
        plan = plan_taps(self.network(job.student, self.bank.card["classes"]), example.cpu())
        live = (self.teacher, plan_taps(self.teacher, example)) if self.bank.card["live"] else None
        distiller = Distiller(self.bank, spec, plan, setup.protocol, setup.fitness, setup.device, live)
        distilled = job.tier == "distill"
        return distiller, Job(
            setup.loss if distilled else None, job.seeds, None if distilled else 1.0, job.split, job.key, job.steps
        )

    def score(self, job: StudentJob) -> Outcome:
        """The score's mean over the seeds, higher being better; the student is never trained."""
        start = time.perf_counter()
        try:
            found = mean_of([self.scored(job, seed) for seed in job.seeds])
        except Exception as error:  # a network of a user's may raise anything; it concerns this candidate alone
            return Outcome(Status.CRASHED, reason=f"{type(error).__name__}: {error}"[:200], seconds=time.perf_counter() - start)
        seconds = time.perf_counter() - start
        if not abs(found["score"]) < float("inf"):
            return Outcome(Status.REJECTED, reason=f"score: {self.setup.score} finds it dead", seconds=seconds)
        return Outcome(Status.OK, found["score"], found, seconds=seconds)

    def scored(self, job: StudentJob, seed: int) -> dict[str, float]:
        """The score, higher being better, and its parts by name, of one initialisation."""
        images = self.bank.normalised(self.bank.images["train"][:BATCH])
        labels = self.bank.labels["train"][:BATCH]
        if self._view is None and self.yardstick.needs_teacher:
            self._view = view_teacher(self.teacher, images, labels)
        student = initialise(self.network(job.student, self.bank.card["classes"]), self.setup.init, derive(seed, job.key))
        draw = torch.Generator().manual_seed(derive(seed, "score", job.key))
        batch = (student.to(self.setup.device), self._view, images, labels, draw)
        if self.setup.score not in PARTS:
            return {"score": float(self.yardstick.fn(*batch)) * (1 if self.yardstick.higher_is_better else -1)}
        found = score_all((self.setup.score, *PARTS[self.setup.score]), *batch)
        return {"score": found.pop(self.setup.score)} | found


def find_score(name: str) -> Score:
    """By name, or the score that a loss is."""
    return score_of_loss(name.removeprefix(LOSS)) if name.startswith(LOSS) else SCORES[name]


def open_judge(recipe: dict) -> Judge:
    """A worker's judge from plain data: folder of the bank, file of the teacher, setup."""
    torch.set_num_threads(1)
    network, _ = read_weights(Path(recipe["teacher"]))
    setup = Setup(**recipe["setup"] | {"protocol": Protocol(**recipe["setup"]["protocol"])})
    bank = open_bank(Path(recipe["bank"]), setup.device)
    supernet = Path(recipe["supernet"]) if recipe.get("supernet") else None
    return Judge(bank, network.eval().requires_grad_(False).to(setup.device), setup, supernet)
