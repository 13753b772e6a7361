"""Two workers against one on two cores: `python -m tests.bench.workers [JOBS]`.

Each job is the same small training on one thread. Rounds of one and of two workers alternate within one run, after both have started, so
that a busy machine slows both; the ratio of the best rounds is what is told.
"""

import os
import sys
import time

from evokd.executor import Workers
from evokd.genome.individual import Outcome, Status

ROUNDS = 5


def open_trainer(recipe):
    import torch

    torch.set_num_threads(1)

    def train(job):
        weight, images = torch.randn(192, 192), torch.randn(256, 192)
        for _ in range(recipe):
            weight = (weight + 1e-3 * images.T @ (images @ weight).tanh()).clamp(-1, 1)
        return Outcome(Status.OK, float(weight.sum()))

    return train


def rate(workers: Workers, jobs: int) -> float:
    """Jobs a second."""
    start = time.perf_counter()
    assert len(list(workers.map([[n] for n in range(jobs)]))) == jobs
    return jobs / (time.perf_counter() - start)


def main() -> None:
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    crews = {count: Workers(count, open_trainer, 60) for count in (1, 2)}
    for count, crew in crews.items():
        rate(crew, 2 * count)
    found = {count: [] for count in crews}
    for _ in range(ROUNDS):
        for count, crew in crews.items():
            found[count].append(rate(crew, jobs))
    for count, crew in crews.items():
        print(
            f"{count} workers: {max(found[count]):.1f} candidates a second (rounds {', '.join(f'{r:.1f}' for r in found[count])})"
        )
        crew.close()
    print(f"ratio {max(found[2]) / max(found[1]):.2f} on {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
