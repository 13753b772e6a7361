"""`evokd distill`: train a student in full with any loss, several seeds, under a recipe; resumable."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evokd.errors import EvokdError

WITH_RESUME = {"resume", "seeds", "device", "tracking_uri", "quiet", "download"}
DEFAULTS: dict[str, Any] = {
    "student": "resnet8w4", "data": "digits", "recipe": "short-30", "seeds": 3, "seed": 0, "out": "runs", "loss": "kd", "device": "auto",
    "teacher_epochs": 40,
}  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    given = vars(_options().parse_args(arguments))
    if given.get("seeds", 1) < 1:
        raise EvokdError("--seeds", "at least 1", str(given["seeds"]))
    from evokd.report.terminal import Terminal

    terminal = Terminal(given.pop("quiet", False))
    called = {
        "device": given.get("device", "auto"),
        "tracking": given.get("tracking_uri"),
        "download": given.get("download", False),
    }
    from evokd.training.order import read_order
    from evokd.training.run import run

    if "resume" in given:
        folder = Path(given["resume"])
        order, seeds = read_order(_checked(given, folder)), given.get("seeds") or _begun(folder)
        run(order, seeds, folder.parent, terminal, folder=folder, **called)
        return 0
    given = DEFAULTS | _among_peers(given)
    run(order_of(given), given["seeds"], Path(given["out"]), terminal, **called)
    return 0


def order_of(given: dict[str, Any]):
    """The order that options make, checked as far as they go by themselves."""
    from evokd.losses.own import load_operators
    from evokd.training.order import Order, loss_of
    from evokd.training.recipes import read_pair, read_recipe

    if "pair" in given:
        pair = read_pair(given["pair"])
        given = given | {"student": pair.student, "teacher": given.get("teacher", pair.teacher)}
    operators = tuple(given.get("operators", ()))
    load_operators(operators)
    for name, low in (("seed", 0), ("transfer", 0), ("labels", 0), ("gamma", 0.0), ("teacher_epochs", 1)):
        if not given.get(name, low) >= low:
            raise EvokdError(f"--{name.replace('_', '-')}", f"at least {low:g}", str(given[name]))
    text, gamma = loss_of(given["loss"], given.get("gamma"))
    teacher = given.get("teacher", "" if given["loss"] == "none" else "resnet14w32")
    taps = {f"{side}_taps": tuple(given.get(f"{side}_taps", "").split(",")) for side in ("teacher", "student")}
    return Order(
        given["data"],
        given["student"],
        read_recipe(given["recipe"], given["student"], given.get("overrides", ())),
        "" if teacher == "none" else teacher,
        text,
        gamma,
        seed=given["seed"],
        transfer=given.get("transfer", 0),
        labels=given.get("labels"),
        whole=given.get("whole", False),
        operators=operators,
        teacher_epochs=given["teacher_epochs"],
        peers=given.get("peers", 0),
        **{name: paths for name, paths in taps.items() if paths != ("",)},
    )


def _among_peers(given: dict[str, Any]) -> dict[str, Any]:
    """The options with what deep mutual learning goes with: no teacher, and no other loss.

    Raises:
        EvokdError: where one is asked for, or fewer than two students.
    """
    peers = given.get("peers", 2 if given.get("method") == "dml" else 0)
    if not peers and "peers" not in given:
        return given
    if given.get("method") != "dml" or peers < 2:
        raise EvokdError("--peers", "at least 2, with --method dml", str(peers))
    if odd := [name for name in ("teacher", "loss", "pair") if name in given]:
        raise EvokdError("--method dml", "students without a teacher", f"--{odd[0]}")
    return given | {"loss": "none", "teacher": "none", "peers": peers}


def _checked(given: dict[str, Any], folder: Path) -> Path:
    """Raises EvokdError for what a run that goes on cannot change."""
    if odd := [name for name in given if name not in WITH_RESUME]:
        allowed = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(WITH_RESUME - {"resume"}))
        raise EvokdError("--resume", f"no other option than {allowed}", f"--{odd[0].replace('_', '-')}")
    return folder


def _begun(folder: Path) -> int:
    """How many seeds a run was begun with, or has."""
    from evokd.journal import read_events

    events = read_events(folder) if (folder / "events.jsonl").exists() else []
    return max([e.get("count", 1) for e in events if e["event"] == "begin"] + [1])


def _options() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="evokd distill",
        description="Train a student in full with any loss, and tell what came of it on test. Without options: KD on digits.",
        argument_default=argparse.SUPPRESS,
    )
    pair = top.add_argument_group("the pair")
    pair.add_argument("--teacher", metavar="T", help="file.safetensors, a name (trained once, cached), file.py:callable, or none")
    pair.add_argument("--student", metavar="S", help="a name such as resnet20, wrn_16_2, MobileNetV2, or file.py:callable")
    pair.add_argument("--pair", metavar="NAME", help="a pair of the literature, such as resnet32x4-resnet8x4")
    pair.add_argument("--teacher-taps", metavar="PATH,…", help="module paths of the teacher's stages, last stage last")
    pair.add_argument("--student-taps", metavar="PATH,…", help="module paths of the student's stages, last stage last")
    pair.add_argument("--teacher-epochs", type=int, metavar="N", help="of a teacher that is trained because it is only named")
    loss = top.add_argument_group("the loss")
    loss.add_argument("--loss", metavar="LOSS", help="known name, text, loss.json, or none for plain training")
    loss.add_argument("--gamma", type=float, metavar="G", help="weight of the cross-entropy; else what goes with the loss")
    loss.add_argument("--method", choices=["dml"], help="dml: students that teach each other, without a teacher")
    loss.add_argument("--peers", type=int, metavar="M", help="students that do so; 2 if not given")
    loss.add_argument("--operators", action="append", metavar="FILE.py:FN", help="an operator of your own")
    data = top.add_argument_group("the data")
    data.add_argument("--data", metavar="D", help="digits, cifar10, cifar100, fashion_mnist, mnist, an npz file or a folder")
    data.add_argument("--download", action="store_true", help="allow torchvision to fetch the data set")
    data.add_argument("--transfer", type=int, metavar="N", help="use only N training images")
    data.add_argument("--labels", type=int, metavar="N", help="know the labels of only N training images")
    data.add_argument("--whole", action="store_true", help="train on the validation images too, as published figures do")
    run = top.add_argument_group("the run")
    run.add_argument("--recipe", metavar="R", help="crd-240, imagenet-100ep, vit-300, or short-N of N epochs")
    run.add_argument("-s", dest="overrides", action="append", metavar="KEY=VALUE", help="of the recipe, e.g. -s ema=0.999")
    run.add_argument("--seeds", type=int, metavar="K", help="trainings")
    run.add_argument("--seed", type=int, metavar="N", help="from which those of the trainings derive")
    run.add_argument("--device", metavar="D", help="auto, cpu or cuda")
    run.add_argument("--out", metavar="DIR", help="home of runs, cache and mlflow.db")
    run.add_argument("--resume", metavar="RUN", help="go on with the run in this folder, or add --seeds to it")
    run.add_argument("--tracking-uri", metavar="URI", help="MLflow; none switches it off")
    run.add_argument("--quiet", action="store_true")
    return top
