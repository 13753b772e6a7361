"""Training-free scores of students: one table, one signature, one forward pass shared by all that need no more."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from evokd.errors import unknown
from evokd.scores.activations import ACTIVATIONS, AZ_NAS, az_nas
from evokd.scores.distances import DISTANCES, score_of_loss
from evokd.scores.diswot import DISWOT
from evokd.scores.gradients import GRADIENTS
from evokd.scores.initialise import initialise
from evokd.scores.score import Score, TeacherView, evaluate, open_case, view_teacher
from evokd.scores.te_nas import TE_NAS_SCORES
from evokd.scores.trivial import TRIVIAL

__all__ = ["AZ_NAS", "SCORES", "Score", "TeacherView", "az_nas", "initialise", "score_all", "score_of_loss", "view_teacher"]

SCORES: dict[str, Score] = DISWOT | DISTANCES | ACTIVATIONS | GRADIENTS | TE_NAS_SCORES | TRIVIAL


def score_all(
    names: Sequence[str],
    student: nn.Module,
    teacher: nn.Module | TeacherView | None,
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator | None = None,
) -> dict[str, float]:
    """Name → value; each is what the score gives by itself from a generator in the same state.

    Args:
        names: of `SCORES`.
        student: untrained, with the weights it is to be scored with; left as it was.
        teacher: a network, better a `TeacherView` where several students meet one batch; None if no score needs it.
        images: (N,C,H,W), normalised.
        labels: (N,), −1 where unknown.
        generator: of all that the scores draw.

    Raises:
        EvokdError: an unknown name, or no teacher where one is needed.
    """
    for name in names:
        if name not in SCORES:
            raise unknown("score", "a score", name, SCORES)
    scores = {name: SCORES[name] for name in names}
    case = open_case(list(scores.values()), student, teacher, images, labels, generator)
    return {name: evaluate(score, case) for name, score in scores.items()}
