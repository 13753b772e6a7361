"""`evokd spaces`: what may be evolved, and what of the literature is in it."""

import argparse
from collections.abc import Iterable, Sequence


def main(arguments: Sequence[str]) -> int:
    options = argparse.ArgumentParser(prog="evokd spaces", description="List the search spaces, show one, or print the survey.")
    options.add_argument("space", nargs="?", metavar="NAME|FILE|survey", help="survey: KD-Zero's table of methods with verdicts")
    options.add_argument("--operators", action="append", default=[], metavar="FILE.py:FN", help="an operator of your own")
    given = options.parse_args(arguments)
    from evokd.losses.own import load_operators
    from evokd.space import space_names

    load_operators(given.operators)
    told = {None: lambda: "\n".join(space_names()), "survey": survey}
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
