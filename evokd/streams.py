"""Named random streams: every draw in evokd comes from (seed, names), never from a global generator or from call order."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager


def derive(seed: int, *names: object) -> int:
    """A 63-bit seed for one named purpose: the same names give the same seed in any process."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, *names: object) -> random.Random:
    """A fresh generator for one named purpose. A controller takes one per generation, so nothing needs saving."""
    return random.Random(derive(seed, *names))


@contextmanager
def lend(source: random.Random) -> Iterator[None]:
    """Seed the global `random` from a stream for code that draws from it (DEAP's operators), and restore it afterwards."""
    before = random.getstate()
    random.seed(source.getrandbits(64))
    try:
        yield
    finally:
        random.setstate(before)
