"""A space of students: a genome of typed slots, each with its choices, and the network that a genome stands for.

Genomes are the same DEAP trees as losses: a root over the slots (or over groups of slots, where their names have a group before the dot),
every slot a kind of its own, so that crossover exchanges like with like and no mutation can build nonsense.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod

from torch import nn

from evokd.errors import EvokdError
from evokd.genome.codec import from_names
from evokd.genome.grammar import Grammar, Node, Rule, Tree, kind

Genome = dict[str, str]  # slot → choice, in the order of the slots


@dataclass(frozen=True)
class Cost:
    """What a student costs for one image.

    Attributes:
        parameters: all trainable numbers.
        macs: multiply–accumulates of convolutions and linear layers alone.
        live_parameters: parameters on a path from input to output.
        depth: layers with weights on the longest path.
    """

    parameters: int
    macs: int
    live_parameters: int
    depth: int


@dataclass(frozen=True)
class StudentSpace:
    """A language of students.

    Attributes:
        name: shown to users.
        slots: slot → its choices. `block1.kernel` is the slot `kernel` of the group `block1`.
        network: (genome, classes, channels of the images) → untrained network whose forward returns `Taps`.
        write: genome → text; read: text → genome, raising EvokdError for a genome outside the space.
        key_of: genome → text that is the same for genomes of one and the same network.
        cost: (genome, classes, channels, side of the images) → cost, in closed form.
        diagram: genome → a few lines of text that show the network.
    """

    name: str
    slots: Mapping[str, tuple[str, ...]]
    network: Callable[[Genome, int, int], nn.Module]
    write: Callable[[Genome], str]
    read: Callable[[str], Genome]
    key_of: Callable[[Genome], str]
    cost: Callable[[Genome, int, int, int], Cost]
    diagram: Callable[[Genome], str]

    @cached_property
    def grammar(self) -> Grammar:
        return Grammar(
            self.name,
            self._rules.values(),
            "net",
            2 if self._groups else 1,
            write=lambda tree: self.write(self.genome(tree)),
        )

    @cached_property
    def _groups(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for slot in self.slots:
            if "." in slot:
                found.setdefault(slot.partition(".")[0], []).append(slot)
        return found

    @cached_property
    def _rules(self) -> dict[str, Rule]:
        """The root over groups or slots, the groups over their slots, the choices as terminals."""
        rules = [Rule("net", "net", tuple(self._groups or self.slots))]
        rules += [Rule(group, group, tuple(slots)) for group, slots in self._groups.items()]
        rules += [Rule(f"{slot}={choice}", slot) for slot, choices in self.slots.items() for choice in choices]
        return {rule.name: rule for rule in rules}

    def genome(self, tree: Sequence[Node]) -> Genome:
        """Slot → choice."""
        return dict(node.name.split("=", 1) for node in tree if node.arity == 0)

    def tree(self, genome: Genome) -> Tree:
        """The DEAP tree of a genome.

        Raises:
            EvokdError: a slot that is missing, or a choice that the space does not have.
        """
        names = ["net"]
        for slot in self.slots:
            group = slot.partition(".")[0]
            if self._groups and slot == self._groups[group][0]:
                names.append(group)
            if genome.get(slot) not in self.slots[slot]:
                raise EvokdError(f"{self.name}, {slot}", "one of " + ", ".join(self.slots[slot]), repr(genome.get(slot))[:40])
            names.append(f"{slot}={genome[slot]}")
        return self.tree_from_names(names)

    def tree_from_names(self, names: Sequence[str], where: str = "tree") -> Tree:
        """The inverse of `codec.to_names` for this space."""
        return from_names(names, lambda name: self._rules[name].node() if name in self._rules else None, kind("net"), where)

    def parse(self, text: str) -> Tree:
        """Text → tree.

        Raises:
            EvokdError: a genome outside the space.
        """
        return self.tree(self.read(text))

    def build(self, tree: Sequence[Node], num_classes: int, channels: int = 3) -> nn.Module:
        """The untrained network; its forward returns `Taps`. Initialised from torch's global generator, as any module."""
        return self.network(self.genome(tree), num_classes, channels)

    def key(self, tree: Sequence[Node]) -> str:
        """The same for trees of one and the same network."""
        return self.key_of(self.genome(tree))

    def count(self) -> int:
        """Exact number of genomes."""
        return prod(len(choices) for choices in self.slots.values())

    def genomes(self) -> Iterator[Genome]:
        """All genomes, the last slot's choices fastest."""
        for choices in product(*self.slots.values()):
            yield dict(zip(self.slots, choices, strict=True))
