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
    return top
