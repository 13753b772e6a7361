"""The networks that a report looks at: the student trained plainly, by KD as published and by the loss that was found, and the teacher.

They are trained as the finals train their first seed and shown test images. Nothing is chosen by what is seen here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evokd.evaluate.distill import Distiller, DivergedError
from evokd.evaluate.sight import Sight, look
from evokd.finals import PUBLISHED, Entry
from evokd.genome.codec import write_number
from evokd.problem import Pair, Problem, open_pair
from evokd.run import evaluation_seeds
from evokd.student_export import own_judge

IMAGES, SHOWN = 2000, 6  # test images that are looked at, and those that maps are drawn of
Curve = list[tuple[int, float, float]]


@dataclass(frozen=True)
class Portraits:
    """What there is to draw.

    Attributes:
        images: (M,C,H,W) of 0 to 255, the first test image of each of M classes.
        labels: (N,) of the images that all networks were shown, the M first.
        sights: network → what it makes of them: `plain`, `KD`, `evolved` (those of them that trained) and `teacher`.
        curves: student → (step, cross-entropy, distillation loss) of its training.
    """

    images: np.ndarray
    labels: np.ndarray
    sights: Mapping[str, Sight]
    curves: Mapping[str, Curve]

    @property
    def students(self) -> list[str]:
        return [name for name in self.sights if name != "teacher"]


def portraits(problem: Problem, text: str, say: Callable[[str], None]) -> Portraits:
    """Train the students and look at them.

    Args:
        problem: of the run.
        text: of the loss that was found.
        say: told of the progress.
    """
    distiller, pair = own_judge(problem.executor), open_pair(problem.config, say, False)
    order = shown_first(pair.data.test.labels)
    sights, curves = {}, {}
    for entry in entries(text):
        say(f"pictures: training the student: {entry.name}")
        try:
            sights[entry.name], curves[entry.name] = _trained(distiller, pair, entry, problem.config.seed, order)
        except DivergedError as error:
            say(f"pictures: {entry.name} does not train: {error}")
    sights["teacher"] = _seen(distiller, pair.teacher.network, pair.plans[1], order)
    test = pair.data.test.take(order)
    return Portraits(test.images[: shown(test.labels)], test.labels, sights, curves)


def entries(text: str) -> list[Entry]:
    """The three students of the pictures."""
    gamma, weight, tau = PUBLISHED
    kd = Entry("KD", f"{write_number(weight)}*kl(logits, tau={write_number(tau)})", gamma)
    return [Entry("plain", None, 1.0), kd, Entry("evolved", text)]


def _trained(distiller: Distiller, pair: Pair, entry: Entry, seed: int, order: np.ndarray) -> tuple[Sight, Curve]:
    first = evaluation_seeds(seed, "final", 1)
    network, curve = distiller.fit(entry.job(first, "test"), first[0])
    return _seen(distiller, network, pair.plans[0], order), curve


def _seen(distiller: Distiller, network: Any, plan, order: np.ndarray) -> Sight:
    bank = distiller.bank
    images, labels = bank.images["test"][order], bank.labels["test"][order]
    return look(network.to(distiller.device), replace(plan, pre_relu=()), bank.normalised(images), labels[: shown(labels)])


def shown(labels) -> int:
    """How many images maps are drawn of."""
    return min(SHOWN, len(set(labels.tolist())))


def shown_first(labels: np.ndarray) -> np.ndarray:
    """Indices of the test images that are looked at: the first of each class of the first few, then all others in their order."""
    firsts = [int(np.flatnonzero(labels == c)[0]) for c in sorted(set(labels.tolist()))[:SHOWN]]
    return np.array([*firsts, *(i for i in range(len(labels)) if i not in set(firsts))][:IMAGES])
