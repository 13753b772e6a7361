"""`python -m evokd.evolve distiller`: the command line of a search."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from evokd.errors import EvokdError

DEFAULT_FROM_CONFIG = argparse.SUPPRESS  # an option that is not given leaves the configuration's default in place


def parser() -> argparse.ArgumentParser:
    """Options mirror the fields of `Config`; `-s` reaches every other field."""
    top = argparse.ArgumentParser(prog="evokd.evolve", description="Evolve what nobody has to hand-tune any more.")
    tasks = top.add_subparsers(dest="task", required=True, metavar="TASK")
    distiller = tasks.add_parser(
        "distiller",
        help="find the distillation loss for a teacher–student pair",
        description="Find the distillation loss for a teacher–student pair. Without options: scikit-learn's digits, minutes on a CPU.",
        argument_default=DEFAULT_FROM_CONFIG,
    )
    pair = distiller.add_argument_group("the pair")
    pair.add_argument("--teacher", metavar="T", help="name (trained once, cached), file.safetensors, or file.py:callable")
    pair.add_argument("--student", metavar="S", help="name, or file.py:callable")
    pair.add_argument("--data", metavar="D", help="digits, cifar10, cifar100, fashion_mnist, mnist, an npz file or a folder")
    pair.add_argument("--download", action="store_true", help="allow torchvision to fetch the data set")
    pair.add_argument("--transfer", type=int, metavar="N", help="use only N training images")
    pair.add_argument("--labels", type=int, metavar="N", help="know the labels of only N training images")
    pair.add_argument("--teacher-taps", metavar="PATH,…", help="module paths of the teacher's stages, last stage last")
    pair.add_argument("--student-taps", metavar="PATH,…", help="module paths of the student's stages, last stage last")
    search = distiller.add_argument_group("the search")
    search.add_argument("--space", metavar="NAME|FILE", help="what may be evolved")
    search.add_argument("--controller", metavar="NAME", help="evolution, random or nsga2 (fitness against size)")
    search.add_argument(
        "--fitness", metavar="NAME", help="on validation: accuracy, ce, or KD-Zero's equation 2: gap (corrected), gap_printed"
    )
    search.add_argument("--islands", type=int, metavar="N", help="populations side by side, with migration in a ring")
    search.add_argument("--shrink-every", type=int, metavar="N", help="drop the consistently worst operators every N generations")
    search.add_argument("--cache", metavar="DIR", help="reuse outcomes of other runs; counted budgets stay as they are")
    search.add_argument("--generations", type=int, metavar="N")
    search.add_argument("--population", type=int, metavar="N", help="candidates trained in a generation, and parents kept")
    search.add_argument("--budget-evals", type=int, metavar="N", help="stop after N trainings")
    search.add_argument(
        "--budget-seconds", type=float, metavar="S", help="stop after the generation in which S seconds are spent"
    )
    search.add_argument(
        "--seed-with", action="append", metavar="LOSS", help="known name, text or loss.json for the first generation"
    )
    search.add_argument("--operators", action="append", metavar="FILE.py:FN", help="an operator of your own")
    search.add_argument("--seed", type=int, metavar="N")
    _run_options(distiller, "-s protocol.steps=300")
    _student_options(tasks)
    return top


def _student_options(tasks) -> None:
    student = tasks.add_parser(
        "student",
        help="find the student architecture that distils best from a teacher",
        description="Find the student that distils best from a teacher. Without options: small ResNets on scikit-learn's digits.",
        argument_default=DEFAULT_FROM_CONFIG,
    )
    pair = student.add_argument_group("the task")
    pair.add_argument("--teacher", metavar="T", help="name (trained once, cached), or file.safetensors")
    pair.add_argument("--data", metavar="D", help="digits, cifar10, cifar100, fashion_mnist, mnist, an npz file or a folder")
    pair.add_argument("--download", action="store_true", help="allow torchvision to fetch the data set")
    pair.add_argument("--transfer", type=int, metavar="N", help="use only N training images")
    pair.add_argument("--max-params", type=int, metavar="N", help="parameters that a student may have")
    pair.add_argument("--max-macs", type=int, metavar="N", help="multiply–accumulates that a student may need")
    pair.add_argument("--max-latency-ms", type=float, metavar="MS", help="milliseconds of one forward, by nas_bench_201's table")
    pair.add_argument("--latency-device", metavar="NAME", help="the table's device that this limit is of")
    pair.add_argument("--tables", metavar="DIR", help="folder of the published tables; EVOKD_DATA if not given")
    search = student.add_argument_group("the search")
    search.add_argument("--space", metavar="NAME|FILE", help="what may be evolved: resnet, nas_bench_201, …")
    search.add_argument("--controller", metavar="NAME", help="evolution, random, diswot (Algorithm 1), ageing or nsga2")
    search.add_argument(
        "--evaluator",
        metavar="NAME",
        help="cascade (score all, distil the best), score, distill, train, or tabular (published figures)",
    )
    search.add_argument("--score", metavar="NAME", help="training-free score, e.g. diswot, nwot, synflow, or loss:NAME|FILE|TEXT")
    search.add_argument("--loss", metavar="LOSS", help="the recipe of distillation: known name, text or loss.json")
    search.add_argument("--generations", type=int, metavar="N")
    search.add_argument("--population", type=int, metavar="N", help="students scored in a generation, and parents kept")
    search.add_argument("--budget-evals", type=int, metavar="N", help="stop after N trainings")
    search.add_argument(
        "--budget-seconds",
        type=float,
        metavar="S",
        help="stop after the generation in which S seconds are spent; simulated ones with a table",
    )
    search.add_argument("--seed", type=int, metavar="N")
    search.add_argument("--cache", metavar="DIR", help="reuse outcomes of other runs; counted budgets stay as they are")
    _run_options(student, "-s promote=0.5")


def _run_options(task: argparse.ArgumentParser, example: str) -> None:
    """What every search has: where it runs and what is kept of it."""
    run = task.add_argument_group("the run")
    run.add_argument("--workers", type=int, metavar="N", help="evaluating processes; 0: one a core")
    run.add_argument("--device", metavar="D", help="auto, cpu or cuda")
    run.add_argument("--out", metavar="DIR", help="home of runs, cache and mlflow.db")
    run.add_argument("--resume", metavar="RUN", help="continue or extend the run in this folder")
    run.add_argument("--tracking-uri", metavar="URI", help="MLflow; none switches it off")
    run.add_argument("--quiet", action="store_true")
    run.add_argument("-s", dest="overrides", action="append", metavar="KEY=VALUE", help=f"any setting, e.g. {example}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 a mistake that the user can mend (said in one line), 130 interrupted."""
    given = vars(parser().parse_args(arguments))
    try:
        return evolve(given)
    except EvokdError as error:
        print(f"evokd: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("evokd: interrupted; a run that had begun goes on with --resume RUN", file=sys.stderr)
        return 130


def evolve(given: dict) -> int:
    """Run or resume a search from parsed options."""
    from pathlib import Path

    from evokd.config import make_config
    from evokd.report.terminal import Terminal

    if given["task"] == "student":
        from evokd.student import resume, run
    else:
        from evokd.distiller import resume, run

    terminal = Terminal(quiet=given.pop("quiet", False))
    download, folder, overrides = given.pop("download", False), given.pop("resume", None), given.pop("overrides", [])
    for name in ("teacher_taps", "student_taps"):
        if name in given:
            given[name] = tuple(path.strip() for path in given[name].split(","))
    for name in ("seed_with", "operators"):
        if name in given:
            given[name] = tuple(given[name])
    protocol = {name: given.pop(name) for name in ("transfer", "labels") if name in given}
    if folder:
        resume(Path(folder), terminal, {**given, "protocol": protocol}, overrides)
    else:
        run(make_config({**given, "protocol": protocol}, overrides), terminal, download=download)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
