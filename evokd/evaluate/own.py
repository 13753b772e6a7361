"""The user's own training as evaluator: a compiled loss goes in, a number comes home."""

import math
import time
from collections.abc import Callable
from typing import final

import torch

from evokd.evaluate.distill import Job
from evokd.genome.individual import Outcome, Status
from evokd.losses.language import tree_from_names
from evokd.losses.program import DistillLoss, compile_loss
from evokd.losses.taps import Taps


@final
class OwnTraining:
    """Calls `evaluate(loss) -> float` (greater is better); NaN and exceptions become a status."""

    def __init__(self, evaluate: Callable[[DistillLoss], float], examples: tuple[Taps, Taps, torch.Tensor]) -> None:
        self.evaluate, self.examples = evaluate, examples

    def __call__(self, job: Job) -> Outcome:
        start = time.perf_counter()
        try:
            loss = compile_loss(tree_from_names(job.loss), *self.examples[:2], seed=job.seeds[0])
            value = float(self.evaluate(loss))
        except Exception as error:  # whatever a user's training raises concerns this candidate alone
            return Outcome(Status.CRASHED, reason=f"{type(error).__name__}: {error}"[:200], seconds=time.perf_counter() - start)
        if not math.isfinite(value):
            return Outcome(Status.DIVERGED, reason=f"evaluate returned {value}", seconds=time.perf_counter() - start)
        return Outcome(Status.OK, value, {"fitness_by_seed": [value]}, seconds=time.perf_counter() - start)
