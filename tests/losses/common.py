"""Taps, chains and trees that several tests share."""

import torch

from evokd.genome.grow import grow_tree, random_chooser
from evokd.losses.distances import DISTANCES
from evokd.losses.growth import loss_grammar
from evokd.losses.taps import Taps
from evokd.losses.transforms import TRANSFORMS
from evokd.losses.weights import MODES
from evokd.space import read_space
from evokd.streams import stream

POSITIONS = ("logits", "embedding", "features[-1]", "features[-2]", "features[-3]")

# kind of value -> a chain that makes it
CHAINS = {
    "maps": "features[-2]",
    "tokens": "tokens",
    "rows": "embedding",
    "classes": "logits",
    "columns": "transpose(embedding)",
    "relation": "mm(embedding)",
    "maps,maps": "features[-1], features[-2]",
    "classes,rows": "logits, embedding",
}


def make_taps(seed, n=4, classes=5, width=6, maps=((2, 6, 5), (3, 4, 4), (4, 3, 4)), tokens=(3, 4), heads=2, dtype=torch.float64):
    """Random taps at every position; `maps` gives (C,H,W) of each stage, the last stage last, `tokens` (M,C)."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=dtype, generator=draw)

    features = tuple(normal(n, *shape) for shape in maps)
    logits, embedding = normal(n, classes), normal(n, width)
    attention = normal(n, heads, tokens[0], tokens[0])
    before = tuple(normal(n, *shape) for shape in maps)
    return Taps(logits, embedding, features, normal(n, *tokens), attention, before, (normal(classes, width), normal(classes)))


def learning(taps):
    """The same taps as leaves that gather gradients."""
    return taps.map(lambda tap: tap.detach().clone().requires_grad_())


def by_position(taps):
    """What an exported loss is given: position → tensor, and the classifier."""
    return {p: taps.at(p) for p in taps.positions() if p != "teacher_head"} | {"head": taps.head}


def call(name, argument, side=""):
    """An operator around a chain, with a temperature where it takes one; on one side alone if a side is named."""
    operator = TRANSFORMS.get(name) or DISTANCES[name]
    return f"{side}{'.' if side else ''}{name}({argument}{', tau=3' if operator.params else ''})"


def weight_mode(name):
    """A weight mode as it is written, with a temperature where it takes one."""
    return f"{name}(tau=3)" if MODES[name].params else name


def every_operator():
    """A loss for every operator and every kind that it takes, and for those that may act on one side one of each side."""
    losses = [f"l2({call(t.name, CHAINS[k])})" for t in TRANSFORMS.values() for k in t.kinds]
    for t in TRANSFORMS.values():
        if t.keeps_shape:
            first, *_, last = [CHAINS[k] for k in t.kinds] * 2
            losses += [f"l2({call(t.name, first, 'teacher')})", f"l2({call(t.name, last, 'student')})"]
    losses += [call(d.name, CHAINS[k]) for d in DISTANCES.values() for k in d.kinds]
    return list(dict.fromkeys(losses))


def random_trees(space, seeds, positions=POSITIONS):
    grammar = loss_grammar(read_space(space).space, positions)
    return [grow_tree(grammar, random_chooser(stream(seed, "tests", space))) for seed in seeds]
