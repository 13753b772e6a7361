"""What an experiment hands over: tables that read alike in a terminal, as CSV and in the report, and pictures by name."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from evokd.akd.figures import Gap, Spread
from evokd.checkpoint import write_whole

Cell = str | int | float | Spread | Gap


class Picture(NamedTuple):
    """One drawing in two formats."""

    svg: str
    png: bytes


@dataclass(frozen=True)
class Table:
    """Rows of cells under their columns.

    Attributes:
        name: of its CSV file.
        title: above it.
        columns: their heads.
        rows: a cell a column.
        note: below it.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True)
class Results:
    """What an experiment found.

    Attributes:
        title: of the report.
        about: lines under it.
        tables: in order.
        pictures: file name without ending → picture.
        metrics: figures for tracking.
    """

    title: str
    about: Sequence[str]
    tables: Sequence[Table]
    pictures: dict[str, Picture] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


def told(cell: Cell) -> str:
    """A cell as people read it."""
    if isinstance(cell, Gap):
        bounds = f" [{cell.low:+.2f}, {cell.high:+.2f}]" if math.isfinite(cell.low) else ""
        return f"{cell.mean:+.2f}{bounds}" if math.isfinite(cell.mean) else "–"
    if isinstance(cell, Spread):
        half = f" ± {cell.half:.2f}" if math.isfinite(cell.half) else ""
        return f"{cell.mean:.2f}{half}" if math.isfinite(cell.mean) else "–"
    if isinstance(cell, float):
        return f"{cell:.2f}" if math.isfinite(cell) else "–"
    return f"{cell:,}" if isinstance(cell, int) else cell


def render(table: Table) -> list[str]:
    """A table as lines of equal columns: text to the left, figures to the right."""
    body = [[told(cell) for cell in row] for row in table.rows]
    widths = [max(map(len, column)) for column in zip(table.columns, *body, strict=True)]
    left = [all(isinstance(row[i], str) for row in table.rows) for i in range(len(widths))]

    def line(cells: Sequence[str]) -> str:
        placed = (c.ljust(w) if to_left else c.rjust(w) for c, w, to_left in zip(cells, widths, left, strict=True))
        return "  " + "   ".join(placed).rstrip()

    note = [f"  {table.note}"] if table.note else []
    return [table.title, line(table.columns), *map(line, body), *note]


def write_csv(folder: Path, table: Table) -> Path:
    """NAME.csv: an interval takes columns of its own, a figure that is not finite stays empty."""
    kinds = [
        next((type(row[i]) for row in table.rows if isinstance(row[i], Spread | Gap)), str) for i in range(len(table.columns))
    ]
    parts = {Spread: ("", "half"), Gap: ("", "low", "high")}
    heads = [f"{c} {p}".strip() for c, kind in zip(table.columns, kinds, strict=True) for p in parts.get(kind, ("",))]
    rows = [[v for cell in row for v in (cell if isinstance(cell, Spread | Gap) else (cell,))] for row in table.rows]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([heads, *([_plain(v) for v in row] for row in rows)])
    write_whole(folder / f"{table.name}.csv", text.getvalue())
    return folder / f"{table.name}.csv"


def _plain(value: str | float) -> str | int | float:
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else ""
    return value
