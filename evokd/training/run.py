"""Full trainings of one student with one loss, seed after seed, in a run folder that goes on to the same figures after a death.

`order.json` is what was ordered, `events.jsonl` one line a finished seed, `seeds/N/` its weights, or the checkpoint of the epoch that it
had come to. Nothing is chosen here: every figure is told on test, after the last epoch.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock, Timeout

from evokd.checkpoint import write_whole
from evokd.errors import EvokdError
from evokd.evaluate.distill import DivergedError
from evokd.finals import interval
from evokd.folder import commit, fresh
from evokd.journal import Journal, read_events
from evokd.memory import machine
from evokd.models.teachers import card_of, write_weights
from evokd.problem import check_writable, pick_device
from evokd.progress import by_epoch
from evokd.report.terminal import Terminal
from evokd.run import evaluation_seeds
from evokd.store import Child, at
from evokd.tracker import open_tracker
from evokd.training.order import Opened, Order, open_order
from evokd.training.recipes import Recipe
from evokd.training.seed import Trained

ROWS = {  # figure → how the closing table calls it
    "top1": "top-1 %, last epoch", "top5": "top-5 %, last epoch", "best_top1": "top-1 %, best epoch", "best_top5": "top-5 % there",
    "ece": "calibration error %", "ce": "cross-entropy, nats", "agreement": "agreement with teacher %", "cka": "CKA with teacher",
    "sharpness_gap": "sharpness gap, nats", "seconds": "seconds",
}  # fmt: skip


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
        name = f"full/{opened.card['data']}-{Path(self.order.teacher).stem or 'none'}-{self.order.student}"
        self.tracker = open_tracker(tracking, out, name, terminal.warn)

    def run(self) -> Path:
        events = _events(self.folder)
        self.done: dict[int, dict] = {e["number"]: e for e in events if e["event"] == "seed"}
        self.journal = Journal(self.folder)
        for line in self.heading():
            self.terminal.say(line)
        try:
            self.journal.write("begin", count=len(self.seeds), card=self.opened.card, **self.surroundings())
            self.track()
            with self.tracker.until_the_end():
                for number, seed in enumerate(self.seeds):
                    if number not in self.done:
                        self.train(number, seed)
                    self.mirror(number)
                self.close()
        except BaseException:
            self.terminal.warn(f"stopped; evokd distill --resume {self.folder} goes on")
            raise
        finally:
            self.journal.close()
        return self.folder

    def surroundings(self) -> dict[str, str]:
        versions = {name: version(name) for name in ("evokd", "torch", "numpy")}
        return {**versions, "commit": commit(), "machine": machine(self.opened.training.device)}

    def heading(self) -> list[str]:
        card, order, teacher = self.opened.card, self.order, ""
        alone = f"of {order.peers} students that teach each other" if order.peers else "none: cross-entropy alone"
        if self.opened.teacher:
            replayed = f", replayed on {order.recipe.views} views" if self.opened.training.bank else ""
            teacher = f" · teacher {self.opened.teacher.name} ({card['teacher_parameters']:,} parameters{replayed})"
        labels = "" if card["labels"] == card["images"] else f", {card['labels']} labelled"
        told = {f.name: getattr(order.recipe, f.name) for f in fields(Recipe)}
        plain = {f.name: f.default for f in fields(Recipe) if f.name not in ("name", "epochs", "batch", "lr", "schedule")}
        recipe = ", ".join(f"{name}={value}" for name, value in told.items() if name != "name" and plain.get(name, "") != value)
        return [
            f"evokd · {card['data']} ({card['images']} images{labels}){teacher} · student {order.student} "
            f"({card['student_parameters']:,} parameters)",
            f"loss {order.loss or alone} · γ={order.gamma:g}",
            f"recipe {order.recipe.name}: {recipe}",
            f"run {self.folder}",
        ]

    def track(self) -> None:
        recipe = {f"recipe.{name}": value for name, value in asdict(self.order.recipe).items()}
        params = {name: value for name, value in asdict(self.order).items() if name != "recipe"} | recipe | self.opened.card
        tags = {"evokd.kind": "full", "evokd.folder": self.folder.name, "evokd.state": "going", "evokd.git": commit()}
        tags |= {f"evokd.env.{name}": value for name, value in self.surroundings().items()}
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

    def mirror(self, number: int) -> None:
        """One seed in MLflow; one that an earlier process has told is not told again."""
        told = self.done[number]
        metrics = [*at(len(told["curve"]), told["metrics"]), *by_epoch(told["curve"])]
        self.tracker.child(Child(f"seed {number}", {"seed": told["seed"]}, {"evokd.kind": "seed"}, metrics))

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
        summary["teacher"] = self.opened.training.teacher_told()
        write_whole(self.folder / "summary.json", json.dumps(summary, indent=1) + "\n")
        write_seeds(self.folder / "seeds.csv", rows)
        self.terminal.done()
        for line in table(rows, self.opened.teacher.name if self.opened.teacher else "", summary["teacher"]):
            self.terminal.say(line)
        self.terminal.say(f"\n {self.folder}: seeds.csv, summary.json, seeds/*/student.safetensors")
        self.journal.write("end", seeds=len(rows))
        self.tracker.files([self.folder / "summary.json", self.folder / "seeds.csv", self.folder / "events.jsonl"])
        bounds = {f"{name}_{bound}": value for name, figure in summary["figures"].items() for bound, value in figure.items()}
        means = {name: figure["mean"] for name, figure in summary["figures"].items()}
        self.tracker.finish("FINISHED", bounds | means)


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
