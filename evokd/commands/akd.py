"""`evokd akd`: AKD's experiments on one's own pair, or its first one on a published table."""

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path

from evokd.commands import whole
from evokd.errors import EvokdError

KINDS = {
    "square": "the 2 × 2 of AKD, by budget (the default)",
    "matrix": "students under several teachers, and how far the teachers agree",
    "agents": "distances between final architectures of agents and teachers",
    "designs": "a searched student beside MobileNetV2, MNASNet and MobileNetV3, plain, by KD and by RCO",
}
# Options that are fields of the configuration: as all searches share them.
FIELDS = (
    "space", "data", "loss", "generations", "population", "budget_evals", "seed", "workers", "device", "out", "latency_device", "tables",
)  # fmt: skip
LIMITS = ("max_macs", "max_params", "max_latency_ms")
RESUMABLE = ("resume", "seeds", "workers", "device", "tracking_uri", "quiet", "kind")


def main(arguments: Sequence[str]) -> int:
    kind = arguments[0] if arguments and arguments[0] in KINDS else "square"
    given = vars(_options(kind).parse_args(arguments[1:] if arguments[:1] == [kind] else arguments))
    if kind == "square" and given.pop("table", False):
        return exhaustive(given)
    from evokd.akd.run import run_plan
    from evokd.report.terminal import Terminal

    terminal = Terminal(quiet=given.pop("quiet", False))
    tracking, download = given.pop("tracking_uri", None), given.pop("download", False)
    folder = given.get("resume")
    plan = resumed_plan(Path(folder), given) if folder else new_plan(kind, given)
    run_plan(plan, terminal, folder=Path(folder) if folder else None, tracking=tracking, download=download)
    return 0


def new_plan(kind: str, given: dict):
    """The plan of parsed options."""
    from evokd.akd.experiment import Plan

    if "bands" in given:
        raise EvokdError("--bands", "this option beside --table alone", given["bands"], "limit searches by --max-macs")
    values = {name: given[name] for name in FIELDS if name in given}
    named = {"teacher": given.get("teacher")} if given.get("teacher") else {}
    protocol = {"protocol": {"transfer": given["transfer"]}} if "transfer" in given else {}
    students = given.get("students", given.get("student", ""))
    counted = students.isdecimal() and kind == "matrix" and len(students) < 3
    options = (
        {"equal": given["equal"], "checkpoints": given["checkpoints"], "route": parts(given["route"])}
        if kind == "designs"
        else {}
    )
    return Plan(
        kind,
        values | named | protocol,
        tuple(given.get("overrides", ())),
        tuple((limit, read_limit(limit, text)) for limit in LIMITS for text in parts(given.get(limit, ""))),
        parts(given.get("controller", "evolution")),
        parts(given.get("teachers", "")),
        () if counted else parts(students),
        int(students) if counted else 0,
        given.get("seeds", given.get("agents", 3)),
        given.get("finals", 5),
        given.get("top", 3),
        options,
    )


def resumed_plan(folder: Path, given: dict):
    """The plan in a folder, with more searches, or run elsewhere.

    Raises:
        EvokdError: no such folder, or options that would make it another experiment.
    """
    from dataclasses import replace

    from evokd.akd.experiment import read_plan, with_seeds, write_plan

    defaults = vars(_options("designs").parse_args([])) | vars(_options("square").parse_args([]))
    if odd := [name for name, value in given.items() if name not in RESUMABLE and value != defaults.get(name)]:
        option = "--" + odd[0].replace("_", "-")
        raise EvokdError("--resume", "the plan in its folder", option, "only --seeds, --workers and --device may change")
    plan = read_plan(folder)
    plan = with_seeds(plan, given.get("seeds", given.get("agents")))
    changes = {name: given[name] for name in ("workers", "device") if name in given}
    plan = replace(plan, values=plan.values | changes | {"out": str(folder.parent)})
    write_plan(folder, plan)
    return plan


def exhaustive(given: dict) -> int:
    """The first experiment on a published table; written where `--out` says."""
    from evokd.akd.run import hand_over, write_results
    from evokd.akd.table import BANDS, table_results
    from evokd.evaluate.tabular import read_table
    from evokd.report.terminal import Terminal
    from evokd.students import read_student_space

    allowed = ("space", "tables", "bands", "out", "quiet")
    if odd := [name for name in given if name not in (*allowed, "tracking_uri")]:
        raise EvokdError("--table", "only " + ", ".join(f"--{name}" for name in allowed), "--" + odd[0].replace("_", "-"))
    name, folder = given.get("space", "resnet_s0"), given.get("tables", os.environ.get("EVOKD_DATA"))
    if not folder:
        raise EvokdError("--tables", "the folder of the published tables, or EVOKD_DATA in the environment", "neither")
    bands = [read_band(text) for text in parts(given["bands"])] if "bands" in given else BANDS
    results = table_results(read_table(name, folder), read_student_space(name), bands)
    out = Path(given["out"]) if "out" in given else None
    hand_over(results, Terminal(quiet=given.get("quiet", False)), [str(out / "report.html")] if out else [])
    if out:
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_results(out, results)
        except OSError as error:
            raise EvokdError("--out", "a folder that can be written", str(error)[:120]) from None
    return 0


def parts(text: str) -> tuple[str, ...]:
    """Names between commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def read_limit(option: str, text: str) -> float:
    """A positive number, also with k or M: `200k` is 200,000."""
    factor = {"k": 1e3, "K": 1e3, "M": 1e6, "m": 1e6}.get(text[-1:], 1.0)
    try:
        value = float(text[:-1] if factor > 1 else text) * factor
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise EvokdError("--" + option.replace("_", "-"), "positive numbers with commas, such as 200k,400k", repr(text)[:40])
    return value


def read_band(text: str) -> tuple[float, float]:
    """LOW-HIGH in millions of MACs → MACs."""
    low, _, high = text.partition("-")
    try:
        band = float(low) * 1e6, float(high) * 1e6
    except ValueError:
        band = (math.nan, math.nan)
    if not 0 <= band[0] < band[1] < math.inf:
        raise EvokdError("--bands", "LOW-HIGH in millions of MACs, such as 30-45,60-75", repr(text)[:40])
    return band


def _options(kind: str) -> argparse.ArgumentParser:
    listing = "\n".join(f"  {name:<9}{text}" for name, text in KINDS.items())
    top = argparse.ArgumentParser(
        prog=f"evokd akd {kind}" if kind != "square" else "evokd akd",
        description=KINDS[kind],
        epilog=f"experiments: evokd akd [KIND] …, each with its own --help\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    {"square": _square, "matrix": _matrix, "agents": _agents, "designs": _designs}[kind](top)
    _pair(top, kind)
    if kind != "designs":
        _limits(top, kind)
    if kind in ("square", "agents"):
        _search(top)
    _run(top)
    return top


def _square(top: argparse.ArgumentParser) -> None:
    top.add_argument("--seeds", type=whole(1), metavar="K", help="searches of each kind, at least 2; 3 if not given")
    top.add_argument("--table", action="store_true", help="no training: exhaustively from the table of --space (resnet_s0)")
    top.add_argument("--bands", metavar="LOW-HIGH,…", help="with --table: budgets in millions of MACs")
    _finals(top)


def _matrix(top: argparse.ArgumentParser) -> None:
    top.add_argument("--teachers", default="", metavar="A,B,…", help="names or .safetensors files, at least 2")
    top.add_argument(
        "--students", default="", metavar="N|S1,S2,…", help="a number to draw within the limit, or texts of the space"
    )
    _finals(top)


def _agents(top: argparse.ArgumentParser) -> None:
    top.add_argument("--teachers", default="", metavar="A,B,…", help="names or .safetensors files, at least 2")
    top.add_argument(
        "--agents", type=whole(1), metavar="N", help="searches a teacher, at least 2; 3 if not given, 4 for p below .05"
    )


def _designs(top: argparse.ArgumentParser) -> None:
    top.add_argument("--student", default="", metavar="TEXT", help="the searched student, as best/student.json has it")
    top.add_argument("--equal", default="latency", metavar="latency|macs", help="what the designs are scaled to")
    top.add_argument("--checkpoints", type=whole(1), default=4, metavar="N", help="of the teacher's training, for RCO")
    top.add_argument("--route", default="", metavar="FILE,FILE,…", help="the teacher's checkpoints, early ones first, instead")
    _finals(top)


def _finals(top: argparse.ArgumentParser) -> None:
    top.add_argument("--finals", type=whole(1), metavar="F", help="fresh seeds of every final training; 5 if not given")


def _pair(top: argparse.ArgumentParser, kind: str) -> None:
    pair = top.add_argument_group("the task")
    if kind in ("square", "designs"):
        pair.add_argument("--teacher", metavar="T", help="name (trained once, cached), or file.safetensors")
    pair.add_argument("--space", metavar="NAME|FILE", help="of students")
    pair.add_argument("--data", metavar="D", help="digits, cifar10, cifar100, fashion_mnist, mnist, an npz file or a folder")
    pair.add_argument("--download", action="store_true", help="allow torchvision to fetch the data set")
    pair.add_argument("--transfer", type=whole(1), metavar="N", help="use only N training images")
    pair.add_argument("--loss", metavar="LOSS", help="the recipe of distillation: known name, text or loss.json")
    pair.add_argument("--tables", metavar="DIR", help="folder of the published tables; EVOKD_DATA if not given")


def _limits(top: argparse.ArgumentParser, kind: str) -> None:
    several = ", several with commas" if kind == "square" else ""
    limits = top.add_argument_group("budgets")
    limits.add_argument("--max-macs", metavar="N", help=f"multiply–accumulates, such as 200k{several}")
    limits.add_argument("--max-params", metavar="N", help=f"parameters{several}")
    limits.add_argument("--max-latency-ms", metavar="MS", help=f"milliseconds, by nas_bench_201's table{several}")
    limits.add_argument("--latency-device", metavar="NAME", help="the table's device that this limit is of")


def _search(top: argparse.ArgumentParser) -> None:
    search = top.add_argument_group("the searches")
    search.add_argument("--controller", metavar="NAME,…", help="evolution, reinforce, …; several with commas")
    search.add_argument("--generations", type=whole(1), metavar="N")
    search.add_argument("--population", type=whole(2), metavar="N", help="students trained in a generation")
    search.add_argument("--budget-evals", type=whole(1), metavar="N", help="stop a search after N trainings")
    search.add_argument("--top", type=whole(1), metavar="K", help="final architectures of a search that distances are of; 3")


def _run(top: argparse.ArgumentParser) -> None:
    run = top.add_argument_group("the run")
    run.add_argument("--seed", type=whole(0), metavar="N", help="of the first search; the others follow")
    run.add_argument("--workers", type=whole(0), metavar="N", help="evaluating processes; 0: one a core")
    run.add_argument("--device", metavar="D", help="auto, cpu or cuda")
    run.add_argument("--out", metavar="DIR", help="home of the experiment's folder")
    run.add_argument("--resume", metavar="FOLDER", help="go on with the experiment in this folder; what has ended is read back")
    run.add_argument("--tracking-uri", metavar="URI", help="MLflow; none switches it off")
    run.add_argument("--quiet", action="store_true")
    run.add_argument("-s", dest="overrides", action="append", metavar="KEY=VALUE", help="any setting of evolve student")
