"""`evokd spaces`: what may be evolved, what of the literature is in it, and what a run leaves of it."""

import argparse
import os
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

from evokd.errors import EvokdError


def main(arguments: Sequence[str]) -> int:
    options = argparse.ArgumentParser(
        prog="evokd spaces", description="List the search spaces, show one, print the survey, or shrink the space of a run."
    )
    options.add_argument(
        "space",
        nargs="?",
        metavar="NAME|FILE|survey|shrink",
        help="survey: KD-Zero's table of methods with verdicts; shrink: drop what was consistently worst in RUN",
    )
    options.add_argument("run", nargs="?", metavar="RUN", help="with shrink: the folder of a search for a distiller")
    options.add_argument("--out", metavar="FILE", help="with shrink: the new space; RUN/shrunk.toml if not given")
    options.add_argument("--operators", action="append", default=[], metavar="FILE.py:FN", help="an operator of your own")
    given = options.parse_args(arguments)
    if given.space != "shrink" and (given.run or given.out):
        raise EvokdError("evokd spaces", "RUN and --out after shrink alone", given.run or "--out", "evokd spaces shrink RUN")
    from evokd.losses.own import load_operators
    from evokd.space import space_names

    load_operators(given.operators)
    told = {None: lambda: "\n".join(space_names()), "survey": survey, "shrink": lambda: shrunk(given.run, given.out)}
    print(told.get(given.space, lambda: show(given.space))())
    return 0


def show(name: str) -> str:
    """Operators by kind with their formulas, counts by height, and the published losses that are points of the space."""
    from evokd.losses.growth import loss_grammar
    from evokd.losses.known import KNOWN
    from evokd.losses.language import POSITIONS
    from evokd.space import read_space

    space = read_space(name).space
    positions = [p for p in POSITIONS if "[" not in p] + [f"{n}[-{i}]" for n in ("features", "pre_relu") for i in (1, 2, 3)]
    grammar = loss_grammar(space, positions)
    shown = [p for p in positions if p in grammar.nodes]
    lines = [f"space {space.name}, for a pair that shows {', '.join(shown)}", "", *_operators(space, grammar)]
    lines += ["", f"losses of at most {space.max_terms} terms by height, numbers of the grid included"]
    lines += [f"  ≤ {h:<13}{grammar.count(h):.4g}" for h in range(3, grammar.height + 1)]
    inside = {n: text for n, text in KNOWN.items() if contains(space, grammar, text)}
    lines += ["", f"{len(inside)} of {len(KNOWN)} published losses are in it (numbers are free)"]
    return "\n".join([*lines, *(f"  {n:<16}{text}" for n, text in inside.items())])


def _operators(space, grammar) -> Iterable[str]:
    from evokd.losses.distances import DISTANCES
    from evokd.losses.operators import KINDS
    from evokd.losses.transforms import TRANSFORMS
    from evokd.losses.weights import MODES

    yield f"{len(space.transforms)} transforms, by the kind that they give"
    for kind in KINDS:
        made = {
            n: [k for k, out in TRANSFORMS[n].kinds.items() if out == kind and f"{n}:{k}" in grammar.nodes]
            for n in space.transforms
        }
        found = {n: kinds for n, kinds in made.items() if kinds}
        if found:
            yield f"  {kind}"
            yield from (
                f"    {n:<16}{TRANSFORMS[n].note:<36}of {', '.join(k.replace(',', ' and ') for k in kinds)}"
                for n, kinds in found.items()
            )
    yield f"{len(space.distances)} distances"
    yield from (f"    {d:<16}{DISTANCES[d].note:<36}of {', '.join(DISTANCES[d].kinds)}" for d in space.distances)
    yield f"{len(space.modes)} weight modes"
    yield from (f"    {m:<16}{MODES[m].note if m != 'no' else '1'}" for m in space.modes)
    named = {"on one side alone": space.one_sided, "schedules": space.schedules, "with trained parts": space.modules}
    yield from (f"{what}: {', '.join(names)}" for what, names in named.items() if names)
    yield f"weights {', '.join(f'{v:g}' for v in space.values)}; temperatures {', '.join(f'{v:g}' for v in space.taus)}"


def contains(space, grammar, text: str) -> bool:
    """Whether a loss is a point of a space, numbers aside: they are free in text."""
    from evokd.genome.grammar import subtree_heights
    from evokd.losses.language import parse_loss

    tree = parse_loss(text)
    names = {node.name for node in tree if node.ret.__name__ not in ("value", "tau", "loss")}
    terms = int(tree[0].name.removeprefix("loss"))
    return names <= set(grammar.nodes) and terms <= space.max_terms and subtree_heights(tree)[0] <= grammar.height


def survey() -> str:
    """KD-Zero's table of methods: its columns, the verdict, and the loss or the reason."""
    from evokd.losses.survey import SURVEY

    head = f"{'method':<10}{'teacher':<19}{'student':<19}{'position':<23}{'distance':<16}{'lost':<19}verdict"
    lines = ["KD-Zero's survey of distillation methods, and what they are here", "", head]
    for r in SURVEY:
        lines.append(f"{r.method:<10}{r.teacher:<19}{r.student:<19}{r.position:<23}{r.distance:<16}{r.lost:<19}{r.verdict}")
        lines += [f"          {text}" for text in (r.loss, r.note) if text]
    count = {v: sum(r.verdict == v for r in SURVEY) for v in ("tree", "module", "schedule", "refused")}
    return "\n".join([*lines, "", f"{len(SURVEY)} methods: " + ", ".join(f"{n} {v}" for v, n in count.items())])


def shrunk(run: str | None, out: str | None) -> str:
    """The evidence of a run against each name of its space; writes the space without the consistently worst.

    Raises:
        EvokdError: not a run of a search for a distiller, nothing judged in it, or a file that cannot be written.
    """
    from evokd.checkpoint import write_whole
    from evokd.journal import read_events
    from evokd.shrink import weigh, write_shrunk
    from evokd.space import read_space

    folder = _run_folder(run)
    path = _target(folder, out)
    events, space = read_events(folder), read_space(str(folder / "space.toml"))
    evidence = weigh(events, space.space)
    if not evidence[0].judged:
        raise EvokdError(str(folder), "a journal with judged candidates", "none")
    try:
        write_whole(path, write_shrunk(space, evidence, folder.resolve().name))
    except (OSError, ValueError) as error:
        raise EvokdError("--out", "a file that can be written", f"{str(path)[:80]!r} ({error})"[:160]) from None
    return "\n".join(
        [f"run {folder.resolve().name}: {evidence[0].judged} candidates judged", *_evidence(evidence), *_use(evidence, path)]
    )


def _run_folder(run: str | None) -> Path:
    """The folder of a search for a distiller; `read_events` refuses one without a journal."""
    if not run or not os.path.isdir(run):
        raise EvokdError("evokd spaces shrink", "RUN, a run folder", repr(run)[:80] if run else "none", "see `evokd runs`")
    space = Path(run) / "space.toml"
    try:
        task = tomllib.loads(space.read_text(encoding="utf-8")).get("task")
    except (OSError, ValueError, RecursionError) as error:
        raise EvokdError(run, "a run folder with space.toml", str(error)[:80], "see `evokd runs`") from None
    if task == "student":
        raise EvokdError(run, "a search for a distiller", "one for a student")
    return Path(run)


def _target(folder: Path, out: str | None) -> Path:
    """Where the new space goes; nothing of the run is written over but a shrunk space of before."""
    path = Path(out or folder / "shrunk.toml")
    if path.parent.resolve() == folder.resolve() and path.name != "shrunk.toml" and (folder / path.name).exists():
        raise EvokdError("--out", "another file than one of the run", path.name)
    if os.path.isdir(path) or not os.path.isdir(path.parent):
        raise EvokdError("--out", "a file in a folder that exists", repr(str(path))[:80])
    return path


def _evidence(evidence: Sequence) -> Iterable[str]:
    """A row for each name, the worst of its list first."""
    from evokd.shrink import KINDS

    for kind in KINDS:
        yield f"{kind:<18}{'count':>7}{'failures':>10}{'mean rank':>11}{'p':>10}"
        for e in sorted((e for e in evidence if e.kind == kind), key=lambda e: (e.p, e.rank)):
            figures = f"{e.rank:>11.2f}{e.p:>10.2g}" if e.count else f"{'–':>11}{'–':>10}"
            yield f"  {e.name:<16}{e.count:>7}{e.failures:>10}{figures}   {'dropped' if e.dropped else 'kept'}"


def _use(evidence: Sequence, path: Path) -> Iterable[str]:
    from evokd.shrink import LEAST, LEVEL, SHARE

    gone = [e.name for e in evidence if e.dropped]
    yield "mean rank: 0 worst, 1 best among its like of a generation; p: chance of one so low if the name made no difference"
    yield f"dropped: in {LEAST} candidates or more, p ≤ {LEVEL} by Holm's correction and apart from worse ones, at most 1 in {SHARE}"
    yield f"{path}: " + (f"without {', '.join(gone)}" if gone else "nothing is consistently worst, the space stays as it is")
    yield f"use it:     python -m evokd.evolve distiller --space {path}"
