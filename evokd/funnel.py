"""The funnel: what stands between a proposal and its full training, and what every gate saw, let through and cost.

Gates are plain functions, cheapest first; each returns the reason to refuse a candidate, or an empty text. Rungs are short trainings after
which the better part goes on. All of it is the same for every controller.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from evokd.genome.grammar import Tree
from evokd.genome.individual import Outcome, Status

Gate = Callable[[Tree], str]


@dataclass
class Passage:
    """What one gate or rung did: candidates that entered and left it, and the seconds that it took."""

    entered: int = 0
    left: int = 0
    seconds: float = 0.0


@dataclass
class Funnel:
    """Gates in their order, with a ledger of what passed since it was last closed.

    Args:
        gates: name → gate.
        admitted: called with every tree that has passed all of them.
    """

    gates: Mapping[str, Gate] = field(default_factory=dict)
    admitted: Callable[[Tree], None] = lambda tree: None
    ledger: dict[str, Passage] = field(default_factory=dict)

    def __call__(self, tree: Tree) -> str:
        """The first gate's reason to refuse a tree, or an empty text."""
        for name, gate in self.gates.items():
            with self.passing(name, 1) as passage:
                reason = gate(tree)
                passage.left += not reason
            if reason:
                return reason
        self.admitted(tree)
        return ""

    def recall(self, trees: Iterable[Tree]) -> None:
        """Remember what had passed all gates before a run was resumed."""
        for tree in trees:
            self.admitted(tree)

    @contextmanager
    def passing(self, name: str, entered: int) -> Iterator[Passage]:
        """The passage of a gate or rung, on the clock; what is inside says how many left it."""
        start, passage = time.perf_counter(), self.ledger.setdefault(name, Passage())
        passage.entered += entered
        yield passage
        passage.seconds += time.perf_counter() - start

    def close(self) -> dict[str, dict]:
        """What passed since the last call, as plain data for the journal."""
        told = {name: asdict(passage) | {"seconds": round(passage.seconds, 3)} for name, passage in self.ledger.items()}
        self.ledger.clear()
        return told


def merged(first: Mapping[str, Mapping], second: Mapping[str, Mapping]) -> dict[str, dict]:
    """Two ledgers as one."""
    told = {name: dict(passage) for name, passage in first.items()}
    for name, passage in second.items():
        before = told.setdefault(name, dict.fromkeys(passage, 0))
        told[name] = {key: round(before[key] + value, 3) for key, value in passage.items()}
    return told


def part_of(count: int, share: float) -> int:
    """A share of a count, rounded up: 0.4 of 30 is 12, whatever binary fractions make of it."""
    return math.ceil(round(share * count, 9))


def stopped(outcome: Outcome) -> bool:
    """Whether a rung was a candidate's end, by its place or by a failure."""
    return outcome.reason.startswith("rung ")


def passed(outcome: Outcome) -> bool:
    """Whether a candidate got through all gates: what a rung has stopped did."""
    return outcome.status is not Status.REJECTED or stopped(outcome)


def funnel_rows(generations: Iterable[Mapping]) -> dict[str, Passage]:
    """The funnel of some generations together, from their events: proposals, new ones, every gate and rung, and what was trained."""
    rows: dict[str, Passage] = {}

    def add(name: str, entered: int, left: int, seconds: float) -> None:
        row = rows.setdefault(name, Passage())
        row.entered, row.left, row.seconds = row.entered + entered, row.left + left, row.seconds + seconds

    for event in generations:
        add("duplicates", event["proposed"], event["new"], 0.0)
        before = sum(each["seconds"] for each in event.get("funnel", {}).values())
        for name, each in event.get("funnel", {}).items():
            add(name, each["entered"], each["left"], each["seconds"])
        add(
            "training",
            event["trained"],
            event.get("finished", event["trained"] - event["failed"]),
            max(event["seconds"] - before, 0.0),
        )
    return rows


def told_funnel(rows: Mapping[str, Passage]) -> list[str]:
    """One line a gate: how many entered and left it, and its seconds, all of them and of one candidate."""
    lines = [f" {'funnel':<14}{'entered':>9}{'left':>8}{'seconds':>10}{'each':>12}"]
    for name, row in rows.items():
        each = f"{1000 * row.seconds / row.entered:9.1f} ms" if row.entered and row.seconds else ""
        lines.append(f"   {name:<12}{row.entered:>9}{row.left:>8}{row.seconds:>10.1f}{each:>12}")
    return lines


def reasons(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """How often each sort of refusal or failure came, the commonest first; numbers in a reason do not make it another."""
    found: dict[str, int] = {}
    for outcome in outcomes:
        if outcome.reason:
            kind = "".join("#" if c.isdigit() else c for c in outcome.reason.partition(":")[0])
            found[kind] = found.get(kind, 0) + 1
    return dict(sorted(found.items(), key=lambda each: -each[1]))
