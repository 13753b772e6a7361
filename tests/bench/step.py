"""One training step with a loss and a cached teacher against a cross-entropy step of the same student."""

import sys
import tempfile
import time

from evokd.config import make_config
from evokd.evaluate.distill import Job
from evokd.genome.codec import to_names
from evokd.losses import parse_loss
from evokd.problem import open_problem
from tests.bench.ratios import rounds, table

STEPS = 100
LOSSES = {
    "cross-entropy": None,
    "KD": "3*kl(logits, tau=4)",
    "evolved, two terms": "30*entropy*kl(embedding, tau=2) + 60*pearson(softmax_C(norm_C(transpose(logits))))",
    "two terms on logits": "30*pearson(transpose(logits)) + 3*kl(logits, tau=4)",
    "SP + DIST intra": "30*pearson(transpose(logits)) + 10*l2(norm_C(mm(features[-1])))",
    "FitNet + KD": "l2(features[-1]) + 3*kl(logits, tau=4)",
}


def main(count: int = 15, students: str = "conv3w8,resnet8w4,resnet8w8") -> None:
    """`count` rounds for each student."""
    for student in students.split(","):
        with tempfile.TemporaryDirectory() as out:
            settings = {"out": out, "workers": 1, "student": student, "teacher_epochs": 2, "tracking_uri": "none"}
            problem = open_problem(make_config(settings, [f"protocol.steps={STEPS}"]), lambda line: None)
            distiller = problem.executor.evaluate
            cases = {name: _case(distiller, text) for name, text in LOSSES.items()}
            print(table(rounds(cases, int(count)), "cross-entropy", f"step-{student}"), flush=True)


def _case(distiller, text: str | None):
    job = Job(tuple(to_names(parse_loss(text))) if text else None, (1,), gamma=1.0)

    def seconds() -> float:
        start = time.process_time()
        distiller.train(job, 1)
        return (time.process_time() - start) / STEPS

    return seconds


if __name__ == "__main__":
    main(*sys.argv[1:])
