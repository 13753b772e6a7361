"""Whether a candidate costs more the more there were before it: python -m tests.bench.growth [CANDIDATES]

search   evolution on a language of sums, told made-up outcomes as long as real ones, journalled as in a run: CPU microseconds of a
         candidate by tenths of the search, as ratios to the second tenth (the first has the caches to fill)
copies   one look-up among so many remembered fingerprints
memory   bytes of an individual with its outcome, by tracemalloc
"""

import statistics
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np

from evokd.evaluate.fingerprint import SIZE, Copies, Fingerprint
from evokd.genome.individual import Outcome, Status
from evokd.journal import Journal
from evokd.report.terminal import Terminal
from evokd.run import Budget, Search
from evokd.search.evolution import Evolution
from tests.bench.ratios import machine, write_rows
from tests.toy import toy_grammar, value_of

POPULATION = 50


def judge(tree) -> Outcome:
    """As long as an outcome of the default search is."""
    value = 1.0 / (1.0 + abs(value_of(tree) - 1000.0))
    figures = {name: value for name in ("accuracy", "ce", "agreement", "sharpness_gap", "cka", "gap", "gap_printed", "size")}
    curve = [(step, 1.0 + value * step, 2.0 + value * step) for step in range(0, 150, 15)]
    return Outcome(Status.OK, value, figures | {"fitness_by_seed": [value, value + 1, value + 2], "curve": curve}, seconds=1.0)


def searched(count: int, folder: Path) -> tuple[Search, list[float]]:
    """A finished search, and CPU seconds of a candidate in each generation."""
    grammar, spent = toy_grammar(8), []
    budget = Budget(count // POPULATION, POPULATION)
    controller = Evolution(grammar, POPULATION)
    search = Search("growth", grammar, controller, lambda tree: "", lambda batch: map(judge, batch), budget, 0)
    search.journal, terminal, last = Journal(folder), Terminal(quiet=True), [time.process_time()]

    def notice(row: dict | None) -> None:
        if row is None:
            terminal.candidate(search)
            return
        now = time.process_time()
        spent.append((now - last[0]) / max(row["sound"], 1))
        last[0] = now

    search.notice = notice
    search.run()
    search.journal.close()
    return search, spent


def by_tenths(spent: list[float]) -> list[tuple]:
    part = max(len(spent) // 10, 1)
    medians = [statistics.median(spent[at : at + part]) for at in range(0, 10 * part, part)]
    return [("search", f"tenth {n}", m * 1e6, m / medians[1]) for n, m in enumerate(medians, 1)]


class Recalled(Copies):
    """Whose fingerprints are made up."""

    def fingerprint(self, tree):
        return tree


def looked_up(counts: tuple[int, ...]) -> list[tuple]:
    draw, copies, rows = np.random.default_rng(0), Recalled(()), []
    for count in counts:
        while len(copies.texts) < count:
            copies.remember(_direction(draw), str(len(copies.texts)))
        asked = [_direction(draw) for _ in range(200)]
        times = []
        for each in asked:
            start = time.process_time()
            copies.copy_of(each)
            times.append(time.process_time() - start)
        middle = statistics.median(times) * 1e6
        rows.append(("copies", f"among {count}", middle, middle / (rows[0][2] if rows else middle)))
    return rows


def _direction(draw: np.random.Generator) -> Fingerprint:
    vector = draw.standard_normal(SIZE)
    return Fingerprint(vector / np.linalg.norm(vector), float(draw.random()))


def remembered(count: int) -> float:
    """Bytes that a search keeps for an individual."""
    with tempfile.TemporaryDirectory() as folder:
        tracemalloc.start()
        search, _ = searched(count, Path(folder))
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return size / len(search.individuals)


def main(count: int = 100_000) -> None:
    with tempfile.TemporaryDirectory() as folder:
        search, spent = searched(count, Path(folder))
        print(f"{machine()}\n{len(search.individuals):,} individuals, {len(spent):,} generations, CPU µs each", flush=True)
    rows = by_tenths(spent) + looked_up((1_000, 10_000, count))
    rows.append(("memory", f"of {count // 10} individuals, bytes each", remembered(count // 10), float("nan")))
    for part, case, value, ratio in rows:
        print(f"  {part:<7} {case:<38}{value:10.1f}   × {ratio:.3f}")
    write_rows("growth", [("part", "case", "value", "ratio"), *rows])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
