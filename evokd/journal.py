"""The journal: one JSON line an event, append-only. The run folder's truth; everything else can be made again from it.

Replaying it gives a controller its state, so a run can be continued or extended. Fields named `seconds` or `time` are the only ones that
differ between two runs of one seed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evokd.errors import EvokdError
from evokd.genome.codec import to_names
from evokd.genome.individual import Individual, Outcome, Status

VERSION = 1
CLOCK = frozenset({"seconds", "time"})


class Journal:
    """Appends events to `events.jsonl`; each line is flushed, each generation is synced to disk."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "events.jsonl"
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, event: str, **fields: Any) -> None:
        line = json.dumps({"event": event, **fields, "time": round(time.time(), 3)}, ensure_ascii=False, allow_nan=False)
        self._file.write(line + "\n")
        self._file.flush()

    def individual(self, individual: Individual, key: str, text: str) -> None:
        outcome = individual.outcome
        self.write(
            "individual",
            id=individual.id,
            generation=individual.generation,
            op=individual.op,
            parents=list(individual.parents),
            key=key,
            text=text,
            tree=to_names(individual),
            status=outcome.status.value,
            fitness=outcome.fitness,
            reason=outcome.reason,
            metrics=outcome.metrics,
            seconds=round(outcome.seconds, 3),
        )

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_events(folder: Path) -> list[dict]:
    """All whole events of a run. A torn last line, as a kill leaves it, is dropped.

    Raises:
        EvokdError: no journal, or a broken line before the last.
    """
    path = folder / "events.jsonl"
    if not path.is_file():
        raise EvokdError(str(folder), "a run folder with events.jsonl", "none")
    lines = path.read_bytes().split(b"\n")
    events = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is torn or empty
        try:
            event = json.loads(line)
            event["event"]
            events.append(event)
        except (ValueError, TypeError, KeyError):
            raise EvokdError(f"{path}, line {number}", "a JSON event", repr(line[:40])) from None
    return events


def read_outcome(event: dict) -> Outcome:
    return Outcome(Status(event["status"]), event["fitness"], event["metrics"], event["reason"], event["seconds"])


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
