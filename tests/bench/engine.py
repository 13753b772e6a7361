"""What proposing, deduplicating, journalling and tracking cost beside the trainings of the default run."""

import tempfile
import time
from pathlib import Path

from evokd.config import make_config
from evokd.genome.individual import Outcome, Status
from evokd.journal import Journal
from evokd.mirror import Mirror
from evokd.problem import open_problem
from evokd.run import Budget, arm
from evokd.search.evolution import Evolution
from evokd.streams import stream


class Instant:
    """An executor that answers at once with made-up outcomes."""

    def map(self, jobs, ahead=None):
        for job in jobs:
            value = stream(0, job.key).random()
            curve = [(step, 1.0, 1.0) for step in range(0, 150, 15)]
            yield Outcome(Status.OK, value, {"accuracy": value, "fitness_by_seed": [value] * 3, "curve": curve})


def main() -> None:
    with tempfile.TemporaryDirectory() as out:
        config = make_config({"out": out, "workers": 1})
        problem = open_problem(config, lambda line: None)
        candidate = _training(problem)
        folder = Path(out) / "run"
        folder.mkdir()
        for name in ("config.toml", "space.toml", "environment.txt"):
            (folder / name).write_text("")
        problem.executor = Instant()
        for tracking in ("none", None):
            seconds = _engine(problem, folder, tracking)
            count = config.generations * config.population
            share = seconds / (seconds + candidate * count / 2)
            name = "off" if tracking else "SQLite"
            print(
                f"tracking {name}: {seconds / count * 1e3:.1f} ms a candidate, {100 * share:.1f} % of a search on two cores",
                flush=True,
            )


def _training(problem) -> float:
    """CPU seconds of one candidate of the default run."""
    job = problem.job(Evolution(problem.grammar, 16).ask(0, stream(0, "bench")), (1, 2, 3))
    start = time.process_time()
    next(iter(problem.executor.map([job])))
    seconds = time.process_time() - start
    print(f"one candidate: {seconds:.2f} s of one core")
    return seconds


def _engine(problem, folder: Path, tracking: str | None) -> float:
    config = problem.config.model_copy(update={"tracking_uri": tracking})
    problem.config = config
    (folder / "events.jsonl").unlink(missing_ok=True)
    mirror = Mirror(problem, folder, print)
    search = arm(
        problem, "evolution", Evolution(problem.grammar, config.population), Budget(config.generations, config.population), 1
    )
    search.journal = Journal(folder)
    search.notice = lambda row: row and mirror.generation(search, row)
    gate, spent = problem.funnel(), [0.0]

    def timed(tree):
        start = time.perf_counter()
        reason = gate(tree)
        spent[0] += time.perf_counter() - start
        return reason

    search.gate = timed
    if mirror.tracker:
        mirror.tracker._thread.submit(lambda: None).result()  # MLflow is imported and its store made while a run prepares
    start = time.perf_counter()
    search.run()
    mirror.finish([], [])
    total = time.perf_counter() - start
    print(f"  of which the gate: {spent[0]:.2f} s, in all {total:.2f} s")
    return total - spent[0]


if __name__ == "__main__":
    main()
