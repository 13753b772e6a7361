"""The closing table of a run as its journal tells it, and tables of finals and ablation as CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from evokd.finals import Entry, Row, row_of

if TYPE_CHECKING:
    from evokd.ablation import Ablated

REFERENCES = (
    "KD, tuned",
    "human-designed, distilled",
    "human-designed",
    "KD (",
)  # the first that a run has is what others are compared with
SIMPLEST = ", simplest within 1σ"
HEAD = ("table", "row", "mean", "half", "difference", "low", "high", "seeds", "loss")


def rows_of(events: Iterable[dict]) -> list[Row]:
    """Rows of the finals with paired differences to the row that the others are compared with; two rows of one loss are one here."""
    finals = [event for event in events if event["event"] == "final"]
    first = finals[0]["row"] if finals else ""  # named for the simplest too where both are one loss
    values: dict[str, list[float]] = {}
    entries: dict[str, Entry] = {}
    for event in finals:
        accuracy = event["accuracy"] if "accuracy" in event else event["metrics"].get("accuracy")
        row = event["row"].removesuffix(SIMPLEST) if event["row"] == first else event["row"]
        entries.setdefault(row, Entry(row, event.get("text"), event.get("gamma")))
        values.setdefault(row, []).append(math.nan if accuracy is None else accuracy)
    reference = next(
        (row for row in values if row.endswith(" alone") and "labels" not in row),  # a published loss to which terms were evolved
        next((row for start in REFERENCES for row in values if row.startswith(start)), None),
    )
    base = values.get(reference, [])
    whole = {row: row != reference and len(told) == len(base) for row, told in values.items()}
    return [row_of(entry, values[row], base if whole[row] else None) for row, entry in entries.items()]


def cells(rows: Sequence[Row], ablation: Sequence[Ablated]) -> list[tuple]:
    """Lines below `HEAD`: the finals, on test, and the ablation, on validation."""
    every = [("finals", row) for row in rows] + [("ablation", each.row) for each in ablation]
    return [_cell(table, row) for table, row in every]


def _cell(table: str, row: Row) -> tuple:
    numbers = [row.mean, row.half, *(row.difference or (math.nan,) * 3)]
    told = ["" if not math.isfinite(n) else round(n, 4) for n in numbers]
    return table, row.entry.name, *told, len(row.values), row.entry.text or ""


def as_csv(rows: Sequence[Row], ablation: Sequence[Ablated]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([HEAD, *cells(rows, ablation)])
    return text.getvalue()


def as_latex(rows: Sequence[Row], ablation: Sequence[Ablated]) -> str:
    """A booktabs table of the finals and one of the ablation, where there are any."""
    finals = "Test accuracy (\\%), mean and 95\\,\\% interval over {} fresh paired seeds; differences are paired."
    parts = (
        "Validation accuracy (\\%) of the found loss with one part changed, {} seeds; differences to the whole loss are paired."
    )
    tables = ((finals, rows), (parts, [each.row for each in ablation if each.row.values]))
    return "\n".join(_table(caption.format(len(rows[0].values)), rows) for caption, rows in tables if rows)


def _table(caption: str, rows: Sequence[Row]) -> str:
    body = [" & ".join((escaped(row.entry.name), *_numbers(row))) + r" \\" for row in rows]
    head = r" & accuracy & difference \\"
    top = [r"\begin{table}", rf"\caption{{{caption}}}", r"\begin{tabular}{lrr}", r"\toprule", head, r"\midrule"]
    return "\n".join([*top, *body, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _numbers(row: Row) -> tuple[str, str]:
    mean = f"${row.mean:.2f}" + (rf" \pm {row.half:.2f}$" if math.isfinite(row.half) else "$")
    return mean, "${:+.2f}$ [${:+.2f}$, ${:+.2f}$]".format(*row.difference) if row.difference else ""


MARKS = {"×": r"$\times$", "–": "--", "τ": r"$\tau$", "σ": r"$\sigma$", "γ": r"$\gamma$", "±": r"$\pm$"}


def escaped(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(MARKS.get(c, "\\" + c if c in "%_&#$" else c) for c in text)
