"""A family: who descends from whom, and what each step changed. Read off the journal alone, so that any run can be told, also a torn one.

What the journal tells of duplicates: a proposal that equals an earlier candidate is merged into it before it has an id, and only their
number is kept, by generation. A candidate with the gradient of an earlier one is journalled, with a reason that names it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from evokd.errors import EvokdError
from evokd.journal import individuals

ALIKE = 0.5  # share of two terms that must agree for one to count as changed into the other
DEEPEST = 40  # brackets; a text nested deeper is taken as one piece
HOLE = "·"  # where something changed, in the text around it
_ID = re.compile(r"(?:g\d+-)?[i#]?(\d{1,9})", re.ASCII)
_COPY = re.compile(r"copy: (?:same|\S+ × the) gradient (?:as|of) (.*)", re.DOTALL)
_WORD = re.compile(r"[^\s*(),]+")
_FOUNDERS = frozenset({"seed", "random", "prior", "policy"})  # that have no parents


@dataclass(frozen=True)
class Member:
    """One candidate, as its journal tells it; texts hold no control characters.

    Attributes:
        id: of the candidate.
        generation: in which it was proposed.
        op: what made it; on islands `crossover@2`.
        parents: ids, the one that was changed first, then the one that gave.
        text: the expression.
        slots: choice by slot where the genome is a row of slots, as a student's is.
        status: OK, or how it ended.
        fitness: greater is better; None of what was not trained in full.
        reason: why it was refused or failed.
        before: what its numbers were tuned from; empty if they were not.
        copy_of: the earlier candidate whose gradient it has.
        figures: its other numbers.
    """

    id: int
    generation: int
    op: str
    parents: tuple[int, ...]
    text: str
    slots: tuple[tuple[str, str], ...]
    status: str
    fitness: float | None
    reason: str
    before: str
    copy_of: int | None
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Edit:
    """One place at which two expressions differ.

    Attributes:
        before: what stood there; empty for what came in addition.
        after: what stands there now; empty for what went.
        where: the text around it, with `·` in its place, or the name of a slot.
        source: the parent that gave what came; None if it is new.
    """

    before: str
    after: str
    where: str = HOLE
    source: int | None = None

    def __str__(self) -> str:
        change = (
            f"{self.before} → {self.after}"
            if self.before and self.after
            else f"+ {self.after}"
            if self.after
            else f"− {self.before}"
        )
        place = "" if self.where == HOLE else f" in {self.where}"
        return change + place + ("" if self.source is None else f", from #{self.source}")


def family(events: Iterable[dict]) -> dict[int, Member]:
    """id → member, in the order of the journal. Parents that were not journalled before their child are left out."""
    found: dict[int, Member] = {}
    by_text: dict[str, int] = {}
    for event in individuals(list(events)):
        member = _member(event, found, by_text)
        found[member.id] = member
        for text in (member.before, member.text):
            by_text.setdefault(text, member.id)
    return found


def _member(event: dict, known: Mapping[int, Member], by_text: Mapping[str, int]) -> Member:
    metrics, reason = event.get("metrics") or {}, clean(event.get("reason", ""))
    copy = _COPY.fullmatch(reason)
    return Member(
        id=event["id"],
        generation=event["generation"],
        op=clean(event["op"]),
        parents=tuple(parent for parent in event["parents"] if parent in known),
        text=clean(event["text"]),
        slots=_slots(event.get("tree", ())),
        status=clean(event["status"]),
        fitness=event["fitness"],
        reason=reason,
        before=clean(metrics.get("tuned_from") or ""),
        copy_of=by_text.get(copy[1]) if copy else None,
        figures={clean(k): v for k, v in metrics.items() if isinstance(v, int | float)},
    )


def clean(text: object) -> str:
    """Text that terminals, XML and UTF-8 can take: control characters and lone surrogates become U+FFFD."""
    return re.sub("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", str(text))


def _slots(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """(slot, choice) of a genome whose nodes below the root are all `slot=choice`."""
    rows = [clean(name).partition("=") for name in names[1:]]
    return tuple((slot, choice) for slot, _, choice in rows) if rows and all(slot and mark for slot, mark, _ in rows) else ()


def winner(events: Sequence[dict], members: Mapping[int, Member]) -> int | None:
    """The run's choice where it has ended, otherwise the best so far; None if nothing has a fitness."""
    if events and events[-1]["event"] == "end":
        best = clean(events[-1].get("best"))
        chosen = [
            m.id for m in members.values() if m.text in (best, best.partition("  (")[0])
        ]  # students are told with their size
        if chosen:
            return chosen[0]
    trained = [m for m in members.values() if m.fitness is not None]
    size = {event["id"]: len(event.get("tree", ())) for event in individuals(list(events))}
    return min(trained, key=lambda m: (-m.fitness, size[m.id], m.id)).id if trained else None


def pick(spec: str, members: Mapping[int, Member]) -> int:
    """A candidate by its id as any listing writes it: `142`, `#142`, `i0142` or `g004-i0142`.

    Raises:
        EvokdError: no such candidate.
    """
    found = _ID.fullmatch(spec)
    if not found or int(found[1]) not in members:
        raise EvokdError("ID", f"a candidate of the run, {min(members)} to {max(members)}", repr(clean(spec))[:40])
    return int(found[1])


def duplicates(events: Iterable[dict]) -> dict[int, tuple[int, int]]:
    """Generation → (proposals, how many of them equalled an earlier candidate and were merged into it)."""
    rows = (event for event in events if event["event"] == "generation")
    return {row["generation"]: (row.get("proposed", 0), row.get("cache_hits", 0)) for row in rows}


def kind(op: str) -> str:
    """`founder`, `crossover` or `mutation`."""
    name = op.partition("@")[0]
    return "founder" if name in _FOUNDERS else "crossover" if name == "crossover" else "mutation"


def changes(member: Member, members: Mapping[int, Member]) -> list[Edit]:
    """What its operator changed in its first parent, each part with the other parent it came from; nothing of a founder."""
    if not member.parents:
        return []
    first, *others = (members[parent] for parent in member.parents)
    if member.slots and len(member.slots) == len(first.slots):
        found = [Edit(old, new, slot) for (slot, new), (_, old) in zip(member.slots, first.slots, strict=True) if new != old]
        return [_credit(edit, others, lambda giver, e: (e.where, e.after) in giver.slots) for edit in found]
    found = edits(first.text, member.before or member.text)
    return [_credit(edit, others, lambda giver, e: bool(e.after) and _holds(giver.text, e.after)) for edit in found]


def _credit(edit: Edit, others: Sequence[Member], gave) -> Edit:
    source = next((giver.id for giver in others if gave(giver, edit)), None)
    return Edit(edit.before, edit.after, edit.where, source)


def _holds(text: str, part: str) -> bool:
    """Whether a part stands in a text as a whole: 3 does not stand in 30."""
    return re.search(rf"(?<![\w.]){re.escape(part.removesuffix('(…)'))}(?![\w.])", text) is not None


def tuning(member: Member) -> list[Edit]:
    """What tuning of its numbers changed after its operator."""
    return edits(member.before, member.text) if member.before else []


def edits(before: str, after: str) -> list[Edit]:
    """The smallest places at which two expressions differ: terms of a sum, factors of a product, arguments of a call.

    The text alone is read, so that expressions of any language, also of users' own operators, can be compared.
    """
    if before == after:
        return []
    if max(_depth(before), _depth(after)) > DEEPEST:
        return [Edit(before, after)]
    for mark, among in ((" + ", _terms), ("*", _factors)):
        old, new = split(before, mark), split(after, mark)
        if len(old) > 1 or len(new) > 1:
            return among(old, new)
    return _arguments(before, after)


def _terms(old: list[str], new: list[str]) -> list[Edit]:
    """Terms have no order: those that went meet those that came and resemble them most."""
    lost, gained = list((Counter(old) - Counter(new)).elements()), list((Counter(new) - Counter(old)).elements())
    ratios = [
        (SequenceMatcher(None, a, b, autojunk=False).ratio(), i, j) for i, a in enumerate(lost) for j, b in enumerate(gained)
    ]
    pairs: dict[int, int] = {}
    for ratio, i, j in sorted(ratios, key=lambda row: (-row[0], row[1:])):
        if ratio >= ALIKE and i not in pairs and j not in pairs.values():
            pairs[i] = j
    found = [edit for i, j in sorted(pairs.items()) for edit in edits(lost[i], gained[j])]
    found += [Edit(term, "") for i, term in enumerate(lost) if i not in pairs]
    return found + [Edit("", term) for j, term in enumerate(gained) if j not in pairs.values()]


def _likeness(first: str, second: str) -> float:
    """Share of the words that two terms have in common, in their order."""
    return SequenceMatcher(None, _WORD.findall(first), _WORD.findall(second), autojunk=False).ratio()


def _factors(old: list[str], new: list[str]) -> list[Edit]:
    """A number stands for a number, a call for a call, a name for a name; a weight that is not written is 1."""
    found = []
    for sort in (_is_number, _is_call, lambda text: not _is_number(text) and not _is_call(text)):
        mine, theirs = [t for t in old if sort(t)], [t for t in new if sort(t)]
        default = "1" if sort is _is_number else ""
        for place in range(max(len(mine), len(theirs))):
            a, b = (row[place] if place < len(row) else default for row in (mine, theirs))
            around = "*".join(HOLE if text is b or text == b else text for text in new) if b in new else "*".join([HOLE, *new])
            found += [_within(edit, around) for edit in (edits(a, b) if a and b else [Edit(a, b)])]
    return found


def _arguments(before: str, after: str) -> list[Edit]:
    """Two calls of one name that differ in one argument differ there; of two names with the same arguments, in the name."""
    (name, old), (other, new) = call(before), call(after)
    if len(old) != len(new):
        return [Edit(before, after)]
    apart = [place for place, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
    if name != other:
        return [Edit(f"{name}(…)", f"{other}(…)")] if not apart else [Edit(before, after)]
    if len(apart) != 1:
        return [Edit(before, after)]
    around = f"{name}({', '.join(HOLE if place == apart[0] else text for place, text in enumerate(new))})"
    return [_within(edit, around) for edit in edits(old[apart[0]], new[apart[0]])]


def _within(edit: Edit, around: str) -> Edit:
    return Edit(edit.before, edit.after, around.replace(HOLE, edit.where, 1), edit.source)


def split(text: str, mark: str) -> list[str]:
    """The parts of a text between marks outside of brackets."""
    parts, start, depth = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "([") - (letter in ")]")
        if depth == 0 and at >= start and text.startswith(mark, at):
            parts.append(text[start:at])
            start = at + len(mark)
    return [*parts, text[start:]]


def call(text: str) -> tuple[str, list[str]]:
    """(name, arguments) of `name(…, …)`; an empty name for anything else."""
    name, bracket, rest = text.partition("(")
    if not (name and bracket and rest.endswith(")")) or _closes_early(rest[:-1]):
        return "", []
    return name, split(rest[:-1], ", ")


def _closes_early(inside: str) -> bool:
    depth = 0
    for letter in inside:
        depth += (letter == "(") - (letter == ")")
        if depth < 0:
            return True
    return False


def _depth(text: str) -> int:
    depth = deepest = 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        deepest = max(deepest, depth)
    return deepest


def _is_number(text: str) -> bool:
    return text[:1].isdigit() or text[:1] in "+-."


def _is_call(text: str) -> bool:
    return text.endswith(")")


def told(member: Member, members: Mapping[int, Member]) -> str:
    """How it came about, in one line."""
    parents = " × ".join(f"#{parent}" for parent in member.parents)
    steps = [f"{member.op} {parents}".rstrip(), *map(str, changes(member, members))]
    return "; ".join([*steps, *(f"tuned: {edit}" for edit in tuning(member))])


def family_tree(focus: int, members: Mapping[int, Member]) -> list[str]:
    """Lines for a terminal, the youngest first. A candidate's first parent stands below it, in its line; the one that gave is indented."""
    lines: list[str] = []
    seen: set[int] = set()
    waiting = [(focus, "")]
    while waiting:
        at, margin = waiting.pop()
        member = members[at]
        if at in seen:
            lines.append(f"{margin}○ #{at} as above")
            continue
        seen.add(at)
        bar = margin + ("│ " if member.parents else "  ")
        lines += [f"{margin}● {_headline(member)}  {told(member, members)}", f"{bar}    {member.text}"]
        first, *others = member.parents or (None,)
        waiting += [(first, margin)] if first is not None else []
        waiting += [(other, margin + "│ ") for other in others]
    return lines


def _headline(member: Member) -> str:
    return f"#{member.id}  g{member.generation}  {fitness_of(member)}"


def fitness_of(member: Member) -> str:
    """Its fitness, or how it ended."""
    return member.status if member.fitness is None else f"{member.fitness:.2f}"
