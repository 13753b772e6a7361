"""Distillation losses as scores (DisWOT's KD-based rows): the loss of the untrained student, negated.

Each is a tree of the loss language; any other loss, an evolved one too, becomes a score by `score_of_loss`. Against DisWOT's code: there
student and teacher are swapped in KD's divergence, SP sees the first image alone, and CC is not correlation congruence. Where widths
differ, losses that compare maps or embeddings themselves go through a random connector, as in training.
"""

from __future__ import annotations

from evokd.losses.known import KNOWN
from evokd.losses.language import parse_loss
from evokd.losses.program import compile_loss
from evokd.scores.score import Case, Score, shared
from evokd.streams import derive


def score_of_loss(text: str, source: str = "") -> Score:
    """The score −loss of the untrained student, lower loss being better.

    Args:
        text: of the loss language.
        source: where it is from; the text if empty.

    Raises:
        EvokdError: text that is no loss.
    """
    tree = parse_loss(text)

    def measure(case: Case) -> float:
        student, teacher = case.taps, case.teacher.taps
        loss = compile_loss(tree, student, teacher, derive(case.seed, text)).to(case.images.device)
        return -loss(student, teacher, case.labels, generator=case.draw(text, case.images.device)).item()

    return shared(measure, source or text, teacher=True)


LOSSES = {
    "kd": (KNOWN["kd"], "Hinton et al. 2015, τ = 4"),
    "fitnet": ("l2(features[-1])", "FitNets (ICLR 2015) on the last maps, no connector where shapes agree"),
    "sp": (KNOWN["sp"], "Tung & Mori, ICCV 2019"),
    "rkd": (KNOWN["rkd_distance"] + " + " + KNOWN["rkd_angle"], "RKD (CVPR 2019), distances and angles"),
    "pkt": (KNOWN["pkt"], "PKT (ECCV 2018)"),
    "cc": (KNOWN["cc"], "correlation congruence (ICCV 2019)"),
    "nst": ("l2(gram_HW(norm_HW(features[-2]))) + l2(gram_HW(norm_HW(features[-1])))", "NST (2017), the last two stages"),
    "ickd": (KNOWN["ickd"], "ICKD (ICCV 2021)"),
    "at": (KNOWN["at"], "attention transfer (ICLR 2017), three stages"),
}

DISTANCES: dict[str, Score] = {name: score_of_loss(text, f"−loss: {source}") for name, (text, source) in LOSSES.items()}
