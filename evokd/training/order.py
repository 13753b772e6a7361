"""What is trained in full, as plain data, and whether its parts fit each other: data, teacher, student, loss, recipe."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evokd.config import Protocol
from evokd.data import Data, Split, read_data
from evokd.errors import EvokdError
from evokd.evaluate.bank import Bank, bank_key, open_bank, write_bank
from evokd.export import read_loss
from evokd.genome.individual import content_key
from evokd.losses.known import KNOWN
from evokd.losses.language import parse_loss, write_loss
from evokd.losses.own import load_operators
from evokd.losses.program import compile_loss
from evokd.losses.taps import Taps
from evokd.models.tapping import Tapped, TapPlan, plan_taps
from evokd.models.teachers import Teacher, load_teacher, weights_key
from evokd.models.views import normalised
from evokd.models.zoo import build, parameters
from evokd.training.mutual import MutualTraining
from evokd.training.recipes import GAMMAS, Recipe, recipe_of
from evokd.training.seed import FullTraining, Say

CAP_GIB = 8.0  # of a teacher's recorded taps


@dataclass(frozen=True)
class Order:
    """What is trained, as plain data.

    Attributes:
        data: name or path.
        student: network spec.
        recipe: how it is trained.
        teacher: network spec or weights; empty for none.
        loss: text of the distillation loss; empty for plain training.
        gamma: weight of the cross-entropy.
        seed: from which the seeds of the trainings derive.
        transfer: training images used; 0 is all.
        labels: training images whose label is known; None is all.
        whole: train on the validation images too, as published figures do.
        teacher_taps: module paths of its stages.
        student_taps: likewise.
        operators: users' own, path.py:function.
        teacher_epochs: of a teacher that is trained because it is only named.
        peers: students trained together without a teacher (deep mutual learning); 0 is none.
    """

    data: str
    student: str
    recipe: Recipe
    teacher: str = ""
    loss: str = ""
    gamma: float = 1.0
    seed: int = 0
    transfer: int = 0
    labels: int | None = None
    whole: bool = False
    teacher_taps: tuple[str, ...] = ()
    student_taps: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()
    teacher_epochs: int = 40
    peers: int = 0

    def text(self) -> str:
        told = asdict(self)
        if not self.peers:
            del told["peers"]  # so that it is told as earlier versions tell it
        return json.dumps(told, indent=1, ensure_ascii=False) + "\n"

    def hash(self) -> str:
        return hashlib.sha256(self.text().encode()).hexdigest()[:12]


def read_order(folder: Path) -> Order:
    """Raises EvokdError for a folder without a sound order.json."""
    path = folder / "order.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values["recipe"] = recipe_of(values["recipe"], str(path))
        known = {f.name: f for f in fields(Order)}
        if odd := set(values) - set(known):
            raise ValueError(f"an unknown {sorted(odd)[0]}")
        return Order(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvokdError("--resume", "a run of evokd distill, with order.json", f"{folder} ({str(error)[:60]})") from None


def loss_of(spec: str, gamma: float | None) -> tuple[str, float]:
    """(text, weight of the cross-entropy) of a loss by known name, text or loss.json; `none` is an empty text.

    Args:
        spec: as given.
        gamma: as given; None for what an exported loss was found with, or a published one is used with, or 1.

    Raises:
        EvokdError: no such loss.
    """
    if spec == "none":
        return "", 1.0 if gamma is None else gamma
    text = write_loss(read_loss(spec))
    if gamma is None and spec.endswith(".json"):
        told = json.loads(Path(spec).read_text(encoding="utf-8")).get("gamma")
        gamma = float(told) if isinstance(told, int | float) and math.isfinite(told) else None
    return text, GAMMAS.get(spec if spec in KNOWN else "", 1.0) if gamma is None else gamma


@dataclass(frozen=True)
class Opened:
    """An order whose every part was found to fit.

    Attributes:
        order: as given.
        training: what seeds are trained by.
        data: as trained on.
        teacher: None for none.
        card: figures of the pair.
    """

    order: Order
    training: FullTraining
    data: Data
    teacher: Teacher | None
    card: dict[str, Any]


def open_order(order: Order, out: Path, device: str, say: Say, *, download: bool = False) -> Opened:
    """Data, teacher, student and loss checked against each other.

    Raises:
        EvokdError: anything that cannot work: a loss that reads what the pair does not show, other classes, a file that is torn, ….
    """
    torch.set_num_threads(1)  # two change the bits
    own = load_operators(order.operators)
    if order.loss and not order.teacher:
        raise EvokdError("--teacher", "a teacher, for a loss that compares with it", "none", "or train plainly with --loss none")
    if not order.loss and not order.gamma:
        raise EvokdError("--gamma", "above 0 without a distillation loss", "0")
    source = read_data(order.data, download)
    teacher = teacher_of(order, source, out, say, device) if order.teacher else None
    data = trained_on(source, order)
    network = build(order.student, data.classes, data.shape[0], 0)
    tree = parse_loss(order.loss) if order.loss else None
    plans, needs = _plans(order, data, network, teacher, tree)
    training = FullTraining(
        data, order.student, order.recipe, loss=tree, gamma=order.gamma, teacher=teacher, plans=plans, device=device,
        noise=content_key(order.loss or "plain"),
    )  # fmt: skip
    if plans and order.recipe.views:
        training.bank = _recorded(training, needs, out, say)
    if order.peers:
        training = MutualTraining(data, order.student, order.recipe, peers=order.peers, gamma=order.gamma, device=device)
    card = {
        "data": source.name, "images": len(data.train), "labels": int((data.train.labels >= 0).sum()), "test": len(data.test),
        "student_parameters": parameters(network), "data_key": data.key, "student_key": weights_key(network),
        "operators_key": own, "order_key": order.hash(),
        "teacher_key": teacher.key if teacher else "", "teacher_parameters": parameters(teacher.network) if teacher else 0,
    }  # fmt: skip
    return Opened(order, training, data, teacher, card)


def teacher_of(order: Order, data: Data, out: Path, say: Say, device: str) -> Teacher:
    """The teacher; weights in a file are not measured on validation, which is asked nothing here."""
    weights = order.teacher.endswith(".safetensors")
    part = replace(data, validation=data.validation.take(slice(0, 2))) if weights else data
    return load_teacher(order.teacher, part, out / "cache", order.teacher_epochs, say, device)


def trained_on(data: Data, order: Order) -> Data:
    """The training images of an order."""
    if order.whole:
        joined = (
            np.concatenate([getattr(part, name) for part in (data.train, data.validation)]) for name in ("images", "labels")
        )
        data = replace(data, train=Split(*joined))
    return data.with_transfer(order.transfer).with_labels(order.labels)


def _plans(order: Order, data: Data, network, teacher: Teacher | None, tree: Sequence | None):
    """(taps of both, positions that the loss reads), once the loss is compiled; hooks before ReLUs only where it reads there."""
    mean, std = (teacher.mean, teacher.std) if teacher else (data.mean, data.std)
    images = normalised(torch.from_numpy(data.train.images[:2]), mean, std)
    student = plan_taps(network, images, order.student_taps, "--student-taps" if order.student_taps else "--student")
    shown = _shown(network, student, images)
    if shown.logits.shape[1:] != (data.classes,):
        got = "×".join(map(str, shown.logits.shape[1:]))
        raise EvokdError("--student", f"{data.classes} classes, as {data.name} has", got)
    if teacher is None or tree is None:
        return None, ()
    plan = plan_taps(teacher.network, images, order.teacher_taps, "--teacher-taps" if order.teacher_taps else "--teacher")
    needs = compile_loss(tree, shown, _shown(teacher.network, plan, images)).needs
    early = any(position.startswith("pre_relu") for position in needs)
    plans = (student, plan) if early else (replace(student, pre_relu=()), replace(plan, pre_relu=()))
    return plans, needs


def _recorded(training: FullTraining, needs: Sequence[str], out: Path, say: Say) -> Bank | None:
    """The teacher's taps on the fixed views, as searches record them; None where they would not fit, so that it runs live."""
    data, teacher, plan = training.seen, training.teacher, training.plans[1]
    protocol = Protocol(views=training.recipe.views, shift=training.shift)
    positions = sorted({"logits", *(("embedding",) if "teacher_head" in needs else ()), *needs} - {"teacher_head"})
    folder = out / "cache" / "banks" / bank_key(data, teacher, plan, protocol, positions)
    write_bank(folder, data, teacher, plan, protocol, positions, CAP_GIB, say)
    bank = open_bank(folder, training.device)
    return None if bank.card["live"] else bank


def _shown(network, plan: TapPlan, images: torch.Tensor) -> Taps:
    with Tapped(network.eval(), plan) as tapped, torch.no_grad():
        return tapped(images)
