"""The problem of a search for students: data, teacher, space within limits, and the judges of its candidates.

Everything a user can get wrong is refused here, before a run folder exists.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from evokd.config import StudentConfig
from evokd.data import Data, read_data
from evokd.errors import EvokdError, closest, unknown
from evokd.evaluate.bank import bank_key, open_bank, write_bank
from evokd.evaluate.shared_weights import shared_weights
from evokd.evaluate.students import LOSS, Judge, Setup, StudentJob, open_judge
from evokd.evaluate.tabular import read_table
from evokd.executor import Serial, Workers, in_this_process, open_workers
from evokd.export import read_loss
from evokd.genome.codec import to_names
from evokd.genome.grammar import Grammar
from evokd.genome.individual import Individual, content_key
from evokd.losses.language import to_terms, write_loss
from evokd.models.tapping import plan_taps
from evokd.models.teachers import Teacher, load_teacher
from evokd.models.views import normalised
from evokd.models.zoo import build, parameters
from evokd.problem import check_writable, pick_device, transfer_set
from evokd.scores import SCORES
from evokd.students import read_student_space
from evokd.students.cost import Limited, Limits, latency, limited
from evokd.students.oneshot import Recipe
from evokd.students.space import Cost, Genome, StudentSpace

if TYPE_CHECKING:
    from evokd.tabular_search import Published


@dataclass(frozen=True)
class StudentProblem:
    """What the search needs.

    Attributes:
        config: as validated.
        space: all students.
        within: the space within the limits.
        teacher: trained; None where a table stands for training, and so for data.
        data: with the transfer set as train split.
        executor: maps jobs to outcomes.
        card: figures for reports and tracking.
        key: content hash of data, teacher, protocol, recipe and score.
        images: classes, channels and side, which costs depend on.
        about: the first line of a run.
        table: the judge of a search on a published table.
        latency: genome → milliseconds on the device of the configuration, by the published table; None where none is named.
    """

    config: StudentConfig
    space: StudentSpace
    within: Limited
    teacher: Teacher | None
    data: Data | None
    executor: Serial | Workers
    card: dict
    key: str
    images: tuple[int, int, int]
    about: str
    table: Published | None = None
    latency: Callable[[Genome], float] | None = None

    @property
    def grammar(self) -> Grammar:
        return self.space.grammar

    @property
    def space_hash(self) -> str:
        return content_key(json.dumps({slot: list(choices) for slot, choices in self.space.slots.items()}))

    def cost(self, tree: Sequence) -> Cost:
        return self.space.cost(self.space.genome(tree), *self.images)

    @property
    def costs(self) -> list[str]:
        """Figures of a student that are better small."""
        return ["parameters", "latency_ms" if self.latency else "macs"]

    def figures(self, tree: Sequence) -> dict[str, float]:
        """What a student costs, by name; a dead one has no latency."""
        found = {name: float(value) for name, value in asdict(self.cost(tree)).items()}
        milliseconds = self.latency(self.space.genome(tree)) if self.latency else math.inf
        return found | ({"latency_ms": milliseconds} if milliseconds < math.inf else {})

    @property
    def closed(self) -> str:
        """Why outcomes cannot be kept for other runs; empty if they can."""
        if self.table:
            return "a table, which is read in no time"
        return "a teacher without a weights file" if self.teacher.path is None else ""

    def job(self, individual: Individual, tier: str, seeds: tuple[int, ...], steps: float = 1.0) -> StudentJob:
        """The evaluation of a student on validation."""
        key = content_key(self.space.key(individual))
        return StudentJob(tuple(to_names(individual)), tier, seeds, key=key, steps=steps)

    def heading(self, folder: Path) -> list[str]:
        """The first lines of a run."""
        config, steps = self.config, f"{self.config.protocol.steps} steps"
        judged = {
            "cascade": f"all scored by {config.score}, the best {config.promote:.0%} distilled ({config.loss}, {steps})",
            "score": f"scored by {config.score} alone",
            "distill": f"all distilled ({config.loss}, {steps})",
            "train": f"all trained on labels alone ({steps})",
            "tabular": "all looked up",
            "shared": f"all ranked with the weights of one supernet, trained for {config.shared_epochs} epochs",
        }[config.evaluator]
        return [
            self.about,
            ", ".join([f"space {config.space}: {self.space.count():,} students", *_told_limits(config)]),
            f"{config.controller}, at most {config.generations} generations of {config.population}, {judged} · run {folder}",
        ]


def _told_limits(config: StudentConfig) -> list[str]:
    limits = {"parameters": config.max_params, "MACs": config.max_macs, f"ms on {config.latency_device}": config.max_latency_ms}
    return [f"{name} ≤ {value:,}" for name, value in limits.items() if value]


def open_student_problem(
    config: StudentConfig, say: Callable[[str], None], download: bool = False, *, teacher: nn.Module | None = None,
    data: Data | None = None,
) -> StudentProblem:  # fmt: skip
    """Data, teacher, space and limits checked; the teacher's outputs recorded.

    Args:
        config: the search.
        say: progress line by line.
        download: allow torchvision to fetch data.
        teacher: instead of the one that the configuration names.
        data: likewise.

    Raises:
        EvokdError: anything that cannot work, before a run folder exists.
    """
    torch.set_num_threads(1)
    score, space, recipe = read_score(config.score), read_student_space(config.space), read_loss(config.loss)
    check_writable(Path(config.out))
    source = data or read_data(config.data, download)
    data = transfer_set(source, config.protocol)
    images = data.classes, *data.shape[:2]
    within, milliseconds = students_within(config, space, images)
    device = pick_device(config.device)
    spec = config.teacher if teacher is None else teacher
    teacher = load_teacher(spec, source, Path(config.out) / "cache", config.teacher_epochs, say, device)
    executor, key = _executor(config, data, teacher, (score, recipe), device, say)
    card = {
        "data": source.name, "classes": data.classes, "images": len(data.train), "labels": int((data.train.labels >= 0).sum()),
        "validation": len(data.validation), "test": len(data.test), "teacher": teacher.name, "teacher_key": teacher.key,
        "teacher_accuracy": round(teacher.accuracy, 2), "teacher_parameters": parameters(teacher.network),
        "student": space.name, "student_parameters": config.max_params or 0,
    }  # fmt: skip
    about = f"evokd · {source.name} ({len(data.train)} images) · teacher {teacher.name} {teacher.accuracy:.1f} %"
    return StudentProblem(config, space, within, teacher, data, executor, card, key, images, about, latency=milliseconds)


def read_score(spec: str) -> str:
    """A score's name, or `loss:` and the text of a loss; `spec` may have its known name or its loss.json there.

    Raises:
        EvokdError: neither.
    """
    if spec.startswith(LOSS):
        return LOSS + write_loss(read_loss(spec.removeprefix(LOSS), "--score"))
    if spec not in SCORES:
        raise unknown("--score", "a score, or loss: and a loss", spec, SCORES)
    return spec


def students_within(
    config: StudentConfig, space: StudentSpace, images: tuple[int, int, int]
) -> tuple[Limited, Callable[[Genome], float] | None]:
    """The space within the limits of a configuration, and the latencies of its device.

    Raises:
        EvokdError: limits that nothing meets, or a device that the table does not have.
    """
    milliseconds = published_latency(config, space)
    limits = (value or math.inf for value in (config.max_params, config.max_macs, config.max_latency_ms))
    return limited(space, Limits(*limits, config.latency_device or ""), *images, milliseconds), milliseconds


def published_latency(config: StudentConfig, space: StudentSpace) -> Callable[[Genome], float] | None:
    """Genome → milliseconds on the device that is named, by the published table; None if neither device nor limit is.

    Raises:
        EvokdError: a device that the table does not have, or a limit without a device.
    """
    device = config.latency_device
    if not (device or config.max_latency_ms):
        return None
    table = read_table(config.space, tables_folder(config))
    if device not in table.latencies:
        known = ", ".join(table.latencies) or "a table with latencies, which nas_bench_201 has"
        hint = closest(device, table.latencies) if device and table.latencies else ""
        raise EvokdError("--latency-device", known, repr(device) if device else "none", hint if hint.startswith("did") else "")
    return lambda genome: table.latency(space.write(genome), device)


def tables_folder(config: StudentConfig) -> Path:
    """Where published tables lie.

    Raises:
        EvokdError: if nobody says.
    """
    folder = config.tables or os.environ.get("EVOKD_DATA")
    if not folder:
        raise EvokdError("--tables", "the folder of the published tables, or EVOKD_DATA in the environment", "neither")
    return Path(folder)


def _executor(
    config: StudentConfig, data: Data, teacher: Teacher, means: tuple[str, list], device: str, say
) -> tuple[Serial | Workers, str]:
    """Judges with a score and a recipe, on a bank of the teacher's outputs at the positions that the recipe reads."""
    score, recipe = means
    images = normalised(torch.from_numpy(data.train.images[:2]), teacher.mean, teacher.std)
    plan = plan_taps(teacher.network, images, config.teacher_taps, "--teacher")
    positions = sorted({"logits", *(p for term in to_terms(recipe) for p in term.distance.positions())})
    bank = bank_key(data, teacher, plan, config.protocol, positions)
    folder = Path(config.out) / "cache" / "banks" / bank
    write_bank(folder, data, teacher, plan, config.protocol, positions, config.cache_gib, say)
    setup = Setup(config.space, tuple(to_names(recipe)), score, config.init, config.protocol, config.fitness, device)
    plain = asdict(replace(setup, protocol=None)) | {"protocol": config.protocol.model_dump()}
    supernet = _supernet(config, data, device, say)
    key = content_key(json.dumps([bank, plain | {"device": ""} | ({"supernet": supernet.stem} if supernet else {})]))
    if in_this_process(config, "" if teacher.path else "a teacher without a weights file"):
        return Serial(Judge(open_bank(folder, device, check=True), teacher.network.to(device), setup, supernet)), key
    recipe = {"bank": str(folder), "teacher": str(teacher.path), "setup": plain}
    return open_workers(config, open_judge, recipe | ({"supernet": str(supernet)} if supernet else {}), device), key


def _supernet(config: StudentConfig, data: Data, device: str, say) -> Path | None:
    """The file of the trained supernet, where cells are judged by shared weights."""
    if config.evaluator != "shared":
        return None
    folder, space = Path(config.out) / "cache" / "supernets", read_student_space(config.space)
    return shared_weights(folder, space, data, Recipe(epochs=config.shared_epochs), config.seed, device, say)


def human_designed(problem: StudentProblem, size: int) -> str:
    """The CIFAR ResNet-8 or -14 (He et al., CVPR 2016) whose number of parameters is nearest."""
    shape = problem.images[:2]
    names = [f"resnet{depth}w{width}" for depth in (8, 14, 20) for width in range(2, 17)]
    return min(names, key=lambda name: abs(parameters(build(name, *shape, 0)) - size))


def beside_human(problem: StudentProblem, tree: Sequence, network: nn.Module, image: Tensor) -> dict[str, float]:
    """Measured latency of a student for one image (1,C,H,W), and its ratio to that of the human-designed student."""
    human = human_designed(problem, problem.cost(tree).parameters)
    reference = lambda: build(human, *problem.images[:2], 0)  # noqa: E731
    found = latency({"student": lambda: network.cpu()}, reference, image.cpu())["student"]
    return {"latency_ms": found.seconds * 1000, "latency_ratio": found.ratio}
