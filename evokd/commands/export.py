"""`evokd export`: a loss in another form, on standard output."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from evokd.errors import EvokdError


def main(arguments: Sequence[str]) -> int:
    options = argparse.ArgumentParser(prog="evokd export", description="Write a loss in another form.")
    options.add_argument("run", nargs="?", metavar="RUN", help="a run folder, for its best loss")
    options.add_argument("--loss", metavar="LOSS", help="known name, text, or loss.json")
    options.add_argument("--format", choices=["sympy", "latex", "torch", "json"], default="sympy")
    options.add_argument("--operators", action="append", default=[], metavar="FILE.py:FN", help="an operator of your own")
    given = options.parse_args(arguments)
    if bool(given.run) == bool(given.loss):
        raise EvokdError("evokd export", "either RUN or --loss", "both" if given.run else "neither")
    if given.operators:
        from evokd.losses.own import load_operators

        load_operators(given.operators)
    sys.stdout.write(render(given.loss or _best(Path(given.run)), given.format))
    return 0


def render(spec: str, form: str) -> str:
    """The loss as text; a run's own files know its pair and are copied as they are."""
    files = {"sympy": "loss.sympy.txt", "latex": "loss.tex", "torch": "loss.py", "json": "loss.json"}
    beside = Path(spec).parent / files[form]
    if spec.endswith("loss.json") and Path(spec).is_file() and beside.is_file():
        return beside.read_text(encoding="utf-8")
    import json

    from evokd.export import FORMAT, read_loss
    from evokd.genome.codec import to_names
    from evokd.losses import to_latex, to_sympy, to_torch_source, write_loss

    tree = read_loss(spec)
    if form == "json":
        return (
            json.dumps({"format": FORMAT, "text": write_loss(tree), "tree": to_names(tree)}, indent=1, ensure_ascii=False) + "\n"
        )
    return {
        "sympy": lambda: to_sympy(tree).pretty(),
        "latex": lambda: to_latex(tree),
        "torch": lambda: to_torch_source(tree),
    }[form]()


def _best(run: Path) -> str:
    path = run / "best" / "loss.json"
    if not path.is_file():
        raise EvokdError(str(run), "a finished run with best/loss.json", "none", "see `evokd runs`")
    return str(path)
