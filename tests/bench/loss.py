"""A compiled loss against the same loss written by hand, forward and backward: N = 64, K = 100, maps of 64×8×8."""

import sys
import time

import torch
import torch.nn.functional as F

from evokd.losses import KNOWN, compile_loss, parse_loss
from tests.bench.ratios import rounds, table
from tests.losses.common import make_taps

SHAPES = {"n": 64, "classes": 100, "width": 64, "maps": ((64, 8, 8),)}
AT = "1000*l2(norm_HW(mean_C(pow2(features[-1]))))"
REPEATS = {"kd": 400, "dist": 200, "sp": 200, "at": 100}


def kd(s, t):
    return 0.9 * 16 * F.kl_div(F.log_softmax(s.logits / 4, 1), F.softmax(t.logits / 4, 1), reduction="batchmean")


def dist(s, t):
    def relation(a, b):
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        return 1 - F.cosine_similarity(a, b, dim=1, eps=1e-8).mean()

    p, q = (s.logits / 4).softmax(1), (t.logits / 4).softmax(1)
    return 32 * relation(p, q) + 32 * relation(p.t(), q.t())


def sp(s, t):
    def similarity(f):
        f = f.flatten(1)
        return F.normalize(f @ f.t())

    return 3000 * F.mse_loss(similarity(s.features[-1]), similarity(t.features[-1]))


def at(s, t):
    def attention(f):
        return F.normalize(f.pow(2).mean(1).flatten(1))

    return 1000 * F.mse_loss(attention(s.features[-1]), attention(t.features[-1]))


def main(count: int = 15) -> None:
    """`count` rounds for each loss."""
    torch.set_num_threads(1)
    student, teacher = (make_taps(seed, dtype=torch.float32, **SHAPES) for seed in (1, 2))
    student = student.map(lambda tap: tap.requires_grad_())
    for name, written in {"kd": kd, "dist": dist, "sp": sp, "at": at}.items():
        compiled = compile_loss(parse_loss(AT if name == "at" else KNOWN[name]), student, teacher)
        torch.testing.assert_close(compiled(student, teacher), written(student, teacher), rtol=1e-4, atol=1e-5)
        cases = {
            "by hand": _case(written, student, teacher, REPEATS[name]),
            "compiled": _case(compiled, student, teacher, REPEATS[name]),
        }
        print(table(rounds(cases, int(count)), "by hand", f"loss-{name}"), flush=True)


def _case(loss, student, teacher, repeats: int):
    def seconds() -> float:
        start = time.process_time()
        for _ in range(repeats):
            loss(student, teacher).backward()
        return (time.process_time() - start) / repeats

    return seconds


if __name__ == "__main__":
    main(*sys.argv[1:])
