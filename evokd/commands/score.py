"""`evokd score rank`: how well training-free scores rank the students of a published table."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from evokd.errors import EvokdError


def main(arguments: Sequence[str]) -> int:
    given = _options().parse_args(arguments)
    from evokd.data import read_data
    from evokd.evaluate.tabular import read_table
    from evokd.scores.ranking import Setting, rank
    from evokd.students import read_student_space

    name, _, column = given.against.partition(":")
    tables = Path(given.tables)
    table, space = read_table(name, tables), read_student_space(given.space or name)
    if space.name != table.name:
        raise EvokdError("--space", f"the space of the table, {table.name}", space.name)
    data = read_data(given.data or str(tables / "cifar100"))
    setting = Setting(given.archs, given.seeds, given.batch, given.teacher, given.init, given.seed)
    rows = rank(given.scores.split(","), space, table, column, data, setting, lambda line: print(line, flush=True))
    print("\n".join(render(rows)))
    if given.csv:
        write_csv(Path(given.csv), rows)
    return 0


def _options() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="evokd score", description="Rank students by training-free scores.")
    rank = top.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "rank", help="against the accuracies of a published table", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    rank.add_argument("--against", required=True, metavar="TABLE[:COLUMN]", help="such as resnet_s0:distilled")
    rank.add_argument("--scores", default="diswot,nwot,synflow", metavar="A,B,…")
    rank.add_argument("--space", metavar="NAME|FILE", help="the table's own if none is named")
    rank.add_argument("--tables", default=os.environ.get("EVOKD_DATA", "data"), metavar="DIR", help="folder of the tables")
    rank.add_argument("--data", metavar="D", help="cifar100 in the folder of the tables if none is named")
    rank.add_argument("--teacher", default="resnet56", metavar="T", help="untrained, by name, or a safetensors file")
    rank.add_argument("--init", default="default", choices=["default", "kaiming", "gaussian"])
    rank.add_argument("--archs", type=positive, default=100, metavar="N")
    rank.add_argument("--seeds", type=positive, default=1, metavar="K")
    rank.add_argument("--batch", type=positive, default=64, metavar="B")
    rank.add_argument("--seed", type=int, default=0)
    rank.add_argument("--csv", metavar="FILE")
    return top


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def render(rows: Sequence) -> list[str]:
    """One line a score: correlations with their 95 % intervals, and what they hide."""
    head = (
        f"{'score':<26}{'Kendall':<22}{'Spearman':<22}{'Pearson':>8}{'top 10 %':>10}{'regret':>8}{'given size':>12}{'seconds':>9}"
    )
    return [head, *(_line(row) for row in rows)]


def _line(row) -> str:
    kendall = f"{row.kendall:5.3f} [{row.kendall_low:.3f}, {row.kendall_high:.3f}]"
    spearman = f"{row.spearman:5.3f} [{row.spearman_low:.3f}, {row.spearman_high:.3f}]"
    figures = f"{row.pearson:8.3f}{row.top:10.3f}{row.regret:8.2f}{row.partial:12.3f}{row.seconds:9.3f}"
    return f"{row.score:<26}{kendall:<22}{spearman:<22}{figures}"


def write_csv(path: Path, rows: Sequence) -> None:
    import csv
    from dataclasses import astuple

    from evokd.scores.ranking import COLUMNS

    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *(astuple(row) for row in rows)])
