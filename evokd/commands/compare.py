"""`evokd compare`: what beats what, on equal terms and with intervals. One subcommand a kind of thing that is compared."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from evokd.errors import EvokdError
from evokd.evolve import add_tasks, settings


def main(arguments: Sequence[str]) -> int:
    given = vars(_options().parse_args(arguments))
    return given.pop("compare")(given)


def compare_controllers(given: dict) -> int:
    """Run what is missing of a comparison, and tell all of it."""
    from evokd.compare.controllers import compare_controllers, make_plan, told
    from evokd.report.terminal import Terminal

    if "controller" in given:
        raise EvokdError("--controller", "--controllers with the names of all", repr(given["controller"]))
    terminal = Terminal(quiet=given.pop("quiet", False))
    download, resumed, overrides = given.pop("download", False), given.pop("resume", None), given.pop("overrides", [])
    names = [name.strip() for name in given.pop("controllers", "").split(",") if name.strip()]
    count, finals, folder = given.pop("seeds", None), given.pop("finals", None), Path(resumed) if resumed else None
    plan = make_plan(settings(given), overrides, names, count, finals, folder)
    found = compare_controllers(plan, terminal, folder=folder, download=download)
    terminal.say("\n" + "\n".join(told(found)))
    terminal.say(f"\n {found.folder}: compare.html curves.png curves.svg searches.csv curves.csv pairs.csv")
    return 0


def compare_losses(given: dict) -> int:
    """Tune, train and tell what is missing of a comparison of losses."""
    from evokd.compare.loss_plan import make_plan, read_plan
    from evokd.compare.loss_tables import told
    from evokd.compare.losses import compare_losses
    from evokd.report.terminal import Terminal

    terminal, resumed = Terminal(quiet=given.pop("quiet", False)), given.pop("resume", None)
    if resumed:
        folder = Path(resumed)
        if odd := sorted(set(given) - {"seeds"}):
            raise EvokdError("--resume", "no other option than --seeds and --quiet", f"--{odd[0]}")
        plan = read_plan(folder, given.get("seeds"))
    else:
        folder, counts = None, {name: given.pop(name) for name in ("seeds", "trials", "best", "more") if name in given}
        asked = {name: _listed(given.pop(name, "")) for name in ("students", "known")}
        overrides, run = given.pop("overrides", []), given.pop("run", None)
        asked |= {"losses": given.pop("losses", []), "recipe": given.pop("recipe", "")}
        plan = make_plan(settings(given), overrides, run=Path(run) if run else None, **asked, **counts)
    found = compare_losses(plan, terminal, folder)
    terminal.say("\n".join(told(found)))
    terminal.say(f"\n {found.folder}: losses.html losses.csv standings.csv tuning.csv accuracy.png ranks.png")
    return 0


def compare_transfer(given: dict) -> int:
    """Train and tell what is missing of a transfer."""
    from evokd.compare.pairs import train_pairs
    from evokd.compare.transfer import make_plan, told

    plan, folder, terminal = _plan_of_pairs(given, "transfer", make_plan, "pairs")
    folder, pairs = train_pairs(plan, terminal, folder)
    terminal.say("\n".join([*told(plan, pairs), "", f" {folder}: told.csv events.jsonl"]))
    return 0


def compare_teachers(given: dict) -> int:
    """Train and tell what is missing of a ladder of teachers."""
    from evokd.compare.ladder import draw, make_plan, told
    from evokd.compare.pairs import train_pairs

    plan, folder, terminal = _plan_of_pairs(given, "teachers", make_plan, "teachers")
    folder, pairs = train_pairs(plan, terminal, folder)
    draw(folder, plan, pairs)
    terminal.say("\n".join([*told(plan, pairs), "", f" {folder}: told.csv ladder.png ladder.svg events.jsonl"]))
    return 0


def _plan_of_pairs(given: dict, kind: str, make_plan, option: str) -> tuple:
    """(plan, folder of one that goes on, terminal) of a comparison on several pairs."""
    from evokd.compare.pairs import read_plan
    from evokd.report.terminal import Terminal

    terminal, resumed = Terminal(quiet=given.pop("quiet", False)), given.pop("resume", None)
    if not resumed:
        overrides, losses, pairs = (given.pop(name, []) for name in ("overrides", "losses", option))
        seeds = {"seeds": given.pop("seeds")} if "seeds" in given else {}
        listed = _listed(pairs) if isinstance(pairs, str) else pairs
        return make_plan(settings(given), overrides, losses, listed, **seeds), None, terminal
    if odd := sorted(set(given) - {"seeds"}):
        raise EvokdError("--resume", "no other option than --seeds and --quiet", f"--{odd[0]}")
    return read_plan(Path(resumed), kind, given.get("seeds")), Path(resumed), terminal


def compare_bases(given: dict) -> int:
    """Run what is missing of the searches beside published losses, and tell all of it."""
    from evokd.compare.bases import compare_bases, make_plan, read_plan, told
    from evokd.report.terminal import Terminal

    terminal, resumed = Terminal(quiet=given.pop("quiet", False)), given.pop("resume", None)
    folder = Path(resumed) if resumed else None
    if folder and given:
        raise EvokdError("--resume", "no other option than --quiet", f"--{next(iter(given))}")
    bases, overrides = _listed(given.pop("bases", "")), given.pop("overrides", [])
    config, names = read_plan(folder) if folder else make_plan(settings(given), overrides, bases)
    folder, methods = compare_bases(config, names, terminal, folder)
    terminal.say("\n".join(["", *told(methods), "", f" {folder}: bases.csv bases.png bases.svg, and the searches"]))
    return 0


def compare_runs(given: dict) -> int:
    """Overlay searches that were run already."""
    from evokd.compare.runs import overlay, told, write_csv
    from evokd.folder import fresh
    from evokd.report.overlay import write_overlay

    folders = [Path(run) for run in given["runs"]]
    found = overlay(folders)
    if given["csv"]:
        write_csv(Path(given["csv"]), found)
    target = Path(given["to"]) if given["to"] else fresh(folders[0].resolve().parent, "compare-runs")
    target.mkdir(parents=True, exist_ok=True)
    paths = write_overlay(target, found)
    print("\n".join([*told(found), "", " " + "  ".join(map(str, paths))]))
    return 0


def _runs_options(commands) -> None:
    runs = commands.add_parser(
        "runs",
        help="searches that were run already, overlaid: curves, fronts, what several found, building blocks",
        description="Overlay searches by any controllers, finished, going or stopped, from their folders alone.",
    )
    runs.set_defaults(compare=compare_runs)
    runs.add_argument("runs", nargs="+", metavar="RUN", help="run folders, two or more")
    runs.add_argument("--csv", metavar="FILE", help="all of it as one long table")
    runs.add_argument(
        "--to", metavar="DIR", help="folder of compare-runs.html, .svg and .png; a new one beside the runs if not given"
    )


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _losses_options(commands) -> None:
    losses = commands.add_parser(
        "losses",
        help="found and hand-made losses on one pair or several, tuned alike, told once on test",
        description="Losses on equal terms: those of a search (its winner, random search, tuned KD), others as they are, and published "
        "ones that are tuned on validation with as many trials each; all with the same fresh seeds, told once on test.",
        argument_default=argparse.SUPPRESS,
    )
    losses.set_defaults(compare=compare_losses)
    losses.add_argument("run", nargs="?", metavar="RUN", help="a finished search, whose pair, protocol and losses are taken")
    rows = losses.add_argument_group("the rows")
    rows.add_argument(
        "--loss", dest="losses", action="append", metavar="LOSS", help="known name, text or loss.json, told as it is"
    )
    rows.add_argument("--known", metavar="A,B,…", help="published losses that are tuned first, or all")
    rows.add_argument("--trials", type=int, metavar="N", help="of each of them; 6 if not given")
    rows.add_argument("--best", type=int, metavar="N", help="of them that are told on test; 8 if not given")
    rows.add_argument("--more", type=int, metavar="N", help="further trials of each of these; 6 if not given")
    pair = losses.add_argument_group("the pairs, with RUN those of the search")
    pair.add_argument("--teacher", metavar="T", help="name, file.safetensors, or file.py:callable")
    pair.add_argument("--students", metavar="A,B,…", help="network specs; tuned for the first, told for all")
    pair.add_argument("--data", metavar="D", help="digits, cifar10, cifar100, fashion_mnist, mnist, an npz file or a folder")
    pair.add_argument("--transfer", type=int, metavar="N", help="use only N training images")
    pair.add_argument("--labels", type=int, metavar="N", help="know the labels of only N training images")
    pair.add_argument("--operators", action="append", metavar="FILE.py:FN", help="an operator of your own")
    run = losses.add_argument_group("the comparison")
    run.add_argument("--seeds", type=int, metavar="K", help="fresh ones a row; 5 if not given")
    run.add_argument("--recipe", metavar="R", help="tell with full trainings (crd-240, short-N, …), not with short distillations")
    run.add_argument("--seed", type=int, metavar="N", help="from which all derive")
    run.add_argument("--workers", type=int, metavar="N", help="evaluating processes; 0: one a core")
    run.add_argument("--timeout-seconds", type=float, metavar="S", help="time limit of one training")
    run.add_argument("--device", metavar="D", help="auto, cpu or cuda")
    run.add_argument("--out", metavar="DIR", help="home of runs, cache and mlflow.db")
    run.add_argument("--resume", metavar="FOLDER", help="go on with a comparison, with more --seeds if wanted")
    run.add_argument("--tracking-uri", metavar="URI", help="MLflow; none switches it off")
    run.add_argument("--quiet", action="store_true")
    run.add_argument("-s", dest="overrides", action="append", metavar="KEY=VALUE", help="any setting, e.g. -s protocol.steps=300")


def _transfer_options(commands) -> None:
    transfer = commands.add_parser(
        "transfer",
        help="a loss applied unchanged to other teachers, students and data, beside KD and plain training",
        description="A loss applied unchanged, γ included, to several pairs, beside KD as published and plain training; all with the same "
        "fresh seeds, told once on test, with the parameters of connectors.",
        argument_default=argparse.SUPPRESS,
    )
    transfer.set_defaults(compare=compare_transfer)
    transfer.add_argument(
        "--pair", dest="pairs", action="append", metavar="T,S[,D]", help="teacher, student and data; several times"
    )
    transfer.add_argument("--data", metavar="D", help="of pairs that name none")
    _options_of_pairs(transfer)


def _teachers_options(commands) -> None:
    ladder = commands.add_parser(
        "teachers",
        help="one student under a ladder of teachers: does a better teacher make a better student?",
        description="One student under several teachers with each of several losses, and the rank correlation of student and teacher "
        "accuracy (KD-Zero's figure 2, DisWOT's Table 9).",
        argument_default=argparse.SUPPRESS,
    )
    ladder.set_defaults(compare=compare_teachers)
    ladder.add_argument("--teachers", metavar="A,B,C,…", help="names or files, at least three")
    ladder.add_argument("--student", metavar="S", help="name, or file.py:callable")
    ladder.add_argument("--data", metavar="D", help="digits, cifar10, cifar100, fashion_mnist, mnist, an npz file or a folder")
    _options_of_pairs(ladder)


def _bases_options(commands) -> None:
    bases = commands.add_parser(
        "bases",
        help="published losses, each alone and with the term that a search adds to it",
        description="For each published loss a search of what is added to it, all with one budget; both told on test with the same seeds.",
        argument_default=argparse.SUPPRESS,
    )
    bases.set_defaults(compare=compare_bases)
    bases.add_argument("--bases", metavar="A,B,…", help="known names, such as kd,dkd,dist,sp,at,fitnet")
    bases.add_argument("--teacher", metavar="T", help="name (trained once, cached), or file.safetensors")
    bases.add_argument("--student", metavar="S", help="name, or file.py:callable")
    bases.add_argument("--data", metavar="D", help="digits, cifar10, cifar100, fashion_mnist, mnist, an npz file or a folder")
    bases.add_argument("--space", metavar="NAME|FILE", help="what may be added")
    bases.add_argument("--transfer", type=int, metavar="N", help="use only N training images")
    bases.add_argument("--labels", type=int, metavar="N", help="know the labels of only N training images")
    bases.add_argument("--generations", type=int, metavar="N", help="of every search")
    bases.add_argument("--population", type=int, metavar="N", help="of every search")
    bases.add_argument("--finals", type=int, metavar="K", help="fresh seeds, the same for all")
    bases.add_argument("--seed", type=int, metavar="N")
    bases.add_argument("--workers", type=int, metavar="N", help="evaluating processes; 0: one a core")
    bases.add_argument("--device", metavar="D", help="auto, cpu or cuda")
    bases.add_argument("--out", metavar="DIR", help="home of the folder with all searches")
    bases.add_argument("--resume", metavar="FOLDER", help="go on with a comparison")
    bases.add_argument("--tracking-uri", metavar="URI", help="MLflow; none switches it off")
    bases.add_argument("--quiet", action="store_true")
    bases.add_argument(
        "-s", dest="overrides", action="append", metavar="KEY=VALUE", help="any setting, e.g. -s protocol.steps=300"
    )


def _options_of_pairs(task: argparse.ArgumentParser) -> None:
    """What comparisons of some losses on several pairs share."""
    losses = {
        "action": "append",
        "metavar": "LOSS|RUN",
        "help": "known name, text, loss.json, or a finished search; several times",
    }
    task.add_argument("--loss", dest="losses", **losses)
    task.add_argument("--transfer", type=int, metavar="N", help="use only N training images")
    task.add_argument("--labels", type=int, metavar="N", help="know the labels of only N training images")
    task.add_argument("--operators", action="append", metavar="FILE.py:FN", help="an operator of your own")
    task.add_argument("--seeds", type=int, metavar="K", help="fresh ones a row; 5 if not given")
    task.add_argument("--seed", type=int, metavar="N", help="from which all derive")
    task.add_argument("--workers", type=int, metavar="N", help="evaluating processes; 0: one a core")
    task.add_argument("--timeout-seconds", type=float, metavar="S", help="time limit of one training")
    task.add_argument("--device", metavar="D", help="auto, cpu or cuda")
    task.add_argument("--out", metavar="DIR", help="home of runs and caches")
    task.add_argument("--resume", metavar="FOLDER", help="go on with a comparison, with more --seeds if wanted")
    task.add_argument("--quiet", action="store_true")
    task.add_argument(
        "-s", dest="overrides", action="append", metavar="KEY=VALUE", help="any setting, e.g. -s protocol.steps=300"
    )


def _options() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="evokd compare", description="What beats what, on equal terms and with intervals.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    controllers = commands.add_parser("controllers", help="search controllers, several seeds each, on one problem and budget")
    controllers.set_defaults(compare=compare_controllers)
    for task in add_tasks(controllers):
        own = task.add_argument_group("the comparison, beside the options of a search")
        own.add_argument("--controllers", metavar="A,B,…", help="two or more; evolution,random if not given")
        own.add_argument(
            "--seeds", type=int, metavar="N", help="searches of each controller, with seeds from --seed on; 10 if not given"
        )
        own.add_argument(
            "--no-finals", dest="finals", action="store_false", help="do not train the winners again and tell them on test"
        )
    _losses_options(commands)
    _transfer_options(commands)
    _teachers_options(commands)
    _bases_options(commands)
    _runs_options(commands)
    return top
