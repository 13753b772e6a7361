"""One loss in its three forms, all fed alike: compiled, in index notation, and as exported source."""

import inspect
from dataclasses import dataclass, replace

import numpy as np
import torch

from evokd.genome.grow import grow_tree, random_chooser
from evokd.losses.formula import to_sympy
from evokd.losses.growth import loss_grammar
from evokd.losses.program import DistillLoss, compile_loss, module_name
from evokd.losses.source import to_torch_source
from evokd.space import read_space
from evokd.streams import stream
from tests.losses.common import by_position, make_taps

LABELS = torch.tensor([0, 4, -1, 2])
PROGRESS = 0.3
STAGES = tuple(f"{name}[-{i}]" for name in ("features", "pre_relu") for i in (1, 2, 3))
EVERYWHERE = ("logits", "embedding", "teacher_head", "tokens", "attention", *STAGES)

S, T = make_taps(1), make_taps(2)
# other widths everywhere; maps that shrink, and maps and tokens that grow along one axis or both
UNLIKE = replace(make_taps(2, width=7, maps=((3, 4, 6), (5, 5, 7), (6, 2, 3)), tokens=(5, 6)), attention=T.attention)
PAIRS = {"same shapes": (S, T), "other shapes": (S, UNLIKE)}


@dataclass
class Ran:
    """A compiled loss that was called once, with the masks that it drew, in order."""

    loss: DistillLoss
    value: torch.Tensor
    masks: list[np.ndarray]


def generator():
    return torch.Generator().manual_seed(3)


def run(tree, s, t, labels=LABELS, progress=PROGRESS):
    loss, masks = compile_loss(tree, s, t).double(), []
    draw = loss._mask

    def noted(step, *rest):
        drawn = draw(step, *rest)
        shape = [size for axis, size in enumerate(drawn[0].shape) if axis in step.operator.mask[1]]
        masks.append(drawn[0].numpy().reshape(shape))
        return drawn

    loss._mask = noted
    return Ran(loss, loss(s, t, labels, progress, generator()), masks)


def evaluate(formula, s, t, ran=None, labels=LABELS, progress=PROGRESS):
    """The formula's value for the taps, with the masks and the connectors of a compiled loss."""
    values = {}
    for side, name in formula.taps:
        if side == "W":
            value = ran.loss.connectors[module_name(name)].weight
        elif name == "labels":
            value = labels
        elif name.startswith("m_"):
            value = torch.from_numpy(ran.masks[int(name[2:]) - 1])
        elif name in ("weight", "bias"):
            value = t.head[name == "bias"]
        else:
            value = (s if side == "S" else t).at(name)
        values[side, name] = value.detach().numpy()
    with np.errstate(over="raise", divide="raise"):
        return formula.evaluate(values, progress)


def told(tree, s, t, ran, **more):
    """The value of the pair's formula."""
    return evaluate(to_sympy(tree, s, t), s, t, ran, **more)


def load(source):
    """An `EvolvedLoss` as the user of the file would get it."""
    namespace = {"__name__": "exported"}
    exec(compile(source, "exported", "exec"), namespace)
    return namespace["EvolvedLoss"]().double()


def exported(tree, s, t, ran):
    """The exported loss with the connectors of a compiled one."""
    loss = load(to_torch_source(tree, s, t))
    loss.load_state_dict(ran.loss.state_dict())
    return loss


def call(loss, s, t, labels=LABELS, progress=PROGRESS):
    """An exported loss called with what it asks for."""
    more = {"progress": progress, "generator": generator()}
    asked = inspect.signature(loss.forward).parameters
    return loss(by_position(s), by_position(t), labels, **{name: value for name, value in more.items() if name in asked})


def grown(space, seeds):
    """Random trees of a space, over all positions."""
    grammar = loss_grammar(read_space(space).space, EVERYWHERE)
    return [grow_tree(grammar, random_chooser(stream(seed, "forms", space))) for seed in seeds]
