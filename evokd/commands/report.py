"""`evokd report`: a run as a page with figures, or run folders laid out as a published table."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evokd.commands import whole
from evokd.errors import EvokdError, unknown

if TYPE_CHECKING:
    from evokd.evaluate.tabular import Table


def main(arguments: Sequence[str]) -> int:
    given = _options().parse_args(arguments)
    if given.layout is None:
        return tell(given)
    from evokd.report.layouts import LAYOUTS

    if given.layout not in LAYOUTS:
        raise unknown("--layout", "a layout", given.layout, LAYOUTS)
    text, csv, latex = LAYOUTS[given.layout]([Path(run) for run in given.runs], _cells(given.tables))
    for option, told in (("csv", csv), ("latex", latex)):
        _write(vars(given)[option], f"--{option}", told)
    print("\n".join(text))
    return 0


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="evokd report",
        description="Write a search's report.html and figures/, with ablation and pictures of trained networks; or, with --layout, "
        "lay runs out as a published table, in which rows without a run are quoted, and say so.",
    )
    options.add_argument("runs", nargs="*", metavar="RUN", help="run folders; one for a report")
    flag = argparse.BooleanOptionalAction
    options.add_argument(
        "--ablation", action=flag, default=True, help="train the winner without each of its parts, on validation"
    )
    options.add_argument(
        "--pictures", action=flag, default=True, help="train plainly, by KD and by the winner, and show what they see"
    )
    options.add_argument("--seeds", type=whole(2), default=5, metavar="N", help="of each row of the ablation; 5 if not given")
    options.add_argument(
        "--operators", action="append", default=[], metavar="FILE.py:FN", help="those of your own that the run had"
    )
    options.add_argument("--layout", metavar="NAME", help="diswot8, diswot9 or kd_zero")
    options.add_argument(
        "--tables", default=os.environ.get("EVOKD_DATA"), metavar="DIR", help="published tables, EVOKD_DATA if not given"
    )
    options.add_argument("--csv", metavar="FILE", help="the tables as CSV")
    options.add_argument("--latex", metavar="FILE", help="the tables as LaTeX")
    options.add_argument("--quiet", action="store_true")
    return options


def tell(given: argparse.Namespace) -> int:
    """The report of one run.

    Raises:
        EvokdError: not one run, or whatever `retell` refuses.
    """
    if len(given.runs) != 1:
        raise EvokdError("RUN", "one run folder", str(len(given.runs)), "or several with --layout")
    from evokd.report.finals import as_csv, as_latex
    from evokd.report.terminal import Terminal
    from evokd.retell import retell

    terminal, folder = Terminal(given.quiet), Path(given.runs[0])
    what = {"ablation": given.ablation, "pictures": given.pictures, "seeds": given.seeds, "operators": given.operators}
    try:
        told = retell(folder, terminal.status, terminal.warn, **what)
    finally:
        terminal.done()
    for option, form in (("csv", as_csv), ("latex", as_latex)):
        _write(vars(given)[option], f"--{option}", form(told.rows, told.ablation))
    for line in lines_of(told.ablation):
        terminal.say(line)
    terminal.say(f"{told.page}   {folder / 'figures'}: {' '.join(sorted(p.stem for p in (folder / 'figures').glob('*.svg')))}")
    return 0


def lines_of(ablation: Sequence) -> list[str]:
    """The ablation for a terminal."""
    lines = [f" {'ablation, validation':<34}{'accuracy %':>11}   difference, 95 %"] if ablation else []
    for each in ablation:
        mean = f"{each.row.mean:11.2f}" if each.row.values else " " * 11
        told = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*each.row.difference) if each.row.difference else each.why
        lines.append(f"   {each.variant.change:<32}{mean}   {told}")
    return lines


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
