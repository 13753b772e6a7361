"""Students scored by several processes, one a core: the values that one process finds, in its order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict

from evokd.errors import EvokdError
from evokd.executor import Workers
from evokd.genome.individual import Outcome, Status
from evokd.scores.ranking import Scored, Setting


def scored_by(workers: int, names: Sequence[str], space: str, data: str, setting: Setting) -> Scored:
    """What `scores.ranking.measure` takes to have jobs done by so many processes.

    Args:
        workers: processes, each on one thread.
        names: of the scores.
        space: name or file.
        data: name or path.
        setting: of the ranking.
    """
    recipe = {"names": list(names), "space": space, "data": data, "setting": asdict(setting)}

    def scored(jobs: list[tuple[int, str]]) -> Iterator[dict[str, float]]:
        with closing(Workers(workers, open_scorer, recipe)) as crew:
            for job, outcome in zip(jobs, crew.map(jobs), strict=True):
                if outcome.status is not Status.OK:
                    raise EvokdError(f"student {job[1]}", "one that can be scored", outcome.reason)
                yield outcome.metrics

    return scored


def open_scorer(recipe: dict) -> Callable[[tuple[int, str]], Outcome]:
    """A worker's scorer from plain data."""
    from evokd.data import read_data
    from evokd.scores.ranking import Scorer
    from evokd.students import read_student_space

    scorer = Scorer(recipe["names"], read_student_space(recipe["space"]), read_data(recipe["data"]), Setting(**recipe["setting"]))
    return lambda job: Outcome(Status.OK, 0.0, scorer(job))
