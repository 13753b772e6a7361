"""Student and loss searched in turn for one teacher: a loss for the student at hand, a student for the loss at hand, round after round.

At the end stands one more search of a loss for the student found, and the question of their interaction: is the best loss for the best
student the best loss for the human student? Every search is a run of its own in one folder, and chooses on validation; what is told on test
is trained with fresh seeds that all cells share.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evokd.checkpoint import write_whole
from evokd.compare.loss_plan import KD, Entrant
from evokd.compare.pairs import Pair, Plan, train_pairs
from evokd.compare.standings import standings
from evokd.compare.transfer import published
from evokd.config import Config, StudentConfig, change_config, make_config, read_config
from evokd.errors import EvokdError
from evokd.finals import interval
from evokd.folder import fresh, locked
from evokd.report.terminal import Terminal
from evokd.searched import searched

SHARED = ("teacher", "data", "teacher_epochs", "workers", "device", "seed", "tracking_uri", "timeout_seconds", "memory_gib")
LIGHT = {"baselines": False, "finals": 2}  # of the searches in between; what they found is told at the end
HUMAN, FOUND = "human student", "found student"
FOR_HUMAN, FOR_FOUND = "loss found for the human student", "loss found for the found student"


@dataclass(frozen=True)
class Joint:
    """What is searched.

    Attributes:
        losses: configuration of the searches for a loss; its student is the human one.
        students: of those for a student.
        rounds: searches for a student.
        seeds: fresh ones of a cell of the closing table.
    """

    losses: Config
    students: StudentConfig
    rounds: int = 1
    seeds: int = 5

    def write(self, folder: Path) -> None:
        write_whole(folder / "joint.json", json.dumps({"rounds": self.rounds, "seeds": self.seeds}) + "\n")
        write_whole(folder / "losses.toml", self.losses.to_toml())
        write_whole(folder / "students.toml", self.students.to_toml())


def make_joint(values: Mapping[str, Any], overrides: Sequence[str] = (), rounds: int = 1, seeds: int = 5) -> Joint:
    """Both searches from one set of options; the protocol is that of the losses, so that a student is searched under it.

    Args:
        values: fields of both configurations; `max_params` and `max_macs` of the students alone, `student` of the losses.
        overrides: `key=value` of both.
        rounds: searches for a student.
        seeds: fresh ones of a cell.

    Raises:
        EvokdError: no round, one seed, and what a search refuses.
    """
    for option, value, least in (("--rounds", rounds, 1), ("--seeds", seeds, 2)):
        if value < least:
            raise EvokdError(option, f"at least {least}", str(value))
    limits = {name: value for name, value in values.items() if name.startswith("max_")}
    losses = make_config(LIGHT | {k: v for k, v in values.items() if k not in limits}, overrides)
    protocol = {"protocol": losses.protocol.model_dump()}
    same = {name: getattr(losses, name) for name in SHARED} | LIGHT | protocol | limits
    counts = {name: values[name] for name in ("generations", "population") if name in values}
    return Joint(losses, make_config({"task": "student", **same, **counts}), rounds, seeds)


def read_joint(folder: Path) -> Joint:
    """Raises EvokdError for what is no folder of a joint search."""
    try:
        body = json.loads((folder / "joint.json").read_text(encoding="utf-8"))
        rounds, seeds = int(body["rounds"]), int(body["seeds"])
    except (OSError, ValueError, KeyError, TypeError):
        raise EvokdError("--resume", "the folder of a joint search, with its joint.json", str(folder)) from None
    return Joint(read_config(folder / "losses.toml"), read_config(folder / "students.toml"), rounds, seeds)


@dataclass(frozen=True)
class Square:
    """The closing table.

    Attributes:
        folder: of the joint search.
        students: the human one and the one found, as specs.
        pairs: likewise, with test accuracy by row and seed.
        rows: the losses.
    """

    folder: Path
    students: tuple[str, str]
    pairs: tuple[Pair, Pair]
    rows: tuple[Entrant, ...]

    def effect(self, student: int, first: str, second: str) -> list[float]:
        """First − second loss on a student, by seed."""
        values = self.pairs[student].values
        return [a - b for a, b in zip(values[first], values[second], strict=True)]

    def interaction(self, other: str) -> tuple[float, float, float]:
        """How much more the found student gains from its own loss, over another loss, than the human student does: mean and 95 % interval.

        [own(found) − other(found)] − [own(human) − other(human)], paired by seed. Above 0: a loss suits the student it was found for.
        """
        gains = zip(self.effect(1, FOR_FOUND, other), self.effect(0, FOR_FOUND, other), strict=True)
        gaps = [found - human for found, human in gains if math.isfinite(found - human)]
        return interval(gaps) if gaps else (math.nan,) * 3


def run(joint: Joint, terminal: Terminal, folder: Path | None = None) -> Square:
    """All searches that are missing, then the closing table.

    Raises:
        EvokdError: whatever a search refuses, or a folder that another process writes.
    """
    with ExitStack() as stack:
        stack.callback(terminal.done)
        folder = folder or fresh(Path(joint.losses.out), f"joint-{Path(joint.losses.data).name}")
        stack.enter_context(locked(folder))
        joint.write(folder)
        spec, losses = joint.losses.student, []
        for number in range(joint.rounds):
            losses.append(_loss_for(joint, folder, spec, number, terminal))
            spec = _student_for(joint, folder, losses[-1], number, terminal)
        losses.append(_loss_for(joint, folder, spec, joint.rounds, terminal))
        square = _square(joint, folder, spec, losses[0], losses[-1], terminal)
    write_square(square)
    terminal.say("\n".join(["", *told(square), "", f" {folder}: square.csv finals/told.csv, and the searches"]))
    return square


def _loss_for(joint: Joint, folder: Path, spec: str, number: int, terminal: Terminal) -> str:
    """Text of the loss found for a student."""
    terminal.say(f"\nround {number + 1}: a loss for {spec}")
    config = _in(folder, joint.losses, number, student=spec)
    return _best(searched(config, terminal), "loss.json")["text"]


def _student_for(joint: Joint, folder: Path, loss: str, number: int, terminal: Terminal) -> str:
    """Spec of the student found for a loss."""
    terminal.say(f"\nround {number + 1}: a student for {loss}")
    body = _best(searched(_in(folder, joint.students, number, loss=loss), terminal), "student.json")
    return f"space:{body['space']}:{body['text']}"


def _in(folder: Path, config: Config, number: int, **changes: Any) -> Config:
    """A search of a round: in the folder, with a seed of its own."""
    return change_config(config, {**changes, "out": str(folder), "seed": config.seed + number})


def _best(run: Path, name: str) -> dict:
    return json.loads((run / "best" / name).read_text(encoding="utf-8"))


def _square(joint: Joint, folder: Path, spec: str, first: str, last: str, terminal: Terminal) -> Square:
    """Both students with all losses, in `finals/`."""
    gamma, home = joint.losses.protocol.gamma, folder / "finals"
    rows = (Entrant(FOR_FOUND, last, gamma), Entrant(FOR_HUMAN, first, gamma), *published())
    configs = tuple(_in(folder, joint.losses, 0, student=each) for each in (joint.losses.student, spec))
    home.mkdir(exist_ok=True)
    _, pairs = train_pairs(
        Plan("joint", configs, rows, joint.seeds),
        terminal,
        home,
        f"python -m evokd.evolve joint --resume {shlex.quote(str(folder))}",
    )
    return Square(folder, (joint.losses.student, spec), tuple(pairs), rows)


def told(square: Square) -> list[str]:
    """Lines for a terminal."""
    lines = [f"test accuracy %, mean ± 95 %; {FOR_FOUND} − row, paired by seed"]
    for called, spec, pair in zip((HUMAN, FOUND), square.students, square.pairs, strict=True):
        lines.append(f" {called}: {spec} ({pair.card['student_parameters']:,} parameters)")
        for row in standings(pair.values, FOR_FOUND):
            gap = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*row.difference) if row.difference else ""
            lines.append(f"   {row.name:<34} {row.mean:5.1f} ± {row.half:<4.1f} {gap}")
    lines += [f" {row.name}: {row.text}" for row in square.rows[:2]]
    for other in (FOR_HUMAN, KD):
        mean, low, high = square.interaction(other)
        lines.append(f" interaction, over {other}: {mean:+.1f} [{low:+.1f}, {high:+.1f}]")
    return [*lines, " above 0 where the loss suits the student that it was found for more than the human one"]


def write_square(square: Square) -> None:
    """square.csv: a line a cell, then the interactions."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("student", "loss", "text", "mean", "low", "high"), *_cells(square)])
    write_whole(square.folder / "square.csv", text.getvalue())


def _cells(square: Square) -> Iterator[tuple]:
    for spec, pair in zip(square.students, square.pairs, strict=True):
        for row in square.rows:
            values = [value for value in pair.values[row.name] if math.isfinite(value)]
            yield spec, row.name, row.text, *(interval(values) if values else (math.nan,) * 3)
    for other in (FOR_HUMAN, KD):
        yield "interaction", other, "", *square.interaction(other)
