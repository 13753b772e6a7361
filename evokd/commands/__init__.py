"""The `evokd` command: one file a subcommand, imported when it is called."""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from evokd.errors import EvokdError

COMMANDS = {
    "evolve": "evolve a distiller (the same as python -m evokd.evolve)",
    "export": "write a loss as LaTeX, SymPy, PyTorch or JSON",
    "score": "rank the training-free scores of students against a table",
    "spaces": "list the search spaces, or show one",
    "distill": "train a student in full with any loss, several seeds",
    "teacher": "train, list or check teachers",
    "compare": "compare search controllers on equal terms, with curves and intervals",
    "akd": "AKD's experiments: the 2 × 2, teachers' preferences, agents, human designs",
    "oneshot": "find a cell by one training of a supernet: RSPS, GDAS, DARTS",
    "report": "a run as a page with figures and ablation, or as a published table",
    "lineage": "draw the family tree of a run's winner, or of any candidate",
    "runs": "list runs with their state and best loss",
    "track": "fill in what MLflow lacks of a run: track sync RUN",
    "ui": "open the MLflow UI on the runs, on localhost",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 2 for a mistake the user can mend, said in one line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    listing = "\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items())
    top = argparse.ArgumentParser(
        prog="evokd", epilog=f"commands:\n{listing}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("command", choices=list(COMMANDS), metavar="COMMAND", help="see below; each has its own --help")
    command = top.parse_args(given[:1]).command
    try:
        if command == "evolve":
            return import_module("evokd.evolve").main(given[1:])
        return import_module(f"evokd.commands.{command}").main(given[1:])
    except EvokdError as error:
        print(f"evokd: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        if str(stop):
            print(f"evokd: {stop}", file=sys.stderr)
        return getattr(stop, "code", 130)
    except BrokenPipeError:
        return 130


def whole(least: int) -> Callable[[str], int]:
    """The reader of an option's whole number."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text[:40]!r}")
        return int(text)

    return read
