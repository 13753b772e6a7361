"""Does a loss carry over? It is applied unchanged, γ included, to other teachers, students and data, beside KD and plain training.

Where taps of teacher and student differ in shape a loss trains connectors, which are part of its cost: their parameters are told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from evokd.compare.loss_plan import KD, PLAIN, Entrant, named
from evokd.compare.pairs import Pair, Plan, distinct
from evokd.compare.standings import Standing, standings
from evokd.config import Config, make_config
from evokd.errors import EvokdError
from evokd.export import loss_file
from evokd.finals import PUBLISHED
from evokd.genome.codec import write_number


def make_plan(
    values: dict[str, Any], overrides: Sequence[str], losses: Sequence[str], pairs: Sequence[str], seeds: int = 5
) -> Plan:
    """What is asked for.

    Args:
        values: fields of the configuration that all pairs share.
        overrides: likewise, as `key=value`; what the presets of a data set say holds for its pairs.
        losses: known names, texts, loss.json files or folders of finished searches; the first is the one others are compared with.
        pairs: `TEACHER,STUDENT` or `TEACHER,STUDENT,DATA`.
        seeds: fresh ones a row.

    Raises:
        EvokdError: no loss or pair, a pair of another form, or an interval that has no width.
    """
    if not losses or not pairs:
        raise EvokdError("compare transfer", "--loss and --pair, each at least once", "none of one")
    if seeds < 2:
        raise EvokdError("--seeds", "at least 2, as an interval needs", str(seeds))
    configs = tuple(_config(values, overrides, text) for text in pairs)
    rows = [named(loss_file(spec), configs[0].protocol.gamma) for spec in losses]
    return Plan("transfer", configs, distinct([*rows, *published()]), seeds)


def _config(values: dict[str, Any], overrides: Sequence[str], text: str) -> Config:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) not in (2, 3) or not all(parts):
        raise EvokdError("--pair", "TEACHER,STUDENT or TEACHER,STUDENT,DATA", repr(text))
    return make_config(values | dict(zip(("teacher", "student", "data"), parts, strict=False)), overrides)


def published() -> list[Entrant]:
    """KD as published, and plain training."""
    gamma, weight, tau = PUBLISHED
    return [Entrant(KD, f"{write_number(weight)}*kl(logits, tau={write_number(tau)})", gamma), Entrant(PLAIN, "", 1.0)]


def told(plan: Plan, pairs: Sequence[Pair]) -> list[str]:
    """Lines for a terminal: a table a pair, the best row first, then on how many pairs the first loss is ahead."""
    first, lines = plan.rows[0].name, []
    width = max(len(row.name) for row in plan.rows) + 2
    for pair in pairs:
        lines += ["", f"{pair.name}: test accuracy %, mean ± 95 %; {first} − row, paired by seed; connector parameters"]
        lines += [_line(row, pair, width) for row in standings(pair.values, first)]
    return [*lines, "", *(verdict(plan, pairs, row.name) for row in plan.rows[1:])]


def _line(row: Standing, pair: Pair, width: int) -> str:
    if not row.seeds:
        return f"   {row.name:<{width}} {pair.misfits.get(row.name, 'no training came to an end')[:90]}"
    gap = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*row.difference) if row.difference else ""
    return f"   {row.name:<{width}} {row.mean:5.1f} ± {row.half:<4.1f} {gap:<22} {pair.connectors[row.name]:>9,}"


def verdict(plan: Plan, pairs: Sequence[Pair], other: str) -> str:
    """On how many pairs the first loss is ahead of another or behind it, by more than the 95 % interval of the paired difference."""
    first, gaps = plan.rows[0].name, []
    for pair in pairs:
        gaps += [row.difference for row in standings(pair.values, first) if row.name == other and row.difference]
    sound = [gap for gap in gaps if math.isfinite(gap[0])]
    ahead, behind = sum(gap[1] > 0 for gap in sound), sum(gap[2] < 0 for gap in sound)
    return f"{first} against {other}: ahead on {ahead} of {len(sound)} pairs beyond the interval, behind on {behind}"
