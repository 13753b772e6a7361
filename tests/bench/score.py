"""One DisWOT score of a NAS-Bench-201 network against its bare forward pass: 64 images of 32×32, train mode, channels last.

The teacher's view is taken once, as in a search; the authors' loop runs the teacher and two backward passes for every student.
"""

import sys
import time

import torch

from evokd.models.zoo import build
from evokd.scores import AZ_NAS, SCORES, score_all, view_teacher
from evokd.students import read_student_space
from tests.bench.ratios import rounds, table

CELLS = {  # the largest cell, a usual one, and one that is nearly all skips
    "conv3": "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|",
    "mixed": "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_1x1~1|+|avg_pool_3x3~0|none~1|nor_conv_3x3~2|",
    "light": "|skip_connect~0|+|none~0|skip_connect~1|+|skip_connect~0|none~1|nor_conv_1x1~2|",
}
SEVERAL = ["diswot", "diswot_paper", "nwot", "reg_swap", *AZ_NAS[:1]]


def main(count: int = 9, classes: int = 100) -> None:
    """`count` rounds for each cell."""
    space, draw = read_student_space("nas_bench_201"), torch.Generator().manual_seed(0)
    images, labels = torch.randn(64, 3, 32, 32, generator=draw), torch.randint(classes, (64,), generator=draw)
    view = view_teacher(build("resnet56", classes, 3, 0), images, labels)
    score_all(["diswot"], build("resnet8", classes, 3, 0), view, images, labels)  # what is computed of the teacher once
    for name, text in CELLS.items():
        student = space.network(space.read(text), classes, 3).to(memory_format=torch.channels_last)
        cases = {
            "forward": _timed(lambda student=student: _forward(student, images)),
            "diswot": _timed(lambda student=student: SCORES["diswot"].fn(student, view, images, labels)),
            "five scores": _timed(lambda student=student: score_all(SEVERAL, student, view, images, labels)),
        }
        print(table(rounds(cases, int(count)), "forward", f"score-{name}"), flush=True)


def _forward(student, images) -> None:
    student.train()
    with torch.no_grad():
        student(images.contiguous(memory_format=torch.channels_last))


def _timed(case):
    def seconds() -> float:
        start = time.perf_counter()
        case()
        return time.perf_counter() - start

    return seconds


if __name__ == "__main__":
    main(*sys.argv[1:])
