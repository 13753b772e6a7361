"""What a controller is: it proposes trees and is told what became of them. Nothing else flows between it and the loop."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

from evokd.genome.individual import Individual


class Controller(Protocol):
    """Proposals are drawn from the stream that `ask` is given, so a controller's whole state is what it was told."""

    def ask(self, generation: int, stream: random.Random) -> Individual:
        """One proposal; it may repeat an earlier one, which the loop sees and asks again."""

    def tell(self, individuals: Sequence[Individual]) -> None:
        """A finished generation in the order of proposal, failures included."""
