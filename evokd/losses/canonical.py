"""The canonical form: one tree for all trees of equal meaning by the known identities, so that no loss is trained twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import fsum

from evokd.genome.grammar import Node, Tree
from evokd.losses.language import Call, Term, to_terms, to_tree
from evokd.losses.schedules import Schedule

IDENTITIES = frozenset({"no", "scale_r1"})

# outer operator → operators that change nothing directly below it (up to the stated floors); each pair is proved by a test
ABSORBED: dict[str, frozenset[str]] = {
    "relu": frozenset({"relu"}),
    "norm_C": frozenset({"norm_C", "temper"}),
    "norm_N": frozenset({"norm_N", "temper"}),
    "norm_HW": frozenset({"norm_HW", "temper"}),
    "norm_all": frozenset({"norm_all", "temper", "meannorm"}),
    "sumnorm_C": frozenset({"sumnorm_C", "temper"}),
    "meannorm": frozenset({"meannorm", "temper"}),
    "centre_C": frozenset({"centre_C", "logsoftmax_C"}),
    "centre_N": frozenset({"centre_N", "logsoftmax_N"}),
    "softmax_C": frozenset({"centre_C", "logsoftmax_C"}),
    "softmax_N": frozenset({"centre_N", "logsoftmax_N"}),
    "softmax_HW": frozenset({"logsoftmax_HW"}),
    "logsoftmax_C": frozenset({"centre_C", "logsoftmax_C"}),
    "logsoftmax_N": frozenset({"centre_N", "logsoftmax_N"}),
    "logsoftmax_HW": frozenset({"logsoftmax_HW"}),
    "zscore_C": frozenset({"centre_C", "logsoftmax_C", "zscore_C", "scale", "temper"}),
    "min_max": frozenset({"min_max", "scale", "temper"}),
    "mm": frozenset({"batch", "channel", "local_r1"}),
    "pdist": frozenset({"batch", "channel", "local_r1"}),
    "bmm": frozenset({"channel"}),
    "gram_HW": frozenset({"channel"}),
    "affinity": frozenset({"channel", "norm_C", "temper"}),
    "mean_HW": frozenset({"channel", "pool_1"}),
    "batch": frozenset({"channel", "local_r1"}),
    "local_r1": frozenset({"local_r1"}),
    "l1": frozenset({"batch", "channel", "local_r1", "transpose"}),
    "l2": frozenset({"batch", "channel", "local_r1", "transpose"}),
    "smooth_l1": frozenset({"batch", "channel", "local_r1", "transpose"}),
    "frobenius": frozenset({"batch", "channel", "local_r1", "transpose"}),
    "cosine": frozenset({"norm_C", "temper"}),
    "pearson": frozenset({"centre_C", "logsoftmax_C", "zscore_C", "scale", "temper"}),
    "kl": frozenset({"centre_C", "logsoftmax_C"}),
    "ce": frozenset({"centre_C", "logsoftmax_C"}),
    "hard": frozenset({"centre_C", "logsoftmax_C"}),
    "correlation": frozenset({"centre_N", "logsoftmax_N", "scale", "temper"}),
}


def canonical(tree: Sequence[Node]) -> Tree:
    """The tree that stands for all trees of equal meaning by the known identities: no absorbed operator, temperatures joined, equal
    terms merged, and the terms in a fixed order. Idempotent.
    """
    alike: dict[tuple[str, str], list[Term]] = {}
    for term in to_terms(tree):
        term = _join_temperatures(replace(term, distance=_absorb(term.distance)))
        alike.setdefault((str(term.distance), str(term.mode)), []).append(term)
    return to_tree([term for key in sorted(alike) for term in _merged(alike[key])])


def _merged(terms: Sequence[Term]) -> list[Term]:
    """Equal terms as one; their sum is rounded once, so that it does not depend on their order. Schedules stay by themselves."""
    plain = [t for t in terms if not isinstance(t.weight, Schedule) and abs(t.weight) < 1e300]
    others = sorted((t for t in terms if t not in plain), key=str)
    if len(plain) > 1:
        plain = [replace(plain[0], weight=_rounded(fsum(t.weight for t in plain)))]
    return plain + others


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _absorb(call: Call) -> Call:
    """From the inside out, so that what is left below a call is final."""
    call = replace(call, args=tuple(_absorb(arg) for arg in call.args))
    if call.args and (call.name in IDENTITIES or (call.name == "temper" and call.params == (1.0,))):
        return call.args[0]
    if len(call.args) != 1:
        return call
    below = call.args[0]
    if call.name == below.name == "transpose":  # of tokens, the one kind that it gives back
        return below.args[0]
    while call.args[0].name in ABSORBED.get(call.name, ()) and call.side in ("", call.args[0].side):
        # what acts on one side only hides what acts on that side
        call = replace(call, args=call.args[0].args)
    return call


def _join_temperatures(term: Term) -> Term:
    """kl at τ of f/a is kl at aτ of f, divided by a²; likewise (f+1)/2, which is f/2 to a softmax. For ce without the division."""
    call = term.distance
    while call.name in ("kl", "ce") and (below := call.args[0]).name in ("temper", "scale") and not below.side:
        factor = below.params[0] if below.params else 2.0
        if any(isinstance(n, Schedule) for n in (factor, call.params[0], term.weight)):
            break
        if not (1e-6 <= factor <= 1e6 and 1e-100 <= call.params[0] <= 1e100 and abs(term.weight) <= 1e100):
            break  # products of numbers that far from 1 may not be finite
        call = _absorb(replace(call, args=below.args, params=(_rounded(call.params[0] * factor),)))
        term = replace(term, weight=_rounded(term.weight / factor**2) if call.name == "kl" else term.weight)
    return replace(term, distance=call)
