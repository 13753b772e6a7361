"""`evokd report`: run folders laid out as a published table."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evokd.errors import EvokdError, unknown

if TYPE_CHECKING:
    from evokd.evaluate.tabular import Table


def main(arguments: Sequence[str]) -> int:
    options = argparse.ArgumentParser(
        prog="evokd report", description="Lay runs out as a published table; rows without a run are quoted, and say so."
    )
    options.add_argument("runs", nargs="*", metavar="RUN", help="folders of searches for students and of one-shot searches")
    options.add_argument("--layout", default="diswot8", metavar="NAME", help="diswot8: DisWOT's Table 8")
    options.add_argument(
        "--tables", default=os.environ.get("EVOKD_DATA"), metavar="DIR", help="published tables, EVOKD_DATA if not given"
    )
    options.add_argument("--csv", metavar="FILE")
    options.add_argument("--latex", metavar="FILE")
    given = options.parse_args(arguments)
    from evokd.report.layouts import LAYOUTS, as_csv, as_latex, as_text, read_ran

    if given.layout not in LAYOUTS:
        raise unknown("--layout", "a layout", given.layout, LAYOUTS)
    table = _cells(given.tables)
    laid = LAYOUTS[given.layout]([read_ran(Path(run), table) for run in given.runs])
    for option, form in (("csv", as_csv), ("latex", as_latex)):
        _write(vars(given)[option], f"--{option}", form(laid))
    print("\n".join(as_text(laid)))
    return 0


def _cells(folder: str | None) -> Table | None:
    """NAS-Bench-201's accuracies, where somebody says where they lie."""
    if not folder:
        return None
    from evokd.evaluate.tabular import read_table

    return read_table("nas_bench_201", folder)


def _write(path: str | None, option: str, text: str) -> None:
    if path is None:
        return
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise EvokdError(option, "a file that can be written", str(error)[:120]) from None
