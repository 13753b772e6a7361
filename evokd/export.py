"""The best loss handed over: notation and tree as JSON, stand-alone PyTorch, LaTeX, SymPy."""

from __future__ import annotations

import json
import os
from pathlib import Path

from evokd.checkpoint import write_whole
from evokd.errors import EvokdError
from evokd.genome.codec import to_names
from evokd.losses.known import KNOWN
from evokd.losses.language import parse_loss, to_terms, tree_from_names, write_loss
from evokd.losses.taps import Taps

FORMAT = "evokd-loss-1"


def export_loss(
    folder: Path, tree: list, gamma: float, pair: tuple[Taps, Taps] | None = None, about: dict | None = None
) -> list[Path]:
    """Write loss.json, loss.py, loss.tex and loss.sympy.txt (the first alone where a term has trained parts); the paths written.

    Args:
        folder: made if missing.
        tree: the loss.
        gamma: weight of the cross-entropy in the protocol that found it.
        pair: example taps, which tell where connectors stand.
        about: origin and figures, kept in loss.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    body = {"format": FORMAT, "text": write_loss(tree), "tree": to_names(tree), "gamma": gamma, **(about or {})}
    texts = {"loss.json": json.dumps(body, indent=1, ensure_ascii=False) + "\n"}
    if not any(term.module for term in to_terms(tree)):
        texts |= _formulas(tree, gamma, *(pair or (None, None)))
    for name, text in texts.items():
        write_whole(folder / name, text)
    return [folder / name for name in texts]


def _formulas(tree: list, gamma: float, student: Taps | None, teacher: Taps | None) -> dict[str, str]:
    """File name → text, of the forms that only a formula has."""
    from evokd.losses import to_sympy, to_torch_source  # SymPy, of which no search has need before its end

    told = to_sympy(tree, student, teacher)
    note = f"total = {gamma:g} * cross_entropy + L"
    return {
        "loss.py": to_torch_source(tree, student, teacher, gamma),
        "loss.tex": f"% {write_loss(tree)}\n% {note}\n" + "".join(f"% {line}\n" for line in told.legend()) + told.latex(),
        "loss.sympy.txt": told.pretty() + f"# {note}\n\n# SymPy constructors\n" + told.srepr(),
    }


def loss_file(spec: str, where: str = "--loss") -> str:
    """A loss as it is named; of the folder of a finished search its best one.

    Raises:
        EvokdError: a folder without one.
    """
    if not os.path.isdir(spec):
        return spec
    path = os.path.join(spec, "best", "loss.json")
    if not os.path.isfile(path):
        raise EvokdError(where, "a finished search for a loss, with best/loss.json", spec)
    return path


def read_loss(spec: str, where: str = "--loss") -> list:
    """A loss by known name, from an exported loss.json or the folder of a finished search, or as text.

    Raises:
        EvokdError: none of these.
    """
    if spec in KNOWN:
        return parse_loss(KNOWN[spec])
    spec = loss_file(spec, where)
    if not spec.endswith(".json"):
        return parse_loss(spec, where=where)
    try:
        body = json.loads(Path(spec).read_text(encoding="utf-8"))
        names = body["tree"]
        if body["format"] != FORMAT or not isinstance(names, list):
            raise ValueError(f"format {body['format']!r}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise EvokdError(where, f"a loss.json of format {FORMAT}", f"{spec} ({str(error)[:60]})") from None
    return tree_from_names(names, where=spec)
