"""What each part of a loss is worth: every term, transform and weight mode removed, every weight halved and doubled, paired with the whole.

Variants are trained by the run's own protocol on validation, with seeds of their own. What is trained is kept in `ablation/` of the run
folder, so that an ablation that was stopped, or is to have more seeds, goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evokd.errors import EvokdError
from evokd.executor import Serial, Workers
from evokd.finals import Entry, Row, row_of
from evokd.genome.individual import Outcome
from evokd.losses.language import NO, Call, Term, kind_of, parse_loss, to_terms
from evokd.losses.schedules import Number, Schedule
from evokd.run import evaluation_seeds
from evokd.trainings import Trainings


@dataclass(frozen=True)
class Variant:
    """A loss with one part changed.

    Attributes:
        change: what was done, in words.
        text: the loss that is left; None where nothing is.
        why: then the reason.
    """

    change: str
    text: str | None
    why: str = ""


@dataclass(frozen=True)
class Ablated:
    """A variant's values by seed on validation and their paired difference to the whole loss; what failed says why."""

    variant: Variant
    row: Row
    why: str = ""


def variants(text: str) -> list[Variant]:
    """Every loss with one part less, or one weight halved or doubled, term by term; equal ones are told once.

    Raises:
        EvokdError: a text that is no loss.
    """
    terms = to_terms(parse_loss(text))
    found: dict[str | None, Variant] = {}
    for place, term in enumerate(terms):
        name = f" of term {place + 1}" if len(terms) > 1 else ""
        for change, left in _changed(term, name, alone=len(terms) == 1):
            variant = _variant(change, [*terms[:place], *left, *terms[place + 1 :]])
            found.setdefault(variant.text or change, variant)
    return list(found.values())


def _changed(term: Term, name: str, alone: bool) -> Iterator[tuple[str, list[Term]]]:
    """(what was done, what is left of the term)."""
    if not alone:
        yield f"without {name.removeprefix(' of ')}", []
    for factor, word in ((0.5, "halved"), (2.0, "doubled")):
        yield f"weight{name} {word}", [replace(term, weight=scaled(term.weight, factor))]
    if term.mode != NO:
        yield f"without {term.mode.name}{name}", [replace(term, mode=NO)]
    for call, shorter in _shortened(term.distance):
        yield f"without {call.side + '.' if call.side else ''}{call.name}{name}", [replace(term, distance=shorter)]


def scaled(weight: Number, factor: float) -> Number:
    """A weight times a factor; of a schedule, both of its ends."""
    if isinstance(weight, Schedule):
        return replace(weight, start=weight.start * factor, end=weight.end * factor)
    return weight * factor


def _shortened(call: Call) -> Iterator[tuple[Call, Call]]:
    """(operator, the value without it) for every transform inside: its first argument takes its place."""
    for place, inner in enumerate(call.args):
        before, after = call.args[:place], call.args[place + 1 :]
        if inner.args:
            yield inner, replace(call, args=(*before, inner.args[0], *after))
        for gone, left in _shortened(inner):
            yield gone, replace(call, args=(*before, left, *after))


def _variant(change: str, terms: Sequence[Term]) -> Variant:
    try:
        for term in terms:
            kind_of(term.distance)
        text = " + ".join(map(str, terms))
        parse_loss(text)
    except EvokdError as error:
        return Variant(change, None, f"what is left does not fit: expected {error.expected}, got {error.got}"[:120])
    return Variant(change, text)


def ablate(
    text: str, executor: Serial | Workers, seed: int, count: int, folder: Path, say: Callable[[str], None]
) -> list[Ablated]:
    """The whole loss first, then its variants.

    Args:
        text: of the loss.
        executor: of the run's problem.
        seed: of the run.
        count: seeds of each variant.
        folder: of the run; outcomes are kept in its `ablation`.
        say: told of the progress.

    Raises:
        EvokdError: the whole loss fails with every seed.
    """
    rows = [Variant("the whole loss", text), *variants(text)]
    seeds = evaluation_seeds(seed, "ablation", count)
    with_text = [row for row in rows if row.text is not None]
    jobs = [(row.text, Entry("", row.text).job([s], "validation")) for row in with_text for s in seeds]
    outcomes: dict[str, list[Outcome]] = {}
    (folder / "ablation").mkdir(exist_ok=True)
    executor.terms.trainings = Trainings(folder / "ablation", go_on=True)
    try:
        for number, ((name, _), outcome) in enumerate(zip(jobs, executor.map([job for _, job in jobs]), strict=True), 1):
            outcomes.setdefault(name, []).append(outcome)
            say(f"ablation: training {number} of {len(jobs)}")
    finally:
        executor.terms.trainings.close()
        executor.terms.trainings = Trainings()
    return told(rows, outcomes, count)


def told(rows: Sequence[Variant], outcomes: dict[str, list[Outcome]], count: int) -> list[Ablated]:
    """Rows with their paired differences to the first of them.

    Raises:
        EvokdError: the first fails with every seed.
    """
    base = _values(outcomes.get(rows[0].text, ()), count)
    if not any(map(math.isfinite, base)):
        raise EvokdError("ablation", "a loss that trains", "one that fails with every seed")
    return [_ablated(row, outcomes.get(row.text, ()), base if place else None) for place, row in enumerate(rows)]


def _ablated(row: Variant, outcomes: Sequence[Outcome], base: Sequence[float] | None) -> Ablated:
    values = _values(outcomes, len(outcomes))
    why = next((o.reason for o in outcomes if o.fitness is None), row.why)
    return Ablated(row, row_of(Entry(row.change, row.text), values, base if values else None), why)


def _values(outcomes: Sequence[Outcome], count: int) -> list[float]:
    """Accuracy by seed, %; not a number where training failed."""
    found = [math.nan if o.fitness is None else o.metrics["accuracy"] for o in outcomes]
    return found + [math.nan] * (count - len(found))
