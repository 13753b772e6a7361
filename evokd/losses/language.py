"""The distiller language: one notation for files, reports and the command line, exact both ways.

    loss     = term , { "+" , term } ;
    term     = [ number , "*" ] , [ mode , "*" ] , call ;
    call     = name , "(" , value , { "," , value } , { "," , parameter } , ")" ;
    value    = position | call ;
    position = "logits" | "embedding" | "features[-" , digit , "]" ;
    parameter = name , "=" , number ;
    number   = any finite decimal float ;

`3*kl(logits, tau=4) + 0.3*focal*l2(norm_C(mm(features[-1])))` reads: three times Hinton's KD and SP on the last stage, weighted by WSLD's
focal weight. Outermost call: a distance; inside: transforms. Student and teacher take the same path. The task loss γ·CE is no
part of the language: it belongs to the protocol.

A loss is a DEAP tree (for variation) and a tuple of terms (for everything that reads it); both forms convert exactly.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import exp, fsum

from evokd.errors import EvokdError, closest
from evokd.genome.codec import from_names, read_number, write_number
from evokd.genome.grammar import Grammar, Node, Rule, Tree, kind
from evokd.losses.distances import DISTANCES
from evokd.losses.transforms import MAPS, ROWS, TRANSFORMS
from evokd.losses.weights import MODES

ALL = frozenset([*TRANSFORMS, *DISTANCES, *MODES, "no"])
POSITIONS = {"logits": ROWS, "embedding": ROWS} | {f"features[-{i}]": MAPS for i in range(1, 10)}
MAX_TERMS = 8
MAX_TEXT = 20_000
MAX_DEPTH = 40


@dataclass(frozen=True)
class Call:
    """An operator applied to values, or a position when `args` is empty."""

    name: str
    args: tuple[Call, ...] = ()
    params: tuple[float, ...] = ()

    def __str__(self) -> str:
        if not self.args:
            return self.name
        names = (TRANSFORMS.get(self.name) or DISTANCES[self.name]).params
        params = [f"{n}={write_number(v)}" for n, v in zip(names, self.params, strict=True)]
        return f"{self.name}({', '.join([*map(str, self.args), *params])})"

    def walk(self) -> Iterable[Call]:
        yield self
        for arg in self.args:
            yield from arg.walk()


@dataclass(frozen=True)
class Term:
    """weight · mode · distance(…)."""

    weight: float
    mode: str
    distance: Call

    def __str__(self) -> str:
        parts = [write_number(self.weight)] if self.weight != 1 else []
        return "*".join([*parts, *([self.mode] if self.mode != "no" else []), str(self.distance)])


def kind_of(call: Call, where: str = "loss") -> str:
    """The kind of a value (maps, rows, …), or of a distance (`distance` per sample, `total` otherwise).

    Raises:
        EvokdError: if an operator does not take what it is given.
    """
    if not call.args:
        return POSITIONS[call.name]
    below = kind_of(call.args[0], where)
    if call.name in TRANSFORMS:
        kinds = TRANSFORMS[call.name].kinds
        if below not in kinds:
            raise EvokdError(where, f"{call.name} to be given one of {', '.join(kinds)}", f"{below} from {call.args[0]}")
        return kinds[below]
    distance = DISTANCES[call.name]
    if below not in distance.kinds:
        raise EvokdError(where, f"{call.name} to be given one of {', '.join(distance.kinds)}", f"{below} from {call.args[0]}")
    return "distance" if distance.per_sample and below != "columns" else "total"


# --- trees -------------------------------------------------------------------------------------------------------------------


@cache
def _rules() -> dict[str, Rule]:
    """Every rule of the language but numbers and temperatures, by node name."""
    rules = [Rule(position, k) for position, k in POSITIONS.items()]
    rules += [Rule(mode, "mode") for mode in ("no", *MODES)]
    rules += [Rule(f"loss{n}", "loss", ("term",) * n) for n in range(1, MAX_TERMS + 1)]
    rules += [Rule("term", "term", ("value", "mode", "distance")), Rule("plain", "term", ("value", "total"))]
    for t in TRANSFORMS.values():
        rules += [Rule(f"{t.name}:{k}", out, (k, *t.params)) for k, out in t.kinds.items()]
    for d in DISTANCES.values():
        for k in d.kinds:
            ret = "distance" if d.per_sample and k != "columns" else "total"
            rules.append(Rule(f"{d.name}:{k}", ret, (k, *d.params)))
    return {rule.name: rule for rule in rules}


@cache
def _node(name: str) -> Node | None:
    if name in _rules():
        return _rules()[name].node()
    ret, text = ("tau", name[4:]) if name.startswith("tau=") else ("value", name)
    try:
        number = read_number(text)
    except EvokdError:
        return None
    if ret == "tau" and number <= 0:
        return None
    return Rule(name, ret).node()


def tree_from_names(names: Sequence[str], where: str = "tree") -> Tree:
    """The inverse of `codec.to_names` for losses."""
    return from_names(names, _node, kind("loss"), where)


def to_tree(terms: Sequence[Term]) -> Tree:
    """Terms → DEAP tree."""
    names = [f"loss{len(terms)}"]
    for term in terms:
        value = write_number(term.weight)
        names += ["term", value, term.mode] if kind_of(term.distance) == "distance" else ["plain", value]
        names += _call_names(term.distance)
    return tree_from_names(names)


def _call_names(call: Call) -> list[str]:
    if not call.args:
        return [call.name]
    names = [f"{call.name}:{kind_of(call.args[0])}"]
    for arg in call.args:
        names += _call_names(arg)
    return names + [f"tau={write_number(p)}" for p in call.params]


def to_terms(tree: Sequence[Node]) -> tuple[Term, ...]:
    """DEAP tree → terms."""
    stack: list = []
    for node in reversed(tree):
        args = [stack.pop() for _ in range(node.arity)]
        stack.append(_value(node, args))
    return stack[0]


def _value(node: Node, args: list):
    name = node.name.partition(":")[0]
    if node.ret.__name__ in ("value", "tau"):
        return float(name.removeprefix("tau="))
    if node.ret.__name__ == "mode":
        return name
    if name == "term":
        return Term(*args)
    if name == "plain":
        return Term(args[0], "no", args[1])
    if node.ret.__name__ == "loss":
        return tuple(args)
    return Call(name, tuple(a for a in args if isinstance(a, Call)), tuple(a for a in args if isinstance(a, float)))


# --- text --------------------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"\s*(?:(?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?)|(?P<name>[A-Za-z_]\w*(?:\[-\d\])?)|(?P<sign>[(),=*+]))",
    re.ASCII,
)


def parse_loss(text: str, operators: Iterable[str] = ALL, where: str = "loss") -> Tree:
    """Text → tree; nothing is ever evaluated.

    Args:
        text: a loss in the notation above.
        operators: the names that may be used.
        where: what the error should call the text.

    Raises:
        EvokdError: syntax, unknown operator or position, wrong kind, or a text too long or too deep.
    """
    if len(text) > MAX_TEXT:
        raise EvokdError(where, f"at most {MAX_TEXT} characters", f"{len(text)}")
    return to_tree(_Parser(text, frozenset(operators), where).loss())


def write_loss(tree: Sequence[Node]) -> str:
    """Tree → text, the exact inverse of `parse_loss` for canonical text."""
    return " + ".join(map(str, to_terms(tree)))


class _Parser:
    """Recursive descent over one text."""

    def __init__(self, text: str, operators: frozenset[str], where: str) -> None:
        self.text, self.operators, self.where = text, operators, where
        self.tokens: list[tuple[str, str, int]] = []
        at = 0
        while text[at:].strip():
            found = _TOKEN.match(text, at)
            if not found:
                raise EvokdError(where, "a name, a number or one of ( ) , = * +", f"{text[at : at + 12]!r} at character {at + 1}")
            self.tokens.append((found.lastgroup, found.group(found.lastgroup), found.start(found.lastgroup)))
            at = found.end()
        self.at = 0

    def peek(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def take(self, group: str, wanted: str = "") -> str:
        kind_, value, start = self.tokens[self.at] if self.at < len(self.tokens) else ("end", "the end", len(self.text))
        if kind_ != group or (wanted and value != wanted):
            raise EvokdError(self.where, repr(wanted) if wanted else f"a {group}", f"{value[:40]!r} at character {start + 1}")
        self.at += 1
        return value

    def loss(self) -> list[Term]:
        terms = [self.term()]
        while self.peek() == "+":
            self.take("sign", "+")
            terms.append(self.term())
        if self.at < len(self.tokens):
            raise EvokdError(self.where, "'+' or the end", f"{self.peek()[:40]!r} at character {self.tokens[self.at][2] + 1}")
        if len(terms) > MAX_TERMS:
            raise EvokdError(self.where, f"at most {MAX_TERMS} terms", f"{len(terms)}")
        return terms

    def term(self) -> Term:
        weight, mode = 1.0, "no"
        if self.at < len(self.tokens) and self.tokens[self.at][0] == "number":
            weight = read_number(self.take("number"), self.where)
            self.take("sign", "*")
        if self.tokens[self.at + 1 : self.at + 2] and self.tokens[self.at + 1][1] == "*":
            mode = self.allowed(self.take("name"), "weight mode", MODES)
            self.take("sign", "*")
        name = self.allowed(self.take("name"), "distance", DISTANCES)
        call = self.call(name, 0)
        if kind_of(call, self.where) == "total" and mode != "no":
            raise EvokdError(self.where, f"no weight mode before {name}, which has no value per sample", mode)
        return Term(weight, mode, call)

    def call(self, name: str, depth: int) -> Call:
        if depth > MAX_DEPTH:
            raise EvokdError(self.where, f"at most {MAX_DEPTH} nested calls", "more")
        names = (TRANSFORMS.get(name) or DISTANCES[name]).params
        self.take("sign", "(")
        args = (self.value(depth + 1),)
        params = []
        for wanted in names:
            self.take("sign", ",")
            self.take("name", wanted)
            self.take("sign", "=")
            if self.peek() == "+":
                self.take("sign")
            params.append(read_number(self.take("number"), self.where))
            if params[-1] <= 0:
                raise EvokdError(self.where, f"{wanted} > 0", write_number(params[-1]))
        self.take("sign", ")")
        call = Call(name, args, tuple(params))
        kind_of(call, self.where)
        return call

    def value(self, depth: int) -> Call:
        name = self.take("name")
        if name in POSITIONS:
            return Call(name)
        if self.peek() != "(":
            raise EvokdError(self.where, "a position", repr(name[:40]), closest(name, POSITIONS))
        return self.call(self.allowed(name, "transform", TRANSFORMS), depth)

    def allowed(self, name: str, what: str, table: Iterable[str]) -> str:
        usable = [n for n in table if n in self.operators]
        if name not in usable and not (name == "no" and table is MODES):
            raise EvokdError(self.where, f"a {what}", repr(name[:40]), closest(name, usable))
        return name


# --- canonical form ----------------------------------------------------------------------------------------------------------

# outer operator → operators that change nothing directly below it (up to the stated floors); each pair is proved by a test
ABSORBED: dict[str, frozenset[str]] = {
    "relu": frozenset({"relu"}),
    "norm_C": frozenset({"norm_C", "temper"}),
    "norm_N": frozenset({"norm_N", "temper"}),
    "norm_HW": frozenset({"norm_HW", "temper"}),
    "centre_C": frozenset({"centre_C"}),
    "softmax_C": frozenset({"centre_C", "logsoftmax_C"}),
    "softmax_N": frozenset({"logsoftmax_N"}),
    "softmax_HW": frozenset({"logsoftmax_HW"}),
    "logsoftmax_C": frozenset({"centre_C", "logsoftmax_C"}),
    "logsoftmax_N": frozenset({"logsoftmax_N"}),
    "logsoftmax_HW": frozenset({"logsoftmax_HW"}),
    "zscore_C": frozenset({"centre_C", "zscore_C", "scale", "temper"}),
    "min_max": frozenset({"min_max", "scale", "temper"}),
    "mm": frozenset({"batch", "channel"}),
    "bmm": frozenset({"channel"}),
    "mean_HW": frozenset({"channel"}),
    "batch": frozenset({"channel"}),
    "l1": frozenset({"batch", "channel"}),
    "l2": frozenset({"batch", "channel"}),
    "smooth_l1": frozenset({"batch", "channel"}),
    "cosine": frozenset({"norm_C", "temper"}),
    "pearson": frozenset({"centre_C", "zscore_C", "scale", "temper"}),
    "kl": frozenset({"centre_C"}),
    "hard": frozenset({"centre_C", "logsoftmax_C"}),
    "correlation": frozenset({"scale", "temper"}),
}


def canonical(tree: Sequence[Node]) -> Tree:
    """The tree that stands for all trees of equal meaning by the known identities: no absorbed operator, equal terms merged and
    the terms in a fixed order. Idempotent.
    """
    alike: dict[tuple[str, str], list[Term]] = {}
    for term in to_terms(tree):
        term = replace(term, distance=_absorb(term.distance))
        alike.setdefault((str(term.distance), term.mode), []).append(term)
    return to_tree([_merged(alike[key]) for key in sorted(alike)])


def _merged(terms: Sequence[Term]) -> Term:
    """Equal terms as one; their sum is rounded once, so that it does not depend on their order."""
    if len(terms) == 1:
        return terms[0]
    return replace(terms[0], weight=float(f"{fsum(t.weight for t in terms):.6g}"))


def _absorb(call: Call) -> Call:
    while call.args and call.args[0].name in ABSORBED.get(call.name, ()):
        call = replace(call, args=call.args[0].args)
    return replace(call, args=tuple(_absorb(arg) for arg in call.args))


# --- growth ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LossSpace:
    """What may be evolved: names of operators, grids of growth and limits, as a space file states them."""

    name: str
    transforms: tuple[str, ...]
    distances: tuple[str, ...]
    modes: tuple[str, ...]
    values: tuple[float, ...]
    taus: tuple[float, ...]
    positions: tuple[str, ...]
    max_terms: int
    max_transforms: int


def loss_grammar(space: LossSpace, positions: Iterable[str]) -> Grammar:
    """The grammar of a space for a pair that shows the given positions.

    Raises:
        EvokdError: if no position of the space is shown.
    """
    shown = [p for p in positions if p in space.positions or p.partition("[")[0] in space.positions]
    if not shown:
        raise EvokdError(space.name, "a position that both networks show", "none", "they show " + ", ".join(positions))
    names = {*space.transforms, *space.distances}
    rules = [r for name, r in _rules().items() if name.partition(":")[0] in names and ":" in name]
    rules += [_rules()[name] for name in (*shown, *space.modes, "term", "plain")]
    rules += [_rules()[f"loss{n}"] for n in range(1, space.max_terms + 1)]
    rules += [Rule(write_number(v), "value") for v in space.values] + [Rule(f"tau={write_number(v)}", "tau") for v in space.taus]
    return Grammar(
        space.name,
        _reachable(rules),
        "loss",
        space.max_transforms + 3,
        write=write_loss,
        canonical=canonical,
        vary_number=vary_number,
    )


def _reachable(rules: list[Rule]) -> list[Rule]:
    """Rules whose arguments can all be completed with the positions at hand."""
    made: set[str] = set()
    while True:
        kept = [rule for rule in rules if made.issuperset(rule.args)]
        if made == {rule.ret for rule in kept}:
            return kept
        made = {rule.ret for rule in kept}


def vary_number(node: Node, stream: random.Random) -> Node | None:
    """A weight or temperature near another: a log-normal step (σ = ln 2), rounded to two digits; None for other nodes."""
    ret = node.ret.__name__
    if ret not in ("value", "tau"):
        return None
    old = float(node.name.removeprefix("tau="))
    low, high = (1e-3, 1e4) if ret == "value" else (0.1, 64.0)
    size = min(max(abs(old) * exp(stream.gauss(0, 0.7)), low), high)
    new = float(f"{size if old >= 0 else -size:.2g}")
    return _node(("tau=" if ret == "tau" else "") + write_number(new)) if new != old else None
