"""`evokd score`: how well training-free scores rank the students of a published table, and what DisWOT compares in one of them."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from evokd.commands import whole
from evokd.errors import EvokdError


def main(arguments: Sequence[str]) -> int:
    given = _options().parse_args(arguments)
    return given.run(given)


def rank_students(given: argparse.Namespace) -> int:
    from evokd.evaluate.tabular import read_table
    from evokd.report.scores import check_target, draw_ranking
    from evokd.scores.ranking import check_scores, measure, parts_of, rank, targets
    from evokd.students import read_student_space

    names, (name, _, column) = given.scores.split(","), given.against.partition(":")
    check_scores(names)
    check_target(given.csv, "--csv", ())
    check_target(given.picture, "--picture")
    table, space = read_table(name, Path(given.tables)), read_student_space(given.space or name)
    if space.name != table.name:
        raise EvokdError("--space", f"the space of the table, {table.name}", space.name)
    targets(table, list(table.rows)[:1], column)
    parts, scored = parts_of(names), None
    if given.workers > 1:
        from evokd.scoring import scored_by

        scored = scored_by(given.workers, parts, given.space or name, _data_name(given), _setting(given))
    found = measure(names, space, table, column, _data(given), _setting(given), lambda line: print(line, flush=True), scored)
    rows = rank(found, given.seed)
    print("\n".join(render(rows)))
    if given.csv:
        write_csv(Path(given.csv), rows)
    if given.picture:
        draw_ranking(Path(given.picture), found, rows, column or next(iter(table.accuracies)))
    _mirror(given, rows)
    return 0


def _mirror(given: argparse.Namespace, rows: Sequence) -> None:
    """The ranking in MLflow: a child a score, and the files that were asked for."""
    from dataclasses import asdict

    from evokd.folder import commit
    from evokd.report.terminal import Terminal
    from evokd.store import Child, at
    from evokd.tracker import open_tracker

    tracker = open_tracker(given.tracking_uri, Path(given.out), f"score/{given.against.partition(':')[0]}", Terminal().warn)
    params = {name: value for name, value in vars(given).items() if name not in ("run", "out", "tracking_uri")}
    tracker.start(f"rank {given.against}", params, {"evokd.kind": "score", "evokd.git": commit(), "evokd.state": "going"}, [])
    for row in rows:
        figures = {name: value for name, value in asdict(row).items() if name != "score"}
        tracker.child(Child(row.score, {}, {"evokd.kind": "score-row"}, at(0, figures)))
    tracker.files([Path(path) for path in (given.csv, given.picture) if path])
    tracker.finish("FINISHED", {})


def explain_student(given: argparse.Namespace) -> int:
    from evokd.report.scores import check_target, draw_explanation
    from evokd.scores.explain import explain
    from evokd.scores.ranking import draw_batch, draw_student, generator_of, see_teacher
    from evokd.students import read_student_space

    check_target(given.out, "--out")
    space = read_student_space(given.space)
    genome, data, setting = space.read(given.arch), _data(given), _setting(given)
    images, labels = draw_batch(data, given.batch, given.seed)
    view = see_teacher(setting, data, given.seed, images, labels)
    student = draw_student(space, given.arch, data, given.init, given.seed)
    found = explain(student, view, images, labels, generator_of(given.seed, given.arch))
    cost = space.cost(genome, data.classes, data.shape[0], data.shape[1])
    print("\n".join(tell(given, data.name, cost, found.parts)))
    if given.out:
        names = (f"teacher {Path(given.teacher).stem}", "student " + shortened(given.arch))
        draw_explanation(Path(given.out), found, shown(images, data), names, given.images)
        print(f"picture: {given.out}")
    return 0


def _data(given: argparse.Namespace):
    from evokd.data import read_data

    return read_data(_data_name(given))


def _data_name(given: argparse.Namespace) -> str:
    return given.data or str(Path(given.tables) / "cifar100")


def _setting(given: argparse.Namespace):
    from evokd.scores.ranking import Setting

    drawn = (getattr(given, "archs", 1), getattr(given, "seeds", 1))
    return Setting(*drawn, given.batch, given.teacher, given.init, given.seed, getattr(given, "distinct", False))


def _options() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="evokd score", description="Training-free scores of students.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    looks = argparse.ArgumentDefaultsHelpFormatter
    rank = commands.add_parser("rank", help="against the accuracies of a published table", formatter_class=looks)
    rank.set_defaults(run=rank_students)
    rank.add_argument(
        "--against",
        required=True,
        metavar="TABLE[:COLUMN[-COLUMN]]",
        help="such as resnet_s0:distilled, or the difference resnet_s0:distilled-plain",
    )
    rank.add_argument("--scores", default="diswot,nwot,synflow", metavar="A,B,…", help="az_nas is the rank sum of its four parts")
    rank.add_argument("--space", metavar="NAME|FILE", help="the table's own if none is named")
    rank.add_argument("--tables", default=os.environ.get("EVOKD_DATA", "data"), metavar="DIR", help="folder of the tables")
    rank.add_argument("--data", metavar="D", help="cifar100 in the folder of the tables if none is named")
    rank.add_argument("--archs", type=whole(1), default=100, metavar="N")
    rank.add_argument("--seeds", type=whole(1), default=1, metavar="K")
    rank.add_argument("--distinct", action="store_true", help="of students that are one network, written twice, the first alone")
    rank.add_argument("--workers", type=whole(1), default=1, metavar="N", help="processes, one a core; the values are the same")
    rank.add_argument("--csv", metavar="FILE")
    rank.add_argument("--out", default="runs", metavar="DIR", help="home of mlflow.db")
    rank.add_argument("--tracking-uri", metavar="URI", help="MLflow; none switches it off")
    rank.add_argument("--picture", metavar="FILE.png", help="ranks against accuracies, one small panel a score")
    explain = commands.add_parser("explain", help="what DisWOT compares in one student", formatter_class=looks)
    explain.set_defaults(run=explain_student)
    explain.add_argument("arch", metavar="ARCH", help="text of a student, such as 753 of resnet_s0")
    explain.add_argument("--space", required=True, metavar="NAME|FILE")
    explain.add_argument("--data", default="digits", metavar="D")
    explain.add_argument("--images", type=whole(1), default=6, metavar="K", help="shown with Grad-CAM")
    explain.add_argument("--out", metavar="FILE.png", help="correlation maps and Grad-CAM side by side")
    for each in (rank, explain):
        each.add_argument("--teacher", default="resnet56", metavar="T", help="untrained, by name, or a safetensors file")
        each.add_argument("--init", default="default", choices=["default", "kaiming", "gaussian"])
        each.add_argument("--batch", type=whole(2), default=64, metavar="B")
        each.add_argument("--seed", type=int, default=0)
    return top


def render(rows: Sequence) -> list[str]:
    """One line a score: correlations with their 95 % intervals, and what they hide; the residual's column only where it is known."""
    residual = any(row.residual == row.residual for row in rows)
    head = f"{'score':<26}{'Kendall':<24}{'Spearman':<24}{'Pearson':>8}{'top 10 %':>10}{'regret':>8}{'given size':>12}"
    return [head + (f"{'residual':>10}" if residual else "") + f"{'seconds':>9}", *(_line(row, residual) for row in rows)]


def _line(row, residual: bool) -> str:
    kendall = f"{row.kendall:6.3f} [{row.kendall_low:.3f}, {row.kendall_high:.3f}]"
    spearman = f"{row.spearman:6.3f} [{row.spearman_low:.3f}, {row.spearman_high:.3f}]"
    figures = f"{row.pearson:8.3f}{row.top:10.3f}{row.regret:8.2f}{row.partial:12.3f}"
    figures += f"{row.residual:10.3f}" if residual else ""
    return f"{row.score:<26}{kendall:<24}{spearman:<24}{figures}{row.seconds:9.3f}"


def write_csv(path: Path, rows: Sequence) -> None:
    import csv
    from dataclasses import astuple

    from evokd.scores.ranking import COLUMNS

    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *(astuple(row) for row in rows)])
    except OSError as error:
        raise EvokdError("--csv", "a file that can be written", str(error)[:120]) from None


def tell(given: argparse.Namespace, data: str, cost, parts: dict[str, float]) -> list[str]:
    """The student, what it was scored under, and the score's parts, higher being better."""
    from evokd.scores import SCORES

    lines = [
        f"student {given.arch} of {given.space}: {cost.parameters:,} parameters, {cost.macs:,} MACs, depth {cost.depth}",
        f"teacher {given.teacher}, {given.init} initialisation, {given.batch} images of {data}, seed {given.seed}",
    ]
    return [*lines, "", *(f"{name:<26}{value:>10.5f}  {SCORES[name].source}" for name, value in parts.items())]


def shortened(text: str, most: int = 24) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def shown(images, data):
    """Normalised images (N,C,H,W) as pictures (N,H,W,3), or (N,H,W) of one channel, 0…1."""
    import numpy as np

    mean, std = (np.array(values)[:, None, None] for values in (data.mean, data.std))
    pictures = (images.numpy() * std + mean).clip(0, 1)
    return pictures[:, 0] if len(mean) != 3 else pictures.transpose(0, 2, 3, 1)
