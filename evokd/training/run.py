"""Full trainings of one student with one loss, seed after seed, in a run folder that goes on to the same figures after a death.

`order.json` is what was ordered, `events.jsonl` one line a finished seed, `seeds/N/` its weights, or the checkpoint of the epoch that it
had come to. Nothing is chosen here: every figure is told on test, after the last epoch.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from evokd.checkpoint import write_whole
from evokd.data import Data, Split, read_data
from evokd.errors import EvokdError
from evokd.evaluate.distill import DivergedError
from evokd.export import read_loss
from evokd.finals import interval
from evokd.folder import commit, fresh
from evokd.genome.individual import content_key
from evokd.journal import Journal, read_events
from evokd.losses.known import KNOWN
from evokd.losses.language import parse_loss, write_loss
from evokd.losses.own import load_operators
from evokd.losses.program import compile_loss
from evokd.losses.taps import Taps
from evokd.memory import machine
from evokd.models.tapping import Tapped, TapPlan, plan_taps
from evokd.models.teachers import Teacher, card_of, load_teacher, weights_key, write_weights
from evokd.models.views import normalised
from evokd.models.zoo import build, parameters
from evokd.problem import check_writable, pick_device
from evokd.report.terminal import Terminal
from evokd.run import evaluation_seeds
from evokd.tracker import Tracker, tracking_uri
from evokd.training.recipes import GAMMAS, Recipe, recipe_of
from evokd.training.seed import FullTraining, Say, Trained

ROWS = {  # figure → how the closing table calls it
    "top1": "top-1 %, last epoch", "top5": "top-5 %, last epoch", "best_top1": "top-1 %, best epoch", "best_top5": "top-5 % there",
    "ece": "calibration error %", "ce": "cross-entropy, nats", "agreement": "agreement with teacher %", "cka": "CKA with teacher",
    "sharpness_gap": "sharpness gap, nats", "seconds": "seconds",
}  # fmt: skip


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

    def text(self) -> str:
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

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
    plans = _plans(order, data, network, teacher, tree)
    training = FullTraining(
        data, order.student, order.recipe, loss=tree, gamma=order.gamma, teacher=teacher, plans=plans, device=device,
        noise=content_key(order.loss or "plain"),
    )  # fmt: skip
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


def _plans(order: Order, data: Data, network, teacher: Teacher | None, tree: Sequence | None) -> tuple[TapPlan, TapPlan] | None:
    """Taps of both, after the loss was compiled once for what they show; hooks before ReLUs only where it reads there."""
    mean, std = (teacher.mean, teacher.std) if teacher else (data.mean, data.std)
    images = normalised(torch.from_numpy(data.train.images[:2]), mean, std)
    student = plan_taps(network, images, order.student_taps, "--student-taps" if order.student_taps else "--student")
    shown = _shown(network, student, images)
    if shown.logits.shape[1:] != (data.classes,):
        got = "×".join(map(str, shown.logits.shape[1:]))
        raise EvokdError("--student", f"{data.classes} classes, as {data.name} has", got)
    if teacher is None or tree is None:
        return None
    plan = plan_taps(teacher.network, images, order.teacher_taps, "--teacher-taps" if order.teacher_taps else "--teacher")
    needs = compile_loss(tree, shown, _shown(teacher.network, plan, images)).needs
    early = any(position.startswith("pre_relu") for position in needs)
    return (student, plan) if early else (replace(student, pre_relu=()), replace(plan, pre_relu=()))


def _shown(network, plan: TapPlan, images: torch.Tensor) -> Taps:
    with Tapped(network.eval(), plan) as tapped, torch.no_grad():
        return tapped(images)


def run(
    order: Order, count: int, out: Path, terminal: Terminal, *, device: str = "auto", tracking: str | None = None,
    download: bool = False, folder: Path | None = None,
) -> Path:  # fmt: skip
    """Train `count` seeds; the run folder.

    Args:
        order: what is trained.
        count: of seeds; those that the folder already tells are not trained again.
        out: home of runs and caches.
        terminal: what is said.
        device: auto, cpu or cuda.
        tracking: MLflow's URI; `none` switches it off.
        download: allow torchvision to fetch data.
        folder: of a run that goes on.

    Raises:
        EvokdError: whatever does not fit, or a folder that another process writes.
    """
    check_writable(out)
    try:
        opened = open_order(order, out, pick_device(device), terminal.status, download=download)
        if folder:
            _same(folder, opened)
        folder = folder or new_folder(order, opened.card["data"], out)
        with FileLock(folder / ".lock", timeout=0):
            return _Session(opened, folder, count, out, tracking, terminal).run()
    except Timeout:
        raise EvokdError(str(folder), "a run that no other process writes", "a locked one", "wait for it, or stop it") from None
    finally:
        terminal.done()


def new_folder(order: Order, data: str, out: Path) -> Path:
    """RUN with its order.json."""
    folder = fresh(out, f"full-{data}-{order.hash()[:4]}")
    write_whole(folder / "order.json", order.text())
    return folder


def _same(folder: Path, opened: Opened) -> None:
    """Raises EvokdError where the order, data, networks or operators have changed since the run began."""
    told = next((e["card"] for e in _events(folder) if e["event"] == "begin"), opened.card)
    for name in ("order_key", "data_key", "teacher_key", "student_key", "operators_key"):
        if told.get(name) != opened.card[name]:
            what = {"student_key": "student code"}.get(name, name.removesuffix("_key"))
            raise EvokdError("--resume", f"the {what} that {folder} began with, {told.get(name)}", opened.card[name])


def _events(folder: Path) -> list[dict]:
    return read_events(folder) if (folder / "events.jsonl").exists() else []


class _Session:
    """One process that writes a run folder."""

    def __init__(self, opened: Opened, folder: Path, count: int, out: Path, tracking: str | None, terminal: Terminal) -> None:
        self.opened, self.order, self.folder, self.terminal = opened, opened.order, folder, terminal
        self.seeds = evaluation_seeds(self.order.seed, "full", count)
        uri, artifacts = tracking_uri(tracking, out), out / "artifacts"
        name = f"full/{opened.card['data']}-{Path(self.order.teacher).stem or 'none'}-{self.order.student}"
        self.tracker = Tracker(uri, name, artifacts if uri.startswith("sqlite") else None, terminal.warn) if uri else None

    def run(self) -> Path:
        events = _events(self.folder)
        self.done: dict[int, dict] = {e["number"]: e for e in events if e["event"] == "seed"}
        self.journal = Journal(self.folder)
        for line in self.heading():
            self.terminal.say(line)
        try:
            self.journal.write("begin", count=len(self.seeds), card=self.opened.card, **self.surroundings())
            self.track()
            for number, seed in enumerate(self.seeds):
                if number not in self.done:
                    self.train(number, seed)
            self.close()
        except BaseException as error:
            if self.tracker:
                self.tracker.finish(
                    "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", {}, {"evokd.state": "stopped"}
                )
            self.terminal.warn(f"stopped; evokd distill --resume {self.folder} goes on")
            raise
        finally:
            self.journal.close()
        return self.folder

    def surroundings(self) -> dict[str, str]:
        versions = {name: version(name) for name in ("evokd", "torch", "numpy")}
        return {**versions, "commit": commit(), "machine": machine(self.opened.training.device)}

    def heading(self) -> list[str]:
        card, order = self.opened.card, self.order
        teacher = (
            f" · teacher {self.opened.teacher.name} ({card['teacher_parameters']:,} parameters)" if self.opened.teacher else ""
        )
        labels = "" if card["labels"] == card["images"] else f", {card['labels']} labelled"
        told = {f.name: getattr(order.recipe, f.name) for f in fields(Recipe)}
        plain = {f.name: f.default for f in fields(Recipe) if f.name not in ("name", "epochs", "batch", "lr", "schedule")}
        recipe = ", ".join(f"{name}={value}" for name, value in told.items() if name != "name" and plain.get(name, "") != value)
        return [
            f"evokd · {card['data']} ({card['images']} images{labels}){teacher} · student {order.student} "
            f"({card['student_parameters']:,} parameters)",
            f"loss {order.loss or 'none: cross-entropy alone'} · γ={order.gamma:g}",
            f"recipe {order.recipe.name}: {recipe}",
            f"run {self.folder}",
        ]

    def track(self) -> None:
        if self.tracker:
            recipe = {f"recipe.{name}": value for name, value in asdict(self.order.recipe).items()}
            params = {name: value for name, value in asdict(self.order).items() if name != "recipe"} | recipe | self.opened.card
            tags = {"evokd.kind": "full", "evokd.folder": self.folder.name, "evokd.git": commit(), "evokd.state": "going"}
            self.tracker.start(self.folder.name, params, tags, [self.folder / "order.json"])

    def train(self, number: int, seed: int) -> None:
        """One seed, kept in the journal and as weights; its checkpoint is done with."""
        home = self.folder / "seeds" / str(number)
        home.mkdir(parents=True, exist_ok=True)
        checkpoint = home / "checkpoint.safetensors"

        def say(line: str) -> None:
            self.terminal.status(f"seed {number + 1}/{len(self.seeds)}: {line}")

        try:
            trained = self.opened.training.train(seed, checkpoint, say)
        except DivergedError as error:
            told = {"status": "diverged", "reason": str(error), "metrics": {}, "curve": []}
        else:
            write_weights(home / "student.safetensors", trained.network.cpu(), self.card(trained, seed))
            told = {"status": "ok", "reason": "", "metrics": trained.figures, "curve": trained.epochs}
        self.journal.write("seed", number=number, seed=seed, **told)
        self.journal.sync()
        self.done[number] = {"number": number, "seed": seed, **told}
        checkpoint.unlink(missing_ok=True)
        self.terminal.done()
        top1 = told["metrics"].get("top1")
        self.terminal.say(f" seed {number + 1}: " + (f"{top1:.2f} % on test" if top1 is not None else told["reason"]))
        if self.tracker:
            curve = [(row["epoch"], row["ce"], row["distill"]) for row in told["curve"]]
            self.tracker.child(f"seed {number}", {"seed": seed}, {"evokd.kind": "seed"}, told["metrics"], curve)

    def card(self, trained: Trained, seed: int) -> dict[str, str]:
        order, training = self.order, self.opened.training
        more = {"accuracy": f"{trained.figures['top1']:.2f}", "split": "test", "recipe": order.recipe.name, "seed": seed}
        more |= {"loss": order.loss or "none", "gamma": f"{order.gamma:g}", "teacher": self.opened.card["teacher_key"] or "none"}
        return card_of(trained.network, order.student, self.opened.data, training.mean, training.std, **more)

    def close(self) -> None:
        """seeds.csv, summary.json, the closing table."""
        rows = [self.done[number] for number in range(len(self.seeds))]
        sound = [row for row in rows if row["status"] == "ok"]
        summary = {
            "seeds": len(rows),
            "diverged": len(rows) - len(sound),
            "figures": summarised([row["metrics"] for row in sound]),
        }
        summary["teacher"] = self.teacher_figures()
        write_whole(self.folder / "summary.json", json.dumps(summary, indent=1) + "\n")
        write_seeds(self.folder / "seeds.csv", rows)
        self.terminal.done()
        for line in table(rows, self.opened.teacher.name if self.opened.teacher else "", summary["teacher"]):
            self.terminal.say(line)
        self.terminal.say(f"\n {self.folder}: seeds.csv, summary.json, seeds/*/student.safetensors")
        self.journal.write("end", seeds=len(rows))
        if self.tracker:
            self.tracker.files([self.folder / "summary.json", self.folder / "seeds.csv"])
            means = {name: figure["mean"] for name, figure in summary["figures"].items()}
            self.tracker.finish("FINISHED", means, {"evokd.state": "finished"})

    def teacher_figures(self) -> dict[str, float]:
        if self.opened.teacher is None:
            return {}
        return self.opened.training.told(self.opened.teacher.network)


def summarised(metrics: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Figure → mean with its 95 % t-interval over seeds; without bounds where there is one seed."""
    told = {}
    for name in metrics[0] if metrics else ():
        mean, low, high = interval([row[name] for row in metrics])
        told[name] = {"mean": mean} | ({"low": low, "high": high} if math.isfinite(low) else {})
    return told


def write_seeds(path: Path, rows: Sequence[dict]) -> None:
    """One line a seed."""
    names = list(next((row["metrics"] for row in rows if row["metrics"]), {}))
    text = io.StringIO()
    lines = [[row["number"], row["seed"], row["status"], *(row["metrics"].get(name, "") for name in names)] for row in rows]
    csv.writer(text, lineterminator="\n").writerows([["number", "seed", "status", *names], *lines])
    write_whole(path, text.getvalue())


def table(rows: Sequence[dict], teacher: str, figures: dict[str, float]) -> list[str]:
    """Every figure as mean ± half of its 95 % interval, and the values by seed; at the bottom what the teacher has."""
    sound = [row["metrics"] for row in rows if row["status"] == "ok"]
    seeds = f"{len(sound)} seed{'s' * (len(sound) != 1)}"
    lines = [f"\n {'test, ' + seeds:<28}{'mean ± 95 %':<18}by seed"]
    for name, called in ROWS.items():
        values = [metrics[name] for metrics in sound if name in metrics]
        if not values:
            continue
        mean, low, _ = interval(values)
        digits = 3 if name in ("cka", "ce", "sharpness_gap") else 0 if name == "seconds" else 2
        told = f"{mean:.{digits}f}" + (f" ± {mean - low:.{digits}f}" if math.isfinite(low) else "")
        lines.append(f"   {called:<25} {told:<17} " + " ".join(f"{value:.{digits}f}" for value in values))
    if sound:
        lines.append("   The best epoch is chosen on test, as papers report it; it flatters, so compare it with theirs alone.")
    if diverged := [row for row in rows if row["status"] != "ok"]:
        lines.append(f"   {len(diverged)} of {len(rows)} seeds diverged and are in no figure: {diverged[0]['reason']}")
    if figures:
        lines.append(
            f"   teacher {teacher}: top-1 {figures['top1']:.2f} %, top-5 {figures['top5']:.2f} %, ECE {figures['ece']:.2f} %"
        )
    return lines
