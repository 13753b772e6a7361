"""The problem of a search, put together from a configuration: data, teacher, student, bank, grammar, gate and evaluator.

Everything a user can get wrong about a pair is refused here, before a run folder exists.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import torch

from evokd.config import Config, Protocol
from evokd.data import Data, read_data
from evokd.errors import EvokdError
from evokd.evaluate.bank import assemble, bank_key, open_bank, write_bank
from evokd.evaluate.descent import descent
from evokd.evaluate.distill import Distiller, Job, open_distiller
from evokd.evaluate.fingerprint import Copies, Fingerprint, cosine, fingerprint, halves
from evokd.evaluate.gates import flaws, probe, static, trim
from evokd.evaluate.own import OwnTraining
from evokd.executor import Serial, Workers, in_this_process, open_workers
from evokd.export import read_loss
from evokd.funnel import Funnel, part_of
from evokd.genome.codec import to_names
from evokd.genome.grammar import Grammar, Tree
from evokd.genome.individual import Individual, content_key
from evokd.losses.canonical import canonical
from evokd.losses.growth import loss_grammar
from evokd.losses.language import MAX_TERMS, Term, to_terms, to_tree, tree_from_names
from evokd.losses.own import load_operators
from evokd.losses.program import compile_loss
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
        closed: why outcomes cannot be kept for other runs; empty if they can.
        base: a loss that the search keeps; what it evolves is added to it. None where it evolves the whole.
    """

    config: Config
    space: SpaceFile
    grammar: Grammar
    executor: Serial | Workers
    examples: tuple[Taps, Taps, torch.Tensor]
    table: list[tuple[str, str, str]]
    card: dict
    key: str
    closed: str = ""
    base: Tree | None = None

    @property
    def space_hash(self) -> str:
        return self.space.hash

    def heading(self, folder: Path) -> list[str]:
        """The first lines of a run: the pair, its taps, the space and the budget."""
        card, config = self.card, self.config
        labels = "" if card["labels"] == card["images"] else f", {card['labels']} labelled"
        pair = (
            f"evokd · {card['data']} ({card['images']} images{labels}) · teacher {card['teacher']} {card['teacher_accuracy']:.1f} % · "
            f"student {card['student']} ({card['student_parameters'] / 1000:.1f} k parameters)"
        )
        taps = [f"   {position:<13} student {student:<18} teacher {teacher}" for position, student, teacher in self.table]
        full = part_of(config.population, config.share)
        evaluations = min(config.budget_evals or 1 << 30, config.generations * full)
        return [
            pair,
            *taps,
            *([f"kept, and added to: {self.grammar.write(self.base)}"] if self.base else []),
            f"space {self.grammar.name}: {self.grammar.count():.0e} losses · {config.controller}, {config.generations} generations of "
            f"{config.population}, at most {evaluations} full trainings of {config.protocol.steps} steps · run {folder}",
        ]

    def whole(self, tree: Sequence) -> Tree:
        """The loss that a candidate is trained with: itself, or its sum with the loss that the search keeps, in canonical form."""
        return canonical(to_tree([*to_terms(self.base), *to_terms(tree)])) if self.base else list(tree)

    def text(self, tree: Sequence) -> str:
        """A candidate as it is trained, in evokd's notation."""
        return self.grammar.write(self.whole(tree))

    @cached_property
    def batches(self) -> list:
        """What fingerprints are taken on."""
        return halves(*self.examples)

    @property
    def grammar_positions(self) -> list[str]:
        """Positions that losses may read."""
        return [row[0] for row in self.table]

    def similarity(self, first: Individual, second: Individual) -> float | None:
        """Cosine of two losses' gradients; None where one draws at random."""
        a, b = (self.prints(tuple(to_names(tree))) for tree in (first, second))
        return None if a is None or b is None else cosine(a, b)

    @cached_property
    def prints(self) -> Callable[[tuple[str, ...]], Fingerprint | None]:
        """Node names → fingerprint, remembered."""
        return cache(lambda names: fingerprint(tree_from_names(names), self.batches))

    @cached_property
    def flaw(self) -> Callable[[Term], str]:
        """What is wrong with a term by itself on this pair."""
        return flaws(*self.examples)

    def trim(self, tree: Sequence) -> Tree:
        """A loss without the terms that teach nothing here, if the gate `static` is asked at all."""
        return trim(tree, self.flaw) if "static" in self.config.funnel.gates else list(tree)

    def funnel(self) -> Funnel:
        """The gates that the configuration names, cheapest first; each search has a memory of its own.

        Beside a loss that is kept an added term must still teach by itself; the other gates look at the sum, and the loss kept is
        known to `copies` from the start.
        """
        wanted, gamma = self.config.funnel.gates, self.config.protocol.gamma
        copies = Copies(self.batches, self.config.funnel.copies)
        gates = {
            "static": lambda tree: static(tree, self.flaw),
            "probe": lambda tree: probe(self.whole(tree), *self.examples),
            "copies": lambda tree: copies.copy_of(self.whole(tree)),
            "descent": lambda tree: descent(self.whole(tree), *self.examples, gamma),
        }
        if self.base and "copies" in wanted:
            copies.remember(self.base, self.grammar.write(self.base))

        def admitted(tree: Tree) -> None:
            if "copies" in wanted:
                copies.remember(self.whole(tree), self.text(tree))

        return Funnel({name: gate for name, gate in gates.items() if name in wanted}, admitted)

    def job(self, individual: Individual, seeds: tuple[int, ...], steps: float = 1.0) -> Job:
        """The evaluation of a candidate on validation."""
        return Job(tuple(to_names(self.whole(individual))), seeds, key=content_key(self.text(individual)), steps=steps)


@dataclass(frozen=True)
class Pair:
    """Teacher and student on one data set, checked against each other.

    Attributes:
        source: the data set as read; what the teacher was trained on.
        data: the same with the transfer set of the protocol as train split.
        teacher: trained.
        student: network spec or callable.
        network: the student freshly initialised, for shapes.
        plans: taps of student and teacher.
        taps: what both show for one batch.
        device: where candidates are trained.
    """

    source: Data
    data: Data
    teacher: Teacher
    student: str | Callable
    network: torch.nn.Module
    plans: tuple[TapPlan, TapPlan]
    taps: tuple[Taps, Taps]
    device: str

    @property
    def positions(self) -> list[str]:
        """Positions that both networks show."""
        return [p for p in self.taps[0].positions() if p in self.taps[1].positions()]


def open_problem(
    config: Config, say: Say, seeds: Sequence[list] = (), *, guests: Sequence[list] = (), download: bool = False,
    evaluate: Callable | None = None, **objects,
) -> Problem:  # fmt: skip
    """Data, teacher and student checked and recorded.

    Args:
        config: the search.
        say: progress line by line.
        seeds: losses of the first generation, which may read more than the space does.
        guests: losses that may do so too, and of which those that do not fit the pair are passed over.
        download: allow torchvision to fetch data.
        evaluate: (DistillLoss) → float, the user's own training instead of the short distillation.
        **objects: instead of what the configuration names, `teacher` (an `nn.Module`), `student` (a callable that takes K and returns
            a fresh `nn.Module`) or `data` (a `Data` value).

    Raises:
        EvokdError: anything about the pair that cannot work.
    """
    torch.set_num_threads(1)
    own = load_operators(config.operators)
    space = read_space(config.space)
    check_writable(Path(config.out))
    base = _base(config, space, seeds)
    pair = open_pair(config, say, download, **objects)
    grammar = loss_grammar(space.space, pair.positions)
    used = _used(pair, grammar, [*seeds, *([base] if base else []), *(tree for tree in guests if not misfit(tree, pair.taps))])
    pair = _sparing(pair, used)
    key = bank_key(pair.data, pair.teacher, pair.plans[1], config.protocol, used)
    folder = Path(config.out) / "cache" / "banks" / key
    write_bank(folder, pair.data, pair.teacher, pair.plans[1], config.protocol, used, config.cache_gib, say)
    examples = (*(_shown(taps, used) for taps in pair.taps), torch.from_numpy(pair.data.train.labels[:32]))
    own_training = evaluate and in_this_process(config, "training of one's own")
    executor = Serial(OwnTraining(evaluate, examples)) if own_training else _executor(config, pair, folder)
    key = content_key(json.dumps([key, weights_key(pair.network), pair.plans[0].features, *([own] if own else [])]))
    table = [row for row in tap_table(*pair.taps, *pair.plans) if row[0] in used or row[0] != "teacher_head"]
    return Problem(config, space, grammar, executor, examples, table, _card(pair), key, _closed(pair, evaluate), base)


def _base(config: Config, space: SpaceFile, seeds: Sequence[list]) -> Tree | None:
    """The loss that a search keeps, in canonical form.

    Raises:
        EvokdError: no loss, or one that leaves no room for what is added.
    """
    if not config.base:
        return None
    base = canonical(read_loss(config.base, "--base"))
    most = MAX_TERMS - max([space.space.max_terms, *(len(to_terms(tree)) for tree in seeds)])
    if len(to_terms(base)) > most:
        raise EvokdError("--base", f"at most {most} terms, so that a sum has no more than {MAX_TERMS}", str(len(to_terms(base))))
    return base


def _closed(pair: Pair, evaluate: Callable | None) -> str:
    """Users' code has no content hash, so that its outcomes must not be taken for those of another run."""
    if evaluate:
        return "training of one's own"
    if callable(pair.student) or ".py:" in pair.student:
        return "a student of one's own code"
    return "a teacher without a weights file" if pair.teacher.path is None else ""


def misfit(tree: Sequence, taps: Sequence[Taps]) -> str:
    """Why a loss cannot be had for what student and teacher show; empty if it can."""
    try:
        compile_loss(tree, *taps[:2])
    except EvokdError as error:
        return str(error)
    return ""


def _used(pair: Pair, grammar: Grammar, seeds: Sequence[list]) -> list[str]:
    """Positions that a loss of the space, or one of the seeds, may read.

    Raises:
        EvokdError: if a seed reads what the pair does not show.
    """
    read = [position for tree in seeds for position in compile_loss(tree, *pair.taps).needs]
    return sorted({"logits", *(p for p in pair.positions if p in grammar.nodes), *read})


def _sparing(pair: Pair, used: Sequence[str]) -> Pair:
    """The pair without hooks before ReLUs, if no loss reads them."""
    if any(p.startswith("pre_relu") for p in used):
        return pair
    plans = tuple(replace(plan, pre_relu=()) for plan in pair.plans)
    return replace(pair, plans=plans, taps=tuple(replace(taps, pre_relu=()) for taps in pair.taps))


def _shown(taps: Taps, used: Sequence[str]) -> Taps:
    return assemble({p: taps.at(p) for p in {*used, "embedding"} if p in taps.positions() and p != "teacher_head"}, taps.head)


def open_pair(config: Config, say: Say, download: bool, teacher=None, student=None, data=None) -> Pair:
    device = pick_device(config.device)
    source = data or read_data(config.data, download)
    data = transfer_set(source, config.protocol)
    spec = config.teacher if teacher is None else teacher
    taught = load_teacher(spec, source, Path(config.out) / "cache", config.teacher_epochs, say, device)
    student = config.student if student is None else student
    network = build(student, data.classes, data.shape[0], 0)
    images = normalised(torch.from_numpy(data.train.images[:32]), taught.mean, taught.std)
    plans = _plans(config, network, taught, images)
    taps = tuple(_taps(n, plan, images) for n, plan in zip((network, taught.network), plans, strict=True))
    _check_student(taps[0], data)
    return Pair(source, data, taught, student, network, plans, taps, device)


def transfer_set(data: Data, protocol: Protocol) -> Data:
    """What the student sees of the training images; the teacher was trained on all of them."""
    data = data.with_transfer(protocol.transfer).with_rare(protocol.rare_classes, protocol.rare_images)
    return data.with_labels(protocol.labels)


def _executor(config: Config, pair: Pair, bank: Path) -> Serial | Workers:
    """Workers where everything they need is in files, otherwise this process."""
    checked = open_bank(bank, check=True)
    live = checked.card["live"]
    if in_this_process(config, _unfiled(pair, live)):
        teacher = (pair.teacher.network.to(pair.device), pair.plans[1]) if live else None
        opened = checked if pair.device == "cpu" else open_bank(bank, pair.device)
        return Serial(Distiller(opened, pair.student, pair.plans[0], config.protocol, config.fitness, pair.device, teacher))
    recipe = {
        "bank": str(bank),
        "student": pair.student,
        "plan": asdict(pair.plans[0]),
        "protocol": config.protocol.model_dump(),
        "fitness": config.fitness,
        "operators": config.operators,
        "device": pair.device,
        "teacher": str(pair.teacher.path),
        "teacher_plan": asdict(pair.plans[1]),
    }
    return open_workers(config, open_distiller, recipe, pair.device)


def _unfiled(pair: Pair, live: bool) -> str:
    """What a worker would need that is in no file; empty if nothing."""
    if callable(pair.student):
        return "a student that is an object"
    return "a live teacher without a weights file" if live and pair.teacher.path is None else ""


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


def pick_device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise EvokdError("--device", "auto, cpu or cuda", repr(name))
    if name == "cuda" and not torch.cuda.is_available():
        raise EvokdError("--device", "a CUDA device", "none", "take --device cpu")
    return name


def check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe_file = folder / ".writable"
        probe_file.touch()
        probe_file.unlink()
    except OSError as error:
        raise EvokdError("--out", "a folder that can be written", f"{folder} ({error.strerror})") from None


def _card(pair: Pair) -> dict:
    """Figures of the pair for reports and tracking."""
    data, teacher, student = pair.data, pair.teacher, pair.student
    return {
        "data": pair.source.name,
        "classes": data.classes,
        "images": len(data.train),
        "labels": int((data.train.labels >= 0).sum()),
        "validation": len(data.validation),
        "test": len(data.test),
        "teacher": teacher.name,
        "teacher_key": teacher.key,
        "teacher_accuracy": round(teacher.accuracy, 2),
        "teacher_parameters": parameters(teacher.network),
        "student": student if isinstance(student, str) else getattr(student, "__name__", type(student).__name__),
        "student_parameters": parameters(pair.network),
    }
