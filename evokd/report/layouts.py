"""Published tables laid out again from run folders: what was run stands in its row, what was not is quoted as published.

`diswot8` is Table 8 of DisWOT (CVPR 2023): type, method, accuracy of the found cell after distillation, seconds of search, speed-up.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from evokd.config import read_config
from evokd.errors import EvokdError
from evokd.evaluate.tabular import Table
from evokd.journal import individuals, read_events
from evokd.report.papers import diswot9, kd_zero

TYPES = {  # method → type, in the order of the table
    "RS": "multi-trial", "RL": "multi-trial", "BOHB": "multi-trial", "RSPS": "weight-sharing", "GDAS": "weight-sharing",
    "DARTS": "weight-sharing", "NWOT": "training-free", "TE-NAS": "training-free", "DisWOT": "DisWOT", "DisWOT, M_r": "DisWOT",
}  # fmt: skip
SETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet16": "ImageNet-16-120"}


class Figure(NamedTuple):
    """A published cell: accuracy (%), thousands of seconds, speed-up as printed."""

    accuracy: float
    kiloseconds: float
    speedup: float


# As printed. Several of the accuracies are, to the digit, NAS-Bench-201's own, without distillation (RL and GDAS on CIFAR-100).
PUBLISHED: dict[str, dict[str, Figure]] = {
    "cifar10": {
        "RS": Figure(93.63, 216, 1.0), "RL": Figure(92.83, 216, 1.0), "BOHB": Figure(93.49, 216, 1.0),
        "RSPS": Figure(91.67, 10, 21.6), "GDAS": Figure(93.39, 22, 12.0), "DARTS": Figure(89.22, 23, 9.4),
        "NWOT": Figure(93.73, 2.2, 100), "TE-NAS": Figure(93.92, 2.2, 100), "DisWOT": Figure(93.55, 1.2, 180),
        "DisWOT, M_r": Figure(93.49, 0.72, 300),
    },
    "cifar100": {
        "RS": Figure(71.28, 460, 1.0), "RL": Figure(71.71, 460, 1.0), "BOHB": Figure(70.84, 460, 1.0),
        "RSPS": Figure(57.99, 46, 21.6), "GDAS": Figure(70.70, 39, 11.7), "DARTS": Figure(66.24, 80, 5.8),
        "NWOT": Figure(73.31, 4.6, 100), "TE-NAS": Figure(71.24, 4.6, 100), "DisWOT": Figure(74.21, 9.2, 180),
        "DisWOT, M_r": Figure(73.62, 18.4, 300),
    },
    "imagenet16": {
        "RS": Figure(44.88, 1000, 1.0), "RL": Figure(44.35, 1000, 1.0), "BOHB": Figure(44.33, 1000, 1.0),
        "RSPS": Figure(36.87, 104, 9.6), "GDAS": Figure(42.35, 130, 7.7), "DARTS": Figure(43.18, 110, 9.1),
        "NWOT": Figure(45.43, 10, 100), "TE-NAS": Figure(44.38, 10, 100), "DisWOT": Figure(47.30, 20, 180),
        "DisWOT, M_r": Figure(45.63, 40, 300),
    },
}  # fmt: skip


class Ran(NamedTuple):
    """What a run folder says.

    Attributes:
        method: a row of the table, or a name of its own.
        data: a key of `SETS`, or the data set's name.
        accuracies: test accuracy (%) of the found student by final seed, distilled; empty without finals.
        tabulated: published accuracy (%) of the found cell on the same data, where the table is at hand and has it.
        seconds: of the search; simulated ones where it read a table.
        run: name of the folder.
    """

    method: str
    data: str
    accuracies: tuple[float, ...]
    tabulated: float | None
    seconds: float
    run: str


class Line(NamedTuple):
    """A row laid out; None where nothing can be said."""

    type: str
    method: str
    accuracy: float | None
    seconds: float | None
    speedup: float | None
    source: str


def read_ran(folder: Path, table: Table | None) -> Ran:
    """A one-shot search or a search for a student.

    Raises:
        EvokdError: neither, or one that has not ended.
    """
    return _one_shot(folder, table) if (folder / "result.json").is_file() else _searched(folder, table)


def _one_shot(folder: Path, table: Table | None) -> Ran:
    try:
        told = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        values = tuple(float(v) for v in told.get("distilled", ()))
        data, text, seconds = set_of(told["data"]), str(told["architecture"]), float(told["search_seconds"])
        return Ran(str(told["method"]).upper(), data, values, _tabulated(table, text, data), seconds, folder.name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        got = f"{type(error).__name__}: {error}"[:80]
        raise EvokdError(str(folder / "result.json"), "the result of a one-shot search", got) from None


def _searched(folder: Path, table: Table | None) -> Ran:
    events = read_events(folder)
    config = read_config(folder / "config.toml")
    if config.task != "student":
        raise EvokdError(str(folder), "a search for a student", f"one for a {config.task}")
    if not events or events[-1]["event"] != "end":
        raise EvokdError(
            str(folder), "a run that has ended", "one that has not", f"python -m evokd.evolve student --resume {folder}"
        )
    tabular = config.evaluator == "tabular"
    data = set_of("cifar10" if tabular else config.data)
    finals = [e for e in events if e["event"] == "final" and e["row"].endswith(", distilled")]
    values = tuple(e["accuracy"] for e in finals if not e["row"].startswith("human-designed") and e["accuracy"] is not None)
    text = events[-1]["best"].partition("  (")[0]
    clock = _simulated(events) if tabular else sum(e["seconds"] for e in events if e["event"] == "generation")
    method = method_of(config.controller, config.evaluator, config.score)
    alone = " (ranking alone, its supernet's training not counted)" if config.evaluator == "shared" else ""
    return Ran(method, data, values, _tabulated(table, text, data), clock, folder.name + alone)


def _simulated(events: Sequence[dict]) -> float:
    return sum(e["metrics"].get("simulated_seconds", 0.0) for e in individuals(events) if e["status"] == "OK")


def method_of(controller: str, evaluator: str, score: str) -> str:
    """The row that a search belongs to, or a name of its own; TPE stands in for BOHB, whose model it is."""
    if evaluator in ("score", "cascade"):
        free = {"diswot": "DisWOT", "diswot_relation": "DisWOT, M_r", "nwot": "NWOT"}
        return "TE-NAS" if score.startswith("te_nas") else free.get(score, f"{controller}, {score}")
    if evaluator == "shared":
        return "RSPS" if controller == "random" else f"{controller}, shared weights"
    known = {"random": "RS", "reinforce": "RL", "ppo": "RL", "tpe": "BOHB"}
    return next((row for name, row in known.items() if controller.startswith(name)), controller)


def set_of(data: str) -> str:
    """A key of `SETS` for a data set's name or path; else the name as it is."""
    name = Path(data).stem.lower().replace("-", "").replace("_", "")
    return next((key for key in ("cifar100", "cifar10", "imagenet16") if name.startswith(key)), Path(data).stem)


def _tabulated(table: Table | None, text: str, data: str) -> float | None:
    known = table is not None and text in table.rows and data in table.accuracies
    return table.accuracy(text, data) if known else None


def lay_out(runs: Sequence[Ran]) -> dict[str, list[Line]]:
    """Data set → its rows, methods that are not in the published table last; all published data sets where there are no runs.

    A speed-up is against the random search (RS) among the runs themselves, never against published seconds.
    """
    return {data: _rows([run for run in runs if run.data == data], data) for data in dict.fromkeys(r.data for r in runs) or SETS}


def _rows(runs: Sequence[Ran], data: str) -> list[Line]:
    found: dict[str, list[Ran]] = {}
    for run in runs:
        found.setdefault(run.method, []).append(run)
    base = _mean([run.seconds for run in found.get("RS", ())])
    methods = [*TYPES, *(method for method in found if method not in TYPES)]
    return [_own(method, found[method], base) if method in found else _quoted(method, data) for method in methods]


def _own(method: str, runs: Sequence[Ran], base: float | None) -> Line:
    """The mean of a method's runs: distilled where they were, else what the table says of the cells, which nobody distilled."""
    distilled = [_mean(run.accuracies) for run in runs if run.accuracies]
    tabulated = _mean([run.tabulated for run in runs if run.tabulated is not None])
    seconds = _mean([run.seconds for run in runs])
    source = "run " + " ".join(run.run for run in runs)
    if not distilled:
        source += "; not distilled" if tabulated is None else "; the cell's table accuracy, not distilled"
    elif tabulated is not None:
        source += f"; the cell's table accuracy {tabulated:.2f}"
    return Line(
        TYPES.get(method, "other"), method, _mean(distilled) if distilled else tabulated, seconds, _ratio(base, seconds), source
    )


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _ratio(base: float | None, seconds: float | None) -> float | None:
    return base / seconds if base and seconds else None


def _quoted(method: str, data: str) -> Line:
    """A row that was not run: the published figures as such, with a printed speed-up that its own seconds do not give."""
    if data not in PUBLISHED:
        nearest = PUBLISHED["cifar10"][method]
        quoted = f"published on CIFAR-10: {nearest.accuracy:.2f} %, {1000 * nearest.kiloseconds:,.0f} s"
        return Line(TYPES[method], method, None, None, None, f"not run; nothing published on {data}; {quoted}")
    figure = PUBLISHED[data][method]
    real = divided(data, method)
    slip = f"; printed {figure.speedup:g}×, its seconds give {real:.1f}×" if not agrees(data, method) else ""
    return Line(TYPES[method], method, figure.accuracy, 1000 * figure.kiloseconds, figure.speedup, "not run; published" + slip)


def divided(data: str, method: str) -> float:
    """The speed-up that the published seconds give."""
    return PUBLISHED[data]["RS"].kiloseconds / PUBLISHED[data][method].kiloseconds


def agrees(data: str, method: str) -> bool:
    """Whether the printed speed-up is that of the printed seconds, which are rounded to two or three digits."""
    return math.isclose(divided(data, method), PUBLISHED[data][method].speedup, rel_tol=0.03)


HEAD = ("type", "method", "dis. acc (%)", "search (s)", "speed-up")


def as_text(laid: Mapping[str, Sequence[Line]]) -> list[str]:
    lines = []
    for data, rows in laid.items():
        lines += [
            f"DisWOT, Table 8, on {SETS.get(data, data)}",
            f"{HEAD[0]:<16}{HEAD[1]:<22}{HEAD[2]:>13}{HEAD[3]:>13}{HEAD[4]:>10}",
        ]
        lines += [f"{r.type:<16}{r.method:<22}" + "{:>13}{:>13}{:>10}   {}".format(*_told(r), r.source) for r in rows]
        lines.append("")
    return [*lines, "speed-up: against the random search (RS) of these runs; in quoted rows as printed"]


def _told(row: Line) -> tuple[str, str, str]:
    """Accuracy, seconds, speed-up; a quoted figure stands in brackets."""
    kinds = (
        (row.accuracy, "{:.2f}"),
        (row.seconds, "{:,.0f}" if (row.seconds or 0) >= 100 else "{:.1f}"),
        (row.speedup, "{:.1f}×"),
    )
    told = ["–" if value is None else form.format(value) for value, form in kinds]
    return tuple(f"[{text}]" if row.source.startswith("not run") and text != "–" else text for text in told)


def as_csv(laid: Mapping[str, Sequence[Line]]) -> str:
    text = io.StringIO()
    rows = [(data, *("" if value is None else value for value in row)) for data, lines in laid.items() for row in lines]
    csv.writer(text, lineterminator="\n").writerows([("data", *Line._fields), *rows])
    return text.getvalue()


def as_latex(laid: Mapping[str, Sequence[Line]]) -> str:
    """A booktabs table for each data set; figures that are quoted stand in brackets, and the caption says so."""
    parts = []
    for data, rows in laid.items():
        name = _escaped(SETS.get(data, data))
        body = [" & ".join(map(_escaped, (row.type, row.method, *_told(row)))) + r" \\" for row in rows]
        head = " & ".join(map(_escaped, HEAD)) + r" \\"
        note = f"DisWOT's Table 8 on {name}. In brackets: not run, quoted as published, speed-ups as printed."
        parts += [r"\begin{table}", rf"\caption{{{note}}}", r"\begin{tabular}{llrrr}", r"\toprule", head, r"\midrule", *body]
        parts += [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join(parts)


def _escaped(text: str) -> str:
    text = "".join("\\" + c if c in "%_&#$" else c for c in text)
    return text.replace("×", r"$\times$").replace("–", "--")


def diswot8(folders: Sequence[Path], table: Table | None) -> tuple[list[str], str, str]:
    """Table 8 of DisWOT as lines, CSV and LaTeX.

    Args:
        folders: of searches for students and of one-shot searches.
        table: NAS-Bench-201's accuracies, where they are at hand.
    """
    laid = lay_out([read_ran(folder, table) for folder in folders])
    return as_text(laid), as_csv(laid), as_latex(laid)


LAYOUTS = {"diswot8": diswot8, "diswot9": diswot9, "kd_zero": kd_zero}
