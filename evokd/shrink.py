"""Search-space shrinkage: what a run's candidates say against each operator, and the space without those that are consistently worst.

KD-Zero names the step without its rule; Auto-KD drops options whose mean outcome is consistently worst. Here a rank test says what
"consistently" is. A candidate is ranked among its like alone: those of its generation that, like it, were grown afresh or have parents.
Later generations are better whatever is in them, and children of the best are better than fresh trees, so that over a whole run every
operator which the best did not happen to use would look bad. A function of events alone: a search may call it as often as it likes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from math import sqrt
from statistics import NormalDist, fmean
from textwrap import wrap
from typing import Any

from evokd.errors import EvokdError
from evokd.genome.codec import write_number
from evokd.genome.individual import Status
from evokd.journal import individuals
from evokd.losses.growth import LossSpace, loss_grammar
from evokd.losses.language import POSITIONS
from evokd.space import SpaceFile

KINDS = ("transforms", "distances", "modes", "positions")
LEAST = 5  # candidates, before anything is said against an operator
LEVEL = 0.05  # of a false drop anywhere in the space
SHARE = 3  # one in so many of a list may go at a time
RUNG = "rung"  # a refusal for this reason came after a short training: worse than what was finished, yet no failure


@dataclass(frozen=True)
class Evidence:
    """What a journal says of one name of a space.

    Attributes:
        kind: the list of the space that it stands in: transforms, distances, modes or positions.
        name: as in the space file.
        count: judged candidates in which it occurs, on either side.
        failures: those of them that were refused by a gate or failed in training.
        rank: their mean rank among their like, 0 worst … 1 best; 0.5 is what chance gives.
        p: one-sided, that those with it rank no lower than those without, not corrected for the number of names.
        dropped: whether the shrunk space goes without it.
        judged: candidates in the journal.
    """

    kind: str
    name: str
    count: int
    failures: int
    rank: float
    p: float
    dropped: bool
    judged: int


@dataclass(frozen=True)
class Trial:
    """A judged candidate: (kind, name) of all that occurs in it, and its rank among its like."""

    used: frozenset[tuple[str, str]]
    failed: bool
    rank: float


def weigh(events: Iterable[dict], space: LossSpace) -> list[Evidence]:
    """Evidence for every transform, distance, mode and position of a space, in its order.

    Args:
        events: of a journal; trees may use more than the space does.
        space: what was searched.
    """
    blocks = _blocks(events)
    found = [_evidence(kind, name, blocks) for kind in KINDS for name in getattr(space, kind)]
    gone = _chosen(space, found, blocks)
    return [replace(e, dropped=e in gone) for e in found]


def shrink(space: LossSpace, evidence: Iterable[Evidence]) -> LossSpace:
    """The space without what `weigh` dropped; an operator leaves with its one-sided forms."""
    return _without(space, [e for e in evidence if e.dropped])


def _without(space: LossSpace, evidence: Iterable[Evidence]) -> LossSpace:
    gone = {(e.kind, e.name) for e in evidence}
    kept = {kind: tuple(n for n in getattr(space, kind) if (kind, n) not in gone) for kind in KINDS}
    return replace(space, **kept, one_sided=tuple(n for n in space.one_sided if ("transforms", n) not in gone))


def write_shrunk(space_file: SpaceFile, evidence: Sequence[Evidence], run_name: str) -> str:
    """The shrunk space as the text of a space file, with the evidence in its comments."""
    run = "".join(c if c.isprintable() else "?" for c in run_name)
    gone = sorted((e for e in evidence if e.dropped), key=lambda e: e.p)
    lines = [f"# Shrunk by what run {run} found: {evidence[0].judged} candidates were read."]
    lines += [f"# dropped {e.name}: {e.count} candidates, mean rank {e.rank:.2f}, p = {e.p:.2g}" for e in gone]
    shrunk = shrink(space_file.space, evidence)
    stated = [(f.name, getattr(shrunk, f.name)) for f in fields(shrunk) if f.name != "name"]
    optional = {f.name: f.default for f in fields(shrunk) if f.default is not MISSING}
    lines += ['task = "distiller"', *(f"{n} = {_toml(v)}" for n, v in stated if n not in optional or v != optional[n])]
    return "\n".join([*lines, ""])


def _toml(value: Any) -> str:
    if not isinstance(value, tuple):
        return f'"{value}"' if isinstance(value, str) else write_number(value)
    items = ", ".join(map(_toml, value))
    return f"[{items}]" if len(items) < 110 else "\n".join(["[", *(f"    {line}" for line in wrap(items, 120)), "]"])


# --- reading -----------------------------------------------------------------------------------------------------------------


def _blocks(events: Iterable[dict]) -> list[list[Trial]]:
    """Trials by generation and by whether they have parents."""
    alike: dict[tuple[int, bool], list[dict]] = {}
    for event in individuals(events):
        alike.setdefault((event["generation"], bool(event["parents"])), []).append(event)
    return [_ranked(block) for block in alike.values()]


def _ranked(block: Sequence[dict]) -> list[Trial]:
    """Ranks in [0, 1]; equal ones share the mean of theirs, and one alone is in the middle."""
    merits = [_merit(event) for event in block]
    ordered, last = sorted(merits), len(block) - 1
    ranks = [(bisect_left(ordered, m) + bisect_right(ordered, m) - 1) / 2 / last if last else 0.5 for m in merits]
    return [Trial(_used(e["tree"]), m == FAILED, rank) for e, m, rank in zip(block, merits, ranks, strict=True)]


FAILED = (0, 0.0)


def _merit(event: dict) -> tuple[int, float]:
    """What orders outcomes: failures below those stopped at a rung, and these below the finished ones."""
    if event["status"] == Status.OK:
        return 2, event["fitness"]
    return (1, 0.0) if event["status"] == Status.REJECTED and event["reason"].startswith(RUNG) else FAILED


def _used(tree: Iterable[str]) -> frozenset[tuple[str, str]]:
    """(kind, name) of what occurs; operators are told from modes by their colon, as there is a transform `no` and a mode `no`."""
    used = set()
    for node in tree:
        operator, colon, _ = node.partition(":")
        if colon:  # no transform has a distance's name
            used |= {(kind, operator.rpartition(".")[2]) for kind in ("transforms", "distances")}
        elif node in POSITIONS:
            used |= {("positions", node), ("positions", node.partition("[")[0])}
        else:
            used.add(("modes", node))
    return frozenset(used)


# --- judging -----------------------------------------------------------------------------------------------------------------


def _evidence(kind: str, name: str, blocks: Sequence[Sequence[Trial]]) -> Evidence:
    having = [trial for block in blocks for trial in block if (kind, name) in trial.used]
    rank = fmean(trial.rank for trial in having) if having else 0.5
    failures, judged = sum(trial.failed for trial in having), sum(map(len, blocks))
    return Evidence(kind, name, len(having), failures, rank, _p(kind, name, blocks), False, judged)


def _p(kind: str, name: str, blocks: Sequence[Sequence[Trial]]) -> float:
    """Wilcoxon's rank sum over blocks (van Elteren 1960), by its normal limit with the variance of the ranks as they are, ties included.

    For one block it is Mann and Whitney's test.
    """
    excess = variance = 0.0
    for block in (block for block in blocks if len(block) > 1):
        ranks = [trial.rank for trial in block if (kind, name) in trial.used]
        n, m, mean = len(block), len(ranks), fmean(trial.rank for trial in block)
        spread = sum((trial.rank - mean) ** 2 for trial in block) / n
        excess += sum(ranks) - mean * m
        variance += spread * m * (n - m) / (n - 1)
    return NormalDist().cdf(excess / sqrt(variance)) if variance > 1e-9 else 1.0  # equal ranks, but for rounding


def _chosen(space: LossSpace, evidence: Sequence[Evidence], blocks: Sequence[Sequence[Trial]]) -> list[Evidence]:
    """The refuted, the worst first, as far as the lists may shrink and losses can still be built for the pair of the run.

    What only looks bad beside a worse one, as a position does whose maps a bad operator takes, is acquitted by the trials without that.
    """
    shown = sorted({n for block in blocks for trial in block for kind, n in trial.used if kind == "positions" and n in POSITIONS})
    gone: list[Evidence] = []
    for worst in sorted(refuted(evidence), key=lambda e: e.rank):
        more = [*gone, worst]
        few = sum(e.kind == worst.kind for e in more) <= len(getattr(space, worst.kind)) // SHARE
        guilty = _p(worst.kind, worst.name, _apart(gone, blocks)) <= LEVEL
        if few and guilty and _buildable(_without(space, more), shown):
            gone = more
    return gone


def _apart(gone: Iterable[Evidence], blocks: Sequence[Sequence[Trial]]) -> list[list[Trial]]:
    """The trials in which nothing of this occurs."""
    names = {(e.kind, e.name) for e in gone}
    return [[trial for trial in block if names.isdisjoint(trial.used)] for block in blocks]


def refuted(evidence: Iterable[Evidence]) -> list[Evidence]:
    """By Holm's correction over all that occur often enough, the clearest first.

    Holm, not Benjamini and Hochberg: a name once dropped is never tried again, so that one false drop anywhere is one too many.
    """
    tested = sorted((e for e in evidence if e.count >= LEAST), key=lambda e: e.p)
    passed = [e.p <= LEVEL / (len(tested) - i) for i, e in enumerate(tested)]
    return tested[: passed.index(False)] if False in passed else tested


def _buildable(space: LossSpace, shown: Sequence[str]) -> bool:
    """Whether a formula can be grown for a pair that shows these positions; modules, which need none, do not count."""
    try:
        loss_grammar(replace(space, modules=()), shown)
    except EvokdError:
        return False
    return True
