"""A comparison of losses as it is told: lines for a terminal, the verdict, and its tables as files."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evokd.checkpoint import write_whole
from evokd.compare.loss_plan import KD, PLAIN, TUNED, Entrant, Plan
from evokd.compare.standings import Ranks, Standing, luck, noise, ranks, standings
from evokd.report.losses import write_page


@dataclass(frozen=True)
class Tuning:
    """What became of a hand-made loss.

    Attributes:
        name: of the loss.
        trials: its trainings; 0 where it was refused.
        published: its fitness on validation as published.
        best: its best variant, None where none came to an end.
        reason: why it was refused.
        goes_on: whether it is told on test.
    """

    name: str
    trials: int = 0
    published: float | None = None
    best: Entrant | None = None
    reason: str = ""
    goes_on: bool = False


@dataclass(frozen=True)
class Compared:
    """What a comparison hands over.

    Attributes:
        plan: what was compared.
        folder: where it lies.
        heading: lines that tell the pair.
        entrants: rows, the reference first.
        tunings: hand-made losses, the best first.
        values: pair → row → test accuracy by seed, NaN where a training failed.
        connectors: pair → row → parameters of its connectors.
    """

    plan: Plan
    folder: Path
    heading: list[str]
    entrants: tuple[Entrant, ...]
    tunings: list[Tuning]
    values: dict[str, dict[str, list[float]]]
    connectors: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        return self.entrants[0].name

    @property
    def standings(self) -> dict[str, list[Standing]]:
        """Pair → its losses, the best first."""
        return {pair: standings(rows, self.reference) for pair, rows in self.values.items()}

    @property
    def ranks(self) -> Ranks | None:
        """Over pairs where there are three or more; over all seeds of all pairs otherwise."""
        if len(self.values) > 2:
            return ranks([{n: statistics.fmean(v) for n, v in rows.items()} for rows in self.values.values()])
        blocks = [{n: v[seed] for n, v in rows.items()} for rows in self.values.values() for seed in range(self.plan.seeds)]
        return ranks(blocks)

    @property
    def best_hand_made(self) -> dict[str, Standing]:
        """Pair → the hand-made loss with the best mean on test there, which flatters it: it is the best of several."""
        names = {each.name for each in self.entrants if each.name in self.hand_made}
        found = {pair: [row for row in rows if row.name in names] for pair, rows in self.standings.items()}
        return {pair: rows[0] for pair, rows in found.items() if rows}

    @property
    def hand_made(self) -> set[str]:
        return {KD, TUNED, *(f"{tuning.name}, tuned" for tuning in self.tunings)}

    @property
    def by_search(self) -> set[str]:
        """Rows whose form was searched for."""
        return {each.name for each in self.entrants} - self.hand_made - {PLAIN}

    @property
    def sigma(self) -> float:
        """Standard deviation between seeds on the first pair."""
        return noise(next(iter(self.values.values()), {}))


def told(compared: Compared) -> list[str]:
    """Lines for a terminal: every pair's table, then what luck would have given."""
    lines = []
    width = max(len(each.name) for each in compared.entrants) + 2
    for pair, rows in compared.standings.items():
        lines += ["", f"{pair}: test accuracy %, mean ± 95 %; {compared.reference} − row, paired by seed; p after Holm"]
        lines += [_told_row(row, width) for row in rows]
    return [*lines, "", *verdict(compared)]


def _told_row(row: Standing, width: int) -> str:
    if not row.seeds:
        return f"  {row.name:<{width}}no figure: see events.jsonl"
    gap = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*row.difference) if row.difference else ""
    corrected = f"  p {row.holm:.3f}" if row.difference else ""
    return f"  {row.name:<{width}}{row.mean:7.2f} ± {row.half:<6.2f}{gap:<24}{corrected}"


def verdict(compared: Compared) -> list[str]:
    """The reference against the best hand-made loss of every pair, and the optimism of a best of many."""
    lines = []
    for pair, best in compared.best_hand_made.items():
        if best.difference:
            mean, low, high = best.difference
            word = "ahead of" if low > 0 else "behind" if high < 0 else "not told apart from"
            lines.append(
                f"{pair}: {compared.reference} is {word} the best hand-made row, {best.name}, by {mean:+.2f} [{low:+.2f}, {high:+.2f}]"
            )
    return [*lines, *_told_luck(compared)]


def _told_luck(compared: Compared) -> list[str]:
    first, count, sigma = compared.entrants[0], compared.plan.searched, compared.sigma
    if not count or not math.isfinite(sigma):
        return []
    found = f"; its winner had {first.found:.2f} on validation after confirmation" if first.found is not None else ""
    return [
        f"luck: seeds of one loss differ by σ = {sigma:.2f}, so that the best of {count} equal candidates, each trained once, would look "
        f"{luck(count):.1f} σ = {luck(count) * sigma:.2f} points better than it is{found}"
    ]


def written(compared: Compared) -> Compared:
    """losses.csv, standings.csv, tuning.csv, the pictures and losses.html in the folder of the comparison."""
    folder = compared.folder
    seeds = [
        [pair, name, n, v] for pair, rows in compared.values.items() for name, each in rows.items() for n, v in enumerate(each)
    ]
    _write_csv(folder / "losses.csv", [["pair", "loss", "seed", "accuracy"], *seeds])
    _write_csv(folder / "standings.csv", [STANDINGS, *_standing_rows(compared)])
    _write_csv(folder / "tuning.csv", [TUNINGS, *(_tuning_row(tuning) for tuning in compared.tunings)])
    write_page(folder, compared, verdict(compared))
    return compared


STANDINGS = [
    "pair",
    "loss",
    "mean",
    "half",
    "difference",
    "low",
    "high",
    "p",
    "p_holm",
    "seeds",
    "connectors",
    "trials",
    "gamma",
    "text",
]
TUNINGS = ["loss", "trials", "published", "tuned", "goes_on", "gamma", "text", "reason"]


def _standing_rows(compared: Compared) -> Iterator[list]:
    entrants = {each.name: each for each in compared.entrants}
    for pair, rows in compared.standings.items():
        for row in rows:
            entrant = entrants[row.name]
            own = [compared.connectors.get(pair, {}).get(row.name, 0), entrant.trials, entrant.gamma, entrant.text]
            yield [pair, row.name, row.mean, row.half, *(row.difference or ("", "", "")), row.p, row.holm, row.seeds, *own]


def _tuning_row(tuning: Tuning) -> list:
    best = [tuning.best.found, tuning.goes_on, tuning.best.gamma, tuning.best.text] if tuning.best else ["", False, "", ""]
    return [tuning.name, tuning.trials, tuning.published, *best, tuning.reason]


def _write_csv(path: Path, rows: Iterable[Sequence]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_whole(path, text.getvalue())
