"""Two workers against one on two cores: `python -m tests.bench.workers [ROUNDS]`, two or three minutes on a quiet machine.

Each job is the same small training on one thread. A round is one worker, two workers, two workers, one worker, so that what else the
machine does, and its drift, meet both alike; ratios are taken within rounds. A worker's share of a core tells how busy the machine was.
"""

import os
import statistics
import sys
import time

from scipy.stats import t

from evokd.executor import Workers
from evokd.genome.individual import Outcome, Status

ROUNDS, JOBS, STEPS = 12, 24, 120


def open_trainer(recipe):
    import torch

    torch.set_num_threads(1)

    def train(job):
        start, weight, images = time.process_time(), torch.randn(192, 192), torch.randn(256, 192)
        for _ in range(recipe):
            weight = (weight + 1e-3 * images.T @ (images @ weight).tanh()).clamp(-1, 1)
        return Outcome(Status.OK, float(weight.sum()), {"cpu": time.process_time() - start})

    return train


def measured(workers: Workers) -> tuple[float, float]:
    """(seconds of all jobs, share of a core that a worker had meanwhile)."""
    start = time.perf_counter()
    cpu = sum(outcome.metrics["cpu"] for outcome in workers.map([[n] for n in range(JOBS)]))
    seconds = time.perf_counter() - start
    return seconds, cpu / seconds / workers.count


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    crews = {count: Workers(count, open_trainer, STEPS) for count in (1, 2)}
    for crew in crews.values():
        measured(crew)  # comes up
    ratios, shares = [], {1: [], 2: []}
    for _ in range(rounds):
        seconds = {1: 0.0, 2: 0.0}
        for count in (1, 2, 2, 1):
            spent, share = measured(crews[count])
            seconds[count] += spent
            shares[count].append(share)
        ratios.append(seconds[1] / seconds[2])
    for crew in crews.values():
        crew.close()
    half = t.ppf(0.975, rounds - 1) * statistics.stdev(ratios) / rounds**0.5
    middle = statistics.fmean(ratios)
    print(
        f"candidates a second, two workers to one: {middle:.2f} [{middle - half:.2f}, {middle + half:.2f}] ({rounds} rounds, 95 %)"
    )
    told = ", ".join(f"{count} workers {statistics.fmean(found):.0%}" for count, found in shares.items())
    print(f"share of a core that a worker had: {told}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
