"""KD-Zero's table of pairs and DisWOT's Table 9 laid out again: what was run stands in its cell, what was not is quoted in brackets.

Runs are searches for a loss, `evokd distill` runs and `evokd compare losses` runs. A cell is quoted only for the data set and the pair
that it was published for; a pair that nobody published has a column of its own.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from evokd.config import read_config
from evokd.errors import EvokdError
from evokd.journal import read_events
from evokd.losses.known import KNOWN
from evokd.report.finals import escaped, rows_of

# KD-Zero (NeurIPS 2023), CIFAR-100 top-1 %, as on its slide, where the row of students is called Teacher too; None is printed as NA.
_PAIRS = (
    "wrn_40_2-wrn_16_2", "resnet110-resnet20", "resnet110-resnet32", "resnet32x4-resnet8x4", "vgg13-vgg8", "vgg13-MobileNetV2",
    "resnet32x4-ShuffleNetV2", "wrn_40_2-ShuffleNetV1", "resnet56-deit_tiny", "resnet56-t2t_vit_7",
)  # fmt: skip
_ROWS: dict[str, tuple[float | None, ...]] = {
    "Teacher": (75.61, 74.31, 74.31, 79.42, 74.64, 74.64, 79.42, 75.61, 72.34, 72.34),
    "Student": (73.26, 69.06, 71.14, 72.50, 70.36, 64.60, 71.82, 70.50, 65.08, 69.37),
    "FitNets": (73.58, 68.99, 71.06, 73.50, 71.02, 64.14, 73.54, 73.73, 70.82, 71.96),
    "AT": (74.08, 70.22, 72.31, 73.44, 71.43, 59.40, 72.73, 73.32, 73.51, 74.01),
    "SP": (73.83, 70.04, 72.69, 72.94, 72.68, 66.30, 74.56, 74.52, 67.36, 72.26),
    "RKD": (73.35, 69.25, 71.82, 71.90, 71.48, 64.52, 73.21, 72.21, 70.39, 71.88),
    "CRD": (75.48, 71.46, 73.48, 75.51, 73.94, 69.73, 75.65, 76.05, None, None),
    "SRRL": (75.46, 71.51, 73.80, 75.92, 73.23, 69.34, 75.66, 76.61, None, None),
    "KD": (74.92, 70.67, 73.08, 73.33, 72.98, 67.37, 74.45, 74.83, 73.25, 74.15),
    "DIST": (75.35, 71.68, 73.86, 75.79, 73.86, 69.17, 76.08, 75.85, 72.56, 73.86),
    "WSLD": (75.30, 71.53, 73.36, 74.79, 74.36, 68.79, 75.93, 75.09, 74.56, 75.28),
    "IPWD": (None, 71.32, 73.91, 76.03, None, None, None, 76.03, None, None),
    "KD-Zero": (76.42, 72.05, 74.19, 77.85, 75.26, 70.42, 77.45, 77.52, 78.25, 78.32),
}  # fmt: skip
KD_ZERO = {pair: {row: values[i] for row, values in _ROWS.items() if values[i] is not None} for i, pair in enumerate(_PAIRS)}
# DisWOT (CVPR 2023), Table 9: ResNet-18 on ImageNet-1k, top-1 %.
DISWOT_9 = {
    "resnet34-resnet18": {
        "Teacher": 73.40, "Student": 69.75, "KD": 70.66, "ESKD": 70.89, "ATKD": 70.78, "ONE": 70.55, "DML": 71.03,
        "CRD": 71.17, "DisWOT": 72.08,
    },
    "resnet50-resnet18": {
        "Teacher": 76.16, "Student": 69.75, "KD": 70.68, "ATKD": 70.72, "Review": 71.32, "OFD": 71.25, "DML": 71.13,
        "CRD": 71.20, "DisWOT": 72.30,
    },
}  # fmt: skip
NAMES = {
    "fitnet": "FitNets", "at": "AT", "sp": "SP", "crd": "CRD", "srrl": "SRRL", "kd": "KD", "dist": "DIST", "wsld": "WSLD", "ipwd": "IPWD",
    "atkd": "ATKD", "reviewkd": "Review",
}  # fmt: skip


class Ran(NamedTuple):
    """Test accuracies (%) of one method on one pair by seed, with the folder that tells them."""

    data: str
    pair: str
    method: str
    values: tuple[float, ...]
    run: str


class Cell(NamedTuple):
    """A figure of the table: its mean, half of its 95 % interval (NaN of a quoted one or of one seed), and the runs; none if quoted."""

    mean: float
    half: float
    runs: tuple[str, ...]

    def __str__(self) -> str:
        if not self.runs:
            return f"[{self.mean:.2f}]"
        return f"{self.mean:.2f}" + (f" ± {self.half:.2f}" if math.isfinite(self.half) else "")


Grid = Mapping[str, Mapping[str, Cell]]  # column → method → cell


def read_ran(folder: Path) -> list[Ran]:
    """What a folder tells.

    Raises:
        EvokdError: no search for a loss, full training or comparison of losses.
    """
    if (folder / "losses.csv").is_file():
        return _compared(folder)
    if (folder / "order.json").is_file():
        return _trained(folder)
    return _searched(folder)


def _compared(folder: Path) -> list[Ran]:
    found: dict[tuple[str, str], list[float]] = {}
    data = read_config(folder / "config.toml").data if (folder / "config.toml").is_file() else ""
    try:
        with (folder / "losses.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                pair = "-".join(part.strip() for part in row["pair"].split("→"))
                found.setdefault((pair, method_of(row["loss"])), []).append(float(row["accuracy"]))
    except (KeyError, ValueError, UnicodeDecodeError) as error:
        raise EvokdError(str(folder / "losses.csv"), "columns pair, loss, seed, accuracy", str(error)[:60]) from None
    return [Ran(Path(data).stem, pair, method, _finite(values), folder.name) for (pair, method), values in found.items()]


def _trained(folder: Path) -> list[Ran]:
    from evokd.training.order import read_order

    order = read_order(folder)
    values = [e["metrics"]["top1"] for e in read_events(folder) if e["event"] == "seed" and e["status"] == "ok"]
    known = next((name for name, text in KNOWN.items() if text == order.loss), order.loss or "plain")
    pair = f"{Path(order.teacher).stem or 'none'}-{order.student}"
    found = [Ran(Path(order.data).stem, pair, method_of(known), tuple(values), folder.name)]
    summary = folder / "summary.json"
    told = json.loads(summary.read_text(encoding="utf-8")).get("teacher", {}) if summary.is_file() else {}
    return found + ([Ran(Path(order.data).stem, pair, "Teacher", (told["top1"],), folder.name)] if "top1" in told else [])


def _searched(folder: Path) -> list[Ran]:
    config, events = read_config(folder / "config.toml"), read_events(folder)
    if config.task != "distiller":
        raise EvokdError(str(folder), "a search for a loss", f"one for a {config.task}")
    pair = f"{Path(config.teacher).stem}-{config.student}"
    return [Ran(Path(config.data).stem, pair, method_of(row.entry.name), row.values, folder.name) for row in rows_of(events)]


def method_of(name: str) -> str:
    """The row of a published loss, of plain training, of KD as published; any other keeps its name."""
    if name.startswith("plain"):
        return "Student"
    if name.startswith("KD (") and name.endswith("as published"):
        return "KD"
    return NAMES.get(name, name)


def _finite(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(v for v in values if math.isfinite(v))


def grid(runs: Sequence[Ran], published: Mapping[str, Mapping[str, float]], data: str) -> Grid:
    """Columns of the pairs that were run, or of all published ones; quoted where their data and pair are the table's."""
    pairs = list(dict.fromkeys((run.data, run.pair) for run in runs)) or [(data, pair) for pair in published]
    found: dict[str, dict[str, Cell]] = {}
    for where, pair in pairs:
        quoted = published.get(pair, {}) if where == data else {}
        cells = {method: Cell(value, math.nan, ()) for method, value in quoted.items()}
        mine = [run for run in runs if (run.data, run.pair) == (where, pair) and run.values]
        for method in dict.fromkeys(run.method for run in mine):
            cells[method] = _own([run for run in mine if run.method == method])
        found[pair if where == data else f"{pair} ({where})"] = cells
    return found


def _own(runs: Sequence[Ran]) -> Cell:
    from evokd.finals import interval

    values = [value for run in runs for value in run.values]
    mean, low, _ = interval(values) if len(values) > 1 else (statistics.fmean(values), math.nan, math.nan)
    return Cell(mean, mean - low, tuple(dict.fromkeys(run.run for run in runs)))


def kd_zero(folders: Sequence[Path], _: object = None) -> tuple[list[str], str, str]:
    """KD-Zero's CIFAR-100 table as lines, CSV and LaTeX: methods × pairs."""
    return _told("KD-Zero, CIFAR-100, top-1 %", folders, KD_ZERO, "cifar100")


def diswot9(folders: Sequence[Path], _: object = None) -> tuple[list[str], str, str]:
    """DisWOT's Table 9: one student under several teachers."""
    return _told("DisWOT, Table 9, ResNet-18 on ImageNet-1k, top-1 %", folders, DISWOT_9, "imagenet")


def _told(title: str, folders: Sequence[Path], published, data: str) -> tuple[list[str], str, str]:
    laid = grid([ran for folder in folders for ran in read_ran(folder)], published, data)
    return as_text(title, laid), as_csv(laid), as_latex(title, laid)


def methods(laid: Grid) -> list[str]:
    """Rows: teacher and student first, then as they come."""
    rest = dict.fromkeys(method for cells in laid.values() for method in cells)
    return [name for name in ("Teacher", "Student") if name in rest] + [m for m in rest if m not in ("Teacher", "Student")]


def as_text(title: str, laid: Grid) -> list[str]:
    rows = methods(laid)
    first = max((len(row) for row in rows), default=0) + 2
    widths = {name: max(len(name), 15) + 2 for name in laid}
    lines = [title, " " * first + "".join(f"{name:>{width}}" for name, width in widths.items())]
    for row in rows:
        cells = (f"{laid[name].get(row, '–')!s:>{width}}" for name, width in widths.items())
        lines.append(f"{row:<{first}}" + "".join(cells))
    return [*lines, "", "in brackets: not run, quoted as published; ± half of the 95 % interval over seeds"]


def as_csv(laid: Grid) -> str:
    text = io.StringIO()
    rows = [
        (
            pair,
            method,
            cell.mean,
            cell.half if math.isfinite(cell.half) else "",
            "run" if cell.runs else "published",
            " ".join(cell.runs),
        )
        for pair, cells in laid.items()
        for method, cell in cells.items()
    ]
    csv.writer(text, lineterminator="\n").writerows([("pair", "method", "accuracy", "half", "source", "runs"), *rows])
    return text.getvalue()


def as_latex(title: str, laid: Grid) -> str:
    """A booktabs table; figures that are quoted stand in brackets, and the caption says so."""
    body = [" & ".join([escaped(row), *(escaped(str(laid[p].get(row, "–"))) for p in laid)]) + r" \\" for row in methods(laid)]
    head = " & ".join(["", *map(escaped, laid)]) + r" \\"
    caption = rf"\caption{{{escaped(title)}. In brackets: not run, quoted as published.}}"
    top = [r"\begin{table}", caption, rf"\begin{{tabular}}{{l{'r' * len(laid)}}}", r"\toprule", head, r"\midrule"]
    return "\n".join([*top, *body, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])
