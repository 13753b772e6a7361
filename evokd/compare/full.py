"""Full trainings under a recipe as jobs, so that a comparison of losses may end with them instead of with short distillations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from evokd.config import Config
from evokd.errors import EvokdError
from evokd.evaluate.distill import DivergedError, Job
from evokd.executor import Serial, Workers, in_this_process, open_workers
from evokd.genome.individual import Outcome, Status
from evokd.losses.language import tree_from_names, write_loss
from evokd.problem import pick_device
from evokd.training.order import Order, open_order
from evokd.training.recipes import read_recipe


def full_trainings(config: Config, recipe: str, home: Path) -> Serial | Workers:
    """What trains a job in full and tells it on test.

    Args:
        config: of the pair; data, teacher, student, transfer set and labels are taken from it.
        recipe: crd-240, imagenet-100ep or short-N.
        home: where the checkpoint of a training lies, with which it goes on after a death.

    Raises:
        EvokdError: an unknown recipe, or a transfer set with rare classes, which full trainings do not have.
    """
    if config.protocol.rare_classes:
        raise EvokdError("--recipe", "classes that are all alike", "rare ones", "-s 'protocol.rare_classes=[]'")
    order = Order(
        config.data, config.student, read_recipe(recipe, config.student), config.teacher, transfer=config.protocol.transfer,
        labels=config.protocol.labels, teacher_taps=config.teacher_taps, student_taps=config.student_taps,
        operators=config.operators, teacher_epochs=config.teacher_epochs,
    )  # fmt: skip
    device = pick_device(config.device)
    given = order, config.out, device, str(home)
    return Serial(open_full(given)) if in_this_process(config, "") else open_workers(config, open_full, given, device)


def open_full(given: tuple[Order, str, str, str]) -> Callable[[Job], Outcome]:
    """A worker's trainer, from plain data: order without a loss, home of runs, device, folder of checkpoints."""
    order, out, device, home = given

    def train(job: Job) -> Outcome:
        loss = write_loss(tree_from_names(job.loss)) if job.loss else ""
        asked = replace(order, loss=loss, gamma=order.gamma if job.gamma is None else job.gamma)
        training = open_order(asked, Path(out), device, lambda line: None).training
        checkpoint = Path(home) / f"{asked.hash()}-{job.seeds[0]}.safetensors"
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        try:
            figures = training.train(job.seeds[0], checkpoint).figures
        except DivergedError as error:
            checkpoint.unlink(missing_ok=True)
            return Outcome(Status.DIVERGED, reason=str(error))
        checkpoint.unlink(missing_ok=True)
        return Outcome(Status.OK, figures["top1"], figures | {"accuracy": figures["top1"]}, seconds=figures["seconds"])

    return train
