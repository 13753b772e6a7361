"""What a run says while it goes: a status line that moves in a terminal, calm lines when piped, nothing when quiet."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from evokd.finals import Entry, Row
    from evokd.run import Search

PIPED_PAUSE = 10.0  # seconds between two status lines of one kind when piped


class Terminal:
    """Writes to standard output; warnings go to standard error."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(quiet=quiet, highlight=False, soft_wrap=True)
        self.errors = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._spinner = self.console.status("") if self.console.is_terminal else None
        self._said: dict[str, float] = {}
        self._start = self._arm_time = time.perf_counter()
        self._arm: Search | None = None

    def say(self, text: str = "") -> None:
        self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        self.errors.print(f"warning: {text}", markup=False)

    def status(self, text: str) -> None:
        """One moving line; piped, at most one line of a kind every ten seconds."""
        if self._spinner:
            self._spinner.start()
            self._spinner.update(text)
            return
        kind, now = text.partition(":")[0], time.perf_counter()
        if now - self._said.get(kind, float("-inf")) >= PIPED_PAUSE:
            self._said[kind] = now
            self.say(f" {text}")

    def done(self) -> None:
        if self._spinner:
            self._spinner.stop()

    def opening(self, problem, folder: Path) -> None:
        """What is searched, as the problem tells it, and the head of the table of generations."""
        self.done()
        for line in problem.heading(folder):
            self.say(line)
        self.say(
            f"\n {'gen':>3} {'evals':>6} {'best':>8} {'median':>8}   funnel: proposed → new → sound → trained   seconds  best so far"
        )

    def candidate(self, search: Search) -> None:
        """The status line after a training."""
        total, done = search.budget.total, search.trained
        found = search.standing.best
        elapsed = time.perf_counter() - self._arm_start(search)
        best = f", best {found.outcome.fitness:.2f}" if found else ""
        left = f", {elapsed / done * (total - done):.0f} s to go" if elapsed > 1 and done else ""
        self.status(f"{search.name}: {done}/{total} trained{best}{left}")

    def _arm_start(self, search: Search) -> float:
        if self._arm is not search:
            self._arm, self._arm_time = search, time.perf_counter()
        return self._arm_time

    def generation(self, search: Search, row: dict) -> None:
        self.done()
        best = f"{row['best']:8.2f}" if row["best"] is not None else "       –"
        median = f"{row['median']:8.2f}" if row["median"] is not None else "       –"
        funnel = " → ".join(str(row[k]) for k in ("proposed", "new", "sound", "trained"))
        failed = f"  ({row['failed']} failed)" if row["failed"] else ""
        head = f" {row['generation']:>3} {row['evaluations']:>6} {best} {median}   {funnel:<40} {row['seconds']:>7.1f}"
        self.say(f"{head}  {row['best_text']}{failed}")

    def closing(self, search: Search, best: Entry, rows: Sequence[Row], hints: Sequence[str], ui: str) -> None:
        self.done()
        self.say(f"\n best  {best.text}\n       {origin(search, int(best.name))}\n")
        if rows:
            self.say(final_table(rows))
        self.say()
        for line in hints:
            self.say(f" {line}")
        if ui:
            self.say(f" MLflow UI:  {ui}")
        self.say(f" took {time.perf_counter() - self._start:.0f} s")


def final_table(rows: Sequence[Row]) -> str:
    """The closing table; every figure is a mean over fresh seeds on test."""
    count = len(rows[0].values)
    reference = next(r.entry.name for r in rows if r.difference is None)
    width = max(len(r.entry.name) for r in rows) + 3
    title = f" finals, {count} fresh seeds, test"
    lines = [f"{title:<{width}}   accuracy %      against {reference} (paired, 95 %)"]
    for row in rows:
        gap = "" if row.difference is None else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*row.difference)
        gamma = f"   γ={row.entry.gamma:g}" if row.entry.gamma is not None else ""
        figures = f"{row.mean:5.1f} ± {row.half:<4.1f}    {gap:<22}"
        lines.append(f"{'   ' + row.entry.name:<{width}}   {figures}{row.entry.text or 'cross-entropy alone'}{gamma}")
    return "\n".join(lines)


def origin(search: Search, best: int) -> str:
    """The winner's line of descent in one line: `from: random g0 → constant g2 → crossover g4`."""
    by_id = {i.id: i for i in search.individuals}
    steps, node = [], by_id[best]
    while True:
        steps.append(f"{node.op} g{node.generation}")
        if not node.parents:
            return "from: " + " → ".join(reversed(steps))
        node = by_id[node.parents[0]]
