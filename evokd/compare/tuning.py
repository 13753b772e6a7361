"""Hand-made losses, tuned: every one gets as many trials on validation as every other, over the same three numbers.

A comparison in which only the evolved loss had its numbers searched would prove nothing. A loss keeps its form; what moves is the weight
of the cross-entropy γ, one factor on the weights of all its terms, and one factor on its temperatures, where it has any.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from evokd.finals import GAMMAS, WEIGHTS
from evokd.losses.distances import DISTANCES
from evokd.losses.language import Call, Term, parse_loss, to_terms, write_loss
from evokd.losses.language import to_tree as tree_of
from evokd.losses.schedules import Number, Schedule
from evokd.losses.transforms import TRANSFORMS
from evokd.losses.weights import MODES
from evokd.streams import stream

TAU_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def variants(name: str, text: str, gamma: float, trials: int, seed: int) -> list[tuple[str, float]]:
    """(text, γ) of the trials of a loss: as published first, then points of a grid drawn without replacement from a stream of its own.

    What matters most is the weight, so that every six points in a row have all six factors on it.

    Args:
        name: of the loss, which names the stream.
        text: in evokd's notation.
        gamma: weight of the cross-entropy that it is published with.
        trials: at most; a grid has 24 points, or 120 where there is a temperature.
        seed: of the comparison.
    """
    terms = to_terms(parse_loss(text))
    taus = TAU_FACTORS if any(_taus(call) for term in terms for call in (term.mode, *term.distance.walk())) else (1.0,)
    points = list(product(GAMMAS, WEIGHTS, taus))
    drawn = _even(stream(seed, "tune", name).sample(points, len(points)))
    found = [(text, gamma), *((write_loss(tree_of(scaled(terms, weight, tau))), g) for g, weight, tau in drawn)]
    return list(dict.fromkeys(found))[:trials]


def _even(points: Sequence[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """The same points, the first of every weight before the second of any."""
    seen: Counter[float] = Counter()
    rounds = []
    for point in points:
        rounds.append(seen[point[1]])
        seen[point[1]] += 1
    return [point for _, point in sorted(zip(rounds, points, strict=True), key=lambda pair: pair[0])]


def scaled(terms: Sequence[Term], weight: float, tau: float) -> tuple[Term, ...]:
    """The terms with every weight and every temperature times a factor."""
    return tuple(Term(_times(t.weight, weight), _warmer(t.mode, tau), _warmer(t.distance, tau)) for t in terms)


def _warmer(call: Call, factor: float) -> Call:
    warm = _taus(call)
    params = tuple(_times(value, factor) if place in warm else value for place, value in enumerate(call.params))
    return replace(call, args=tuple(_warmer(arg, factor) for arg in call.args), params=params)


def _taus(call: Call) -> list[int]:
    """Places of the temperatures among a call's numbers."""
    if not call.params:
        return []
    names = (TRANSFORMS.get(call.name) or DISTANCES.get(call.name) or MODES[call.name]).params
    return [place for place, name in enumerate(names) if name == "tau"]


def _times(number: Number, factor: float) -> Number:
    """To six digits, so that 0.9 · 10 is written 9."""
    if isinstance(number, Schedule):
        return replace(number, start=_times(number.start, factor), end=_times(number.end, factor))
    return float(f"{number * factor:.6g}")
