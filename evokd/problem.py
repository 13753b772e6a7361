"""The problem of a search, put together from a configuration: data, teacher, student, bank, grammar, gate and evaluator.

Everything a user can get wrong about a pair is refused here, before a run folder exists.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from evokd.config import Config, Protocol
from evokd.data import Data, read_data
from evokd.errors import EvokdError
from evokd.evaluate.bank import assemble, bank_key, open_bank, write_bank
from evokd.evaluate.distill import Distiller, Job, open_distiller, plan_as_data
from evokd.evaluate.gates import probe
from evokd.executor import Serial, Workers
from evokd.genome.grammar import Grammar
from evokd.genome.individual import Individual, content_key
from evokd.losses.language import loss_grammar
from evokd.losses.taps import Taps
from evokd.models.tapping import Tapped, TapPlan, plan_taps, tap_table
from evokd.models.teachers import Teacher, load_teacher, weights_key
from evokd.models.views import normalised
from evokd.models.zoo import build, parameters
from evokd.space import SpaceFile, read_space

Say = Callable[[str], None]


@dataclass
class Problem:
    """What the loop needs.

    Attributes:
        config: as validated.
        space: the space file.
        grammar: of the space, for the positions that this pair shows.
        executor: maps jobs to outcomes.
        examples: taps of the untrained student and the teacher on one batch, with labels.
        table: rows (position, student, teacher) for the start of the run.
        card: figures of the pair for reports and tracking.
        key: content hash of pair, data and protocol.
    """

    config: Config
    space: SpaceFile
    grammar: Grammar
    executor: Serial | Workers
    examples: tuple[Taps, Taps, torch.Tensor]
    table: list[tuple[str, str, str]]
    card: dict
    key: str

    def gate(self, tree: list) -> str:
        """Reason to refuse a candidate, or an empty text."""
        return probe(tree, *self.examples)

    def job(self, individual: Individual, seeds: tuple[int, ...], split: str = "validation") -> Job:
        return Job(tuple(n.name for n in individual), seeds, split=split, key=content_key(self.grammar.write(individual)))


def open_problem(
    config: Config, say: Say, *, download: bool = False, teacher=None, student=None, data=None, evaluate=None
) -> Problem:
    """Data, teacher and student checked and recorded.

    Args:
        config: the search.
        say: progress line by line.
        download: allow torchvision to fetch data.
        teacher: an `nn.Module` instead of the configured name.
        student: a callable that takes the number of classes and returns a fresh `nn.Module`.
        data: a `Data` value instead of the configured name.
        evaluate: (DistillLoss) → float, the user's own training instead of the short distillation.
    """
    torch.set_num_threads(1)
    space = read_space(config.space)
    device = _device(config.device)
    source = data or read_data(config.data, download)
    data = _transfer_set(source, config.protocol)
    cache = Path(config.out) / "cache"
    _writable(Path(config.out))
    taught = load_teacher(teacher or config.teacher, source, cache, config.teacher_epochs, say, device)
    student = student or config.student
    network = build(student, data.classes, data.shape[0], 0)
    images = normalised(torch.from_numpy(data.train.images[:32]), taught.mean, taught.std)
    plans = _plans(config, network, taught, images)
    taps = [_taps(n, plan, images) for n, plan in zip((network, taught.network), plans, strict=True)]
    _check_student(taps[0], data)
    positions = [p for p in taps[0].positions() if p in taps[1].positions()]
    grammar = loss_grammar(space.space, positions)
    used = sorted({"logits", *(n for n in grammar.nodes if n in positions)})
    key = bank_key(data, taught, plans[1], config.protocol, used)
    bank = cache / "banks" / key
    write_bank(bank, data, taught, plans[1], config.protocol, used, config.cache_gib, say)
    examples = (*(assemble({p: t.at(p) for p in used}) for t in taps), torch.from_numpy(data.train.labels[:32]))
    card = _card(config, source, data, taught, network, student)
    key = content_key(json.dumps([key, weights_key(network), plans[0].features]))
    problem = Problem(config, space, grammar, Serial(lambda job: None), examples, tap_table(*taps, *plans), card, key)
    problem.executor = _executor(config, bank, plans, student, teacher or taught, device, evaluate, examples)
    return problem


def _transfer_set(data: Data, protocol: Protocol) -> Data:
    """What the student sees of the training images; the teacher was trained on all of them."""
    data = data.with_transfer(protocol.transfer).with_rare(protocol.rare_classes, protocol.rare_images)
    return data.with_labels(protocol.labels)


def _executor(config, bank, plans, student, teacher, device, evaluate, examples):
    if evaluate is not None:
        from evokd.evaluate.own import OwnTraining

        return Serial(OwnTraining(evaluate, examples))
    card = open_bank(bank, check=True).card
    workers = config.workers or min(os.cpu_count() or 1, 8)
    in_memory = (
        callable(student)
        or isinstance(teacher, torch.nn.Module)
        or (card["live"] and not config.teacher.endswith(".safetensors"))
    )
    if workers == 1 or in_memory:
        live = (teacher.network.to(device), plans[1]) if card["live"] else None
        return Serial(Distiller(open_bank(bank, device), student, plans[0], config.protocol, config.fitness, device, live))
    recipe = {
        "bank": str(bank), "student": student, "plan": plan_as_data(plans[0]), "protocol": config.protocol.model_dump(),
        "fitness": config.fitness, "device": device, "teacher": config.teacher, "teacher_plan": plan_as_data(plans[1]),
    }  # fmt: skip
    return Workers(workers, open_distiller, recipe)


def _plans(config: Config, network: torch.nn.Module, teacher: Teacher, images: torch.Tensor) -> tuple[TapPlan, TapPlan]:
    return (
        plan_taps(network, images, config.student_taps, "--student-taps" if config.student_taps else "--student"),
        plan_taps(teacher.network, images, config.teacher_taps, "--teacher-taps" if config.teacher_taps else "--teacher"),
    )


def _taps(network: torch.nn.Module, plan: TapPlan, images: torch.Tensor) -> Taps:
    with Tapped(network, plan) as tapped, torch.no_grad():
        return tapped(images)


def _check_student(taps: Taps, data: Data) -> None:
    if taps.logits.shape[1] != data.classes:
        raise EvokdError("--student", f"{data.classes} classes, as {data.name} has", str(taps.logits.shape[1]))


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise EvokdError("--device", "auto, cpu or cuda", repr(name))
    if name == "cuda" and not torch.cuda.is_available():
        raise EvokdError("--device", "a CUDA device", "none", "take --device cpu")
    return name


def _writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe_file = folder / ".writable"
        probe_file.touch()
        probe_file.unlink()
    except OSError as error:
        raise EvokdError("--out", "a folder that can be written", f"{folder} ({error.strerror})") from None


def _card(config: Config, source: Data, data: Data, teacher: Teacher, network: torch.nn.Module, student) -> dict:
    known = int((data.train.labels >= 0).sum())
    return {
        "data": source.name, "classes": data.classes, "images": len(data.train), "labels": known,
        "validation": len(data.validation), "test": len(data.test),
        "teacher": teacher.name, "teacher_key": teacher.key, "teacher_accuracy": round(teacher.accuracy, 2),
        "teacher_parameters": parameters(teacher.network),
        "student": student if isinstance(student, str) else getattr(student, "__name__", type(student).__name__),
        "student_parameters": parameters(network),
    }  # fmt: skip
