"""What students cost: counted on the meta device, timed against a reference, and kept within limits while they grow."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor, nn

from evokd.errors import EvokdError
from evokd.genome.grammar import Node, Tree
from evokd.genome.grow import Chooser
from evokd.students.space import Genome, StudentSpace

LISTED = 100_000  # genomes that a latency limit may look through
WARM_UPS = 3
Comparable = float | tuple


def measure(network: nn.Module, images_shape: Sequence[int]) -> tuple[int, int]:
    """Parameters, and multiply–accumulates of convolutions and linear layers for one image, counted in one forward without numbers.

    Args:
        network: left as it is.
        images_shape: (N,C,H,W).
    """
    shadow = deepcopy(network).to("meta").eval()
    macs = [0]

    def count(module: nn.Module, _: tuple, output: Tensor) -> None:
        macs.append(output.numel() * module.weight[0].numel())

    for module in shadow.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        shadow(torch.empty(*images_shape, device="meta"))
    return sum(p.numel() for p in shadow.parameters() if p.requires_grad), sum(macs) // images_shape[0]


@dataclass(frozen=True)
class Latency:
    """Seconds of one forward, and their ratio to the reference's, which holds on machines and under loads where seconds do not."""

    seconds: float
    ratio: float


def latency(
    networks: Mapping[str, Callable[[], nn.Module]], reference: Callable[[], nn.Module], images: Tensor, rounds: int = 30
) -> dict[str, Latency]:
    """Wall clock of each network's forward on one thread: the tenth percentile of rounds in which all take turns.

    Taking turns is what makes it repeat: a slow spell of the machine strikes all networks alike. Measure while nothing else trains.

    Args:
        networks: name → a call that builds it.
        reference: builds the network that has ratio 1.
        images: (N,C,H,W) on the CPU.
        rounds: timed forwards of each network, at least 2.
    """
    with _one_thread(), torch.random.fork_rng(devices=[]), torch.inference_mode():
        built = [build().eval() for build in (reference, *networks.values())]
        for network in built * WARM_UPS:
            network(images)
        times = zip(*([_timed(network, images) for network in built] for _ in range(rounds)), strict=True)
        first, *others = [statistics.quantiles(each, n=10, method="inclusive")[0] for each in times]
    return {name: Latency(seconds, seconds / first) for name, seconds in zip(networks, others, strict=True)}


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _timed(network: nn.Module, images: Tensor) -> float:
    start = time.perf_counter()
    network(images)
    return time.perf_counter() - start


@dataclass(frozen=True)
class Limits:
    """What a student may cost at most; infinity is no limit. Latency is in milliseconds on a device whose name errors repeat."""

    max_params: float = math.inf
    max_macs: float = math.inf
    max_latency_ms: float = math.inf
    device: str = ""


@dataclass(frozen=True)
class Limited:
    """A space of which only genomes within limits are grown: nothing is drawn and thrown away.

    Attributes:
        space: all genomes.
        fits: a genome, or the part of it that is chosen so far → whether the rest can be chosen within the limits.
    """

    space: StudentSpace
    fits: Callable[[Genome], bool]

    def chooser(self, choose: Chooser) -> Chooser:
        """The same chooser, for whole trees, shown only the options that can be completed within the limits."""
        chosen: Genome = {}

        def choose_within(options: Sequence[Node]) -> Node:
            if options[0].ret is self.space.grammar.root:
                chosen.clear()
            if options[0].arity:
                return choose(options)
            node = choose([n for n in options if self.fits(chosen | self.space.genome([n]))])
            chosen.update(self.space.genome([node]))
            return node

        return choose_within

    def repair(self, tree: Tree, stream: Random) -> Tree:
        """The tree if it fits, or one near it: slots in random order keep their choices for as long as the others can still follow."""
        genome, kept = self.space.genome(tree), {}
        if self.fits(genome):
            return tree
        for slot in stream.sample(list(self.space.slots), len(self.space.slots)):
            choices = [choice for choice in self.space.slots[slot] if self.fits(kept | {slot: choice})]
            kept[slot] = genome[slot] if genome[slot] in choices else stream.choice(choices)
        return self.space.tree(kept)

    def guard(self, stream: Random) -> Callable[[Callable], Callable]:
        """A decorator of DEAP operators that repairs their children: `toolbox.decorate("mate", limited.guard(stream))`."""

        def decorate(operator: Callable) -> Callable:
            def operate(*args, **kwargs) -> tuple[Tree, ...]:
                children = operator(*args, **kwargs)
                for child in children:
                    child[0 : len(child)] = self.repair(child, stream)
                return children

            return operate

        return decorate


def limited(
    space: StudentSpace,
    limits: Limits,
    classes: int,
    channels: int = 3,
    side: int = 32,
    latency_of: Callable[[Genome], float] | None = None,
) -> Limited:
    """The space within limits.

    Parameters and multiply–accumulates come in closed form: a part of a genome fits if it does with the cheapest choice in every open
    slot, which is exact where each slot has a choice that is never dearer than another. Latencies follow no such rule, so all genomes
    that meet such a limit are listed.

    Args:
        space: all students.
        limits: what one may cost.
        classes: K.
        channels: C of the images.
        side: H and W of the images.
        latency_of: genome → milliseconds on the limits' device, for `max_latency_ms`.

    Raises:
        EvokdError: limits that no genome meets, or a latency limit without latencies or in a space that cannot be listed.
    """
    costs = {
        "max_params": lambda genome: space.cost(genome, classes, channels, side).parameters,
        "max_macs": lambda genome: space.cost(genome, classes, channels, side).macs,
        "max_latency_ms": latency_of,
    }
    rules = [Rule(name, cost, getattr(limits, name)) for name, cost in costs.items() if getattr(limits, name) < math.inf]
    if limits.max_latency_ms == math.inf:
        return Limited(space, _completed(space, rules))
    if latency_of is None:
        raise EvokdError("max_latency_ms", "a table of latencies", "none", "limit max_macs instead")
    if space.count() > LISTED:
        raise EvokdError(
            "max_latency_ms", f"a space of at most {LISTED:,} students", f"{space.count():.1e}", "limit max_macs instead"
        )
    return Limited(space, _listed(space, rules, limits.device))


class Rule(NamedTuple):
    name: str
    cost: Callable[[Genome], float]
    limit: float


def _listed(space: StudentSpace, rules: Sequence[Rule], device: str) -> Callable[[Genome], bool]:
    """Whether some genome among all that meet the rules has these choices."""
    genomes = list(space.genomes())
    costs = [[rule.cost(genome) for genome in genomes] for rule in rules]
    _check_least(space, rules, [min(each) for each in costs], device)
    holders: dict[tuple[str, str], set[int]] = defaultdict(set)
    found = {i for i, row in enumerate(zip(*costs, strict=True)) if all(c <= r.limit for c, r in zip(row, rules, strict=True))}
    for i in found:
        for item in genomes[i].items():
            holders[item].add(i)
    if not found:
        raise _none_meets_all(space, rules)
    return lambda part: bool(found.intersection(*(holders.get(item, ()) for item in part.items())))


def _completed(space: StudentSpace, rules: Sequence[Rule]) -> Callable[[Genome], bool]:
    """Whether these choices meet the rules with the cheapest choice in every other slot."""
    _check_least(space, rules, [rule.cost(_cheapest(space, rule.cost)) for rule in rules])

    def shares(genome: Genome) -> tuple[float, float]:
        found = [rule.cost(genome) / rule.limit for rule in rules] or [0.0]
        return max(found), sum(found)  # the sum decides where a slot changes only what is not the tightest

    def fits(part: Genome) -> bool:
        return all(rule.cost(cheapest | part) <= rule.limit for rule in rules)

    cheapest = _cheapest(space, shares)
    if not fits({}):
        raise _none_meets_all(space, rules)
    return fits


def _cheapest(space: StudentSpace, cost: Callable[[Genome], Comparable]) -> Genome:
    """In every slot the choice of least cost; where choices tie beside the cheapest others, the least beside the dearest ones."""
    dearest = _settled(space, max, lambda others, slot, choice: cost({**others, slot: choice}))
    return _settled(space, min, lambda others, slot, choice: (cost({**others, slot: choice}), cost({**dearest, slot: choice})))


def _settled(space: StudentSpace, pick: Callable, key: Callable[[Genome, str, str], Comparable]) -> Genome:
    """Slot by slot the choice that is picked beside the others, until nothing changes."""
    genome = {slot: choices[0] for slot, choices in space.slots.items()}
    while True:
        before = dict(genome)
        for slot, choices in space.slots.items():
            genome[slot] = pick(choices, key=partial(key, genome, slot))
        if genome == before:
            return genome


def _check_least(space: StudentSpace, rules: Sequence[Rule], least: Sequence[float], device: str = "") -> None:
    for rule, value in zip(rules, least, strict=True):
        if value > rule.limit:
            where = f"{rule.name} on {device}" if device and rule.name == "max_latency_ms" else rule.name
            needed = math.ceil(value * 1000) / 1000
            raise EvokdError(where, f"at least {needed:,.12g}, the least in {space.name}", f"{rule.limit:,}")


def _none_meets_all(space: StudentSpace, rules: Sequence[Rule]) -> EvokdError:
    names, limits = " and ".join(rule.name for rule in rules), ", ".join(f"{rule.limit:,}" for rule in rules)
    return EvokdError(names, f"limits that one student of {space.name} meets together", limits)
