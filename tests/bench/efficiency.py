"""What the funnel saves: best so far against seconds of finished runs with and without rungs, and their winners on test.

python -m tests.bench.efficiency RUN…      run folders of one protocol; they are told apart by `funnel.rungs` and `funnel.tune`
"""

import statistics
import sys
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from evokd.config import read_config
from evokd.journal import read_events

Curve = list[tuple[float, float]]  # (seconds, best so far)


def main(*folders: str) -> None:
    arms: dict[str, list[tuple[Curve, float]]] = {}
    for folder in map(Path, folders):
        arms.setdefault(arm_of(folder), []).append((curve(folder), tested(folder)))
    for name, runs in arms.items():
        took, ends = zip(*(points[-1] for points, _ in runs), strict=True)
        tests = spread([accuracy for _, accuracy in runs])
        print(f"{name}, {len(runs)} runs: validation {spread(ends)} in {spread(took)} s, test {tests}")
        for seconds in (10, 20, 30, 40, 60, 80, 120):
            print(f"   after {seconds:>3} s: " + "  ".join(f"{at(points, seconds):6.2f}" for points, _ in runs))
    for name, runs in arms.items():
        for other, rivals in arms.items():
            if name != other:
                print(f"{name} reaches the end of {other}: {reached(runs, rivals)}")


def arm_of(folder: Path) -> str:
    funnel = read_config(folder / "config.toml").funnel
    return ("funnel" if funnel.rungs else "no funnel") + (f", {funnel.tune} tunings" if funnel.tune else "")


def curve(folder: Path) -> Curve:
    summaries = [event for event in read_events(folder) if event["event"] == "generation"]
    return list(zip(accumulate(s["seconds"] for s in summaries), [s["best"] or 0.0 for s in summaries], strict=True))


def tested(folder: Path) -> float:
    """Mean test accuracy of the first row of the finals."""
    finals = [event for event in read_events(folder) if event["event"] == "final"]
    return statistics.fmean(event["metrics"]["accuracy"] for event in finals if event["row"] == finals[0]["row"])


def at(points: Curve, seconds: float) -> float:
    return max((best for when, best in points if when <= seconds), default=float("nan"))


def reached(runs: list, rivals: list) -> str:
    """Seconds until the median best of some runs is the median of the others' ends, beside the time that these took."""
    goal = statistics.median(points[-1][1] for points, _ in rivals)
    took = statistics.median(points[-1][0] for points, _ in rivals)
    for seconds in sorted({when for points, _ in runs for when, _ in points}):
        values = [at(points, seconds) for points, _ in runs]
        if all(value == value for value in values) and statistics.median(values) >= goal:
            return f"{goal:.2f} after {seconds:.0f} s, which took {took:.0f} s there: × {seconds / took:.2f}"
    return f"never {goal:.2f}"


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


if __name__ == "__main__":
    main(*sys.argv[1:])
