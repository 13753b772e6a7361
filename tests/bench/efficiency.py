"""What the funnel saves: best so far against the cost of finished runs with and without rungs, and their winners on test.

Cost is told in full trainings, rungs by their share of steps and seeds, and in seconds, which compare only where the machine was as busy.

python -m tests.bench.efficiency trainings|seconds RUN…     folders of one protocol, told apart by `funnel.rungs` and `funnel.tune`
python -m tests.bench.efficiency stock SEEDS RUN…           the same by trainings, beside a stock DEAP loop, which is run now

The stock loop is eaSimple on the same space and evaluator. It trains duplicates again, which costs it a training, though it is not done
here, as their outcome is known.
"""

import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from deap import algorithms, tools

from evokd.config import Config, make_config, read_config
from evokd.genome.individual import Individual
from evokd.journal import read_events
from evokd.problem import Problem, open_problem
from evokd.run import evaluation_seeds
from evokd.streams import lend, stream
from tests.bench.funnel import CROSSED, MUTATED, stock_toolbox

Curve = list[tuple[float, float]]  # (cost or seconds, best so far)


TRAININGS, SIZE = 72, 12  # of the stock loop


def main(unit: str, *folders: str) -> None:
    arms: dict[str, list[tuple[Curve, float]]] = {}
    if unit == "stock":
        count, *folders = folders
        unit, arms["stock"] = "trainings", [(points, float("nan")) for points in stock_curves(int(count))]
    for folder in map(Path, folders):
        arms.setdefault(arm_of(folder), []).append((curve(folder, unit), tested(folder)))
    for name, runs in arms.items():
        took, ends = zip(*(points[-1] for points, _ in runs), strict=True)
        tests = spread([accuracy for _, accuracy in runs])
        print(f"{name}, {len(runs)} runs: validation {spread(ends)} in {spread(took)} {unit}, test {tests}")
        for seconds in (12, 24, 36, 48, 60, 72, 84):
            print(f"   after {seconds:>3} {unit}: " + "  ".join(f"{at(points, seconds):6.2f}" for points, _ in runs))
    for name, runs in arms.items():
        for other, rivals in arms.items():
            if name != other:
                print(f"{name} reaches the end of {other}: {reached(runs, rivals)}")


def arm_of(folder: Path) -> str:
    funnel = read_config(folder / "config.toml").funnel
    return ("funnel" if funnel.rungs else "no funnel") + (f", {funnel.tune} tunings" if funnel.tune else "")


def curve(folder: Path, unit: str) -> Curve:
    summaries = [event for event in read_events(folder) if event["event"] == "generation"]
    config = read_config(folder / "config.toml")
    cost = [s["seconds"] if unit == "seconds" else trainings(s, config) for s in summaries]
    return list(zip(accumulate(cost), [s["best"] or 0.0 for s in summaries], strict=True))


def trainings(summary: dict, config: Config) -> float:
    """Full trainings that a generation cost."""
    repeats, spared, cost = config.protocol.repeats, 0, 0.0
    for number, (steps, seeds, _) in enumerate(config.rungs, 1):
        cost += summary["funnel"][f"rung {number}"]["entered"] * steps * seeds / repeats
        spared = seeds if steps == 1 else spared
    return cost + summary["trained"] * (repeats - spared) / repeats


def tested(folder: Path) -> float:
    """Mean test accuracy of the first row of the finals."""
    finals = [event for event in read_events(folder) if event["event"] == "final"]
    return statistics.fmean(event["metrics"]["accuracy"] for event in finals if event["row"] == finals[0]["row"])


def stock_curves(count: int) -> list[Curve]:
    problem = open_problem(make_config({"tracking_uri": "none", "population": SIZE}), lambda line: None)
    curves = [Stocked(problem, seed).curve for seed in range(1, count + 1)]
    problem.executor.close()
    return curves


class Stocked:
    """eaSimple with the default search's protocol, until it has spent its trainings."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self.problem, self.known, self.curve = problem, {}, []
        self.seeds, self.spent, self.best = evaluation_seeds(seed, "search", problem.config.protocol.repeats), 0, 0.0
        toolbox = stock_toolbox(problem.grammar, Counter())
        toolbox.register("evaluate", lambda tree: (0.0,))
        toolbox.register("map", lambda evaluate, trees: self.evaluate(list(trees)))
        with lend(stream(seed, "bench", "stock")):
            population = tools.initRepeat(list, toolbox.individual, SIZE)
            algorithms.eaSimple(population, toolbox, CROSSED, MUTATED, 3 * TRAININGS // SIZE, verbose=False)
        print(f"  stock, seed {seed}: {self.spent} trainings of {len(self.known)} losses, best {self.best:.2f}", flush=True)

    def evaluate(self, trees: Sequence[list]) -> list[tuple[float]]:
        """Fitness of each tree; 0 beyond the budget, where nothing is trained."""
        grammar, paid = self.problem.grammar, [self.problem.grammar.canonical(tree) for tree in trees[: TRAININGS - self.spent]]
        texts = [grammar.write(tree) for tree in paid]
        new = {text: tree for text, tree in zip(texts, paid, strict=True) if text not in self.known}
        jobs = [self.problem.job(Individual(tree), self.seeds) for tree in new.values()]
        for text, outcome in zip(new, self.problem.executor.map(jobs), strict=True):
            self.known[text] = outcome.fitness or 0.0
        self.spent += len(texts)
        found = [self.known[text] for text in texts] + [0.0] * (len(trees) - len(texts))
        self.best = max([self.best, *found])
        if texts:
            self.curve.append((float(self.spent), self.best))
        return [(each,) for each in found]


def at(points: Curve, seconds: float) -> float:
    return max((best for when, best in points if when <= seconds), default=float("nan"))


def reached(runs: list, rivals: list) -> str:
    """Cost until the median best of some runs is the median of the others' ends, beside the time that these took."""
    goal = statistics.median(points[-1][1] for points, _ in rivals)
    took = statistics.median(points[-1][0] for points, _ in rivals)
    for seconds in sorted({when for points, _ in runs for when, _ in points}):
        values = [at(points, seconds) for points, _ in runs]
        if all(value == value for value in values) and statistics.median(values) >= goal:
            return f"{goal:.2f} after {seconds:.0f}, which took {took:.0f} there: × {seconds / took:.2f}"
    return f"never {goal:.2f}"


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


if __name__ == "__main__":
    main(*sys.argv[1:])
