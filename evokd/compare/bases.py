"""What does an evolved term add to a published method? Each method alone, and with the term that a search of its own added to it.

KD-Zero's figure for the user's own pair. All methods have the same budget, protocol, space and γ; terms are chosen on validation, and the
finals of the searches train both losses of a method, and all methods, with the same fresh seeds.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evokd.checkpoint import write_whole
from evokd.compare.standings import paired_t
from evokd.compare.statistics import holm
from evokd.config import Config, change_config, make_config, read_config
from evokd.distiller import alone
from evokd.errors import EvokdError
from evokd.export import read_loss
from evokd.finals import interval
from evokd.folder import fresh, locked
from evokd.journal import read_events
from evokd.report.bases import draw_bases
from evokd.report.terminal import Terminal
from evokd.searched import searched

LIGHT = {"baselines": False}  # the method alone is what a sum is compared with; -s baselines=true adds random search beside each


@dataclass(frozen=True)
class Method:
    """A published loss, alone and with its term, by seed.

    Attributes:
        name: of the loss.
        text: of the sum that was found.
        alone: test accuracy by seed, %; NaN where a training failed.
        added: of the sum, likewise.
        p: of the paired t-test after Holm's correction for all methods.
    """

    name: str
    text: str
    alone: tuple[float, ...]
    added: tuple[float, ...]
    p: float = math.nan

    @property
    def gaps(self) -> list[float]:
        """Sum − alone, by seed."""
        return [b - a for a, b in zip(self.alone, self.added, strict=True) if math.isfinite(b - a)]


def make_plan(values: Mapping[str, Any], overrides: Sequence[str], bases: Sequence[str]) -> tuple[Config, tuple[str, ...]]:
    """The configuration of all searches, and the methods.

    Raises:
        EvokdError: no method, one that is no loss, or what a search refuses.
    """
    if not bases:
        raise EvokdError("--bases", "published losses, such as kd,dkd,dist,sp,at,fitnet", "none")
    for name in bases:
        read_loss(name, "--bases")
    return make_config({**LIGHT, **values}, overrides), tuple(dict.fromkeys(bases))


def read_plan(folder: Path) -> tuple[Config, tuple[str, ...]]:
    """Raises EvokdError for what is no folder of such a comparison."""
    try:
        bases = tuple(json.loads((folder / "bases.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise EvokdError("--resume", "the folder of evokd compare bases, with its bases.json", str(folder)) from None
    return read_config(folder / "search.toml"), bases


def compare_bases(
    config: Config, bases: Sequence[str], terminal: Terminal, folder: Path | None = None
) -> tuple[Path, list[Method]]:
    """All searches that are missing, then bases.csv, bases.svg and bases.png.

    Raises:
        EvokdError: whatever a search refuses, or a folder that another process writes.
    """
    with ExitStack() as stack:
        stack.callback(terminal.done)
        folder = folder or fresh(Path(config.out), f"bases-{Path(config.data).name}")
        stack.enter_context(locked(folder))
        write_whole(folder / "bases.json", json.dumps(list(bases)) + "\n")
        write_whole(folder / "search.toml", config.to_toml())
        found = []
        for name in bases:
            terminal.say(f"\n{name}, and a term added to it")
            found.append(method_of(searched(change_config(config, {"base": name, "out": str(folder)}), terminal)))
    methods = corrected(found)
    write_bases(folder / "bases.csv", methods)
    draw_bases(folder, {m.name: (_interval(m.alone), _interval(m.added)) for m in methods})
    return folder, methods


def method_of(run: Path) -> Method:
    """A method from the finals of its search, by text: a loss that stands in two rows was trained once and is told in one."""
    config, events = read_config(run / "config.toml"), read_events(run)
    finals = [(e, e["metrics"].get("accuracy", math.nan)) for e in events if e["event"] == "final"]
    best = next(event["best"] for event in events if event["event"] == "end")
    by_itself = tuple(value for event, value in finals if event["row"] == alone(config))
    added = tuple(value for event, value in finals if event["text"] == best and event["gamma"] is None)
    return Method(config.base, best, by_itself, added)


def corrected(methods: Sequence[Method]) -> list[Method]:
    """The methods with their p after Holm's correction; NaN where fewer than two seeds came to an end."""
    tested = [m for m in methods if len(m.gaps) > 1]
    found = dict(zip((m.name for m in tested), holm([paired_t(m.gaps) for m in tested]), strict=True))
    return [Method(m.name, m.text, m.alone, m.added, found.get(m.name, math.nan)) for m in methods]


def _interval(values: Sequence[float]) -> tuple[float, float, float]:
    sound = [value for value in values if math.isfinite(value)]
    return interval(sound) if sound else (math.nan,) * 3


def told(methods: Sequence[Method]) -> list[str]:
    """Lines for a terminal: a row a method."""
    lines = [f" {'test accuracy %':<20} {'alone':<14} {'with its term':<14} {'difference (paired, 95 %), p after Holm':<42} sum"]
    for m in methods:
        cells = [f"{mean:5.1f} ± {mean - low:<4.1f}" for mean, low, _ in map(_interval, (m.alone, m.added))]
        gap = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*_interval(m.gaps)) + f", p {m.p:.2g}"
        lines.append(f"   {m.name:<18} {cells[0]:<14} {cells[1]:<14} {gap:<42} {m.text}")
    return lines


def write_bases(path: Path, methods: Sequence[Method]) -> None:
    """One line a training that came to an end."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("base", "row", "seed", "accuracy", "loss"))
    for m in methods:
        for row, values, loss in (("alone", m.alone, m.name), ("with its term", m.added, m.text)):
            lines.writerows([m.name, row, number, value, loss] for number, value in enumerate(values) if math.isfinite(value))
    write_whole(path, text.getvalue())
