"""How a run begins in its folder, and how one that was cut goes on from its journal: to the end that it would have come to anyway."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evokd.errors import EvokdError
from evokd.executor import Serial, Terms, Workers, check_limits
from evokd.folder import check_drift, locked, new_folder
from evokd.journal import cut, good_events, read_outcome
from evokd.run import Search, replay
from evokd.signals import Ending
from evokd.trainings import Trainings

if TYPE_CHECKING:
    from evokd.config import Config
    from evokd.problem import Problem
    from evokd.student_problem import StudentProblem

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Place:
    """Where a run happens.

    Attributes:
        folder: of the run, locked.
        events: its journal as it was found; None for a new run.
        drift: accepted changes since it began.
        terms: on which jobs are evaluated.
        steady: trainings of the next generation are going on when one is over.
    """

    folder: Path
    events: list[dict] | None
    drift: list[str]
    terms: Terms
    steady: bool = False

    def generation_over(self) -> None:
        """The journal has it: trainings need no longer be kept. Raises Interrupted if this was waited for."""
        if not self.steady:
            self.terms.trainings.clear()
        self.terms.ending.check_generation()


def journal_of(folder: Path | None, stack: ExitStack, warn: Warn) -> list[dict] | None:
    """The events of a run that goes on, which is locked before they are read; None for a new run.

    Raises:
        EvokdError: no journal, a broken one, or another process that writes it.
    """
    if folder is None:
        return None
    stack.enter_context(locked(folder))
    return good_events(folder, warn)


def listening(stack: ExitStack) -> Ending:
    """Signals are heard from here on, before there is a folder."""
    return stack.enter_context(Ending(None, "the same command"))


def check_named(old: Config, changes: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Users' Python files run only when they are named by whoever resumes: a folder alone makes no code run.

    Raises:
        EvokdError: the folder names one, and neither the settings nor the objects given do.
    """
    for option in ("operators", "student", "teacher"):
        named = getattr(old, option)
        files = list(named) if isinstance(named, tuple) else [named]
        if any(".py:" in name for name in files) and option not in {**changes, **given}:
            raise EvokdError("--resume", f"--{option} {' '.join(files)}, as the run had", "none")


def check_own(events: Sequence[dict] | None, own: bool) -> None:
    """Raises EvokdError where training of one's own began a run and is not given again: a folder alone makes no code run."""
    began = any(event["event"] == "start" and event.get("own") for event in events or ())
    if events is not None and began and not own:
        hint = "go on with evokd.distiller.resume(folder, terminal, evaluate=…)"
        raise EvokdError("--resume", "the training of one's own that the run had", "none", hint)


def take_place(
    problem: Problem | StudentProblem, executor: Serial | Workers, space: str, folder: Path | None,
    events: list[dict] | None, stack: ExitStack, ending: Ending, accept: bool, warn: Warn,
) -> Place:  # fmt: skip
    """A run's place, new or found again; the executor has its terms from then on.

    Args:
        problem: opened.
        executor: that trains, without any cache before it.
        space: text of the space file.
        folder: of a run that goes on.
        events: of its journal.
        stack: closes what is opened.
        ending: entered; told here what it is the end of.
        accept: go on though settings, space or data have changed.
        warn: told one line at a time.

    Raises:
        EvokdError: limits that cannot be kept, or drift that is not accepted.
    """
    config, drift = problem.config, []
    check_limits(config.memory_gib, executor)
    if folder is None:
        folder = new_folder(config, problem.card["data"], space)
        stack.enter_context(locked(folder))
    else:
        drift = check_drift(folder, config, space, problem.key, events, accept, warn)
    ending.folder, ending.command = folder, f"python -m evokd.evolve {config.task} --resume {shlex.quote(str(folder))}"
    executor.terms = terms_of(config, folder, events is not None and not drift, ending)
    stack.callback(executor.terms.trainings.close)
    return Place(folder, events, drift, executor.terms, steady=config.lag > 0)


def terms_of(config: Config, folder: Path, going_on: bool, ending: Ending) -> Terms:
    """The limits of a configuration; trainings are kept in the folder, and those found there are used if the run goes on."""
    memory = int(config.memory_gib * 2**30) if config.memory_gib else None
    return Terms(config.timeout_seconds, memory, Trainings(folder, going_on), ending)


def go_on(search: Search, place: Place, tree_of: Callable[[Sequence[str]], list]) -> list[dict]:
    """Bring a fresh search to the end of the last whole generation, and cut the journal there; the events that are kept.

    Raises:
        EvokdError: a journal that this search cannot have written.
    """
    try:
        kept = replay(search, place.events or [], tree_of, read_outcome)
    except EvokdError:
        raise
    except Exception as error:  # the file is from outside: whatever is wrong with it, it is its fault
        got = f"{type(error).__name__}: {error}"[:100]
        raise EvokdError(str(place.folder / "events.jsonl"), "the journal of this search", got) from error
    if place.events is not None:
        cut(place.folder, len(kept))
    return kept
