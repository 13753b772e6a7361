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
    _distiller_options(tasks), _student_options(tasks), _joint_options(tasks)
    return top


def add_tasks(top: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """What can be evolved, as subcommands with all options of a search."""
    tasks = top.add_subparsers(dest="task", required=True, metavar="TASK")
    return [_distiller_options(tasks), _student_options(tasks)]


def _distiller_options(tasks) -> argparse.ArgumentParser:
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
    search.add_argument(
        "--base", metavar="LOSS", help="keep this loss and evolve what is added to it: known name, text or loss.json"
    )
    _controller_options(search, "fitness against size", "size, in nodes")
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
    _long_budgets(search)
    search.add_argument(
        "--seed-with", action="append", metavar="LOSS", help="known name, text or loss.json for the first generation"
    )
    search.add_argument("--operators", action="append", metavar="FILE.py:FN", help="an operator of your own")
    search.add_argument("--seed", type=int, metavar="N")
    _run_options(distiller, "-s protocol.steps=300")
    return distiller


def _controller_options(search, front: str, cost: str) -> None:
    """Who searches, and for what."""
    search.add_argument(
        "--controller",
        metavar="NAME",
        help=f"evolution, random, local (with restarts), ageing (P 10, S 3), diswot (Algorithm 1), nsga2 ({front}), reinforce, ppo "
        "(generations of about 10), tpe or tpe_hyperband (both of Optuna)",
    )
    search.add_argument("--policy", metavar="NAME", help="of reinforce and ppo: factorised or lstm")
    search.add_argument(
        "--reward", metavar="NAME", help="what is raised: fitness, or its trade against a cost: soft, hard or abs"
    )
    search.add_argument("--reward-target", type=float, metavar="T", help=f"of a trade: {cost} that is aimed at")


def _student_options(tasks) -> argparse.ArgumentParser:
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
    pair.add_argument("--latency-device", metavar="NAME", help="the table's device that limit and reward are of")
    pair.add_argument("--tables", metavar="DIR", help="folder of the published tables; EVOKD_DATA if not given")
    search = student.add_argument_group("the search")
    search.add_argument("--space", metavar="NAME|FILE", help="what may be evolved: resnet, nas_bench_201, …")
    _controller_options(search, "fitness against costs", "the cost")
    search.add_argument("--reward-cost", metavar="NAME", help="latency_ms (with --latency-device), macs or parameters")
    search.add_argument(
        "--prior",
        metavar="NAME",
        help="none, parameters or macs: evolution and local start from the greatest of 200 random students",
    )
    search.add_argument(
        "--evaluator",
        metavar="NAME",
        help="cascade (score all, distil the best), score, distill, train, shared (weights of one supernet), tabular (published)",
    )
    search.add_argument("--score", metavar="NAME", help="training-free score, e.g. diswot, nwot, synflow, or loss:NAME|FILE|TEXT")
    search.add_argument(
        "--distiller",
        "--loss",
        dest="loss",
        metavar="LOSS|RUN",
        help="the loss that students are distilled with: known name, text, loss.json, or a finished search for a loss",
    )
    search.add_argument("--generations", type=int, metavar="N")
    search.add_argument("--population", type=int, metavar="N", help="students scored in a generation, and parents kept")
    search.add_argument("--budget-evals", type=int, metavar="N", help="stop after N trainings")
    search.add_argument(
        "--budget-seconds",
        type=float,
        metavar="S",
        help="stop after the generation in which S seconds are spent; simulated ones with a table",
    )
    _long_budgets(search)
    search.add_argument("--seed", type=int, metavar="N")
    search.add_argument("--cache", metavar="DIR", help="reuse outcomes of other runs; counted budgets stay as they are")
    _run_options(student, "-s promote=0.5")
    return student


def _joint_options(tasks) -> argparse.ArgumentParser:
    joint = tasks.add_parser(
        "joint",
        help="search loss and student in turn for one teacher, and show their interaction",
        description="A loss for the human student, a student for that loss, and so on; at the end every student with every loss on test. "
        "Settings hold for both searches, the protocol is that of a search for a loss.",
        argument_default=DEFAULT_FROM_CONFIG,
    )
    joint.add_argument("--rounds", type=int, metavar="R", help="searches for a student; 1 if not given")
    joint.add_argument("--teacher", metavar="T", help="name (trained once, cached), or file.safetensors")
    joint.add_argument("--student", metavar="S", help="the human student that the first loss is searched for")
    joint.add_argument("--data", metavar="D", help="digits, cifar10, cifar100, fashion_mnist, mnist, an npz file or a folder")
    joint.add_argument("--transfer", type=int, metavar="N", help="use only N training images")
    joint.add_argument("--labels", type=int, metavar="N", help="know the labels of only N training images")
    joint.add_argument("--max-params", type=int, metavar="N", help="parameters that a found student may have")
    joint.add_argument("--max-macs", type=int, metavar="N", help="multiply–accumulates that it may need")
    joint.add_argument("--generations", type=int, metavar="N", help="of every search")
    joint.add_argument("--population", type=int, metavar="N", help="of every search")
    joint.add_argument("--seed", type=int, metavar="N")
    joint.add_argument("--seeds", type=int, metavar="K", help="fresh ones a cell of the closing table; 5 if not given")
    joint.add_argument("--workers", type=int, metavar="N", help="evaluating processes; 0: one a core")
    joint.add_argument("--device", metavar="D", help="auto, cpu or cuda")
    joint.add_argument("--out", metavar="DIR", help="home of the joint folder")
    joint.add_argument("--resume", metavar="FOLDER", help="go on with a joint search")
    joint.add_argument("--tracking-uri", metavar="URI", help="MLflow; none switches it off")
    joint.add_argument("--quiet", action="store_true")
    joint.add_argument("-s", dest="overrides", action="append", metavar="KEY=VALUE", help="any setting of a search for a loss")
    return joint


def _long_budgets(search) -> None:
    """In units that do not depend on the size of a training."""
    search.add_argument("--budget-epochs", type=float, metavar="E", help="the same with epochs, those of rungs included")
    search.add_argument("--budget-gpu-hours", type=float, metavar="H", help="the same with hours of the device that trains")


def _run_options(task: argparse.ArgumentParser, example: str) -> None:
    """What every search has: where it runs and what is kept of it."""
    run = task.add_argument_group("the run")
    run.add_argument("--workers", type=int, metavar="N", help="evaluating processes; 0: one a core")
    run.add_argument(
        "--lag", type=int, metavar="L", help="no generations: proposal k sees the results up to k − L; at least --workers"
    )
    run.add_argument(
        "--engine", metavar="NAME", help="what workers live in: processes, or ray (one machine or a cluster, extra [ray])"
    )
    run.add_argument("--timeout-seconds", type=float, metavar="S", help="time limit of one evaluation")
    run.add_argument("--memory-gib", type=float, metavar="G", help="memory limit of one worker")
    run.add_argument("--device", metavar="D", help="auto, cpu or cuda")
    run.add_argument("--out", metavar="DIR", help="home of runs, cache and mlflow.db")
    run.add_argument("--resume", metavar="RUN", help="continue or extend the run in this folder")
    run.add_argument("--accept-drift", action="store_true", help="resume though settings, space or data changed; recorded")
    run.add_argument("--tracking-uri", metavar="URI", help="MLflow; none switches it off")
    run.add_argument("--quiet", action="store_true")
    run.add_argument("-s", dest="overrides", action="append", metavar="KEY=VALUE", help=f"any setting, e.g. {example}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 a mistake that the user can mend (said in one line), 130 or 143 interrupted."""
    given = vars(parser().parse_args(arguments))
    try:
        return evolve(given)
    except EvokdError as error:
        print(f"evokd: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"evokd: {str(stop) or 'interrupted; a run that had begun goes on with --resume RUN'}", file=sys.stderr)
        return getattr(stop, "code", 130)


def evolve(given: dict) -> int:
    """Run or resume a search from parsed options."""
    from pathlib import Path

    from evokd.config import make_config
    from evokd.report.terminal import Terminal

    if given["task"] == "joint":
        return evolve_jointly(given)
    if given["task"] == "student":
        from evokd.student import resume, run
    else:
        from evokd.distiller import resume, run

    terminal = Terminal(quiet=given.pop("quiet", False))
    download, folder, overrides = given.pop("download", False), given.pop("resume", None), given.pop("overrides", [])
    accept = given.pop("accept_drift", False)
    if folder:
        resume(Path(folder), terminal, settings(given), overrides, accept)
    else:
        run(make_config(settings(given), overrides), terminal, download=download)
    return 0


def evolve_jointly(given: dict) -> int:
    """Run or resume a joint search from parsed options."""
    from pathlib import Path

    from evokd.joint import make_joint, read_joint, run
    from evokd.report.terminal import Terminal

    del given["task"]
    terminal, folder = Terminal(quiet=given.pop("quiet", False)), given.pop("resume", None)
    if folder and given:
        raise EvokdError("--resume", "no other option than --quiet", f"--{next(iter(given))}")
    if folder:
        run(read_joint(Path(folder)), terminal, Path(folder))
        return 0
    overrides, counts = given.pop("overrides", []), {name: given.pop(name) for name in ("rounds", "seeds") if name in given}
    run(make_joint(settings(given), overrides, **counts), terminal)
    return 0


def settings(given: dict) -> dict:
    """Options as fields of a configuration."""
    listed = {
        name: tuple(path.strip() for path in given[name].split(",")) for name in ("teacher_taps", "student_taps") if name in given
    }
    named = {name: tuple(given[name]) for name in ("seed_with", "operators") if name in given}
    protocol = {name: given[name] for name in ("transfer", "labels") if name in given}
    return {name: value for name, value in given.items() if name not in protocol} | listed | named | {"protocol": protocol}


if __name__ == "__main__":
    raise SystemExit(main())
