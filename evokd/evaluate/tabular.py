"""Published tables in place of training: accuracies, training times and latencies of all students of a space, read only."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evokd.errors import EvokdError, closest, unknown
from evokd.students import nas_bench_201

Columns = Mapping[str, np.ndarray]  # name → one number a student
_BROKEN = (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Table:
    """What is known of every student of a space; a student is named by its text.

    Attributes:
        name: of the space.
        rows: text of a student → its row.
        accuracies: percent; the first column is meant where none is named.
        training: seconds that the accuracy of the same column cost.
        latencies: milliseconds of one forward on a device; infinite for a dead cell, whose measured figure means nothing.
    """

    name: str
    rows: Mapping[str, int]
    accuracies: Columns
    training: Columns = field(default_factory=dict)
    latencies: Columns = field(default_factory=dict)

    def accuracy(self, key: str, column: str = "") -> float:
        """Percent.

        Raises:
            EvokdError: a student or a column that the table does not have; so too for seconds and latencies.
        """
        return self._value("accuracies", self.accuracies, key, column)

    def seconds(self, key: str, column: str = "") -> float:
        """Seconds of training."""
        return self._value("training times", self.training, key, column)

    def latency(self, key: str, device: str) -> float:
        """Milliseconds."""
        return self._value("latencies", self.latencies, key, device)

    def _value(self, kind: str, columns: Columns, key: str, column: str) -> float:
        if not columns:
            raise EvokdError(f"table of {self.name}", kind, "none")
        if key not in self.rows:
            raise EvokdError(f"table of {self.name}", "a student of its space", repr(key)[:80])
        column = column or next(iter(columns))
        if column not in columns:
            raise unknown(f"table of {self.name}", f"a column of {kind}", column, columns)
        return float(columns[column][self.rows[key]])


def read_table(name: str, data_dir: str | Path) -> Table:
    """The table of a space.

    - `nas_bench_201` (NATS-Bench): test accuracy after 200 epochs on `cifar10` and `cifar100`, mean over seeds; `cifar10_12epochs`,
      validation accuracy after 12, with its seconds; latencies on 27 devices (HELP).
    - `nas_bench_macro`: test accuracy on `cifar10`, mean of three seeds.
    - `resnet_s0` (DisWOT's repository): test accuracy on CIFAR-100 of one training each, `plain` and `distilled`.

    Args:
        name: of the space.
        data_dir: the folder that holds `nasbench201`, `nasbench_macro` and `diswot_s0`.

    Raises:
        EvokdError: a space without a table, or files that are missing, broken or others than these.
    """
    if name not in TABLES:
        raise EvokdError("table", "a space with a published table", repr(name)[:40], closest(name, TABLES))
    read, count = TABLES[name]
    try:
        table = read(Path(data_dir))
        columns = [*table.accuracies.values(), *table.training.values(), *table.latencies.values()]
        sound = len(table.rows) == count and all(each.shape == (count,) and not np.isnan(each).any() for each in columns)
    except _BROKEN as error:
        got = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        raise EvokdError(f"table of {name}", f"its files in {data_dir}", got) from None
    if not sound:
        raise EvokdError(f"table of {name}", f"{count:,} students with their numbers in {data_dir}", "other contents")
    return table


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:  # NumPy leaves open what it cannot read
        return dict(arrays)


def _nas_bench_201(folder: Path) -> Table:
    main, short, devices = (_arrays(folder / "nasbench201" / f"{f}.npz") for f in ("nb201", "cifar10_12epochs", "latency"))
    edges = list(nas_bench_201.EDGES)
    if [f"{a}<{b}" for a, b in main["edges"]] != edges:
        raise ValueError("edges in another order")
    cells = [dict(zip(edges, ops, strict=True)) for ops in main["op_names"][main["ops"]].tolist()]
    rows = {nas_bench_201.write(cell): row for row, cell in enumerate(cells)}
    dead = np.array([nas_bench_201.is_dead(cell) for cell in cells])
    accuracies = {name: main[f"test200_{name}"] for name in ("cifar10", "cifar100")}
    accuracies["cifar10_12epochs"] = short["val_accuracy_12ep"]
    latencies = dict(zip(devices["device"].tolist(), np.where(dead, np.inf, devices["latency_ms"]), strict=True))
    return Table("nas_bench_201", rows, accuracies, {"cifar10_12epochs": short["seconds_12ep"]}, latencies)


def _nas_bench_macro(folder: Path) -> Table:
    arrays = _arrays(folder / "nasbench_macro" / "nb_macro_cifar10.npz")
    rows = {"".join(map(str, digits)): row for row, digits in enumerate(arrays["choice"].tolist())}
    return Table("nas_bench_macro", rows, {"cifar10": arrays["test_acc"].mean(axis=1, dtype=np.float64)})


def _resnet_s0(folder: Path) -> Table:
    students = json.loads((folder / "diswot_s0" / "s0.json").read_text(encoding="utf-8"))["students"]
    rows = {"".join(map(str, student["depths"])): row for row, student in enumerate(students)}
    columns = {"plain": "vanilla", "distilled": "kd"}
    return Table("resnet_s0", rows, {name: np.array([float(s[of]) for s in students]) for name, of in columns.items()})


TABLES: dict[str, tuple[Callable[[Path], Table], int]] = {  # reader, number of students
    "nas_bench_201": (_nas_bench_201, 15_625),
    "nas_bench_macro": (_nas_bench_macro, 6_561),
    "resnet_s0": (_resnet_s0, 64),
}


class Simulation(NamedTuple):
    """The incumbent, its accuracy (%) as the search saw it, the seconds spent, and the number of students looked up."""

    best: str
    seen: float
    seconds: float
    evaluations: int


def simulate(
    ask: Callable[[], str],
    tell: Callable[[str, float], None],
    table: Table,
    budget_seconds: float = 12_000.0,
    column: str = "cifar10_12epochs",
    clock: Callable[[], float] = lambda: 0.0,
) -> Simulation:
    """A search on a table's simulated clock, by NAS-Bench-201's protocol (Dong & Yang, ICLR 2020).

    Each student asked for costs the seconds that its training took; the one that would exceed the budget is discarded and ends the
    search. What the search sees is the accuracy in `column`; report another one (200 epochs, test) of the incumbent.

    Args:
        ask: gives the text of the next student.
        tell: takes a text and its accuracy (%).
        table: with seconds for the column.
        budget_seconds: of the simulated clock; 12,000 in the published protocol.
        column: of the accuracies and their seconds.
        clock: `time.perf_counter` charges the controller's own time as published; without it a run repeats under its seed.

    Raises:
        EvokdError: a budget below the cost of the first student.
    """
    best, seen, spent, count, start = "", float("-inf"), 0.0, 0, clock()
    while True:
        text = ask()
        price = table.seconds(text, column)
        if spent + price + clock() - start > budget_seconds:
            break
        spent, count, accuracy = spent + price, count + 1, table.accuracy(text, column)
        if accuracy > seen:
            best, seen = text, accuracy
        tell(text, accuracy)
    if not count:
        raise EvokdError("budget_seconds", f"at least {price:,.0f}, the cost of the first student", f"{budget_seconds:,.0f}")
    return Simulation(best, seen, spent + clock() - start, count)
