"""Taps, chains and trees that several tests share."""

import torch

from evokd.genome.grow import grow_tree, random_chooser
from evokd.losses.distances import DISTANCES
from evokd.losses.language import loss_grammar
from evokd.losses.taps import Taps
from evokd.losses.transforms import TRANSFORMS
from evokd.space import read_space
from evokd.streams import stream

POSITIONS = ("logits", "embedding", "features[-1]", "features[-2]", "features[-3]")

# kind of value -> a chain that makes it
CHAINS = {
    "maps": "features[-2]",
    "stack": "channel(features[-1])",
    "rows": "logits",
    "columns": "transpose(embedding)",
    "relation": "mm(features[-1])",
}


def make_taps(seed, n=4, classes=5, width=6, maps=((2, 6, 5), (3, 4, 4), (4, 3, 4)), dtype=torch.float64):
    """Random taps; `maps` gives (C,H,W) of each stage, the last stage last."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=dtype, generator=draw)

    return Taps(normal(n, classes), normal(n, width), tuple(normal(n, *shape) for shape in maps))


def learning(taps):
    """The same taps as leaves that gather gradients."""
    return taps.map(lambda tap: tap.detach().clone().requires_grad_())


def by_position(taps):
    return {position: taps.at(position) for position in taps.positions()}


def call(name, argument):
    """An operator around a chain, with a temperature where it takes one."""
    operator = TRANSFORMS.get(name) or DISTANCES[name]
    return f"{name}({argument}{', tau=3' if operator.params else ''})"


def every_operator():
    """A loss for every operator and every kind that it takes."""
    losses = [f"l2({call(t.name, CHAINS[k])})" for t in TRANSFORMS.values() for k in t.kinds]
    return losses + [call(d.name, CHAINS[k]) for d in DISTANCES.values() for k in d.kinds]


def random_trees(space, seeds, positions=POSITIONS):
    grammar = loss_grammar(read_space(space).space, positions)
    return [grow_tree(grammar, random_chooser(stream(seed, "tests", space))) for seed in seeds]
