"""What a comparison of losses is asked for: pairs, found losses that are told as they are, hand-made ones that are tuned first."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from evokd.checkpoint import write_whole
from evokd.config import Config, change_config, make_config, read_config
from evokd.errors import EvokdError, closest
from evokd.export import read_loss
from evokd.finals import PUBLISHED, Entry
from evokd.genome.codec import write_number
from evokd.journal import read_events
from evokd.losses.known import KNOWN
from evokd.losses.language import write_loss
from evokd.losses.modules import MODULES
from evokd.losses.own import load_operators
from evokd.training.recipes import GAMMAS as PUBLISHED_GAMMAS

KD, PLAIN = f"KD (τ={write_number(PUBLISHED[2])}), as published", "plain, equal steps"
RANDOM, TUNED = "random search, same budget", "KD, tuned with as many trials"


@dataclass(frozen=True)
class Entrant:
    """A loss that is told on test.

    Attributes:
        name: of its row.
        text: in evokd's notation; empty for plain training.
        gamma: weight of the cross-entropy beside it.
        trials: trainings on validation that chose its form or its numbers; 0 for none.
        found: its fitness there, after confirmation.
    """

    name: str
    text: str
    gamma: float
    trials: int = 0
    found: float | None = None

    @property
    def entry(self) -> Entry:
        return Entry(self.name, self.text or None, self.gamma)


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        config: of the first pair.
        students: network specs; the first is the one that is tuned for.
        given: found losses, the first of them the one that others are compared with.
        tuned: (name, text) of hand-made losses.
        seeds: fresh ones a row.
        trials: of every hand-made loss.
        best: of the hand-made losses that go on.
        more: further trials of each of these.
        searched: trainings of the search that found the first; 0 for none.
        recipe: of full trainings on test; empty for the short distillation that searches have.
    """

    config: Config
    students: tuple[str, ...]
    given: tuple[Entrant, ...]
    tuned: tuple[tuple[str, str], ...]
    seeds: int = 5
    trials: int = 6
    best: int = 8
    more: int = 6
    searched: int = 0
    recipe: str = ""

    def write(self, folder: Path) -> None:
        """As the folder keeps it, for --resume."""
        body = asdict(replace(self, config=None))
        write_whole(folder / "comparison.json", json.dumps(body, indent=1, ensure_ascii=False) + "\n")
        write_whole(folder / "config.toml", self.config.to_toml())


def read_plan(folder: Path, seeds: int | None = None) -> Plan:
    """The plan of a comparison that goes on, with another number of seeds if one is given.

    Raises:
        EvokdError: not the folder of a comparison of losses.
    """
    try:
        body = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
        body["given"] = tuple(Entrant(**each) for each in body["given"])
        body |= {"students": tuple(body["students"]), "tuned": tuple(map(tuple, body["tuned"])), "config": None}
        plan = Plan(**body)
    except (OSError, ValueError, KeyError, TypeError):
        raise EvokdError("--resume", "the folder of a comparison of losses, with its comparison.json", str(folder)) from None
    config = change_config(read_config(folder / "config.toml"), {"out": str(folder.parent)})
    return replace(plan, config=config, seeds=seeds or plan.seeds)


def make_plan(
    values: dict[str, Any], overrides: Sequence[str] = (), *, run: Path | None = None, students: Sequence[str] = (),
    losses: Sequence[str] = (), known: Sequence[str] = (), recipe: str = "", **counts: int,
) -> Plan:  # fmt: skip
    """What is asked for.

    Args:
        values: fields of the configuration; with a run those that differ from its own.
        overrides: likewise, as `key=value`.
        run: folder of a search, whose pair, protocol and losses are taken.
        students: network specs; the configuration's if there are none.
        losses: known names, texts or loss.json files, which are told as they are.
        known: names of losses that are tuned; `all` for all of them.
        recipe: of full trainings on test, such as crd-240; the short distillation if it is empty.
        **counts: seeds, trials, best, more.

    Raises:
        EvokdError: no such loss, nothing to compare, or a number out of range.
    """
    config = change_config(read_config(run / "config.toml"), values, overrides) if run else make_config(values, overrides)
    if config.task != "distiller":
        raise EvokdError(str(run), "a search for a distiller", f"one for a {config.task}")
    load_operators(config.operators)
    for name, low in (("seeds", 2), ("trials", 1), ("best", 0), ("more", 0)):
        if counts.get(name, low) < low:
            raise EvokdError(f"--{name}", f"at least {low}", str(counts[name]))
    given, searched = found_in(run) if run else ((), 0)
    given = (*given, *(named(spec, config.protocol.gamma) for spec in losses))
    tuned = tuple((name, KNOWN.get(name, name)) for name in _known(known))
    if len(given) + len(tuned) < 1:
        raise EvokdError("compare losses", "a run, --loss or --known", "none of them")
    return Plan(config, tuple(students) or (config.student,), given, tuned, searched=searched, recipe=recipe, **counts)


def _known(names: Sequence[str]) -> list[str]:
    every = [*KNOWN, *MODULES]
    if list(names) == ["all"]:
        return every
    for name in names:
        if name not in every:
            raise EvokdError("--known", "a published loss", repr(name), closest(name, every))
    return list(dict.fromkeys(names))


def named(spec: str, gamma: float) -> Entrant:
    """A loss as it is: with γ of the file, or that it is published with, or of the protocol."""
    text = write_loss(read_loss(spec))
    if spec.endswith(".json"):
        told = json.loads(Path(spec).read_text(encoding="utf-8")).get("gamma")
        gamma = float(told) if isinstance(told, int | float) and math.isfinite(told) else gamma
        return Entrant(f"{Path(spec).resolve().parents[1].name}", text, gamma)
    return Entrant(spec, text, PUBLISHED_GAMMAS.get(spec, gamma))


def found_in(run: Path) -> tuple[tuple[Entrant, ...], int]:
    """(rows of a finished search in their order, but for plain training and KD as published; its full trainings).

    Raises:
        EvokdError: a search that is not at its end, or that was told without finals.
    """
    events = read_events(run)
    rows = {e["row"]: e for e in events if e["event"] == "final" and e["text"]}
    if not rows:
        raise EvokdError(str(run), "a search with its finals", "none", f"python -m evokd.evolve distiller --resume {run}")
    counts = {e["name"]: e["trials"] for e in events if e["event"] == "baseline"}
    searched = max(e["evaluations"] for e in events if e["event"] == "generation")
    gamma = read_config(run / "config.toml").protocol.gamma
    trials = {RANDOM: counts.get("random", 0), TUNED: counts.get("kd", 0)}
    found = {e["text"]: e["fitness"] for e in events if e["event"] in ("confirm", "baseline")}
    won = next((e["best"] for e in events if e["event"] == "end"), "")
    entrants = [
        Entrant(
            _called(name, e["text"] == won),
            e["text"],
            gamma if e["gamma"] is None else e["gamma"],
            0 if name.endswith("alone") else trials.get(name, searched),
            found.get(e["text"]),
        )
        for name, e in rows.items()
        if name != KD
    ]
    return tuple(entrants), searched


def _called(row: str, won: bool) -> str:
    """The winner's own name, where it is also the simplest within one standard error and was trained once for both rows."""
    return row.partition(", simplest")[0] if won else row
