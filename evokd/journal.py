"""The journal: one JSON line an event, append-only. The run folder's truth; everything else can be made again from it.

Replaying it gives a controller its state, so a run can be continued or extended. Fields named `seconds` or `time` are the only ones that
differ between two runs of one seed. After each generation `state.json` takes down how long the journal is, and its checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from evokd.checkpoint import Lines, read_state, write_state
from evokd.errors import EvokdError
from evokd.genome.codec import to_names
from evokd.genome.individual import Individual, Outcome, Status

VERSION = 1
CLOCK = frozenset({"seconds", "time"})


class Journal:
    """Appends events to `events.jsonl`; each line is written at once, each generation is synced to disk."""

    def __init__(self, folder: Path) -> None:
        self.path, self.state = folder / "events.jsonl", folder / "state.json"
        self._lines = Lines(self.path)

    def write(self, event: str, **fields: Any) -> None:
        """Raises EvokdError for a disk that stays full."""
        self._lines.write(
            json.dumps({"event": event, **fields, "time": round(time.time(), 3)}, ensure_ascii=False, allow_nan=False)
        )

    def individual(self, individual: Individual, key: str, text: str) -> None:
        self.write("individual", **candidate(individual, key, text))

    def sync(self) -> None:
        self._lines.sync()

    def mark(self, **told: Any) -> None:
        """Write `state.json`: what is told, and what the journal is now."""
        write_state(self.state, {**told, "lines": self._lines.count, "sha256": self._lines.digest.hexdigest()})

    def close(self) -> None:
        self._lines.close()


def candidate(individual: Individual, key: str, text: str) -> dict[str, Any]:
    """What the journal tells of an individual with an outcome."""
    outcome = individual.outcome
    return {
        "id": individual.id,
        "generation": individual.generation,
        "op": individual.op,
        "parents": list(individual.parents),
        "key": key,
        "text": text,
        "tree": to_names(individual),
        "status": outcome.status.value,
        "fitness": outcome.fitness,
        "reason": outcome.reason,
        "metrics": outcome.metrics,
        "seconds": round(outcome.seconds, 3),
    }


def read_events(folder: Path) -> list[dict]:
    """All whole events of a run. A torn last line, as a kill leaves it, is dropped.

    Raises:
        EvokdError: no journal, or a broken line before the last.
    """
    events = []
    for number, line in enumerate(_lines_of(folder), 1):
        event = _event(line)
        if event is None:
            raise EvokdError(f"{folder / 'events.jsonl'}, line {number}", "a JSON event", repr(line[:40]))
        events.append(event)
    return events


def good_events(folder: Path, warn: Callable[[str], None]) -> list[dict]:
    """The events from which a run goes on: all of them, or those before a line that broke after the last whole generation.

    Args:
        folder: of the run.
        warn: told what was torn.

    Raises:
        EvokdError: no journal, a broken line within what `state.json` vouches for, or a checksum that differs from its own.
    """
    lines, path = _lines_of(folder), folder / "events.jsonl"
    vouched, digest = _vouched(folder, warn)
    if vouched > len(lines):
        warn(f"{path}: {len(lines)} lines of {vouched}; going on from the last whole generation")
    elif hashlib.sha256(b"".join(line + b"\n" for line in lines[:vouched])).hexdigest() != digest:
        hint = "it was altered; to go on from it all the same, delete state.json"
        raise EvokdError(str(path), "the journal that state.json has the checksum of", "another one", hint)
    events = [_event(line) for line in lines]
    if None not in events:
        return events
    broken = events.index(None)
    if any(event is not None and event["event"] == "generation" for event in events[broken:]):
        raise EvokdError(f"{path}, line {broken + 1}", "a JSON event", repr(lines[broken][:40]))
    warn(f"{path}, line {broken + 1}: torn; going on from the last whole generation")
    return events[:broken]


def _vouched(folder: Path, warn: Callable[[str], None]) -> tuple[int, str]:
    """(lines, checksum) of the journal as `state.json` has it; none of it without a whole one."""
    nothing = 0, hashlib.sha256().hexdigest()
    if not (folder / "state.json").exists():
        return nothing
    try:
        state = read_state(folder / "state.json")
        return int(state.get("lines", 0)), str(state.get("sha256", nothing[1]))
    except (EvokdError, ValueError, TypeError, AttributeError) as error:
        warn(f"{error}; going on from the journal")
        return nothing


def cut(folder: Path, count: int) -> None:
    """Keep the first `count` lines of a journal; a state that knows of more is none any longer."""
    kept = sum(len(line) + 1 for line in _lines_of(folder)[:count])
    os.truncate(folder / "events.jsonl", kept)
    if _vouched(folder, lambda line: None)[0] > count:
        (folder / "state.json").unlink()


def _lines_of(folder: Path) -> list[bytes]:
    """The whole lines of a journal; what follows the last newline is torn or empty."""
    path = folder / "events.jsonl"
    if not path.is_file():
        raise EvokdError(str(folder), "a run folder with events.jsonl", "none")
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise EvokdError(str(path), "a file that can be read", error.strerror or str(error)) from None


def _event(line: bytes) -> dict | None:
    """What a line tells; None if it is not an event."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def read_outcome(event: dict) -> Outcome:
    """Raises ValueError, KeyError or TypeError for what is no outcome."""
    outcome = Outcome(Status(event["status"]), event["fitness"], event["metrics"], event["reason"], event["seconds"])
    numbers = [outcome.seconds, *([outcome.fitness] if outcome.status is Status.OK else [])]
    plain = isinstance(outcome.metrics, dict) and isinstance(outcome.reason, str)
    if not plain or not all(isinstance(number, int | float) for number in numbers):
        raise ValueError(f"no outcome: {outcome}"[:120])
    return outcome


def without_clock(events: list[dict]) -> list[dict]:
    """Events but for times: what two runs of one seed have in common."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in CLOCK}
        return [strip(v) for v in value] if isinstance(value, list) else value

    return [strip(event) for event in events]


def individuals(events: list[dict]) -> Iterator[dict]:
    """The events of candidates, in order."""
    return (event for event in events if event["event"] == "individual")
