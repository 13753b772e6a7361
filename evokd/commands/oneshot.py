"""`evokd oneshot`: RSPS, GDAS and DARTS on NAS-Bench-201's cells."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evokd.errors import EvokdError

EPOCHS = {"rsps": 250, "gdas": 250, "darts": 50}  # as published


def main(arguments: Sequence[str]) -> int:
    given = _options().parse_args(arguments)
    if given.method not in EPOCHS:
        from evokd.errors import unknown

        raise unknown("evokd oneshot", "a one-shot method", given.method, EPOCHS)
    _check(given)
    from evokd.config import make_config
    from evokd.oneshot import run
    from evokd.report.terminal import Terminal
    from evokd.students.oneshot import Recipe

    recipe = Recipe(given.epochs or EPOCHS[given.method], given.steps, given.batch, given.lr, choice_lr=given.choice_lr)
    config = make_config(_values(given), given.overrides)
    run(config, recipe, given.samples, Terminal(given.quiet), finals=not given.no_finals, download=given.download)
    return 0


def _options() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="evokd oneshot",
        description="Find a cell of NAS-Bench-201 by one training of a supernet, then distil it as `evolve student` does.",
    )
    top.add_argument("method", metavar="rsps|gdas|darts")
    top.add_argument("--data", default="digits", metavar="D", help="as of `evolve student`")
    top.add_argument("--download", action="store_true", help="allow torchvision to fetch the data set")
    top.add_argument("--transfer", type=int, default=0, metavar="N", help="use only N training images")
    top.add_argument("--teacher", metavar="T", help="of the distillation at the end")
    top.add_argument("--no-finals", action="store_true", help="search only: no teacher, no distillation")
    sizes = top.add_argument_group("the supernet (defaults as published)")
    sizes.add_argument("--space", default="nas_bench_201", metavar="NAME|FILE")
    sizes.add_argument("--channels", type=int, metavar="C", help="of the first stage, instead of the space's 16")
    sizes.add_argument("--cells", type=int, metavar="N", help="in each stage, instead of the space's 5")
    sizes.add_argument("--epochs", type=int, default=0, metavar="N", help="250, darts 50")
    sizes.add_argument("--steps", type=int, default=0, metavar="N", help="in place of epochs")
    sizes.add_argument("--batch", type=int, default=64, metavar="N")
    sizes.add_argument("--lr", type=float, default=0.025, help="of the weights, falling to 0.001")
    sizes.add_argument("--choice-lr", type=float, default=3e-4, metavar="LR", help="of the choices: short searches need more")
    sizes.add_argument("--samples", type=int, default=100, metavar="N", help="cells that rsps ranks")
    run = top.add_argument_group("the run")
    run.add_argument("--seed", type=int, default=0, metavar="N")
    run.add_argument("--workers", type=int, metavar="N")
    run.add_argument("--device", metavar="D", help="auto, cpu or cuda")
    run.add_argument("--out", default="runs", metavar="DIR")
    run.add_argument("--quiet", action="store_true")
    run.add_argument("-s", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="e.g. -s finals=5")
    return top


def _check(given: argparse.Namespace) -> None:
    """Raises EvokdError for a number out of range."""
    least = {"transfer": 0, "epochs": 0, "steps": 0, "batch": 2, "samples": 1}
    for name, low in least.items():
        if vars(given)[name] < low:
            raise EvokdError(f"--{name}", f"at least {low}", str(vars(given)[name]))
    for name in ("lr", "choice_lr"):
        if not 0 < vars(given)[name] < 100:
            raise EvokdError(f"--{name.replace('_', '-')}", "a number above 0", str(vars(given)[name]))


def _values(given: argparse.Namespace) -> dict[str, Any]:
    """What differs from a configuration's defaults."""
    named = {name: vars(given)[name] for name in ("data", "teacher", "seed", "out", "device", "workers")}
    values = {name: value for name, value in named.items() if value is not None}
    fixed = {"task": "student", "controller": given.method, "evaluator": "distill", "space": _sized(given)}
    return values | fixed | {"protocol": {"transfer": given.transfer} if given.transfer else {}}


def _sized(given: argparse.Namespace) -> str:
    """The space that is named, or a file beside the caches with the sizes that are given."""
    if given.channels is None and given.cells is None:
        return given.space
    from evokd.checkpoint import write_whole
    from evokd.problem import check_writable
    from evokd.students import read_definition, space_from

    raw, where = read_definition(given.space)
    raw |= {name: value for name in ("channels", "cells") if (value := vars(given)[name]) is not None}
    space_from(raw, where)
    folder = Path(given.out) / "cache" / "spaces"
    check_writable(folder)
    path = folder / f"{raw['language']}-{raw.get('channels', 16)}x{raw.get('cells', 5)}.toml"
    write_whole(path, "".join(f"{name} = {value!r}\n".replace("'", '"') for name, value in raw.items()))
    return str(path)
