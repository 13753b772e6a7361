"""Trainings that the journal does not tell yet: rungs of the generation in hand, confirmation, baselines, finals.

Each is a line of `trainings.jsonl` in the run folder as soon as it is done, so that a death costs none but the one in flight; the file is
emptied when a generation is whole in the journal, but in steady state, and gone when the run is.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from evokd.checkpoint import Lines
from evokd.genome.individual import Outcome, content_key
from evokd.journal import read_outcome

NAME = "trainings.jsonl"


class Trainings:
    """Outcomes by job. Only what an earlier process did is given back, each outcome once: within a process every job is evaluated.

    Args:
        folder: of the run; without one nothing is kept.
        go_on: read what is there; otherwise it is forgotten.
    """

    def __init__(self, folder: Path | None = None, go_on: bool = False) -> None:
        self._lines = Lines(folder / NAME) if folder else None
        self._known: dict[str, deque[Outcome]] = {}
        if self._lines and go_on:
            for key, outcome in _read(self._lines.path):
                self._known.setdefault(key, deque()).append(outcome)
        elif self._lines:
            self._lines.clear()

    def find(self, job: Any) -> Outcome | None:
        """What an earlier process made of a job."""
        known = self._known.get(_key(job)) if self._known else None
        return known.popleft() if known else None

    def keep(self, job: Any, outcome: Outcome) -> Outcome:
        """The outcome, after it was written down; one that is not plain data is left to the journal to refuse."""
        if self._lines:
            try:
                body = json.dumps(asdict(outcome), allow_nan=False)
            except (TypeError, ValueError):
                return outcome
            self._lines.write(json.dumps({"job": _key(job), "outcome": body, "sha256": _sum(_key(job), body)}))
        return outcome

    def clear(self) -> None:
        """A generation is whole in the journal."""
        self._known.clear()
        if self._lines:
            self._lines.clear()

    def close(self) -> None:
        if self._lines:
            self._lines.close()

    def remove(self) -> None:
        """The run is over."""
        self.clear()
        self.close()
        if self._lines:
            self._lines.path.unlink(missing_ok=True)


def _key(job: Any) -> str:
    return content_key(json.dumps([type(job).__name__, asdict(job) if is_dataclass(job) else job]))


def _sum(key: str, body: str) -> str:
    return hashlib.sha256(f"{key} {body}".encode()).hexdigest()


def _read(path: Path) -> Iterator[tuple[str, Outcome]]:
    """Whole lines; a job whose line is not is evaluated again."""
    for line in path.read_bytes().splitlines():
        try:
            told = json.loads(line)
            if told["sha256"] == _sum(told["job"], told["outcome"]):
                yield told["job"], read_outcome(json.loads(told["outcome"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
