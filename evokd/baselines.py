"""The baselines of a protocol: random search and tuned KD with the budget of the search, computed once and cached.

They belong to the protocol, not to one search, and are made from one fixed seed, so that a cached baseline equals a fresh one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from evokd.checkpoint import write_whole
from evokd.errors import EvokdError
from evokd.finals import Entry, choose, tune_kd
from evokd.genome.individual import content_key
from evokd.journal import Journal
from evokd.losses.language import write_loss
from evokd.run import Search, arm
from evokd.rungs import price
from evokd.search.random import RandomSearch

if TYPE_CHECKING:
    from collections.abc import Callable

    from evokd.config import Config
    from evokd.problem import Problem
    from evokd.report.terminal import Terminal
    from evokd.run import Budget

SEED = 0


def baselines(problem: Problem, budget: Budget, terminal: Terminal) -> dict[str, Entry]:
    """The best of tuned KD and the best of random search, after confirmation, from the cache or computed now."""
    config = problem.config
    cache = Path(config.out) / "cache" / "baselines" / _key(problem, budget)
    cache.mkdir(parents=True, exist_ok=True)
    repeats = config.protocol.repeats, config.confirm, config.confirm_repeats

    def tuned() -> list[Entry]:
        trials = trials_of(problem.config, budget)
        terminal.status(f"tuning KD: {trials} trials")
        return tune_kd(trials, problem.executor, SEED, *repeats)

    kd = _cached(cache / "kd.json", tuned)
    best = _cached(cache / "random.json", lambda: _random_search(problem, budget, cache, terminal))
    return {"kd": kd[0], "random": best[0]}


def trials_of(config: Config, budget: Budget) -> int:
    """Full trainings that cost as much as a search's budget with its rungs and its tuning."""
    return round(budget.total / config.share * price(config.rungs, config.protocol.repeats, config.funnel.tune))


def _random_search(problem: Problem, budget: Budget, cache: Path, terminal: Terminal) -> list[Entry]:
    """The control group, journalled beside its result."""
    (cache / "events.jsonl").unlink(missing_ok=True)
    journal, config = Journal(cache), problem.config
    search: Search = arm(problem, "random", RandomSearch(problem.grammar), replace(budget, seconds=None), SEED)
    search.journal, search.notice = journal, lambda summary: terminal.candidate(search)
    found = choose(search.run(), search.text, problem.executor, SEED, config.confirm, config.confirm_repeats)[0]
    journal.close()
    return found


def _key(problem: Problem, budget: Budget) -> str:
    config = problem.config
    parts = [problem.key, problem.card["student"], config.protocol.model_dump(), config.fitness, problem.space.hash]
    parts += [
        config.funnel.model_dump(),
        budget.total,
        budget.size,
        config.confirm,
        config.confirm_repeats,
        version("evokd"),
        version("torch"),
    ]
    parts += [write_loss(problem.base)] if problem.base else []
    return content_key(json.dumps(parts))


def _cached(path: Path, make: Callable[[], list[Entry]]) -> list[Entry]:
    if not path.exists():
        write_whole(path, json.dumps([asdict(e) for e in make()], indent=1))
    try:
        found = [Entry(**fields) for fields in json.loads(path.read_text())]
    except (ValueError, TypeError) as error:
        raise EvokdError(str(path), "a whole cache entry", str(error)[:80], "delete it; it will be made again") from None
    if not found:
        path.unlink()
        raise EvokdError(
            "baselines", "at least one that trains", "none", "look at the protocol, or switch them off: -s baselines=false"
        )
    return found
