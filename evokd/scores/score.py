"""What a score is: a number of an untrained network, and the passes that scores share.

Most are read off one pass in train mode (batch statistics) without gradients; what a score wants to see on the way, it says by a watch.
Whatever a score does, the network is left as it was: parameters, buffers, modes, hooks, gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from evokd.errors import EvokdError
from evokd.losses.taps import Taps
from evokd.scores.passes import Watch, watched
from evokd.streams import derive


@dataclass(frozen=True)
class Score:
    """A score of students.

    Attributes:
        fn: (student, teacher, images (N,C,H,W), labels (N,), generator) → value. The teacher is a network, a `TeacherView`, or None where
            none is needed; the generator is the source of what the score draws, and may be None.
        higher_is_better: its direction.
        needs_teacher: whether it compares with a teacher.
        source: where it is from.
        measure: the same as a function of a `Case`, so that scores can share their passes; None for a score that shares nothing.
        watch: what it wants to see of the shared forward pass.
    """

    fn: Callable[..., float]
    higher_is_better: bool
    needs_teacher: bool
    source: str
    measure: Callable[[Case], Tensor | float] | None = None
    watch: Watch | None = None

    @property
    def worst(self) -> float:
        """The value of a network that is dead or not finite."""
        return -float("inf") if self.higher_is_better else float("inf")


def shared(
    measure: Callable[[Case], Tensor | float],
    source: str,
    *,
    higher: bool = True,
    teacher: bool = False,
    watch: Watch | None = None,
) -> Score:
    """The score of a measure; by itself it makes the passes that `score_all` would share."""

    def fn(student, teacher, images, labels, generator=None) -> float:
        return evaluate(score, open_case([score], student, teacher, images, labels, generator))

    score = Score(fn, higher, teacher, source, measure, watch)
    return score


@dataclass(frozen=True, eq=False)
class TeacherView:
    """What a teacher shows for one batch, and statistics of it, each computed when it is first wanted.

    Attributes:
        taps: of the batch.
        labels: (N,), −1 where unknown.
    """

    taps: Taps
    labels: Tensor
    _known: dict = field(default_factory=dict, repr=False)

    def once(self, statistic: Callable[[Taps, Tensor], Any]) -> Any:
        """statistic(taps, labels)."""
        if statistic not in self._known:
            self._known[statistic] = statistic(self.taps, self.labels)
        return self._known[statistic]


def view_teacher(teacher: nn.Module, images: Tensor, labels: Tensor) -> TeacherView:
    """One pass of a teacher in train mode, as DisWOT's code has it; give the view to every student scored on this batch."""
    return TeacherView(watched(teacher, images, (), where="teacher")[0], labels)


@dataclass(frozen=True, eq=False)
class Case:
    """A student on a batch, with what has been computed of it.

    Attributes:
        student: untrained.
        teacher: its view of the same batch, where a score needs one.
        images: (N,C,H,W), normalised.
        labels: (N,), −1 where unknown.
        seed: of everything that scores draw.
        watches: of the forward pass.
    """

    student: nn.Module
    teacher: TeacherView | None
    images: Tensor
    labels: Tensor
    seed: int
    watches: tuple[Watch, ...]
    _known: dict = field(default_factory=dict, repr=False)

    def once(self, compute: Callable[[Case], Any]) -> Any:
        """compute(case), for passes that several scores need."""
        if compute not in self._known:
            self._known[compute] = compute(self)
        return self._known[compute]

    @property
    def taps(self) -> Taps:
        """The student's, of the shared forward pass."""
        return self.once(_forward)[0]

    def seen(self, watch: Watch) -> list[Tensor]:
        """What a watch has returned, in the order of the shared forward pass.

        Raises:
            EvokdError: if there was nothing to see, such as a ReLU in a network without any.
        """
        values = self.once(_forward)[1][watch]
        if not values:
            raise EvokdError("score", f"a network with what {watch.__name__} looks at", "one without")
        return values

    def draw(self, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator of the purpose's own, so that no score depends on which others are computed."""
        return torch.Generator(device).manual_seed(derive(self.seed, purpose))


def _forward(case: Case) -> tuple[Taps, dict[Watch, list[Tensor]]]:
    return watched(case.student, case.images, case.watches, derive(case.seed, "forward"))


def open_case(
    scores: Sequence[Score],
    student: nn.Module,
    teacher: nn.Module | TeacherView | None,
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator | None,
) -> Case:
    """The case for some scores; draws one number of the generator.

    Raises:
        EvokdError: no teacher where one is needed, or a view of another batch.
    """
    seed = 0 if generator is None else int(torch.randint(2**62, (), generator=generator, device=generator.device))
    view = None
    if any(score.needs_teacher for score in scores):
        view = view_teacher(teacher, images, labels) if isinstance(teacher, nn.Module) else teacher
        if view is None:
            raise EvokdError("teacher", "a network or its view, which the score compares with", "None")
        if view.taps.logits.shape[0] != len(images):
            raise EvokdError("teacher", f"a view of this batch of {len(images)} images", f"one of {view.taps.logits.shape[0]}")
    watches = tuple(dict.fromkeys(score.watch for score in scores if score.watch))
    return Case(student, view, images, labels, seed, watches)


def evaluate(score: Score, case: Case) -> float:
    """The score's value on a case; its worst value where the student is dead or the value is not finite."""
    if score.measure is None:
        return float(score.fn(case.student, case.teacher, case.images, case.labels, case.draw("own")))
    if not case.once(alive):
        return score.worst
    try:
        with torch.no_grad():  # scores of gradients enable what they need
            value = float(score.measure(case))
    except torch.linalg.LinAlgError:  # eigenvalues of what is not finite
        return score.worst
    return value if abs(value) < float("inf") else score.worst


def alive(case: Case) -> bool:
    """Whether the logits are finite, and differ between the images by more than rounding."""
    logits = case.taps.logits
    spread = (logits.amax(0) - logits.amin(0)).max()
    return bool(logits.isfinite().all()) and (len(logits) < 2 or bool(spread > 1e-6 * logits.abs().max()))
