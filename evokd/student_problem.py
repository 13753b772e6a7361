"""The problem of a search for students: data, teacher, space within limits, and the judges of its candidates.

Everything a user can get wrong is refused here, before a run folder exists.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from evokd.config import StudentConfig
from evokd.data import Data, read_data
from evokd.errors import unknown
from evokd.evaluate.bank import bank_key, open_bank, write_bank
from evokd.evaluate.students import Judge, Setup, StudentJob, open_judge
from evokd.executor import Serial, Workers
from evokd.export import read_loss
from evokd.genome.codec import to_names
from evokd.genome.grammar import Grammar
from evokd.genome.individual import Individual, content_key
from evokd.losses.language import to_terms
from evokd.models.tapping import plan_taps
from evokd.models.teachers import Teacher, load_teacher
from evokd.models.views import normalised
from evokd.models.zoo import build, parameters
from evokd.problem import check_writable, count_workers, pick_device, transfer_set
from evokd.scores import SCORES
from evokd.students import read_student_space
from evokd.students.cost import Limited, Limits, limited
from evokd.students.space import Cost, StudentSpace


@dataclass(frozen=True)
class StudentProblem:
    """What the search needs.

    Attributes:
        config: as validated.
        space: all students.
        within: the space within the limits.
        teacher: trained.
        data: with the transfer set as train split.
        executor: maps jobs to outcomes.
        card: figures for reports and tracking.
        key: content hash of data, teacher, protocol and recipe.
    """

    config: StudentConfig
    space: StudentSpace
    within: Limited
    teacher: Teacher
    data: Data
    executor: Serial | Workers
    card: dict
    key: str

    @property
    def grammar(self) -> Grammar:
        return self.space.grammar

    @property
    def space_hash(self) -> str:
        return content_key(json.dumps({slot: list(choices) for slot, choices in self.space.slots.items()}))

    def cost(self, tree: Sequence) -> Cost:
        return self.space.cost(self.space.genome(tree), self.data.classes, self.data.shape[0], self.data.shape[1])

    def job(self, individual: Individual, tier: str, seeds: tuple[int, ...], split: str = "validation") -> StudentJob:
        return StudentJob(tuple(to_names(individual)), tier, seeds, split, content_key(self.space.key(individual)))

    def heading(self, folder: Path) -> list[str]:
        """The first lines of a run."""
        card, config = self.card, self.config
        limits = [
            f"{name} ≤ {value:,}" for name, value in (("parameters", config.max_params), ("MACs", config.max_macs)) if value
        ]
        steps = f"{config.protocol.steps} steps"
        judged = {
            "cascade": f"all scored by {config.score}, the best {config.promote:.0%} distilled ({config.loss}, {steps})",
            "score": f"scored by {config.score} alone",
            "distill": f"all distilled ({config.loss}, {steps})",
            "train": f"all trained on labels alone ({steps})",
        }[config.evaluator]
        return [
            f"evokd · {card['data']} ({card['images']} images) · teacher {card['teacher']} {card['teacher_accuracy']:.1f} %",
            f"space {self.space.name}: {self.space.count():,} students" + (f", {', '.join(limits)}" if limits else ""),
            f"{config.controller}, {config.generations} generations of {config.population}, {judged} · run {folder}",
        ]


def open_student_problem(config: StudentConfig, say: Callable[[str], None], download: bool = False) -> StudentProblem:
    """Data, teacher, space and limits checked; the teacher's outputs recorded.

    Raises:
        EvokdError: anything that cannot work, before a run folder exists.
    """
    torch.set_num_threads(1)
    if config.score not in SCORES:
        raise unknown("--score", "a score", config.score, SCORES)
    space, recipe = read_student_space(config.space), read_loss(config.loss)
    check_writable(Path(config.out))
    source = read_data(config.data, download)
    data = transfer_set(source, config.protocol)
    limits = Limits(config.max_params or math.inf, config.max_macs or math.inf)
    within = limited(space, limits, data.classes, data.shape[0], data.shape[1])
    device = pick_device(config.device)
    teacher = load_teacher(config.teacher, source, Path(config.out) / "cache", config.teacher_epochs, say, device)
    executor, key = _executor(config, data, teacher, recipe, device, say)
    card = {
        "data": source.name, "classes": data.classes, "images": len(data.train), "labels": int((data.train.labels >= 0).sum()),
        "validation": len(data.validation), "test": len(data.test), "teacher": teacher.name, "teacher_key": teacher.key,
        "teacher_accuracy": round(teacher.accuracy, 2), "teacher_parameters": parameters(teacher.network),
        "student": space.name, "student_parameters": config.max_params or 0,
    }  # fmt: skip
    return StudentProblem(config, space, within, teacher, data, executor, card, key)


def _executor(
    config: StudentConfig, data: Data, teacher: Teacher, recipe: list, device: str, say
) -> tuple[Serial | Workers, str]:
    """Judges on a bank of the teacher's outputs at the positions that the recipe reads."""
    images = normalised(torch.from_numpy(data.train.images[:2]), teacher.mean, teacher.std)
    plan = plan_taps(teacher.network, images, config.teacher_taps, "--teacher")
    positions = sorted({"logits", *(p for term in to_terms(recipe) for p in term.distance.positions())})
    key = bank_key(data, teacher, plan, config.protocol, positions)
    folder = Path(config.out) / "cache" / "banks" / key
    write_bank(folder, data, teacher, plan, config.protocol, positions, config.cache_gib, say)
    setup = Setup(config.space, tuple(to_names(recipe)), config.score, config.init, config.protocol, config.fitness, device)
    if count_workers(config) == 1 or teacher.path is None:
        return Serial(Judge(open_bank(folder, device, check=True), teacher.network.to(device), setup)), key
    plain = asdict(replace(setup, protocol=None)) | {"protocol": config.protocol.model_dump()}
    return Workers(count_workers(config), open_judge, {"bank": str(folder), "teacher": str(teacher.path), "setup": plain}), key


def human_designed(problem: StudentProblem, size: int) -> str:
    """The CIFAR ResNet-8 or -14 (He et al., CVPR 2016) whose number of parameters is nearest."""
    shape = problem.data.classes, problem.data.shape[0]
    names = [f"resnet{depth}w{width}" for depth in (8, 14, 20) for width in range(2, 17)]
    return min(names, key=lambda name: abs(parameters(build(name, *shape, 0)) - size))
