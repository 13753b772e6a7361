"""The end of a search: the best are trained again on validation, one is chosen, and all rows meet on test with fresh paired seeds.

Every arm gets the same treatment: the evolved loss, random search on the same space and budget, and Hinton's KD with cross-entropy
weight, loss weight and temperature tuned with as many trials. Selection never sees test.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from evokd.evaluate.distill import Job
from evokd.genome.codec import to_names, write_number
from evokd.genome.individual import Individual, Outcome, content_key, rank
from evokd.losses.language import parse_loss
from evokd.run import evaluation_seeds
from evokd.streams import stream

GAMMAS = (0.0, 0.1, 0.3, 1.0)
WEIGHTS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
TAUS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
PUBLISHED = (0.1, 0.9, 4.0)  # CRD's benchmark: 0.1·CE + 0.9·KD, τ = 4


@dataclass(frozen=True)
class Entry:
    """A loss as a row of a comparison; `gamma` None means the protocol's, `text` None plain training."""

    name: str
    text: str | None
    gamma: float | None = None
    fitness: float | None = None
    error: float | None = None

    def job(self, seeds: Sequence[int], split: str) -> Job:
        names = tuple(to_names(parse_loss(self.text))) if self.text else None
        return Job(names, tuple(seeds), self.gamma, split, content_key(self.text or "plain"))


def confirm(entries: Sequence[Entry], first: dict[str, Outcome], executor, seeds: Sequence[int]) -> list[Entry]:
    """Entries with mean fitness and standard error over their search and confirmation seeds, best first."""
    scored = []
    for entry, outcome in zip(entries, executor.map([e.job(seeds, "validation") for e in entries]), strict=True):
        values = list(first[entry.name].metrics["fitness_by_seed"]) + list(outcome.metrics.get("fitness_by_seed", ()))
        if outcome.fitness is not None:
            spread = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
            scored.append(replace(entry, fitness=statistics.fmean(values), error=spread))
    return sorted(scored, key=lambda e: -e.fitness)


def choose(individuals: Sequence[Individual], write, executor, seed: int, count: int, repeats: int) -> tuple[list[Entry], Entry]:
    """(confirmed entries best first, the simplest within one standard error of the best)."""
    best = sorted((i for i in individuals if i.ok), key=rank)[:count]
    entries = [Entry(str(i.id), write(i)) for i in best]
    scored = confirm(entries, {str(i.id): i.outcome for i in best}, executor, evaluation_seeds(seed, "confirm", repeats))
    if not scored:
        return [], Entry("", None)
    near = [e for e in scored if e.fitness >= scored[0].fitness - scored[0].error]
    return scored, min(near, key=lambda e: (len(parse_loss(e.text)), -e.fitness))


def tune_kd(trials: int, executor, seed: int, repeats: int, count: int, confirm_repeats: int) -> list[Entry]:
    """Hinton's KD over (γ, weight, τ), `trials` points of a grid of 144 drawn without replacement, the published one first."""
    grid = [(g, w, t) for g in GAMMAS for w in WEIGHTS for t in TAUS]
    points = [PUBLISHED, *stream(seed, "kd", "grid").sample(grid, min(trials - 1, len(grid)))]
    entries = [Entry(f"kd{i}", f"{write_number(w)}*kl(logits, tau={write_number(t)})", g) for i, (g, w, t) in enumerate(points)]
    seeds = evaluation_seeds(seed, "search", repeats)
    outcomes = dict(zip([e.name for e in entries], executor.map([e.job(seeds, "validation") for e in entries]), strict=True))
    sound = [e for e in entries if outcomes[e.name].fitness is not None]
    best = sorted(sound, key=lambda e: -outcomes[e.name].fitness)[:count]
    return confirm(best, outcomes, executor, evaluation_seeds(seed, "confirm", confirm_repeats))


@dataclass(frozen=True)
class Row:
    """One line of the closing table: values by seed and, against the reference row, the paired difference."""

    entry: Entry
    values: tuple[float, ...]
    difference: tuple[float, float, float] | None = None  # mean, low, high

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def half(self) -> float:
        """Half width of the 95 % interval of the mean (Student's t)."""
        return interval(self.values)[2] - self.mean if len(self.values) > 1 else math.nan


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean with its 95 % t-interval: (mean, low, high)."""
    from scipy import stats  # a second of a start

    mean, n = statistics.fmean(values), len(values)
    half = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(values) / math.sqrt(n) if n > 1 else math.nan
    return mean, mean - half, mean + half


def final_rows(entries: Sequence[Entry], reference: str, executor, seeds: Sequence[int], journal) -> list[Row]:
    """Every entry trained with every seed and told on test; one journal line a training, so that a death keeps what is done."""
    named: dict[tuple, Entry] = {}
    for entry in entries:
        named.setdefault((entry.text, entry.gamma), entry)  # a winner that is also the simplest is told as the winner
    distinct, compared = list(named.values()), next((e.text, e.gamma) for e in entries if e.name == reference)
    jobs = [(e, s) for e in distinct for s in seeds]
    found: dict[tuple, list[float]] = {(e.text, e.gamma): [] for e in distinct}
    for (entry, seed), outcome in zip(jobs, executor.map([e.job([s], "test") for e, s in jobs]), strict=True):
        metrics = {k: v for k, v in outcome.metrics.items() if isinstance(v, float)}
        journal.write(
            "final",
            row=entry.name,
            text=entry.text,
            gamma=entry.gamma,
            seed=seed,
            status=outcome.status.value,
            metrics=metrics,
            **({"reference": True} if (entry.text, entry.gamma) == compared else {}),
        )
        found[entry.text, entry.gamma].append(metrics.get("accuracy", math.nan))
    base = found[compared]
    return [row_of(e, found[e.text, e.gamma], base if e.name != reference else None) for e in entries]


def row_of(entry: Entry, values: Sequence[float], base: Sequence[float] | None) -> Row:
    """A line of the closing table from its values by seed and those of the reference row; what is not finite is left out."""
    pairs = [v - b for v, b in zip(values, base, strict=True) if math.isfinite(v - b)] if base else []
    return Row(entry, tuple(v for v in values if math.isfinite(v)), interval(pairs) if len(pairs) > 1 else None)
