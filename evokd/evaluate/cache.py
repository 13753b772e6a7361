"""Outcomes kept across runs: what was evaluated once, under the same conditions, is read back and not trained again.

One JSON file an entry, named by the hash of its key, with the whole key inside: a hash alone never makes a hit. Files are written whole
under names of their own, so that several runs may share a folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from evokd.errors import EvokdError
from evokd.genome.individual import Outcome, Status, content_key

if TYPE_CHECKING:
    from evokd.evaluate.distill import Job
    from evokd.evaluate.students import StudentJob
    from evokd.executor import Serial, Workers

FORMAT = 1  # raise it when keys or entries change: a folder of another format is refused
MARKER = "evokd-cache.json"
KEPT = {Status.OK, Status.DIVERGED, Status.REJECTED}  # what a candidate does again; a crash or a late clock may be the machine's
_TORN = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError)


class Cached:
    """An executor that looks into a folder before it asks another executor.

    Attributes:
        hits: jobs answered from the folder.
        misses: jobs that could have been and were evaluated.

    Args:
        inner: evaluates what is not known.
        folder: shared by any number of runs, pairs and protocols; made if it is not there.
        context: all that an outcome depends on besides its job, name → text: pair, protocol, fitness, tier, versions.
        warn: told one line at a time.

    Raises:
        EvokdError: a folder that cannot be written, or of another format.
    """

    def __init__(self, inner: Serial | Workers, folder: Path, context: Mapping[str, str], warn: Callable[[str], None]) -> None:
        _check_folder(folder)
        self.inner, self.folder, self.context, self.warn = inner, folder, dict(context), warn
        self.hits = self.misses = 0
        self._told: set[str] = set()
        note = json.dumps(self.context, sort_keys=True, indent=1)
        self._note = (folder / "contexts" / f"{content_key(note)}.json", note)
        count = sum(1 for _ in folder.glob("[0-9a-f][0-9a-f]/*.json"))
        if count and not self._note[0].exists():
            warn(f"cache {folder} holds {count} entries of other protocols or pairs; none of them is used")

    def map(self, jobs: Iterable[Job | StudentJob], ahead: None = None) -> Iterator[Outcome]:
        """Outcomes in the order of the jobs, as they are ready; the unknown jobs are handed on together, none waits for another."""
        jobs = list(jobs)
        known = [self._find(job) for job in jobs]
        fresh = iter(self.inner.map([job for job, outcome in zip(jobs, known, strict=True) if outcome is None]))
        for job, outcome in zip(jobs, known, strict=True):
            yield self._kept(job, next(fresh)) if outcome is None else outcome

    def close(self) -> None:
        self.inner.close()

    def key(self, job: Job | StudentJob) -> str:
        """The text that a job's entry must hold letter for letter."""
        parts = {"format": FORMAT, "context": self.context, "kind": type(job).__name__, "job": asdict(job)}
        return json.dumps(parts, sort_keys=True)

    def path(self, job: Job | StudentJob) -> Path:
        """Where a job's entry lies."""
        name = content_key(self.key(job))
        return self.folder / name[:2] / f"{name}.json"

    def _find(self, job: Job | StudentJob) -> Outcome | None:
        if not _cacheable(job):
            return None
        outcome = self._read(self.path(job), self.key(job))
        self.hits += outcome is not None
        self.misses += outcome is None
        return outcome

    def _read(self, path: Path, key: str) -> Outcome | None:
        try:
            found, outcome = _unsealed(path.read_bytes())
        except FileNotFoundError:
            return None
        except _TORN as error:
            self.warn(f"{path}: not a whole cache entry ({_line(error)}); its job is evaluated afresh")
            return None
        if found != key:
            self._warn_once("foreign", f"{path}: a cache entry of another job or context; not used")
            return None
        return outcome

    def _kept(self, job: Job | StudentJob, outcome: Outcome) -> Outcome:
        """The outcome, after it was stored if it is one to store. A full disk costs the entry, not the search."""
        if _cacheable(job) and outcome.status in KEPT:
            try:
                text = _sealed(self.key(job), outcome)
                if not self._note[0].exists():  # before the first entry: a folder with entries of this context says so
                    _write(*self._note)
                _write(self.path(job), text)
            except OSError as error:
                self._warn_once("unwritten", f"cache {self.folder}: an outcome could not be written ({_line(error)})")
            except (ValueError, TypeError):  # not plain finite data: the journal, not the cache, refuses it
                pass
        return outcome

    def _warn_once(self, kind: str, text: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            self.warn(text)


def _cacheable(job: Job | StudentJob) -> bool:
    """Validation alone. Finals look at test once, with fresh trainings: kept figures would let test be looked up again and chosen by."""
    return job.split == "validation"


def _check_folder(folder: Path) -> None:
    marker = folder / MARKER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            if not marker.exists():
                _write(marker, json.dumps({"format": FORMAT}))
        text = marker.read_bytes()
    except OSError as error:
        raise EvokdError("--cache", "a folder that can be written", f"{folder} ({error.strerror})") from None
    try:
        same = json.loads(text) == {"format": FORMAT}
    except (ValueError, RecursionError):
        same = False
    if not same:
        got = repr(text[:40].decode(errors="replace"))
        raise EvokdError("--cache", f"a folder of cache format {FORMAT}", f"{got} in {marker}", "take another folder")


def _sealed(key: str, outcome: Outcome) -> str:
    """An entry's text.

    Raises:
        ValueError, TypeError: an outcome that is not plain, finite and of a kept status.
    """
    plain = vars(_checked(outcome)) | {"status": outcome.status.value}
    return json.dumps({"sha256": _checksum(key, plain), "key": key, "outcome": plain}, indent=1)


def _unsealed(text: bytes) -> tuple[str, Outcome]:
    """(key, outcome) of an entry's text.

    Raises:
        one of _TORN: anything but a whole entry.
    """
    entry = json.loads(text)
    key, plain = entry["key"], entry["outcome"]
    if entry["sha256"] != _checksum(key, plain):
        raise ValueError("checksum differs")
    if set(plain) != {field.name for field in fields(Outcome)}:
        raise ValueError(f"fields {sorted(plain)}")
    return key, _checked(Outcome(**plain | {"status": Status(plain["status"])}))


def _checksum(key: str, plain: dict[str, Any]) -> str:
    """Over values, not layout; a number that is not finite, however deep, raises ValueError."""
    return hashlib.sha256(json.dumps([key, plain], allow_nan=False).encode()).hexdigest()


def _checked(outcome: Outcome) -> Outcome:
    """The outcome, if its types are right, its status is kept, and a finite fitness comes with OK and with nothing else."""
    scored = _is_number(outcome.fitness) if outcome.status is Status.OK else outcome.fitness is None
    typed = isinstance(outcome.metrics, dict) and isinstance(outcome.reason, str) and _is_number(outcome.seconds)
    if not (outcome.status in KEPT and scored and typed):
        raise ValueError(f"no outcome to keep: {outcome}"[:80])
    return outcome


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:80]


def _write(path: Path, text: str) -> None:
    """Whole or not at all, under a name of its own until then: processes that write one file at once do not meet.

    Not synced, which would cost more than some scores do: what a power cut tears is told by its checksum.
    """
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid4().hex}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
