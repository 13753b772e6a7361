"""A run told again from its folder: the report with everything that its journal says, and what trained networks show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from evokd.ablation import Ablated, ablate
from evokd.config import Config, read_config
from evokd.errors import EvokdError
from evokd.finals import Row
from evokd.folder import locked
from evokd.journal import read_events
from evokd.lineage import family, winner
from evokd.losses.own import load_operators
from evokd.mirror import experiment_of, params_of, tags_of
from evokd.portraits import portraits
from evokd.problem import Problem, open_problem
from evokd.report.figures import HOME, Figure
from evokd.report.finals import rows_of
from evokd.report.likeness import figures_of
from evokd.report.page import formula_of, plain, write_report
from evokd.tracker import Tracker, tracking_uri

Say = Callable[[str], None]


@dataclass(frozen=True)
class Retold:
    """What was told: the page, and the tables on it."""

    page: Path
    rows: Sequence[Row]
    ablation: Sequence[Ablated]


def retell(
    folder: Path,
    say: Say,
    warn: Say,
    *,
    ablation: bool = True,
    pictures: bool = True,
    seeds: int = 5,
    operators: Sequence[str] = (),
) -> Retold:
    """report.html and figures/ of a search, also of one that is going or was stopped; logged to its MLflow run if it has ended.

    Args:
        folder: of the run.
        say: told of the progress.
        warn: told what had to be left out.
        ablation: train the winner without each of its parts, on validation.
        pictures: train plainly, by KD and by the winner, and draw what the networks see.
        seeds: of each row of the ablation.
        operators: users' own, path.py:function, without which a run that had some cannot be told.

    Raises:
        EvokdError: no search, nothing trained yet, or another process writes it and something has to be trained.
    """
    config, events = read_config(folder / "config.toml"), read_events(folder)
    load_operators(tuple(operators))
    best, rows = best_of(folder, events), rows_of(events)
    if config.task == "student":
        diagram = folder / "best" / "diagram.txt"
        shown = plain(diagram.read_text(encoding="utf-8")) if diagram.is_file() else ""
        return _kept(folder, config, events, warn, Retold(write_report(folder, best, shown, rows), rows, ()))
    trains = (ablation or pictures) and _trainable(config, events, warn)
    with locked(folder):
        problem = open_problem(config.model_copy(update={"operators": tuple(operators), "out": str(folder.parent)}), say)
        try:
            parts = ablate(best, problem.executor, config.seed, seeds, folder, say) if ablation and trains else []
            more = figures_of(folder, portraits(problem, best, say)) if pictures and trains else []
        finally:
            problem.executor.close()
        page = _written(folder, problem, best, rows, more, parts)
    return _kept(folder, config, events, warn, Retold(page, rows, parts))


def _written(folder: Path, problem: Problem, best: str, rows, more: Sequence[Figure], parts: Sequence[Ablated]) -> Path:
    shown = formula_of(best, problem.examples[:2], problem.config.protocol.gamma)
    return write_report(folder, best, shown, rows, more, parts)


def best_of(folder: Path, events: Sequence[dict]) -> str:
    """What the run chose, or the best so far.

    Raises:
        EvokdError: nothing was trained yet.
    """
    if events and events[-1]["event"] == "end":
        return events[-1]["best"]
    members = family(events)
    focus = winner(events, members)
    if focus is None:
        raise EvokdError(str(folder), "a candidate that was trained", "none yet")
    return members[focus].text


def _trainable(config: Config, events: Sequence[dict], warn: Say) -> bool:
    """Whether the run's evaluator can be had again from its folder."""
    own = any(event.get("own") for event in events if event["event"] == "start")
    if own:
        warn("trained by the user's own code: neither ablation nor pictures")
    return not own


def _kept(folder: Path, config: Config, events: Sequence[dict], warn: Say, retold: Retold) -> Retold:
    """The files in the run's mirror, if it has one and the run is over."""
    uri = tracking_uri(config.tracking_uri, folder.parent)
    card = next((e["card"] for e in events if e["event"] == "start" and "card" in e), None)
    if uri and card and events[-1]["event"] == "end":
        local = folder.parent / "artifacts" if uri.startswith("sqlite") else None
        tracker = Tracker(uri, experiment_of(config, card), local, warn)
        tracker.start(folder.name, params_of(config, card), tags_of(config, folder), [retold.page])
        tracker.files(sorted((folder / HOME).iterdir()), HOME)
        tracker.finish("FINISHED", {}, {"evokd.state": "finished"})
    return retold
