"""`evokd spaces`: what may be evolved."""

import argparse
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    options = argparse.ArgumentParser(prog="evokd spaces", description="List the search spaces, or show one.")
    options.add_argument("space", nargs="?", metavar="NAME|FILE")
    given = options.parse_args(arguments)
    from evokd.space import space_names

    print("\n".join(space_names()) if given.space is None else show(given.space))
    return 0


def show(name: str) -> str:
    """Operators with their formulas, counts by height, and the published losses that are points of the space."""
    from evokd.losses.distances import DISTANCES
    from evokd.losses.known import KNOWN
    from evokd.losses.language import loss_grammar
    from evokd.losses.transforms import TRANSFORMS
    from evokd.losses.weights import MODES
    from evokd.space import read_space

    space = read_space(name).space
    positions = ["logits", "embedding", "features[-1]", "features[-2]", "features[-3]"]
    grammar = loss_grammar(space, positions)
    lines = [f"space {space.name}, for a pair that shows {', '.join(positions)}", "", "transforms"]
    lines += [f"  {t:<14}{TRANSFORMS[t].note:<40}{', '.join(TRANSFORMS[t].kinds)}" for t in space.transforms]
    lines += [
        "distances",
        *[f"  {d:<14}{DISTANCES[d].note:<40}{', '.join(DISTANCES[d].kinds)}" for d in space.distances],
    ]
    lines += ["weight modes", *[f"  {m:<14}{MODES[m].note if m != 'no' else '1'}" for m in space.modes]]
    lines += ["losses by height, constants of the grid included"]
    lines += [f"  ≤ {h:<11}{grammar.count(h):.3g}" for h in range(3, grammar.height + 1)]
    lines += [
        "published losses in it (weights aside)",
        *[f"  {n:<14}{text}" for n, text in KNOWN.items() if contains(space, grammar, text)],
    ]
    return "\n".join(lines)


def contains(space, grammar, text: str) -> bool:
    """Whether a loss is a point of a space, numbers aside: they are free in text."""
    from evokd.genome.grammar import subtree_heights
    from evokd.losses.language import parse_loss

    tree = parse_loss(text)
    names = {node.name for node in tree if node.ret.__name__ not in ("value", "tau", "loss")}
    terms = int(tree[0].name.removeprefix("loss"))
    return names <= set(grammar.nodes) and terms <= space.max_terms and subtree_heights(tree)[0] <= grammar.height
