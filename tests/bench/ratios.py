"""Paired, interleaved timing: every round times every case once, and ratios are taken within rounds."""

import csv
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path


def rounds(cases: dict[str, Callable[[], float]], count: int) -> dict[str, list[float]]:
    """Seconds of each case in each round, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(count + 1):
        for name, case in cases.items():
            seconds = case()
            if number:
                times[name].append(seconds)
    return times


def table(times: dict[str, list[float]], reference: str, title: str) -> str:
    """Median seconds, and median ratio to the reference with the quartiles of the rounds; also a CSV under runs/."""
    rows = []
    for name, seconds in times.items():
        ratios = [a / b for a, b in zip(seconds, times[reference], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows.append((name, statistics.median(seconds), middle, low, high))
    write_rows(title, [("case", "seconds", "ratio", "low", "high"), *rows])
    width = max(len(r[0]) for r in rows)
    lines = [f"{title}: {machine()}, {len(times[reference])} rounds, against {reference!r}"]
    lines += [f"  {n:<{width}}  {s * 1e3:9.2f} ms   × {m:.3f}  [{lo:.3f}, {hi:.3f}]" for n, s, m, lo, hi in rows]
    return "\n".join(lines)


def write_rows(title: str, rows: Sequence[Sequence]) -> None:
    """A CSV under runs/, its first column the machine."""
    path = Path("runs") / f"bench-{title}.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("machine", *rows[0]), *((machine(), *row) for row in rows[1:])])


def machine() -> str:
    """Processor, cores, system and load."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {platform.platform()}, load {os.getloadavg()[0]:.1f}"


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
