"""Several searches side by side, read off their journals alone: curves, fronts, what more than one of them found, and of which blocks.

Searches may be by any controllers, finished, going or stopped; only what was trained in full counts, as in every listing.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from evokd.checkpoint import write_whole
from evokd.config import Config, read_config
from evokd.errors import EvokdError
from evokd.folder import state_of
from evokd.journal import read_events
from evokd.lineage import Member, call, family, split, winner
from evokd.search.front import undominated

ELITES = 10  # of a search, whose building blocks are counted


@dataclass(frozen=True)
class Ran:
    """One search as its journal tells it.

    Attributes:
        label: short, and unlike any other's of the comparison.
        folder: of the run.
        config: with which it searched.
        problem: content hash of data, pair and protocol.
        state: finished, going or stopped.
        members: all candidates, by id.
        winner: id of the run's choice, or of the best so far; None if nothing was trained.
        test: mean accuracy of the winner on test, %; None before it was told.
    """

    label: str
    folder: Path
    config: Config
    problem: str
    state: str
    members: Mapping[int, Member]
    winner: int | None
    test: float | None

    @property
    def cost(self) -> str:
        """What a candidate costs: nodes of a loss, parameters of a student."""
        return "size" if self.config.task == "distiller" else "parameters"

    @property
    def curve(self) -> list[tuple[int, float]]:
        """(evaluations, best so far) at every full training that succeeded."""
        points, count, best = [], 0, float("-inf")
        for member in self.members.values():
            count += trained(member)
            if member.fitness is not None:
                best = max(best, member.fitness)
                points.append((count, best))
        return points

    @property
    def evaluations(self) -> int:
        return sum(map(trained, self.members.values()))

    @property
    def front(self) -> list[tuple[float, float]]:
        """(fitness, cost) that no other candidate beats in both."""
        return undominated(
            [(m.fitness, m.figures[self.cost]) for m in self.members.values() if m.fitness is not None and self.cost in m.figures]
        )

    @property
    def elites(self) -> list[Member]:
        """The best, the smaller id first among equals."""
        sound = [m for m in self.members.values() if m.fitness is not None]
        return sorted(sound, key=lambda m: (-m.fitness, m.id))[:ELITES]

    @property
    def line(self) -> set[int]:
        """The winner and all it descends from."""
        found, waiting = set(), [self.winner] if self.winner is not None else []
        while waiting:
            at = waiting.pop()
            if at not in found:
                found.add(at)
                waiting += self.members[at].parents
        return found


class Common(NamedTuple):
    """A candidate that several searches came to: by label its id there, and whether it is the winner or an ancestor of it."""

    text: str
    fitness: dict[str, float | None]
    ids: dict[str, int]
    in_line: frozenset[str]


class Made(NamedTuple):
    """What an operator of a search made: candidates, those trained in full, those that were the best so far, those in the winner's line."""

    candidates: int
    trained: int
    improved: int
    in_line: int


@dataclass(frozen=True)
class Overlay:
    """What a comparison of runs tells.

    Attributes:
        ran: the searches.
        common: found by more than one, those in the line of a winner first.
        blocks: (sort, name) → label → share of the search's elites that have it.
        operators: operator → label → what it made.
    """

    ran: list[Ran]
    common: list[Common]
    blocks: dict[tuple[str, str], dict[str, float]]
    operators: dict[str, dict[str, Made]]

    @property
    def alike(self) -> bool:
        """Whether all had the same data, pair, protocol and fitness, so that it can be compared."""
        names = ("fitness", "protocol", "evaluator", "score", "loss")
        return len({(each.problem, *(str(getattr(each.config, name, "")) for name in names)) for each in self.ran}) == 1


def trained(member: Member) -> bool:
    """Whether it had its full training, whatever came of it."""
    return member.status != "REJECTED" and not member.reason.startswith("rung ")


def overlay(folders: Sequence[Path]) -> Overlay:
    """What several searches have in common, and what not.

    Raises:
        EvokdError: fewer than two, one twice, what is no search, or searches for different things.
    """
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        raise EvokdError("RUN", "two runs or more, none twice", " ".join(map(str, folders)) or "none")
    read = [(folder, read_config(folder / "config.toml"), read_events(folder)) for folder in folders]
    if len({config.task for _, config, _ in read}) > 1:
        raise EvokdError(
            "RUN", "searches for the same thing", ", ".join(f"{folder}: {config.task}" for folder, config, _ in read)
        )
    names = labels([(config.controller, config.seed, folder.resolve().name) for folder, config, _ in read])
    ran = [_ran(name, *each) for name, each in zip(names, read, strict=True)]
    return Overlay(ran, common(ran), blocks(ran), operators(ran))


def _ran(label: str, folder: Path, config: Config, events: Sequence[dict]) -> Ran:
    members = family(events)
    begun = next((event for event in events if event["event"] == "start"), {})
    state = state_of(folder, events)
    test = _test(events) if state == "finished" else None
    return Ran(label, folder, config, begun.get("problem", ""), state, members, winner(events, members), test)


def _test(events: Sequence[dict]) -> float | None:
    """Mean of the first row of the closing table, which is the winner's."""
    finals = [event for event in events if event["event"] == "final"]
    mine = [
        event.get("accuracy", event.get("metrics", {}).get("accuracy")) for event in finals if event["row"] == finals[0]["row"]
    ]
    values = [value for value in mine if value is not None]
    return fmean(values) if values else None


def labels(about: Sequence[tuple[str, int, str]]) -> list[str]:
    """The shortest that tell all apart: the controller, with its seed, or with the folder's name."""
    forms = [f"{controller}" for controller, _, _ in about], [f"{c}, seed {seed}" for c, seed, _ in about]
    return list(next((form for form in forms if len(set(form)) == len(about)), [f"{c}, {name}" for c, _, name in about]))


def common(ran: Sequence[Ran]) -> list[Common]:
    """Candidates of one canonical text in more than one search."""
    places: dict[str, dict[str, Member]] = {}
    for each in ran:
        for member in each.members.values():
            places.setdefault(member.text, {}).setdefault(each.label, member)
    lines = {each.label: each.line for each in ran}
    found = [
        Common(
            text,
            {label: member.fitness for label, member in where.items()},
            {label: member.id for label, member in where.items()},
            frozenset(label for label, member in where.items() if member.id in lines[label]),
        )
        for text, where in places.items()
        if len(where) > 1
    ]
    best = lambda row: max((value for value in row.fitness.values() if value is not None), default=float("-inf"))  # noqa: E731
    return sorted(found, key=lambda row: (-len(row.in_line), -len(row.ids), -best(row), row.text))


def blocks(ran: Sequence[Ran]) -> dict[tuple[str, str], dict[str, float]]:
    """Of which distances, transforms, positions and modes, or choices of slots, each search's elites are made; the commonest first."""
    shares: dict[tuple[str, str], dict[str, float]] = {}
    for each in ran:
        counts = Counter(block for member in each.elites for block in set(parts(member)))
        for block, count in counts.items():
            shares.setdefault(block, {})[each.label] = count / len(each.elites)
    return dict(sorted(shares.items(), key=lambda row: (row[0][0], -sum(row[1].values()), row[0][1])))


def parts(member: Member) -> Iterator[tuple[str, str]]:
    """(sort, name) of what a candidate is made of, read off its text; of a student, its slots."""
    if member.slots:
        yield from member.slots
        return
    for term in split(member.text, " + "):
        for factor in split(term, "*"):
            name, inside = call(factor)
            if name and not all(map(_is_number, inside)):  # a number that moves with training is no distance
                yield "distance", name
                yield from _below(inside)
            elif not name and not _is_number(factor):
                yield "weight mode or part", factor


def _below(inside: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What a distance is taken of: transforms, and at last positions; numbers and options are left out."""
    for text in inside:
        name, deeper = call(text)
        if "=" in text.partition("(")[0] or _is_number(text):
            continue
        if name:
            yield "transform", name
            yield from _below(deeper)
        else:
            yield "position", text


def _is_number(text: str) -> bool:
    return text[:1].isdigit() or text[:1] in "+-."


def operators(ran: Sequence[Ran]) -> dict[str, dict[str, Made]]:
    """What each operator of variation made in each search; islands count together."""
    found: dict[str, dict[str, Made]] = {}
    for each in ran:
        best, line = float("-inf"), each.line
        for member in each.members.values():
            better = member.fitness is not None and member.fitness > best
            best = member.fitness if better else best
            row = found.setdefault(member.op.partition("@")[0], {})
            made = row.get(each.label, Made(0, 0, 0, 0))
            row[each.label] = Made(*(a + b for a, b in zip(made, (1, trained(member), better, member.id in line), strict=True)))
    return found


def told(overlay: Overlay, most: int = 8) -> list[str]:
    """Lines for a terminal."""
    width = max(len(each.label) for each in overlay.ran) + 2
    lines = [f" {'search':<{width}}{'state':<10}{'trained':>8}{'best':>9}{'test':>8}  best candidate"]
    for each in overlay.ran:
        best = each.members[each.winner] if each.winner is not None else None
        figures = f"{best.fitness:9.2f}" if best and best.fitness is not None else f"{'–':>9}"
        test = f"{each.test:8.2f}" if each.test is not None else f"{'–':>8}"
        lines.append(f" {each.label:<{width}}{each.state:<10}{each.evaluations:>8}{figures}{test}  {best.text if best else ''}")
    if not overlay.alike:
        lines.append(" Fitness cannot be compared: data, pair, protocol or fitness differ.")
    lines += ["", f" {len(overlay.common)} candidates were found by more than one search; in the line of a winner (★) first"]
    for row in overlay.common[:most]:
        where = "  ".join(f"{label} #{i}{' ★' if label in row.in_line else ''}" for label, i in row.ids.items())
        lines.append(f"   {where}  {row.text}")
    lines += ["", f" building blocks: share of the best {ELITES} of each search", *_told_blocks(overlay, width, most)]
    return lines


def _told_blocks(overlay: Overlay, width: int, most: int) -> Iterator[str]:
    sorts = dict.fromkeys(sort for sort, _ in overlay.blocks)
    for each in overlay.ran:
        for sort in list(sorts)[:4]:
            mine = {name: row[each.label] for (kind, name), row in overlay.blocks.items() if kind == sort and each.label in row}
            best = sorted(mine.items(), key=lambda pair: (-pair[1], pair[0]))[: most - 3]
            if best:
                yield f"   {each.label:<{width}}{sort + ':':<21}" + "  ".join(
                    f"{name} {100 * share:.0f} %" for name, share in best
                )


COLUMNS = ("table", "search", "name", "x", "value")


def rows(overlay: Overlay) -> Iterator[tuple]:
    """Everything in one long table: (table, search, name, x, value)."""
    for each in overlay.ran:
        yield from (("curve", each.label, "best so far", x, value) for x, value in each.curve)
        yield from (("front", each.label, each.cost, cost, fitness) for fitness, cost in each.front)
    for row in overlay.common:
        yield from (("common", label, row.text, i, row.fitness[label]) for label, i in row.ids.items())
    for (sort, name), shares in overlay.blocks.items():
        yield from (("block", label, f"{sort}: {name}", "", share) for label, share in shares.items())
    for op, made in overlay.operators.items():
        for label, row in made.items():
            yield from (("operator", label, op, what, value) for what, value in row._asdict().items())


def write_csv(path: Path, overlay: Overlay) -> None:
    """Raises EvokdError for a file that cannot be written."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows(overlay)])
    try:
        write_whole(path, text.getvalue())
    except OSError as error:
        raise EvokdError("--csv", "a file that can be written", error.strerror or str(error)[:80]) from None
