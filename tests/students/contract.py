"""What every language of students must keep, as checks that the tests of each language run on genomes of their own."""

import tomllib
from pathlib import Path
from random import Random

import pytest
import torch
import torch.fx
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

from evokd.errors import EvokdError
from evokd.genome.codec import to_names
from evokd.genome.grow import grow_tree, random_chooser
from evokd.genome.variation import MUTATIONS, mate
from evokd.losses import Taps
from evokd.students.space import Cost, Genome, StudentSpace

SHIPPED = Path(__file__).parents[2] / "spaces" / "student"


def options(name: str) -> dict:
    """What a shipped space file tells its language."""
    return {k: v for k, v in tomllib.loads((SHIPPED / f"{name}.toml").read_text()).items() if k not in ("task", "language")}


def draw(space: StudentSpace, count: int, seed: int = 0) -> list[Genome]:
    stream = Random(seed)
    return [{slot: stream.choice(choices) for slot, choices in space.slots.items()} for _ in range(count)]


def genomes(space: StudentSpace) -> st.SearchStrategy[Genome]:
    return st.fixed_dictionaries({slot: st.sampled_from(choices) for slot, choices in space.slots.items()})


def on_meta(space: StudentSpace, genome: Genome, classes: int = 10, channels: int = 3) -> nn.Module:
    with torch.device("meta"):
        return space.network(genome, classes, channels)


def measured(network: nn.Module, channels: int, side: int) -> tuple[int, int]:
    """Parameters, and multiply–accumulates of convolutions and linear layers counted where they happen."""
    macs = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            per_output = module.weight[0].numel()
            module.register_forward_hook(lambda m, args, out, per_output=per_output: macs.append(out.numel() * per_output))
    network.eval()(torch.empty(1, channels, side, side, device="meta"))
    return sum(p.numel() for p in network.parameters()), sum(macs)


def longest_path(network: nn.Module) -> int:
    """Convolutions and linear layers on the longest path to the logits, read off the traced graph."""
    weighted, depth = (nn.Conv2d, nn.Linear), {}
    for node in torch.fx.symbolic_trace(network).graph.nodes:
        below = max((depth[n] for n in node.all_input_nodes), default=0)
        own = node.op == "call_module" and isinstance(network.get_submodule(node.target), weighted)
        depth[node] = below + own
        if node.target is Taps:
            return depth[node.kwargs["logits"]]
    raise AssertionError("no taps")


def check_cost(space: StudentSpace, genome: Genome, classes: int, channels: int, side: int) -> None:
    network = on_meta(space, genome, classes, channels)
    depth = longest_path(network)
    parameters, macs = measured(network, channels, side)
    assert space.cost(genome, classes, channels, side) == Cost(parameters, macs, parameters, depth), space.write(genome)


def check_text(space: StudentSpace, genome: Genome) -> None:
    tree, text = space.tree(genome), space.write(genome)
    assert space.genome(tree) == genome
    assert space.read(text) == genome
    assert space.parse(text) == tree
    assert space.grammar.write(tree) == text
    assert space.tree_from_names(to_names(tree)) == tree
    assert 2 <= len(space.diagram(genome).splitlines()) <= 12


def check_taps(network: nn.Module, channels: int, side: int, classes: int = 10) -> Taps:
    """Shapes, and that the taps hang together: head on embedding, embedding of the last map, ReLU between its two sides."""
    images = torch.randn(3, channels, side, side)
    taps = network.eval()(images)
    assert taps.logits.shape == (3, classes)
    assert all(f.dim() == 4 and len(f) == 3 for f in taps.features)
    assert torch.allclose(taps.logits, F.linear(taps.embedding, *taps.head))
    assert torch.allclose(taps.embedding, taps.features[-1].mean((2, 3)), atol=1e-6)
    for before, after in zip(taps.pre_relu, taps.features if taps.pre_relu else (), strict=True):
        assert torch.equal(before.relu(), after)
        assert (before < 0).any()
    sides = [f.shape[-1] for f in taps.features]
    assert sides == sorted(sides, reverse=True)
    last = network.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(last.logits, taps.logits, rtol=1e-3, atol=1e-4 * taps.logits.abs().max().item())
    return taps


def check_gradients(network: nn.Module, channels: int, side: int, classes: int = 10) -> int:
    """Every parameter learns; how many there are."""
    taps = network.train()(torch.randn(8, channels, side, side))
    F.cross_entropy(taps.logits, torch.arange(8) % classes).backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    return sum(p.numel() for p in network.parameters())


def check_variation(space: StudentSpace, rounds: int, side: int) -> None:
    """Children of crossover and of every mutation are genomes of the space, and their networks run."""
    stream, repeat = Random(1), Random(1)

    def children(stream):
        parents = [grow_tree(space.grammar, random_chooser(stream)) for _ in range(2)]
        pair = mate(*parents, space.grammar, stream)
        return [*pair, *(mutate(pair[0], space.grammar, stream)[0] for mutate in MUTATIONS.values())]

    for _ in range(rounds):
        born = children(stream)
        assert born == children(repeat)
        for child in born:
            assert space.parse(space.write(space.genome(child))) == child
        taps = on_meta(space, space.genome(stream.choice(born)))(torch.empty(2, 3, side, side, device="meta"))
        repeat.choice(born)
        assert taps.logits.shape == (2, 10)


def check_seed(space: StudentSpace, genome: Genome) -> None:
    """The same seed gives the same weights, another one others."""

    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in space.build(space.tree(genome), 10, 1).parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def check_refused(call, *words: str) -> None:
    """An error of one line that names these words."""
    with pytest.raises(EvokdError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert all(word in str(caught.value) for word in words), str(caught.value)
