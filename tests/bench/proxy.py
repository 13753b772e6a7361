"""Do short trainings rank losses as long ones do? Kendall's τ between every rung and a training of five times the length.

Published losses on validation: each rung with its own annealed schedule, one and three seeds, against three other seeds of the long
training. Intervals are 95 % of resamples of the losses.

python -m tests.bench.proxy [digits | DATA TEACHER STUDENT STEPS LOSSES]
"""

import csv
import sys
import tempfile
from itertools import product
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

from evokd.config import make_config
from evokd.errors import EvokdError
from evokd.evaluate.distill import Job
from evokd.genome.codec import to_names
from evokd.losses import KNOWN, compile_loss, parse_loss
from evokd.problem import open_problem
from evokd.run import evaluation_seeds

SHARES, SEEDS, LONG = (0.1, 0.2, 0.35, 0.5, 1.0), (1, 3), 5.0


def main(data: str = "digits", teacher: str = "", student: str = "", steps: int = 0, count: int = 99) -> None:
    with tempfile.TemporaryDirectory() as out:
        settings = {"data": data, "out": out, "tracking_uri": "none", "space": "extended", "cache_gib": 8.0}
        settings |= {"teacher": teacher, "student": student} if teacher else {}
        protocol = [f"protocol.steps={steps}"] if int(steps) else []
        protocol += ["protocol.transfer=2000"] if teacher else []
        problem = open_problem(make_config(settings, protocol), lambda line: None)
        rows = measured(problem, int(count))
        problem.executor.close()
    title = Path(data).name
    Path("runs").mkdir(exist_ok=True)
    with Path(f"runs/bench-proxy-{title}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("loss", *next(iter(rows.values()))), *((n, *row.values()) for n, row in rows.items())])
    print(f"{title}: {len(rows)} published losses, long = {LONG:g} × the steps, 3 seeds")
    for name in list(next(iter(rows.values())))[1:]:
        print(told(name, *(np.array([row[column] for row in rows.values()]) for column in (name, "long"))))


def measured(problem, count: int) -> dict[str, dict[str, float]]:
    """Loss → {"long": accuracy, "share × seeds": accuracy}."""
    few, many = evaluation_seeds(0, "search", max(SEEDS)), evaluation_seeds(0, "long", 3)
    losses = {name: tuple(to_names(parse_loss(text))) for name, text in KNOWN.items() if fits(text, problem)}
    losses = dict(list(losses.items())[:: max(len(losses) // count, 1)][:count])
    jobs = {}
    for name, spec in losses.items():
        jobs[name, "long"] = Job(spec, many, key=name, steps=LONG)
        for share, seeds in product(SHARES, SEEDS):
            jobs[name, f"{share:g} × {seeds}"] = Job(spec, few[:seeds], key=name, steps=share)
    rows: dict[str, dict[str, float]] = {name: {} for name in losses}
    for (name, column), outcome in zip(jobs, problem.executor.map(jobs.values()), strict=True):
        rows[name][column] = outcome.fitness if outcome.fitness is not None else 0.0
        if column == f"{SHARES[-1]:g} × {SEEDS[-1]}":
            print(
                f"  {name:<16}long {rows[name]['long']:6.2f}   " + "  ".join(f"{v:6.2f}" for v in list(rows[name].values())[1:])
            )
    return rows


def fits(text: str, problem) -> bool:
    try:
        compile_loss(parse_loss(text), *problem.examples[:2])
    except EvokdError:
        return False
    return True


def told(name: str, short: np.ndarray, long: np.ndarray) -> str:
    draw = np.random.default_rng(0)
    samples = [draw.integers(0, len(long), len(long)) for _ in range(1000)]
    taus = [kendalltau(short[s], long[s]).statistic for s in samples]
    low, high = np.nanquantile(taus, (0.025, 0.975))
    return f"  {name:<10} τ = {kendalltau(short, long).statistic:+.2f}  [{low:+.2f}, {high:+.2f}]"


if __name__ == "__main__":
    main(*sys.argv[1:])
