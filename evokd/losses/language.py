"""The distiller language: one notation for files, reports and the command line, exact both ways.

    loss      = term , { "+" , term } ;
    term      = [ number , "*" ] , ( [ mode , "*" ] , call | module ) ;
    mode      = name , [ "(" , parameter , ")" ] ;
    call      = [ side , "." ] , name , "(" , value , { "," , value } , { "," , parameter } , ")" ;
    side      = "student" | "teacher" ;
    value     = position | call ;
    position  = "logits" | "embedding" | "teacher_head" | "tokens" | "attention" | ( "features" | "pre_relu" ) , "[-" , digit , "]" ;
    parameter = name , "=" , number ;
    number    = any finite decimal float | schedule , "(" , float , "," , float , ")" ;
    schedule  = "ramp" | "cosine" | "anneal" | "step" ;
    module    = the name of a loss with trained parts or memory, such as "crd" ;

`3*kl(logits, tau=4) + ramp(0, 0.3)*focal*l2(norm_C(mm(features[-1])))` reads: three times Hinton's KD, and SP on the last stage,
weighted by WSLD's focal weight and by a factor that grows with training. Outermost call: a distance; inside: transforms. Student and
teacher take the same path, but for operators with a side before their name, which leave the other network's value as it is. Equal calls
are equal values, random masks included. The task loss γ·CE is no part of the language: it belongs to the protocol.

`teacher_head` is the embedding through the teacher's classifier. `attention` (N,heads,M,M) is read as maps whose channels are the keys.

A loss is a DEAP tree (for variation) and a tuple of terms (for everything that reads it); both forms convert exactly.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from evokd.errors import EvokdError, closest
from evokd.genome.codec import from_names, read_number
from evokd.genome.grammar import Node, Rule, Tree, kind, subtree_heights
from evokd.losses import schedules
from evokd.losses.distances import DISTANCES
from evokd.losses.modules import MODULES
from evokd.losses.operators import CLASSES, MAPS, ROWS, TOKENS
from evokd.losses.schedules import SCHEDULES, Number, Schedule
from evokd.losses.transforms import TRANSFORMS
from evokd.losses.weights import MODES

ALL: set[str] = {*TRANSFORMS, *DISTANCES, *MODES, *MODULES, "no"}
POSITIONS = {"logits": CLASSES, "embedding": ROWS, "teacher_head": CLASSES, "tokens": TOKENS, "attention": MAPS}
POSITIONS |= {f"{name}[-{i}]": MAPS for name in ("features", "pre_relu") for i in range(1, 10)}
SIDES = ("student", "teacher")
MAX_TERMS = 8
MAX_TEXT = 20_000
MAX_DEPTH = 40


@dataclass(frozen=True)
class Call:
    """An operator applied to values; a position, weight mode or module when `args` is empty.

    Attributes:
        name: of the operator.
        args: values it is given.
        params: its numbers.
        side: `student` or `teacher` where it acts on one network alone.
    """

    name: str
    args: tuple[Call, ...] = ()
    params: tuple[Number, ...] = ()
    side: str = ""

    def __str__(self) -> str:
        inside = [*map(str, self.args)]
        if self.params:
            names = (TRANSFORMS.get(self.name) or DISTANCES.get(self.name) or MODES[self.name]).params
            inside += [f"{n}={schedules.write(v)}" for n, v in zip(names, self.params, strict=True)]
        name = f"{self.side}.{self.name}" if self.side else self.name
        return f"{name}({', '.join(inside)})" if inside else name

    def walk(self) -> Iterable[Call]:
        yield self
        for arg in self.args:
            yield from arg.walk()

    def positions(self) -> list[str]:
        """Positions that a value reads, each once."""
        return list(dict.fromkeys(call.name for call in self.walk() if call.name in POSITIONS))


NO = Call("no")


@dataclass(frozen=True)
class Term:
    """weight · mode · distance(…), or weight · module."""

    weight: Number
    mode: Call
    distance: Call

    def __str__(self) -> str:
        parts = [schedules.write(self.weight)] if self.weight != 1 else []
        return "*".join([*parts, *([str(self.mode)] if self.mode != NO else []), str(self.distance)])

    @property
    def module(self) -> bool:
        """Whether it is a loss with trained parts or memory, which has no formula."""
        return not self.distance.args


def kind_of(call: Call, where: str = "loss") -> str:
    """The kind of a value (maps, rows, …), or of a distance (`distance` per sample, `total` otherwise).

    Raises:
        EvokdError: if an operator does not take what it is given.
    """
    if not call.args:
        return POSITIONS.get(call.name, "total")
    below = ",".join(kind_of(arg, where) for arg in call.args)
    operator = TRANSFORMS.get(call.name) or DISTANCES[call.name]
    if below not in operator.kinds:
        takes = " or ".join(operator.kinds)
        raise EvokdError(where, f"{call.name} to be given {takes}", f"{below} from {', '.join(map(str, call.args))}")
    if call.side and not operator.keeps_shape:
        raise EvokdError(where, "an operator that keeps the shape, after a side", str(call)[:60])
    return operator.kinds[below] if call.name in TRANSFORMS else _sort(operator, below)


def _sort(distance, below: str) -> str:
    return "distance" if distance.per_sample and below != "columns" else "total"


# --- trees -------------------------------------------------------------------------------------------------------------------


@cache
def rules() -> dict[str, Rule]:
    """Every rule of the language but numbers and temperatures, by node name."""
    rules = [Rule(position, k) for position, k in POSITIONS.items()]
    rules += [Rule("no", "mode")] + [Rule(m.name, "mode", m.params) for m in MODES.values()]
    rules += [Rule(name, "total") for name in MODULES]
    rules += [Rule(f"loss{n}", "loss", ("term",) * n) for n in range(1, MAX_TERMS + 1)]
    rules += [Rule("term", "term", ("value", "mode", "distance")), Rule("plain", "term", ("value", "total"))]
    for t in TRANSFORMS.values():
        for k, out in t.kinds.items():
            for side in ("", *SIDES) if t.keeps_shape else ("",):
                rules.append(Rule(_node_name(t.name, k, side), out, (*k.split(","), *t.params)))
    for d in DISTANCES.values():
        rules += [Rule(_node_name(d.name, k), _sort(d, k), (k, *d.params)) for k in d.kinds]
    return {rule.name: rule for rule in rules}


def _node_name(name: str, kinds: str, side: str = "") -> str:
    return f"{side}.{name}:{kinds}" if side else f"{name}:{kinds}"


@cache
def node_named(name: str) -> Node | None:
    """The node of a name, numbers and temperatures included; None if there is none."""
    if name in rules():
        return rules()[name].node()
    ret, text = ("tau", name[4:]) if name.startswith("tau=") else ("value", name)
    try:
        number = schedules.read(text)
    except EvokdError:
        return None
    if ret == "tau" and not schedules.positive(number):
        return None
    return Rule(name, ret).node()


def learn_operator(operator) -> None:
    """Add a user's transform or distance to the language of this process.

    Raises:
        EvokdError: if the name is taken.
    """
    if operator.name in ALL or operator.name in POSITIONS or operator.name in SCHEDULES:
        raise EvokdError("--operators", "a name that no operator has", operator.name)
    table = TRANSFORMS if isinstance(operator.kinds, dict) else DISTANCES
    table[operator.name] = operator
    ALL.add(operator.name)
    rules.cache_clear()
    node_named.cache_clear()


def tree_from_names(names: Sequence[str], where: str = "tree") -> Tree:
    """The inverse of `codec.to_names` for losses."""
    tree = from_names(names, node_named, kind("loss"), where)
    if subtree_heights(tree)[0] > MAX_DEPTH + 3:  # a loss, a term and a position stand around the calls
        raise EvokdError(where, f"at most {MAX_DEPTH} nested calls", "more")
    return tree


def to_tree(terms: Sequence[Term]) -> Tree:
    """Terms → DEAP tree."""
    names = [f"loss{len(terms)}"]
    for term in terms:
        value = schedules.write(term.weight)
        weighted = kind_of(term.distance) == "distance"
        names += ["term", value, term.mode.name, *map(tau_name, term.mode.params)] if weighted else ["plain", value]
        names += _call_names(term.distance)
    return tree_from_names(names)


def tau_name(number: Number) -> str:
    """Name of a temperature's node."""
    return f"tau={schedules.write(number)}"


def _call_names(call: Call) -> list[str]:
    if not call.args:
        return [call.name]
    names = [_node_name(call.name, ",".join(map(kind_of, call.args)), call.side)]
    for arg in call.args:
        names += _call_names(arg)
    return [*names, *map(tau_name, call.params)]


def to_terms(tree: Sequence[Node]) -> tuple[Term, ...]:
    """DEAP tree → terms."""
    stack: list = []
    for node in reversed(tree):
        args = [stack.pop() for _ in range(node.arity)]
        stack.append(_value(node, args))
    return stack[0]


def _value(node: Node, args: list):
    side, _, name = node.name.partition(":")[0].rpartition(".")
    ret = node.ret.__name__
    if ret in ("value", "tau"):
        return schedules.read(node.name.removeprefix("tau="))
    if name == "term":
        return Term(*args)
    if name == "plain":
        return Term(args[0], NO, args[1])
    if ret == "loss":
        return tuple(args)
    calls = tuple(a for a in args if isinstance(a, Call))
    return Call(name, calls, tuple(a for a in args if not isinstance(a, Call)), side)


# --- text --------------------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"\s*(?:(?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?)|(?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*|\[-\d\])?)|(?P<sign>[(),=*+]))",
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

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead][1] if self.at + ahead < len(self.tokens) else ""

    def group(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead][0] if self.at + ahead < len(self.tokens) else "end"

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
        weight: Number = 1.0
        if self.group() == "number" or self.schedule_ahead():
            weight = self.number()
            self.take("sign", "*")
        if self.peek() in MODULES:
            return Term(weight, NO, Call(self.allowed(self.take("name"), "loss", MODULES)))
        mode = NO
        if self.peek(1) == "*" or self.peek() in MODES:
            mode = self.mode()
        name = self.allowed(self.take("name"), "distance", DISTANCES)
        call = self.call(name, 0)
        if kind_of(call, self.where) == "total" and mode != NO:
            raise EvokdError(self.where, f"no weight mode before {name}, which has no value per sample", str(mode))
        return Term(weight, mode, call)

    def mode(self) -> Call:
        name = self.allowed(self.take("name"), "weight mode", MODES)
        params: tuple = ()
        if name != "no" and MODES[name].params:
            self.take("sign", "(")
            params = self.params(MODES[name].params, first=True)
            self.take("sign", ")")
        self.take("sign", "*")
        return Call(name, params=params)

    def schedule_ahead(self) -> bool:
        return self.peek() in SCHEDULES and self.peek(1) == "(" and self.group(2) == "number"

    def number(self) -> Number:
        if self.peek() == "+":
            self.take("sign")
        if not self.schedule_ahead():
            return read_number(self.take("number"), self.where)
        name = self.take("name")
        self.take("sign", "(")
        start = read_number(self.take("number"), self.where)
        self.take("sign", ",")
        end = read_number(self.take("number"), self.where)
        self.take("sign", ")")
        return schedules.checked(Schedule(name, start, end), self.where)

    def call(self, name: str, depth: int, side: str = "") -> Call:
        if depth > MAX_DEPTH:
            raise EvokdError(self.where, f"at most {MAX_DEPTH} nested calls", "more")
        self.take("sign", "(")
        args = [self.value(depth + 1)]
        while self.peek() == "," and self.peek(2) != "=":
            self.take("sign", ",")
            args.append(self.value(depth + 1))
        params = self.params((TRANSFORMS.get(name) or DISTANCES[name]).params)
        self.take("sign", ")")
        call = Call(name, tuple(args), params, side)
        kind_of(call, self.where)
        return call

    def params(self, names: Sequence[str], first: bool = False) -> tuple[Number, ...]:
        """`tau=4`, each after a comma unless it is the first thing in the brackets."""
        found: list[Number] = []
        for wanted in names:
            if found or not first:
                self.take("sign", ",")
            self.take("name", wanted)
            self.take("sign", "=")
            found.append(self.number())
            if not schedules.positive(found[-1]):
                raise EvokdError(self.where, f"{wanted} > 0", schedules.write(found[-1]))
        return tuple(found)

    def value(self, depth: int) -> Call:
        token = self.take("name")
        if token in POSITIONS:
            return Call(token)
        if self.peek() != "(":
            raise EvokdError(self.where, "a position", repr(token[:40]), closest(token, POSITIONS))
        side, _, name = token.rpartition(".")
        if side and side not in SIDES:
            raise EvokdError(self.where, "student or teacher before the dot", repr(token[:40]))
        return self.call(self.allowed(name, "transform", TRANSFORMS), depth, side)

    def allowed(self, name: str, what: str, table: Iterable[str]) -> str:
        usable = [n for n in table if n in self.operators]
        if name not in usable and not (name == "no" and table is MODES):
            raise EvokdError(self.where, f"a {what}", repr(name[:40]), closest(name, usable))
        return name
