"""What tracking costs a search: `python -m tests.bench.tracking [OUT]`. Seconds on MLflow's thread, by call, against those of the search.

The search is one on digits whose trainings cost nothing, so that what remains is the search itself and its mirror; the file holds absolute
seconds, to be set against the time of the search that one has in mind.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import wraps

from evokd import evolve_distiller
from evokd.journal import individuals, read_events
from evokd.store import Store

CALLS = ("open", "generation", "child", "files", "winner", "finish")
TINY = {
    "student": "conv3w8",
    "teacher": "resnet8w8",
    "teacher_epochs": 3,
    "workers": 1,
    "generations": 6,
    "population": 12,
    "quiet": True,
}


def counted(spent: Counter, name: str, call: Callable) -> Callable:
    """The call, with its seconds of processor time and of the clock added up."""

    @wraps(call)
    def timed(*args):
        before, start = time.thread_time(), time.perf_counter()
        try:
            return call(*args)
        finally:
            spent[name, "processor"] += time.thread_time() - before
            spent[name, "clock"] += time.perf_counter() - start

    return timed


def measure(out: str, children: str) -> tuple[Counter, int]:
    """(seconds by call and kind, candidates) of one search."""
    spent: Counter = Counter()
    kept = {name: getattr(Store, name) for name in CALLS}
    for name, call in kept.items():
        setattr(Store, name, counted(spent, name, call))
    try:
        scores = iter(range(10_000))
        result = evolve_distiller(**TINY, out=out, children=children, evaluate=lambda loss: float(next(scores)), seed=1)
    finally:
        for name, call in kept.items():
            setattr(Store, name, call)
    return spent, len(list(individuals(read_events(result.run))))


def main() -> None:
    out = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
    for children in ("none", "elites", "all"):
        spent, count = measure(out, children)
        print(f"children {children}: {count} candidates")
        for name in CALLS:
            print(f"  {name:<12}{spent[name, 'processor']:8.3f} s processor {spent[name, 'clock']:8.3f} s clock")
        each = 1000 * sum(spent[name, "processor"] for name in ("generation", "child")) / count
        print(f"  generations and children: {each:.2f} ms of processor time a candidate\n")


if __name__ == "__main__":
    main()
